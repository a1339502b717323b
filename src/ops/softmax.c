/* Softmax over the last dim: checks and gradient. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

struct job {
    const fv_softmax_args *softmax;
    fv_tensor gradient, d_x;
};

/* d_x = scale p (g - sum p g) */
static void backward_row(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_tensor *out = &job->softmax->out, *gradient = &job->gradient;
    int lead = out->rank - 1;
    const float *p = (const float *)out->data + fv_lead_offset(out, lead, index);
    const float *g = (const float *)gradient->data + fv_lead_offset(gradient, lead, index);
    float *d_x = (float *)job->d_x.data + index * out->dims[lead];
    double scale = job->softmax->scale == 0 ? 1 : job->softmax->scale, sum = 0;

    (void)thread;
    for (int64_t i = 0; i < out->dims[lead]; i++)
        sum += (double)p[i * out->strides[lead]] * g[i * gradient->strides[lead]];
    for (int64_t i = 0; i < out->dims[lead]; i++)
        d_x[i] = (float)(scale * p[i * out->strides[lead]] * (g[i * gradient->strides[lead]] - sum));
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_softmax_args *s = args;
    struct job job = {.softmax = s, .gradient = fv_tape_shadow(ctx, &s->out)};
    fv_tensor x = fv_tape_shadow(ctx, &s->x);

    FV_TRY(fv_tensor_new(ctx, &job.d_x, FV_F32, s->x.rank, s->x.dims));
    fv_run(ctx, fv_lead_count(&s->x, s->x.rank - 1), backward_row, &job);
    fv_add_into(ctx, &x, &job.d_x, 1);
    return FV_OK;
}

fv_status fv_softmax(fv_ctx *ctx, const fv_softmax_args *args)
{
    fv_softmax_args s = *args;

    FV_TRY(fv_check_rank("softmax", "x", &args->x, FV_TYPE(FV_F32), 1, FV_MAX_RANK));
    FV_TRY(fv_check("softmax", "out", &args->out, FV_TYPE(FV_F32), args->x.rank, args->x.dims));
    FV_TRY(fv_check_apart(ctx, "softmax", &args->x, &args->out));
    if (s.scale == 0) s.scale = 1;
    if (fv_tensor_count(&args->x) > 0) FV_TRY(ctx->backend->softmax(ctx, &s));
    return FV_TAPE_RECORD(ctx, backward, args, 1, &args->x, &args->out);
}
