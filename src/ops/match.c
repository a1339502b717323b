/* The best matches of gathered rows: checks. */
#include "ops/backend.h"
#include "ops/check.h"

static void widen(const int32_t *restrict at, int64_t count, int32_t *low, int32_t *high)
{
    int32_t least = *low, most = *high;

    for (int64_t m = 0; m < count; m++) {
        least = at[m] < least ? at[m] : least;
        most = at[m] > most ? at[m] : most;
    }
    *low = least;
    *high = most;
}

static fv_status check_index(const fv_tensor *index, int64_t rows)
{
    bool whole = fv_tensor_contiguous(index);
    int last = whole ? 0 : index->rank - 1;
    int64_t count = whole ? fv_tensor_count(index) : index->dims[last], step = whole ? 1 : index->strides[last];
    int32_t low = -1, high = -1;

    for (int64_t n = 0; n < (count > 0 ? fv_lead_count(index, last) : 0); n++) {
        const int32_t *at = (const int32_t *)index->data + fv_lead_offset(index, last, n);
        if (step == 1) widen(at, count, &low, &high);
        for (int64_t m = 0; step != 1 && m < count; m++)
            widen(at + m * step, 1, &low, &high);
    }
    if (low >= -1 && high < rows) return FV_OK;
    return fv_fail(FV_E_ARGUMENT, "match: index: expected -1 to %lld, got %d", (long long)rows - 1,
                   low < -1 ? low : high);
}

fv_status fv_match(fv_ctx *ctx, const fv_match_args *args)
{
    fv_match_args m = *args;
    int lead = m.out.rank - 1;
    int64_t shape[FV_MAX_RANK];

    FV_TRY(fv_check_rank("match", "out", &m.out, FV_TYPE(FV_F32), 1, FV_MAX_RANK - 1));
    FV_TRY(fv_check_rank("match", "x", &m.x, FV_TYPE(FV_F32), 2, lead + 2));
    FV_TRY(fv_check_rank("match", "y", &m.y, FV_TYPES_ROWS, 2, lead + 2));
    FV_TRY(fv_check_rank("match", "index", &m.index, FV_TYPE(FV_I32), 2, lead + 2));
    memcpy(shape, m.out.dims, (size_t)lead * sizeof *shape);
    shape[lead] = m.x.dims[m.x.rank - 2];
    shape[lead + 1] = m.x.dims[m.x.rank - 1];
    FV_TRY(fv_check_broadcast("match", "x", &m.x, FV_TYPE(FV_F32), lead + 2, shape));
    m.x = fv_broadcast(&m.x, lead + 2, shape);
    shape[lead] = m.y.dims[m.y.rank - 2];
    FV_TRY(fv_check_broadcast("match", "y", &m.y, FV_TYPES_ROWS, lead + 2, shape));
    m.y = fv_broadcast(&m.y, lead + 2, shape);
    shape[lead] = m.out.dims[lead];
    shape[lead + 1] = m.index.dims[m.index.rank - 1];
    FV_TRY(fv_check_broadcast("match", "index", &m.index, FV_TYPE(FV_I32), lead + 2, shape));
    FV_TRY(check_index(&m.index, m.y.dims[lead]));
    m.index = fv_broadcast(&m.index, lead + 2, shape);
    return fv_tensor_count(&m.out) > 0 ? ctx->backend->match(ctx, &m) : FV_OK;
}
