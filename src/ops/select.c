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

/* ---- counting sort --------------------------------------------------------------------------------------------- */

/* Long rows are cut into slices that count and place their keys apart: a slice begins, for each key, where the slices
 * before it end, so that equal keys keep their order however many slices there are.  Bound by the latency of counters
 * and places: 2^20 keys take 1.8 ns each and thread below 64, 2.4 ns below 4096. */
enum { SLICE = 16384, SLICES = 16 };

struct sort {
    const int32_t *keys;
    int64_t n, bound, *start;
    int32_t *order;
    int64_t slices, slice; /* of a row, and keys of each */
    int64_t *places;       /* [count * slices, bound]: first counts, then where the next of a key goes */
    int64_t *bad;          /* [count * slices]: the first key that is none, or -1 */
};

static void count_keys(void *user, int64_t item, int thread)
{
    const struct sort *s = user;
    int64_t *count = s->places + item * s->bound, from = item % s->slices * s->slice;
    const int32_t *keys = s->keys + item / s->slices * s->n;

    (void)thread;
    memset(count, 0, (size_t)s->bound * sizeof *count);
    s->bad[item] = -1;
    for (int64_t i = from; i < fv_min(from + s->slice, s->n); i++) {
        if (keys[i] < -1 || keys[i] >= s->bound) {
            s->bad[item] = item / s->slices * s->n + i;
            return;
        }
        if (keys[i] >= 0) count[keys[i]]++;
    }
}

static void sum_counts(void *user, int64_t row, int thread)
{
    const struct sort *s = user;
    int64_t *start = s->start + row * (s->bound + 1), *places = s->places + row * s->slices * s->bound, sum = 0;

    (void)thread;
    for (int64_t b = 0; b < s->bound; b++) {
        start[b] = sum;
        for (int64_t slice = 0; slice < s->slices; slice++) {
            int64_t *place = places + slice * s->bound + b, count = *place;
            *place = sum;
            sum += count;
        }
    }
    start[s->bound] = sum;
}

static void place_keys(void *user, int64_t item, int thread)
{
    const struct sort *s = user;
    int64_t *place = s->places + item * s->bound, row = item / s->slices, from = item % s->slices * s->slice;
    const int32_t *keys = s->keys + row * s->n;
    int32_t *order = s->order + row * s->n;

    (void)thread;
    for (int64_t i = from; i < fv_min(from + s->slice, s->n); i++)
        if (keys[i] >= 0) order[place[keys[i]]++] = (int32_t)i;
}

static fv_status sort_rows(fv_ctx *ctx, struct sort *s, int64_t count)
{
    int64_t items = count * s->slices, places;

    if (!fv_mul_i64(items, s->bound, &places)) return fv_fail(FV_E_MEMORY, "sort: the number of counts overflows");
    FV_TRY(FV_SCRATCH(ctx, s->places, places));
    FV_TRY(FV_SCRATCH(ctx, s->bad, items));
    fv_run(ctx, items, count_keys, s);
    for (int64_t item = 0; item < items; item++)
        if (s->bad[item] >= 0)
            return fv_fail(FV_E_ARGUMENT, "sort: key %lld of row %lld: expected -1 to %lld, got %d",
                           (long long)(s->bad[item] % s->n), (long long)(s->bad[item] / s->n), (long long)s->bound - 1,
                           s->keys[s->bad[item]]);
    fv_run(ctx, count, sum_counts, s);
    fv_run(ctx, items, place_keys, s);
    return fv_ctx_check(ctx);
}

fv_status fv_sort_by_key(fv_ctx *ctx, const int32_t *keys, int64_t count, int64_t n, int64_t bound, int32_t *order,
                         int64_t *start)
{
    struct sort sort = {keys, n, bound, start, order, 1, n, NULL, NULL};
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status;
    int64_t total;

    if (n < 0 || n > INT32_MAX || bound < 0 || bound > INT32_MAX || !fv_mul_i64(count, n, &total))
        return fv_fail(FV_E_ARGUMENT, "sort: %lld rows of %lld keys below %lld are not what it can take",
                       (long long)count, (long long)n, (long long)bound);
    /* counts of a slice are few beside its keys */
    sort.slices = fv_clamp(n / fv_max(SLICE, 4 * bound), 1, SLICES);
    sort.slice = fv_ceil_div(n, sort.slices);
    status = sort_rows(ctx, &sort, count);
    fv_scratch_release(ctx, mark);
    return status;
}
