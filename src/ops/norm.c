/* Root-mean-square and layer normalisation: checks and gradients. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_norm(const fv_ctx *ctx, const fv_norm_args *n)
{
    FV_TRY(fv_check_rank("norm", "x", &n->x, FV_TYPE(FV_F32), 1, FV_MAX_RANK));
    FV_TRY(fv_check("norm", "out", &n->out, FV_TYPE(FV_F32), n->x.rank, n->x.dims));
    FV_TRY(fv_check_optional("norm", "weight", &n->weight, FV_TYPES_FLOAT, FV_DIMS(n->x.dims[n->x.rank - 1])));
    FV_TRY(fv_check_optional("norm", "bias", &n->bias, FV_TYPES_FLOAT, FV_DIMS(n->x.dims[n->x.rank - 1])));
    FV_TRY(fv_check_optional("norm", "add", &n->add, FV_TYPE(FV_F32), n->x.rank, n->x.dims));
    FV_TRY(fv_check_optional("norm", "add_weight", &n->add_weight, FV_TYPES_FLOAT, FV_DIMS(n->x.dims[n->x.rank - 1])));
    FV_TRY(fv_check_optional("norm", "sum", &n->sum, FV_TYPE(FV_F32), n->x.rank, n->x.dims));
    if (!fv_present(&n->add) && (fv_present(&n->add_weight) || fv_present(&n->sum)))
        return fv_fail(FV_E_ARGUMENT, "norm: add: expected a tensor with add_weight or sum, got none");
    if (!(n->epsilon >= 0))
        return fv_fail(FV_E_ARGUMENT, "norm: epsilon: expected 0 or more, got %g", (double)n->epsilon);
    return fv_check_apart(ctx, "norm", &n->x, &n->out);
}

struct job {
    const fv_norm_args *norm;
    fv_tensor gradient;      /* of out */
    fv_tensor d_x, d_weight; /* written row by row; of x's shape */
};

/* With u = (x - mean) / s and g = gradient * weight:  d_x = (g - mean(g) - u mean(g u)) / s; rms has no means of x and
 * g. */
static void backward_row(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_norm_args *n = job->norm;
    int lead = n->x.rank - 1;
    int64_t count = n->x.dims[lead], stride = n->x.strides[lead], step = job->gradient.strides[lead];
    const float *x = (const float *)n->x.data + fv_lead_offset(&n->x, lead, index);
    const float *gradient = (const float *)job->gradient.data + fv_lead_offset(&job->gradient, lead, index);
    float *d_x = fv_present(&job->d_x) ? (float *)job->d_x.data + index * count : NULL;
    float *d_weight = fv_present(&job->d_weight) ? (float *)job->d_weight.data + index * count : NULL;
    double mean = 0, square = 0, g_mean = 0, gu_mean = 0;

    (void)thread;
    for (int64_t i = 0; n->layer && i < count; i++)
        mean += (double)x[i * stride] / (double)count;
    for (int64_t i = 0; i < count; i++) {
        double centred = (double)x[i * stride] - mean;
        square += centred * centred / (double)count;
    }
    double inverse = 1 / sqrt(square + n->epsilon);
    for (int64_t i = 0; i < count; i++) {
        double u = ((double)x[i * stride] - mean) * inverse, g = gradient[i * step];
        if (d_weight) d_weight[i] = (float)(g * u);
        if (fv_present(&n->weight)) g *= fv_load(n->weight.dtype, n->weight.data, i * n->weight.strides[0]);
        g_mean += n->layer ? g / (double)count : 0;
        gu_mean += g * u / (double)count;
    }
    for (int64_t i = 0; d_x && i < count; i++) {
        double u = ((double)x[i * stride] - mean) * inverse, g = gradient[i * step];
        if (fv_present(&n->weight)) g *= fv_load(n->weight.dtype, n->weight.data, i * n->weight.strides[0]);
        d_x[i] = (float)((g - g_mean - u * gu_mean) * inverse);
    }
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_norm_args *n = args;
    struct job job = {.norm = n, .gradient = fv_tape_shadow(ctx, &n->out)};
    fv_tensor x = fv_tape_shadow(ctx, &n->x), weight = fv_tape_shadow(ctx, &n->weight);
    fv_tensor bias = fv_tape_shadow(ctx, &n->bias);

    if (fv_present(&x)) FV_TRY(fv_tensor_new(ctx, &job.d_x, FV_F32, n->x.rank, n->x.dims));
    if (fv_present(&weight)) FV_TRY(fv_tensor_new(ctx, &job.d_weight, FV_F32, n->x.rank, n->x.dims));
    fv_run(ctx, fv_lead_count(&n->x, n->x.rank - 1), backward_row, &job);
    if (fv_present(&x)) fv_add_into(ctx, &x, &job.d_x, 1);
    if (fv_present(&weight)) fv_add_into(ctx, &weight, &job.d_weight, 1);
    if (fv_present(&bias)) fv_add_into(ctx, &bias, &job.gradient, 1);
    return FV_OK;
}

/* The sum and its norm apart, each a call that the tape knows. */
static fv_status norm_in_steps(fv_ctx *ctx, const fv_norm_args *args)
{
    fv_norm_args n = *args;
    fv_tensor add = n.add;

    if (fv_present(&n.add_weight)) {
        FV_TRY(fv_tensor_new(ctx, &add, FV_F32, n.x.rank, n.x.dims));
        FV_TRY(fv_norm(ctx, &(fv_norm_args){.x = n.add, .weight = n.add_weight, .out = add, .epsilon = n.epsilon}));
    }
    if (!fv_present(&n.sum)) FV_TRY(fv_tensor_new(ctx, &n.sum, FV_F32, n.x.rank, n.x.dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = n.x, .y = add, .out = n.sum}));
    n.x = n.sum;
    n.add = n.add_weight = n.sum = (fv_tensor){0};
    return fv_norm(ctx, &n);
}

fv_status fv_norm(fv_ctx *ctx, const fv_norm_args *args)
{
    FV_TRY(check_norm(ctx, args));
    if (fv_present(&args->add) && ctx->recording) return norm_in_steps(ctx, args);
    if (fv_tensor_count(&args->x) > 0) FV_TRY(ctx->backend->norm(ctx, args));
    return FV_TAPE_RECORD(ctx, backward, args, 3, &args->x, &args->weight, &args->bias, &args->out);
}
