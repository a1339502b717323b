/* S2-Attention: every head keeps a window of blocks and, of the blocks behind it, those that are its own; the heads
 * together may hold them all. */
#include "cache/block_rule.h"

struct shard {
    int64_t block, local, stride, offset, dense_heads;
    bool homo;
};

static const fv_option options[] = {
    FV_INT(struct shard, block, 64, 1, INT32_MAX, "tokens that are kept and dropped together"),
    FV_INT(struct shard, local, 32, 1, INT32_MAX, "last blocks, the newest one included"),
    FV_INT(struct shard, stride, 8, 1, INT32_MAX, "of the blocks before, a head keeps one in so many; 1: all"),
    FV_INT(struct shard, offset, 0, 0, INT32_MAX, "shifts the blocks that a head keeps"),
    FV_BOOL(struct shard, homo, 0, "all heads keep the same blocks"),
    FV_INT(struct shard, dense_heads, 0, 0, INT32_MAX, "last key-value heads that keep everything"),
    FV_OPTIONS_END,
};

static fv_shards shards_of(const struct shard *o)
{
    return (fv_shards){.block = o->block, .local = o->local, .stride = o->stride, .offset = o->offset, .homo = o->homo};
}

static fv_status open(fv_policy_use *use)
{
    const struct shard *o = use->options;
    fv_shards shards = shards_of(o);

    if (o->dense_heads > use->model->key_heads)
        return fv_fail(FV_E_USAGE,
                       "shard: option 'dense_heads': expected 0 to %lld (this model's key-value heads), "
                       "got %lld",
                       (long long)use->model->key_heads, (long long)o->dense_heads);
    if (use->layers > 0)
        fv_shards_warn(&shards, use->model, "shard", use->model->key_heads - o->dense_heads, &use->warning);
    return FV_OK;
}

static bool is_dense(const fv_policy_use *use, int64_t head)
{
    const struct shard *o = use->options;

    return head >= use->model->key_heads - o->dense_heads;
}

static fv_block_rule rule_of(const fv_policy_use *use, int64_t head)
{
    fv_shards shards = shards_of(use->options);

    return fv_shards_rule(&shards, use->model, head);
}

static bool alike(const fv_policy_layer *layer)
{
    const struct shard *o = layer->use->options;

    return (o->homo || o->stride == 1) && o->dense_heads == 0;
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    fv_block_rule rule = rule_of(layer->use, fv_max(head, 0));

    if (is_dense(layer->use, fv_max(head, 0))) return FV_OK;
    return fv_block_rule_plan(ctx, &rule, layer->rows, fv_max(head, 0), call, plan);
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    (void)ctx;
    for (int64_t g = 0; g < layer->rows->options.heads && !is_dense(layer->use, g); g++) {
        fv_block_rule rule = rule_of(layer->use, g);
        FV_TRY(fv_block_rule_trim(&rule, layer->rows, g, call));
    }
    return FV_OK;
}

static int64_t bound(const fv_policy_use *use, int64_t place)
{
    const struct shard *o = use->options;
    fv_block_rule rule = rule_of(use, 0);

    (void)place;
    return o->dense_heads > 0 ? INT64_MAX : fv_block_rule_bound(&rule, use->model->context);
}

const fv_policy fv_policy_shard = {
    .name = "shard",
    .title = "Blocks shared out among heads (S2-Attention)",
    .paper = "arXiv 2407.17678",
    .sheet = 86,
    .traits = FV_POLICY_POSITION | FV_POLICY_PER_HEAD | FV_POLICY_BOUNDED | FV_POLICY_CHUNKS,
    .keeps = "with P = p div block and J = j div block: P - J < local or (J + g step + offset) mod stride == 0, where "
             "step = max(1, stride div query heads)",
    .cost = "block (local + blocks of the text / stride) rows a layer and key-value head",
    .sweep = "stride=FACTOR",
    .options = options,
    .options_size = sizeof(struct shard),
    .open = open,
    .alike = alike,
    .plan = plan,
    .after = after,
    .bound = bound,
};
