#include <math.h>

#include "ops/ref/pieces.h"
#include "ops/ref/ref.h"

/* Rows in double, of each thread. */
struct rows {
    const void *args;
    float *row;    /* [threads, D] */
    double *x, *y; /* the same: of the query, and one of the few */
};

/* Each row of x [B,H,N,D]. */
static fv_status run_rows(fv_ctx *ctx, const fv_tensor *x, fv_item_fn *item, const void *args)
{
    int64_t floats = fv_ctx_threads(ctx) * x->dims[3];
    fv_mark mark = fv_arena_mark(ctx->arena);
    struct rows w = {.args = args};
    fv_status status;

    FV_TRY_DONE(FV_SCRATCH(ctx, w.row, floats));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.x, floats));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.y, floats));
    fv_run(ctx, x->dims[0] * x->dims[1] * x->dims[2], item, &w);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}

static int32_t index_at(const fv_sampled_dots_args *a, int64_t b, int64_t h, int64_t i, int64_t r)
{
    return *(int32_t *)fv_at(&a->index, b, h, i, r);
}

static void multiply_row(void *user, int64_t item, int thread)
{
    const struct rows *w = user;
    const fv_sampled_dots_args *a = w->args;
    int64_t H = a->x.dims[1], N = a->x.dims[2], D = a->x.dims[3], i = item % N, h = item / N % H, b = item / N / H;
    double *x = w->x + thread * D, *y = w->y + thread * D;

    fv_ref_load(&a->x, b, h, i, w->row + thread * D, x);
    for (int64_t r = 0; r < a->out.dims[3]; r++) {
        int32_t row = index_at(a, b, h, i, r);
        double sum = 0;
        if (row >= 0) fv_ref_load(&a->y, b, h / (H / a->y.dims[1]), row, w->row + thread * D, y);
        for (int64_t d = 0; row >= 0 && d < D; d++)
            sum += x[d] * y[d];
        *(float *)fv_at(&a->out, b, h, i, r) = row < 0 ? -INFINITY : (float)(a->scale * sum);
    }
}

fv_status fv_ref_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args)
{
    return run_rows(ctx, &args->x, multiply_row, args);
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

/* The row of y that entry r of a query counts, -1: none. */
static int32_t counted(const fv_sampled_sums_args *a, int64_t b, int64_t h, int64_t i, int64_t r)
{
    return *(float *)fv_at(&a->weight, b, h, i, r) == -INFINITY ? -1 : *(int32_t *)fv_at(&a->index, b, h, i, r);
}

static void sum_row(void *user, int64_t item, int thread)
{
    const struct rows *w = user;
    const fv_sampled_sums_args *a = w->args;
    int64_t H = a->out.dims[1], N = a->out.dims[2], D = a->out.dims[3], i = item % N, h = item / N % H,
            b = item / N / H;
    double *y = w->y + thread * D, *sum = w->x + thread * D;

    memset(sum, 0, (size_t)D * sizeof *sum);
    for (int64_t r = 0; r < a->weight.dims[3]; r++) {
        int32_t row = counted(a, b, h, i, r);
        if (row < 0) continue;
        fv_ref_load(&a->y, b, h / (H / a->y.dims[1]), row, w->row + thread * D, y);
        for (int64_t d = 0; d < D; d++)
            sum[d] += *(float *)fv_at(&a->weight, b, h, i, r) * y[d];
    }
    for (int64_t d = 0; d < D; d++)
        *(float *)fv_at(&a->out, b, h, i, d) = (float)sum[d];
}

fv_status fv_ref_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args)
{
    return run_rows(ctx, &args->out, sum_row, args);
}

/* All rows that meet in a head of y. */
static void spread_head(void *user, int64_t item, int thread)
{
    const fv_sampled_sums_args *a = user;
    int64_t Hx = a->y.dims[1], group = a->out.dims[1] / Hx, D = a->out.dims[3], b = item / Hx, hx = item % Hx;

    (void)thread;
    for (int64_t h = hx * group; h < (hx + 1) * group; h++)
        for (int64_t i = 0; i < a->out.dims[2]; i++)
            for (int64_t r = 0; r < a->weight.dims[3]; r++) {
                int32_t row = counted(a, b, h, i, r);
                for (int64_t d = 0; row >= 0 && d < D; d++)
                    *(float *)fv_at(&a->y, b, hx, row, d) +=
                        *(float *)fv_at(&a->weight, b, h, i, r) * *(float *)fv_at(&a->out, b, h, i, d);
            }
}

fv_status fv_ref_sampled_spread(fv_ctx *ctx, const fv_sampled_sums_args *args)
{
    fv_run(ctx, args->y.dims[0] * args->y.dims[1], spread_head, (void *)args);
    return fv_ctx_check(ctx);
}
