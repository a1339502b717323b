/* The blocks that each query chose: their lists, and attention over them, the loops turned round where that is faster.
 */
#include "attention/sparse/core.h"

/* Bytes of partial results held at once when the loops are turned round. */
#define PART_BYTES ((int64_t)64 << 20)

/* ---- select ----------------------------------------------------------------------------------------------------- */

fv_status fv_choice_new(fv_ctx *ctx, const fv_call *call, int64_t chosen, fv_choice *choice)
{
    return fv_tensor_new(ctx, &choice->index, FV_I32, FV_DIMS(call->batch, choice->heads, call->queries, chosen));
}

fv_status fv_choice_between(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t top, int64_t init, int64_t local,
                            fv_choice *choice)
{
    int64_t between = fv_max(fv_ceil_div(call->keys, block) - init - local, 0);

    *choice = (fv_choice){
        .block = block, .init = init, .first = init * block, .tail = (local - 1) * block + 1, .heads = call->key_heads};
    return fv_choice_new(ctx, call, fv_min(top - init - local, between), choice);
}

/* The first block of the tail at position p, which may lie among the first ones or before them. */
static int64_t tail_block(const fv_choice *choice, int64_t p)
{
    int64_t behind = p + 1 - choice->tail - choice->first;

    return choice->init + (behind >= 0 ? behind / choice->block : -1);
}

fv_status fv_choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice, int64_t from, const fv_tensor *scores)
{
    int64_t count = scores->dims[2], blocks = scores->dims[3], lists = call->batch * choice->heads;
    int64_t *valid;
    fv_tensor index = fv_slice(&choice->index, 2, from, count);

    FV_TRY(FV_SCRATCH(ctx, valid, lists * count));
    for (int64_t row = 0; row < lists * count; row++) {
        int64_t tail = tail_block(choice, call->offset + from + row % count);
        valid[row] = call->causal ? fv_clamp(tail - choice->init, 0, blocks) : blocks;
    }
    return fv_select(ctx, &(fv_select_args){.scores = *scores, .index = index, .valid = valid});
}

static fv_status choose_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const fv_chooser *c = user;

    return fv_choose(ctx, c->call, c->choice, from, scores);
}

fv_status fv_choose_by_product(fv_ctx *ctx, const fv_call *call, fv_choice *choice, const fv_tensor *q,
                               const fv_tensor *keys)
{
    return fv_score_blocks(ctx, call, q, keys, choice->first, choice->block, 1, choose_rows,
                           &(fv_chooser){call, choice});
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

/* Whether each block has a softmax of its own, and what is known of it is given. */
static bool is_given(const fv_choice *choice)
{
    return fv_present(&choice->weight) || fv_present(&choice->gate);
}

/* Blocks of one query. */
static void list_query(const fv_call *call, const fv_choice *choice, int64_t b, int64_t h, int64_t i,
                       fv_list_builder *lists)
{
    int64_t p = call->offset + i, behind = p - choice->first;
    int64_t end = choice->init + (behind >= 0 ? behind / choice->block + 1 : 0); /* of what it may see */

    if (call->causal && p < 0) return; /* sees nothing */
    if (call->causal && !is_given(choice)) {
        int64_t init =
            choice->first == choice->init * choice->block ? fv_min(choice->init, p / choice->block + 1) : choice->init;
        fv_lists_add_range(lists, 0, init);
        fv_lists_add_range(lists, tail_block(choice, p), end);
    }
    if (fv_present(&choice->mask)) {
        const uint8_t *mask = fv_at(&choice->mask, b, h, i, 0);
        for (int64_t n = 0; n < choice->mask.dims[3]; n++)
            for (unsigned bits = mask[n]; bits; bits &= bits - 1)
                fv_lists_add(lists, choice->init + 8 * n + __builtin_ctz(bits));
        return;
    }
    const int32_t *index = fv_at(&choice->index, b, h, i, 0);
    for (int64_t n = 0; n < choice->index.dims[3] && index[n] >= 0; n++)
        fv_lists_add(lists, choice->init + index[n]);
}

/* Starts of the blocks where the first one has a length of its own. */
static fv_status shifted(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, const int64_t **start,
                         int64_t *blocks)
{
    int64_t *made, behind = fv_max(call->keys - choice->first, 0);

    *blocks = choice->init + fv_ceil_div(behind, choice->block);
    FV_TRY(FV_SCRATCH(ctx, made, *blocks + 1));
    made[0] = 0;
    for (int64_t c = 0; c <= *blocks - choice->init; c++)
        made[choice->init + c] = fv_min(choice->first + c * choice->block, call->keys);
    *start = made;
    return FV_OK;
}

fv_status fv_choice_plan(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan)
{
    const int64_t *start = choice->key_start;
    int64_t blocks = choice->key_blocks;
    fv_list_shape shape = fv_call_lists(call, choice->heads, 1, choice->block);
    fv_list_builder lists;

    if (!start && choice->first != choice->init * choice->block) FV_TRY(shifted(ctx, call, choice, &start, &blocks));
    shape.key_start = start;
    shape.key_blocks = blocks;
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t b = 0; b < call->batch; b++)
        for (int64_t h = 0; h < choice->heads; h++)
            for (int64_t i = 0; i < call->queries; i++) {
                fv_lists_row(&lists);
                list_query(call, choice, b, h, i, &lists);
            }
    return fv_lists_end(&lists, plan);
}

/* ---- the loops turned round ------------------------------------------------------------------------------------- */

/* Lists of queries by key block, and the slots of each query's partial results. */
struct turned {
    fv_lists lists;
    int64_t slots; /* of the (batch, head) that has most */
    int64_t *slot_start;
    int32_t *slot;
    int32_t *place; /* [entries] of each slot: query * choices + the number of its choice */
};

/* Turns the lists of one (batch, head), those of queries 0..n-1 from `row` on, into its part of *turned. */
static fv_status turn(fv_ctx *ctx, const fv_lists *lists, int64_t row, int64_t n, int64_t choices, int32_t *query_index,
                      int64_t *query_start, int32_t *slot, int32_t *place)
{
    int64_t first = lists->row_start[row], count = lists->row_start[row + n] - first;
    int32_t *order, *query;

    FV_TRY(FV_SCRATCH(ctx, order, count));
    FV_TRY(FV_SCRATCH(ctx, query, count));
    for (int64_t i = 0; i < n; i++)
        for (int64_t e = lists->row_start[row + i]; e < lists->row_start[row + i + 1]; e++)
            query[e - first] = (int32_t)i;
    FV_TRY(fv_sort_by_key(ctx, lists->entry + first, 1, count, lists->key_blocks, order, query_start));
    for (int64_t s = 0; s < count; s++) {
        int32_t i = query[order[s]];
        query_index[s] = i;
        slot[order[s]] = (int32_t)s;
        place[s] = (int32_t)(i * choices + order[s] - (lists->row_start[row + i] - first));
    }
    return FV_OK;
}

/* The slots of query heads that share a list are numbered alike. */
static fv_status number_slots(fv_ctx *ctx, const fv_call *call, const fv_lists *lists, int64_t heads,
                              const int32_t *slot, struct turned *turned)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries, group = H / heads, total = 0;

    FV_TRY(FV_SCRATCH(ctx, turned->slot_start, B * H * N + 1));
    FV_TRY(FV_SCRATCH(ctx, turned->slot, lists->row_start[B * heads * N] * group));
    turned->slot_start[0] = 0;
    for (int64_t plane = 0; plane < B * H; plane++) {
        int64_t row = plane / group * N;
        for (int64_t i = 0; i < N; i++) {
            int64_t from = lists->row_start[row + i], count = lists->row_start[row + i + 1] - from;
            if (count) memcpy(turned->slot + total, slot + from, (size_t)count * sizeof *slot);
            total += count;
            turned->slot_start[plane * N + i + 1] = total;
        }
    }
    return FV_OK;
}

static fv_status turn_all(fv_ctx *ctx, const fv_call *call, const fv_lists *lists, const fv_choice *choice,
                          struct turned *turned)
{
    int64_t heads = choice->heads, planes = call->batch * heads, N = call->queries, blocks = lists->key_blocks, entries;
    int32_t *query_index, *slot, *entry;
    int64_t *query_start, *row_start;

    entries = lists->row_start[planes * N];
    FV_TRY(FV_SCRATCH(ctx, query_index, entries));
    FV_TRY(FV_SCRATCH(ctx, slot, entries));
    FV_TRY(FV_SCRATCH(ctx, turned->place, entries));
    FV_TRY(FV_SCRATCH(ctx, entry, planes * blocks));
    FV_TRY(FV_SCRATCH(ctx, query_start, planes * blocks + 1));
    FV_TRY(FV_SCRATCH(ctx, row_start, planes * blocks + 1));
    turned->slots = 0;
    for (int64_t plane = 0; plane < planes; plane++) {
        int64_t base = lists->row_start[plane * N], *start = query_start + plane * blocks;
        FV_TRY(turn(ctx, lists, plane * N, N, choice->index.dims[3], query_index + base, start, slot + base,
                    turned->place + base));
        turned->slots = fv_max(turned->slots, start[blocks]);
        for (int64_t g = 0; g <= blocks; g++)
            start[g] += base;
        for (int64_t g = 0; g < blocks; g++) {
            row_start[plane * blocks + g] = plane * blocks + g;
            entry[plane * blocks + g] = (int32_t)g;
        }
    }
    row_start[planes * blocks] = planes * blocks;
    turned->lists = (fv_lists){.query_block = N,
                               .key_block = lists->key_block,
                               .key_start = lists->key_start,
                               .groups = blocks,
                               .key_blocks = blocks,
                               .query_start = query_start,
                               .query_index = query_index,
                               .batch_stride = heads * blocks,
                               .head_stride = blocks,
                               .heads = heads,
                               .row_start = row_start,
                               .entry = entry};
    return number_slots(ctx, call, lists, heads, slot, turned);
}

/* The weight or gate of each slot [B,H,slots] from those of each choice [B,1|H,N,K]. */
static fv_status spread_slots(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, const struct turned *turned,
                              const fv_tensor *given, fv_tensor *slots)
{
    int64_t B = call->batch, H = call->query_heads, S = turned->slots, group = H / choice->heads, blocks;
    fv_tensor from, index, out;

    blocks = turned->lists.groups;
    FV_TRY(fv_plain(ctx, given, &from));
    from = fv_reshaped(&from, FV_DIMS(B, from.dims[1], call->queries * choice->index.dims[3], 1));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, H, S)));
    FV_TRY(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(B, H, S, 1)));
    for (int64_t plane = 0; plane < B * H; plane++) {
        const int64_t *start = turned->lists.query_start + plane / group * blocks;
        int64_t count = start[blocks] - start[0];
        int32_t *to = (int32_t *)index.data + plane * S;
        if (count) memcpy(to, turned->place + start[0], (size_t)count * sizeof *to);
        memset(to + count, -1, (size_t)(S - count) * sizeof *to);
    }
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = from, .index = index, .out = out}));
    *slots = fv_reshaped(&out, FV_DIMS(B, H, S));
    return FV_OK;
}

static fv_status attend_by_block(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan)
{
    struct turned turned;
    fv_attend_args attend = fv_call_attend(call, plan);

    FV_TRY_CHOOSING(ctx, turn_all(ctx, call, &plan->lists, choice, &turned));
    plan->lists = turned.lists;
    FV_TRY(
        fv_tensor_new(ctx, &attend.o, FV_F32, FV_DIMS(call->batch, call->query_heads, turned.slots, call->value_dim)));
    FV_TRY(fv_tensor_new(ctx, &attend.lse, FV_F32, FV_DIMS(call->batch, call->query_heads, turned.slots)));
    FV_TRY(fv_attend(ctx, &attend));
    fv_merge_args merge = {.parts = 1,
                           .o_part = {attend.o},
                           .slot_start = turned.slot_start,
                           .slot = turned.slot,
                           .o = call->o,
                           .lse = call->lse};
    if (fv_present(&choice->weight))
        FV_TRY(spread_slots(ctx, call, choice, &turned, &choice->weight, &merge.weight[0]));
    else if (fv_present(&choice->gate))
        FV_TRY(spread_slots(ctx, call, choice, &turned, &choice->gate, &merge.lse_part[0]));
    else
        merge.lse_part[0] = attend.lse;
    return fv_merge(ctx, &merge);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* What is attended to, and whether the loops are turned round. */
struct attending {
    const fv_call *call;
    const fv_choice *choice;
    bool turned;
};

/* Queries from .. of what was chosen, or given, for each of a call. */
static fv_tensor rows_of(const fv_tensor *x, int64_t from, int64_t count)
{
    return fv_present(x) ? fv_slice(x, 2, from, count) : *x;
}

static fv_status attend_part(fv_ctx *ctx, const fv_call *part, void *user)
{
    const struct attending *a = user;
    int64_t from = part->offset - a->call->offset, count = part->queries;
    fv_plan plan = {.causal = part->causal, .offset = part->offset};
    fv_attend_args attend = fv_call_attend(part, &plan);
    fv_choice choice = *a->choice;

    choice.index = rows_of(&choice.index, from, count);
    choice.mask = rows_of(&choice.mask, from, count);
    choice.weight = rows_of(&choice.weight, from, count);
    choice.gate = rows_of(&choice.gate, from, count);
    FV_TRY_CHOOSING(ctx, fv_choice_plan(ctx, part, &choice, &plan));
    if (!a->turned) return fv_attend_counted(ctx, part, &attend);
    FV_TRY(fv_count_pairs(ctx, part, &plan, part->keys));
    return attend_by_block(ctx, part, &choice, &plan);
}

/* Blocks that a query chose, rounded up from their mean where their number varies. */
static int64_t chosen_by_query(const fv_choice *choice)
{
    int64_t bytes = fv_tensor_count(&choice->mask), chosen = 0;

    if (!fv_present(&choice->mask)) return choice->index.dims[3];
    for (int64_t n = 0; n < bytes; n++)
        chosen += __builtin_popcount(((const uint8_t *)choice->mask.data)[n]);
    return chosen * choice->mask.dims[3] / fv_max(bytes, 1) + 1;
}

fv_status fv_choice_attend(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, bool by_block)
{
    int64_t lists = choice->init + choice->tail / choice->block + 2 + chosen_by_query(choice);
    int64_t row = call->batch * call->query_heads * (call->value_dim + 1) * 4 * lists; /* bytes of one query */
    struct attending attending = {call, choice, by_block || is_given(choice)};
    int64_t step = attending.turned ? fv_clamp(PART_BYTES / row, 64, call->queries) : call->queries;

    return fv_run_stretches(ctx, call, step, attend_part, &attending);
}

fv_status fv_choice_forward(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose)
{
    fv_choice choice;
    int64_t read;

    FV_TRY_CHOOSING(ctx, choose(ctx, call, &choice));
    read = choice.first + choice.tail + choice.index.dims[3] * choice.block;
    /* where much is read, neighbours read much alike */
    return fv_choice_attend(ctx, call, &choice, call->queries > 1 && 2 * read < call->keys);
}

fv_status fv_choice_map(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose, fv_pairs *pairs)
{
    fv_choice choice;

    FV_TRY_CHOOSING(ctx, choose(ctx, call, &choice));
    return fv_choice_plan(ctx, call, &choice, &pairs->plan);
}
