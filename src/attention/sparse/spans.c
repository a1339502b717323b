/* A span of keys for each query.  Those of a head are sorted by where they begin, so that the rows of a tile read
 * nearly the same keys, whatever queries they are of. */
#include "attention/sparse/core.h"

enum { SORT_KEYS = 64, FEW = 64 }; /* spans are sorted by so many keys; so few of a head are read one by one */

static fv_status new_slots(fv_ctx *ctx, const fv_call *call, int64_t spans, int64_t groups, fv_span_slots *s)
{
    int64_t planes = call->batch * call->query_heads, *query_start, *row_start;
    int32_t *query, *from, *to, *entry;

    FV_TRY(FV_SCRATCH(ctx, query, planes * spans));
    FV_TRY(FV_SCRATCH(ctx, from, planes * spans));
    FV_TRY(FV_SCRATCH(ctx, to, planes * spans));
    FV_TRY(FV_SCRATCH(ctx, s->slot, planes * spans));
    FV_TRY(FV_SCRATCH(ctx, query_start, planes * groups + 1));
    FV_TRY(FV_SCRATCH(ctx, row_start, planes * groups + 1));
    FV_TRY(FV_SCRATCH(ctx, entry, planes * groups));
    for (int64_t row = 0; row <= planes * groups; row++)
        row_start[row] = row;
    memset(entry, 0, (size_t)(planes * groups) * sizeof *entry);
    s->plan = (fv_plan){.offset = call->offset,
                        .lists = {.query_block = spans,
                                  .key_block = call->keys,
                                  .groups = groups,
                                  .key_blocks = 1,
                                  .query_start = query_start,
                                  .query_index = query,
                                  .slot_from = from,
                                  .slot_to = to,
                                  .batch_stride = call->query_heads * groups,
                                  .head_stride = groups,
                                  .heads = call->query_heads,
                                  .row_start = row_start,
                                  .entry = entry}};
    return FV_OK;
}

/* Slots of a head: `count` spans in their order, from slot `first` of all on. */
static void fill_slots(const fv_spans *spans, int64_t plane, int64_t first, int64_t count, const int32_t *order,
                       fv_span_slots *s)
{
    const fv_lists *lists = &s->plan.lists;
    int64_t R = spans->from.dims[3], row = plane * lists->groups, base = plane * spans->from.dims[2] * R;
    int32_t *query = (int32_t *)lists->query_index + first;
    int32_t *from = (int32_t *)lists->slot_from + first, *to = (int32_t *)lists->slot_to + first;

    for (int64_t g = 0; g <= lists->groups; g++)
        ((int64_t *)lists->query_start)[row + g] = first + (lists->groups > 1 ? fv_min(g, count) : g * count);
    for (int64_t n = 0; n < count; n++) {
        query[n] = (int32_t)(order[n] / R);
        from[n] = ((const int32_t *)spans->from.data)[base + order[n]];
        to[n] = ((const int32_t *)spans->to.data)[base + order[n]];
        s->slot[base + order[n]] = (int32_t)n;
    }
}

fv_status fv_spans_lay_out(fv_ctx *ctx, const fv_call *call, const fv_spans *spans, fv_span_slots *s)
{
    int64_t planes = call->batch * call->query_heads, count = call->queries * spans->from.dims[3], first = 0;
    int64_t bound = call->keys / SORT_KEYS + 1, *start;
    const int32_t *from = spans->from.data, *to = spans->to.data;
    int32_t *key, *order;

    FV_TRY(new_slots(ctx, call, count, count <= FEW ? count : 1, s));
    FV_TRY(FV_SCRATCH(ctx, key, planes * count));
    FV_TRY(FV_SCRATCH(ctx, order, planes * count));
    FV_TRY(FV_SCRATCH(ctx, start, planes * (bound + 1)));
    for (int64_t n = 0; n < planes * count; n++) {
        key[n] = from[n] < to[n] ? from[n] / SORT_KEYS : -1;
        s->slot[n] = -1;
    }
    FV_TRY(fv_sort_by_key(ctx, key, planes, count, bound, order, start));
    s->slots = 0;
    for (int64_t plane = 0; plane < planes; plane++) {
        int64_t own = start[plane * (bound + 1) + bound];
        fill_slots(spans, plane, first, own, order + plane * count, s);
        s->slots = fv_max(s->slots, own);
        first += own;
    }
    return FV_OK;
}

/* The r-th span of each query and what it reads besides, of which part [B,H,N + slots,Dv] has rows first. */
static fv_status join(fv_ctx *ctx, const fv_call *call, const fv_span_slots *s, int64_t spans, int64_t r, bool besides,
                      const fv_tensor *part, const fv_tensor *lse, const fv_tensor *o)
{
    int64_t N = call->queries, rows = call->batch * call->query_heads * N, *start, count = 0;
    int32_t *slot;

    FV_TRY(FV_SCRATCH(ctx, start, rows + 1));
    FV_TRY(FV_SCRATCH(ctx, slot, 2 * rows));
    for (int64_t row = 0; row < rows; row++) {
        int32_t span = s->slot[row * spans + r];
        start[row] = count;
        if (besides) slot[count++] = (int32_t)(row % N);
        if (span >= 0) slot[count++] = (int32_t)(N + span);
    }
    start[rows] = count;
    return fv_merge(ctx,
                    &(fv_merge_args){
                        .parts = 1, .o_part = {*part}, .lse_part = {*lse}, .slot_start = start, .slot = slot, .o = *o});
}

/* Into rows from .. from+count-1 of part and lse. */
static fv_status attend(fv_ctx *ctx, const fv_call *call, const fv_plan *plan, int64_t from, int64_t count,
                        const fv_tensor *part, const fv_tensor *lse)
{
    fv_attend_args attend = fv_call_attend(call, plan);

    attend.o = fv_slice(part, 2, from, count);
    attend.lse = fv_slice(lse, 2, from, count);
    return fv_attend_counted(ctx, call, &attend);
}

fv_status fv_spans_attend(fv_ctx *ctx, const fv_call *call, const fv_span_slots *s, const fv_plan *besides,
                          int64_t spans, const fv_tensor *o)
{
    int64_t N = call->queries, rows = N + s->slots;
    fv_tensor part, lse;

    FV_TRY(fv_tensor_new(ctx, &part, FV_F32, FV_DIMS(call->batch, call->query_heads, rows, call->value_dim)));
    FV_TRY(fv_tensor_new(ctx, &lse, FV_F32, FV_DIMS(call->batch, call->query_heads, rows)));
    if (besides) FV_TRY(attend(ctx, call, besides, 0, N, &part, &lse));
    if (s->slots > 0) FV_TRY(attend(ctx, call, &s->plan, N, s->slots, &part, &lse));
    for (int64_t r = 0; r < spans; r++)
        FV_TRY(join(ctx, call, s, spans, r, besides != NULL, &part, &lse, &o[r]));
    return FV_OK;
}
