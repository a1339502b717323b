/* Products of rows with a few others each: checks and gradients. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_index(const fv_tensor *index, int64_t rows)
{
    for (int64_t n = 0; n < fv_lead_count(index, 3); n++) {
        const int32_t *at = (const int32_t *)index->data + fv_lead_offset(index, 3, n);
        for (int64_t r = 0; r < index->dims[3]; r++)
            if (at[r * index->strides[3]] < -1 || at[r * index->strides[3]] >= rows)
                return fv_fail(FV_E_ARGUMENT, "sampled dots: index %lld: expected -1 to %lld, got %d",
                               (long long)(n * index->dims[3] + r), (long long)rows - 1, at[r * index->strides[3]]);
    }
    return FV_OK;
}

/* Checks a call and spreads its index to [B,H,N,R]. */
static fv_status prepare(const fv_sampled_dots_args *args, fv_sampled_dots_args *a)
{
    const fv_tensor *x = &args->x, *y = &args->y;

    *a = *args;
    if (a->scale == 0) a->scale = 1;
    FV_TRY(fv_check_rank("sampled dots", "x", x, FV_TYPE(FV_F32), 4, 4));
    FV_TRY(fv_check("sampled dots", "y", y, FV_TYPES_ROWS, FV_DIMS(x->dims[0], FV_ANY, FV_ANY, x->dims[3])));
    if (y->dims[1] == 0 || x->dims[1] % y->dims[1] != 0)
        return fv_fail(FV_E_SHAPE, "sampled dots: %lld heads of y do not divide %lld of x", (long long)y->dims[1],
                       (long long)x->dims[1]);
    FV_TRY(
        fv_check("sampled dots", "out", &a->out, FV_TYPE(FV_F32), FV_DIMS(x->dims[0], x->dims[1], x->dims[2], FV_ANY)));
    FV_TRY(fv_check_rank("sampled dots", "index", &a->index, FV_TYPE(FV_I32), 4, 4));
    FV_TRY(fv_check_broadcast("sampled dots", "index", &a->index, FV_TYPE(FV_I32), 4, a->out.dims));
    FV_TRY(check_index(&a->index, y->dims[2]));
    a->index = fv_broadcast(&a->index, 4, a->out.dims);
    return FV_OK;
}

static fv_status walk_back(fv_ctx *ctx, const void *args)
{
    const fv_sampled_dots_args *a = args;
    fv_tensor d_out = fv_tape_shadow(ctx, &a->out), d_x = fv_tape_shadow(ctx, &a->x), d_y = fv_tape_shadow(ctx, &a->y);

    return ctx->backend->sampled_dots_backward(ctx, a, &d_out, &d_x, &d_y);
}

fv_status fv_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args)
{
    fv_sampled_dots_args a;

    FV_TRY(prepare(args, &a));
    if (fv_tensor_count(&a.out) == 0) return FV_OK;
    FV_TRY(ctx->backend->sampled_dots(ctx, &a));
    return FV_TAPE_RECORD(ctx, walk_back, &a, 2, &a.x, &a.y, &a.out);
}
