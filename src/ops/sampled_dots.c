/* Products of rows with a few others each, and sums of a few: checks and gradients, which are each other's. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_index(const char *op, const fv_tensor *index, int64_t rows)
{
    for (int64_t n = 0; n < fv_lead_count(index, 3); n++) {
        const int32_t *at = (const int32_t *)index->data + fv_lead_offset(index, 3, n);
        for (int64_t r = 0; r < index->dims[3]; r++)
            if (at[r * index->strides[3]] < -1 || at[r * index->strides[3]] >= rows)
                return fv_fail(FV_E_ARGUMENT, "%s: index %lld: expected -1 to %lld, got %d", op,
                               (long long)(n * index->dims[3] + r), (long long)rows - 1, at[r * index->strides[3]]);
    }
    return FV_OK;
}

/* x [B,H,N,D] and few [B,H,N,R] beside y; spreads the index to [B,H,N,R]. */
static fv_status check_sampled(const char *op, const char *x_name, const fv_tensor *x, const char *few_name,
                               const fv_tensor *few, const fv_tensor *y, fv_tensor *index)
{
    FV_TRY(fv_check_rank(op, x_name, x, FV_TYPE(FV_F32), 4, 4));
    FV_TRY(fv_check(op, "y", y, FV_TYPES_ROWS, FV_DIMS(x->dims[0], FV_ANY, FV_ANY, x->dims[3])));
    if (y->dims[1] == 0 || x->dims[1] % y->dims[1] != 0)
        return fv_fail(FV_E_SHAPE, "%s: %lld heads of y do not divide %lld of %s", op, (long long)y->dims[1],
                       (long long)x->dims[1], x_name);
    FV_TRY(fv_check(op, few_name, few, FV_TYPE(FV_F32), FV_DIMS(x->dims[0], x->dims[1], x->dims[2], FV_ANY)));
    FV_TRY(fv_check_rank(op, "index", index, FV_TYPE(FV_I32), 4, 4));
    FV_TRY(fv_check_broadcast(op, "index", index, FV_TYPE(FV_I32), 4, few->dims));
    FV_TRY(check_index(op, index, y->dims[2]));
    *index = fv_broadcast(index, 4, few->dims);
    return FV_OK;
}

/* Adds scale * weight * x to the rows of d_y that the index names. */
static fv_status spread(fv_ctx *ctx, const fv_tensor *weight, const fv_tensor *index, const fv_tensor *x, float scale,
                        const fv_tensor *d_y)
{
    fv_sampled_sums_args sums = {.weight = *weight, .index = *index, .out = *x};

    FV_TRY(fv_tensor_zeros(ctx, &sums.y, FV_F32, 4, d_y->dims));
    FV_TRY(ctx->backend->sampled_spread(ctx, &sums));
    fv_add_into(ctx, d_y, &sums.y, scale);
    return FV_OK;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

static fv_status dots_backward(fv_ctx *ctx, const void *args)
{
    const fv_sampled_dots_args *a = args;
    fv_tensor d_out = fv_tape_shadow(ctx, &a->out), d_x = fv_tape_shadow(ctx, &a->x), d_y = fv_tape_shadow(ctx, &a->y);
    fv_sampled_sums_args sums = {.weight = d_out, .y = a->y, .index = a->index};

    if (fv_present(&d_x)) {
        FV_TRY(fv_tensor_new(ctx, &sums.out, FV_F32, 4, d_x.dims));
        FV_TRY(ctx->backend->sampled_sums(ctx, &sums));
        fv_add_into(ctx, &d_x, &sums.out, a->scale);
    }
    return fv_present(&d_y) ? spread(ctx, &d_out, &a->index, &a->x, a->scale, &d_y) : FV_OK;
}

fv_status fv_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args)
{
    fv_sampled_dots_args a = *args;

    if (a.scale == 0) a.scale = 1;
    FV_TRY(check_sampled("sampled dots", "x", &a.x, "out", &a.out, &a.y, &a.index));
    if (fv_tensor_count(&a.out) == 0) return FV_OK;
    FV_TRY(ctx->backend->sampled_dots(ctx, &a));
    return FV_TAPE_RECORD(ctx, dots_backward, &a, 2, &a.x, &a.y, &a.out);
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

/* Products with what does not count are 0. */
struct hide {
    const fv_sampled_sums_args *sums;
    fv_tensor dots;
};

static void hide_row(void *user, int64_t item, int thread)
{
    const struct hide *hide = user;
    const fv_tensor *weight = &hide->sums->weight, *index = &hide->sums->index;
    int64_t R = weight->dims[3];
    const float *w = (const float *)weight->data + fv_lead_offset(weight, 3, item);
    const int32_t *row = (const int32_t *)index->data + fv_lead_offset(index, 3, item);
    float *dot = (float *)hide->dots.data + item * R;

    (void)thread;
    for (int64_t r = 0; r < R; r++)
        if (row[r * index->strides[3]] < 0 || w[r * weight->strides[3]] == -INFINITY) dot[r] = 0;
}

static fv_status sums_backward(fv_ctx *ctx, const void *args)
{
    const fv_sampled_sums_args *a = args;
    fv_tensor d_out = fv_tape_shadow(ctx, &a->out), d_y = fv_tape_shadow(ctx, &a->y);
    fv_tensor d_weight = fv_tape_shadow(ctx, &a->weight);
    struct hide hide = {.sums = a};

    if (fv_present(&d_weight)) {
        FV_TRY(fv_tensor_new(ctx, &hide.dots, FV_F32, 4, d_weight.dims));
        FV_TRY(ctx->backend->sampled_dots(
            ctx, &(fv_sampled_dots_args){.x = d_out, .y = a->y, .index = a->index, .out = hide.dots, .scale = 1}));
        fv_run(ctx, fv_lead_count(&hide.dots, 3), hide_row, &hide);
        fv_add_into(ctx, &d_weight, &hide.dots, 1);
    }
    return fv_present(&d_y) ? spread(ctx, &a->weight, &a->index, &d_out, 1, &d_y) : FV_OK;
}

fv_status fv_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args)
{
    fv_sampled_sums_args a = *args;

    FV_TRY(check_sampled("sampled sums", "out", &a.out, "weight", &a.weight, &a.y, &a.index));
    if (fv_tensor_count(&a.out) == 0) return FV_OK;
    FV_TRY(ctx->backend->sampled_sums(ctx, &a));
    return FV_TAPE_RECORD(ctx, sums_backward, &a, 2, &a.weight, &a.y, &a.out);
}
