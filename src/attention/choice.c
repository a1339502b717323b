#include "attention/choice.h"

/* Bytes of partial results held at once when the loops are turned round. */
#define PART_BYTES ((int64_t)8 << 20)

fv_status fv_choice_new(fv_ctx *ctx, const fv_call *call, int64_t chosen, fv_choice *choice)
{
    return fv_tensor_new(ctx, &choice->index, FV_I32, FV_DIMS(call->batch, choice->heads, call->queries, chosen));
}

fv_status fv_choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice, int64_t from, const fv_tensor *scores)
{
    int64_t count = scores->dims[2], blocks = scores->dims[3], lists = call->batch * choice->heads;
    int64_t candidates = fv_max(blocks - choice->init, 0), *valid;
    fv_tensor index = fv_slice(&choice->index, 2, from, count);

    FV_TRY(FV_SCRATCH(ctx, valid, lists * count));
    for (int64_t row = 0; row < lists * count; row++) {
        int64_t own = (call->offset + from + row % count) / choice->block;
        valid[row] = fv_clamp(own + 1 - choice->local - choice->init, 0, candidates);
    }
    return fv_select(ctx, &(fv_select_args){.scores = fv_slice(scores, 3, blocks - candidates, candidates),
                                            .index = index,
                                            .valid = valid});
}

fv_status fv_choice_plan(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan)
{
    const fv_tensor *index = &choice->index;
    fv_list_builder lists;

    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = 1,
                                           .key_block = choice->block,
                                           .batches = call->batch,
                                           .heads = choice->heads,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = call->offset}));
    for (int64_t b = 0; b < call->batch; b++)
        for (int64_t h = 0; h < choice->heads; h++)
            for (int64_t i = 0; i < call->queries; i++) {
                int64_t own = (call->offset + i) / choice->block;
                fv_lists_row(&lists);
                if (call->offset + i < 0) continue; /* sees nothing */
                fv_lists_add_range(&lists, 0, fv_min(choice->init, own + 1));
                fv_lists_add_range(&lists, own + 1 - choice->local, own + 1);
                for (int64_t n = 0; n < index->dims[3]; n++) {
                    int32_t block = *(const int32_t *)fv_at(index, b, h, i, n);
                    if (block < 0) break;
                    fv_lists_add(&lists, choice->init + block);
                }
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
};

/* Turns the lists of one (batch, head): entries entry[first..last) of queries 0..n-1. */
static fv_status turn(fv_ctx *ctx, const fv_lists *lists, int64_t row, int64_t n, int32_t *query_index,
                      int64_t *query_start, int32_t *slot)
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
        query_index[s] = query[order[s]];
        slot[order[s]] = (int32_t)s;
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

static fv_status turn_all(fv_ctx *ctx, const fv_call *call, const fv_lists *lists, int64_t heads, struct turned *turned)
{
    int64_t planes = call->batch * heads, N = call->queries, blocks = lists->key_blocks, entries;
    int32_t *query_index, *slot, *entry;
    int64_t *query_start, *row_start;

    entries = lists->row_start[planes * N];
    FV_TRY(FV_SCRATCH(ctx, query_index, entries));
    FV_TRY(FV_SCRATCH(ctx, slot, entries));
    FV_TRY(FV_SCRATCH(ctx, entry, planes * blocks));
    FV_TRY(FV_SCRATCH(ctx, query_start, planes * blocks + 1));
    FV_TRY(FV_SCRATCH(ctx, row_start, planes * blocks + 1));
    turned->slots = 0;
    for (int64_t plane = 0; plane < planes; plane++) {
        int64_t base = lists->row_start[plane * N], *start = query_start + plane * blocks;
        FV_TRY(turn(ctx, lists, plane * N, N, query_index + base, start, slot + base));
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

static fv_status attend_by_block(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_attend_args *attend,
                                 fv_plan *plan)
{
    struct turned turned;
    fv_tensor o = attend->o, lse = attend->lse;

    FV_TRY(turn_all(ctx, call, &plan->lists, choice->heads, &turned));
    plan->lists = turned.lists;
    FV_TRY(fv_tensor_zeros(ctx, &attend->o, FV_F32,
                           FV_DIMS(call->batch, call->query_heads, turned.slots, call->value_dim)));
    FV_TRY(fv_tensor_zeros(ctx, &attend->lse, FV_F32, FV_DIMS(call->batch, call->query_heads, turned.slots)));
    FV_TRY(fv_attend(ctx, attend));
    return fv_merge(ctx, &(fv_merge_args){.parts = 1,
                                          .o_part = {attend->o},
                                          .lse_part = {attend->lse},
                                          .slot_start = turned.slot_start,
                                          .slot = turned.slot,
                                          .o = o,
                                          .lse = lse});
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static fv_status attend_part(fv_ctx *ctx, const fv_call *part, const fv_choice *choice, bool by_block,
                             fv_attend_args *attend)
{
    fv_plan plan = {.causal = true, .offset = part->offset};

    attend->plan = &plan;
    FV_TRY(fv_choice_plan(ctx, part, choice, &plan));
    return by_block ? attend_by_block(ctx, part, choice, attend, &plan) : fv_attend(ctx, attend);
}

fv_status fv_choice_attend(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, bool by_block, const fv_tensor *q,
                           const fv_tensor *k, const fv_tensor *o, const fv_tensor *lse)
{
    int64_t lists = choice->init + choice->local + choice->index.dims[3];
    int64_t row = call->batch * call->query_heads * (call->value_dim + 1) * 4 * lists; /* bytes of one query */
    int64_t step = by_block ? fv_clamp(PART_BYTES / row, 64, call->queries) : call->queries;
    fv_status status = FV_OK;

    for (int64_t from = 0; from < call->queries && status == FV_OK; from += step) {
        int64_t count = fv_min(step, call->queries - from);
        fv_mark mark = fv_scratch_mark(ctx);
        fv_call part = *call;
        fv_choice chosen = *choice;
        fv_attend_args attend = {.q = fv_slice(q, 2, from, count),
                                 .k = *k,
                                 .v = call->v,
                                 .o = fv_slice(o, 2, from, count),
                                 .logits = fv_call_logits(call)};
        if (fv_present(lse)) attend.lse = fv_slice(lse, 2, from, count);
        part.queries = count;
        part.offset = call->offset + from;
        chosen.index = fv_slice(&choice->index, 2, from, count);
        status = attend_part(ctx, &part, &chosen, by_block, &attend);
        fv_scratch_release(ctx, mark);
    }
    return status;
}
