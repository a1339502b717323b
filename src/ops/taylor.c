/* Features of second order: checks and gradient. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

struct job {
    const fv_taylor_args *args;
    fv_tensor gradient, d_x; /* d_x zeroed, contiguous */
};

static void backward_row(void *user, int64_t row, int thread)
{
    const struct job *job = user;
    const fv_tensor *x = &job->args->x;
    int last = x->rank - 1;
    int64_t C = x->dims[last], xs = x->strides[last], gs = job->gradient.strides[last];
    const float *from = (const float *)x->data + fv_lead_offset(x, last, row);
    const float *g = (const float *)job->gradient.data + fv_lead_offset(&job->gradient, last, row) + gs;
    float *to = (float *)job->d_x.data + row * C;

    (void)thread;
    for (int64_t i = 0; i < C; i++, g += gs)
        to[i] += *g;
    for (int64_t i = 0; i < C; i++) {
        to[i] += *g * (float)M_SQRT2 * from[i * xs];
        g += gs;
        for (int64_t j = i + 1; j < C; j++, g += gs) {
            to[i] += *g * from[j * xs];
            to[j] += *g * from[i * xs];
        }
    }
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_taylor_args *a = args;
    struct job job = {.args = a, .gradient = fv_tape_shadow(ctx, &a->out)};
    fv_tensor x = fv_tape_shadow(ctx, &a->x);

    FV_TRY(fv_tensor_zeros(ctx, &job.d_x, FV_F32, a->x.rank, a->x.dims));
    fv_run(ctx, fv_lead_count(&a->x, a->x.rank - 1), backward_row, &job);
    fv_add_into(ctx, &x, &job.d_x, 1);
    return FV_OK;
}

fv_status fv_taylor_rows(fv_ctx *ctx, const fv_taylor_args *args)
{
    int64_t shape[FV_MAX_RANK], *width, C;

    FV_TRY(fv_check_rank("taylor", "x", &args->x, FV_TYPE(FV_F32), 1, FV_MAX_RANK));
    memcpy(shape, args->x.dims, sizeof shape);
    width = &shape[args->x.rank - 1];
    C = *width;
    if (C > INT32_MAX) return fv_fail(FV_E_SHAPE, "taylor: x: %lld channels have too many products", (long long)C);
    *width = 1 + C + C * (C + 1) / 2;
    FV_TRY(fv_check("taylor", "out", &args->out, FV_TYPE(FV_F32), args->x.rank, shape));
    if (fv_tensor_count(&args->out) > 0) FV_TRY(ctx->backend->taylor(ctx, args));
    return FV_TAPE_RECORD(ctx, backward, args, 1, &args->x, &args->out);
}
