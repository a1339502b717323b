/* Selection of the largest scores, and the counting sort. */
#include <limits.h>

#include "ops/backend.h"
#include "ops/check.h"

fv_status fv_select(fv_ctx *ctx, const fv_select_args *args)
{
    int64_t shape[FV_MAX_RANK];
    int last = args->scores.rank - 1;

    FV_TRY(fv_check_rank("select", "scores", &args->scores, FV_TYPE(FV_F32), 1, FV_MAX_RANK));
    memcpy(shape, args->scores.dims, sizeof shape);
    FV_TRY(fv_check_optional("select", "count", &args->count, FV_TYPE(FV_I32), last, shape));
    shape[last] = FV_ANY;
    FV_TRY(fv_check("select", "index", &args->index, FV_TYPE(FV_I32), last + 1, shape));
    if (args->scores.dims[last] > INT_MAX)
        return fv_fail(FV_E_SHAPE, "select: scores: expected rows of at most %d, got shape %s", INT_MAX,
                       fv_shape_text(&args->scores));
    return fv_lead_count(&args->scores, last) > 0 ? ctx->backend->select(ctx, args) : FV_OK;
}

struct sort {
    const int32_t *keys;
    int64_t n, bound, *start;
    int32_t *order;
};

/* The places of a key are found by counting; start[b] walks through them and is moved back at the end. */
static void sort_row(void *user, int64_t index, int thread)
{
    const struct sort *s = user;
    const int32_t *keys = s->keys + index * s->n;
    int32_t *order = s->order + index * s->n;
    int64_t *start = s->start + index * (s->bound + 1);

    (void)thread;
    memset(start, 0, (size_t)(s->bound + 1) * sizeof *start);
    for (int64_t i = 0; i < s->n; i++)
        if (keys[i] >= 0) start[keys[i] + 1]++;
    for (int64_t b = 0; b < s->bound; b++)
        start[b + 1] += start[b];
    for (int64_t i = 0; i < s->n; i++)
        if (keys[i] >= 0) order[start[keys[i]]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)s->bound * sizeof *start);
    start[0] = 0;
}

fv_status fv_sort_by_key(fv_ctx *ctx, const int32_t *keys, int64_t count, int64_t n, int64_t bound, int32_t *order,
                         int64_t *start)
{
    struct sort sort = {keys, n, bound, start, order};
    int64_t total;

    if (n < 0 || n > INT32_MAX || bound < 0 || bound > INT32_MAX || !fv_mul_i64(count, n, &total))
        return fv_fail(FV_E_ARGUMENT, "sort: %lld rows of %lld keys below %lld are not what it can take",
                       (long long)count, (long long)n, (long long)bound);
    for (int64_t i = 0; i < total; i++)
        if (keys[i] < -1 || keys[i] >= bound)
            return fv_fail(FV_E_ARGUMENT, "sort: key %lld of row %lld: expected -1 to %lld, got %d", (long long)(i % n),
                           (long long)(i / n), (long long)bound - 1, keys[i]);
    fv_run(ctx, count, sort_row, &sort);
    return FV_OK;
}
