/* Who sees whom by blocks of positions. */
#include "cache/block_rule.h"

#include "attention/lists.h"

static int64_t step_of(const fv_shards *shards, const fv_cache_model *model)
{
    return fv_max(shards->stride / model->query_heads, 1);
}

fv_block_rule fv_shards_rule(const fv_shards *shards, const fv_cache_model *model, int64_t head)
{
    return (fv_block_rule){.block = shards->block,
                           .local = shards->local,
                           .stride = shards->stride,
                           .residue = shards->offset + (shards->homo ? 0 : head * step_of(shards, model))};
}

/* A step is so small that heads come to the same residue again only where all residues are taken.  (So a stride of more
 * than the key-value heads leaves blocks to nobody, also where heads * step reaches it.) */
void fv_shards_warn(const fv_shards *shards, const fv_cache_model *model, const char *name, int64_t owners,
                    fv_text *warning)
{
    int64_t owned = fv_min(shards->homo ? 1 : owners, shards->stride);

    if (owned == shards->stride || owners == 0) return;
    fv_text_printf(warning,
                   "%s: outside the window %lld of every %lld blocks belong to one of the %lld key-value heads (step "
                   "%lld); no shard has the others",
                   name, (long long)owned, (long long)shards->stride, (long long)owners,
                   (long long)(shards->homo ? 0 : step_of(shards, model)));
}

static bool owns(const fv_block_rule *rule, int64_t block)
{
    return (block + rule->residue) % rule->stride == 0;
}

/* Blocks [from, to) that leave the window while the queries of a call are read: rows of the blocks before are gone
 * unless they are owned. */
static void leaving(const fv_block_rule *rule, const fv_policy_call *call, int64_t *from, int64_t *to)
{
    int64_t before = fv_max(call->offset - 1, 0) / rule->block;

    *from = fv_max(before - rule->local + 1, 0);
    *to = (call->offset + call->queries - 1) / rule->block - rule->local + 1;
}

fv_status fv_block_rule_plan(fv_ctx *ctx, const fv_block_rule *rule, const fv_rows *rows, int64_t head,
                             const fv_policy_call *call, fv_plan *plan)
{
    const int32_t *position = fv_rows_positions(rows, head);
    int64_t keys = fv_rows_count(rows, head), from, to;
    fv_list_builder builder;

    leaving(rule, call, &from, &to);
    while (from < to && owns(rule, from))
        from++;
    if (from >= to) return FV_OK;
    FV_TRY(fv_lists_begin(ctx, &builder,
                          &(fv_list_shape){.query_block = rule->block,
                                           .key_block = rule->block,
                                           .queries = call->queries,
                                           .keys = keys,
                                           .offset = call->offset}));
    for (int64_t n = 0; n < builder.groups; n++) {
        int64_t query = fv_lists_first_block(&builder) + n;
        fv_lists_row(&builder);
        for (int64_t place = 0; place < builder.key_blocks; place++) {
            int64_t key = position[place * rule->block] / rule->block;
            if (key > query) break;
            if (query - key < rule->local || owns(rule, key)) fv_lists_add(&builder, place);
        }
    }
    return fv_lists_end(&builder, plan);
}

fv_status fv_block_rule_trim(const fv_block_rule *rule, fv_rows *rows, int64_t head, const fv_policy_call *call)
{
    int64_t from, to;

    leaving(rule, call, &from, &to);
    for (int64_t block = to - 1; block >= from; block--)
        if (!owns(rule, block)) FV_TRY(fv_rows_forget(rows, head, block * rule->block, (block + 1) * rule->block));
    return FV_OK;
}

int64_t fv_block_rule_bound(const fv_block_rule *rule, int64_t context)
{
    int64_t blocks = fv_ceil_div(context, rule->block);

    return (fv_min(rule->local, blocks) + fv_ceil_div(blocks, rule->stride)) * rule->block;
}

fv_status fv_rows_forget(fv_rows *rows, int64_t head, int64_t from, int64_t to)
{
    int64_t first = fv_rows_below(rows, head, from), end = fv_rows_below(rows, head, to);

    return end > first ? fv_rows_erase(rows, head, first, end - first) : FV_OK;
}
