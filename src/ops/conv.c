/* 2-d convolution: checks and gradients. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

/* Zero fields replaced by their defaults. */
static fv_conv2d_args completed(const fv_conv2d_args *args)
{
    fv_conv2d_args c = *args;

    c.stride = c.stride ? c.stride : 1;
    c.dilation = c.dilation ? c.dilation : 1;
    c.groups = c.groups ? c.groups : 1;
    return c;
}

static int64_t out_size(const fv_conv2d_args *c, int64_t size, int64_t kernel)
{
    int64_t room = size + 2 * c->padding - c->dilation * (kernel - 1) - 1;

    return room < 0 ? 0 : room / c->stride + 1;
}

static fv_status check_conv(const fv_conv2d_args *c)
{
    const int64_t *x = c->x.dims, *w = c->weight.dims, limit = INT32_MAX;

    FV_TRY(fv_check("conv2d", "x", &c->x, FV_TYPE(FV_F32), FV_DIMS(FV_ANY, FV_ANY, FV_ANY, FV_ANY)));
    if (c->stride < 1 || c->dilation < 1 || c->groups < 1 || c->padding < 0 || c->stride > limit ||
        c->dilation > limit || c->padding > limit)
        return fv_fail(FV_E_ARGUMENT,
                       "conv2d: stride %lld, padding %lld, dilation %lld and groups %lld: expected positive numbers",
                       (long long)c->stride, (long long)c->padding, (long long)c->dilation, (long long)c->groups);
    FV_TRY(fv_check("conv2d", "weight", &c->weight, FV_TYPES_FLOAT, FV_DIMS(FV_ANY, x[1] / c->groups, FV_ANY, FV_ANY)));
    if (x[1] % c->groups != 0 || w[0] % c->groups != 0)
        return fv_fail(FV_E_SHAPE, "conv2d: %lld groups do not divide the channels of x %s and weight %s",
                       (long long)c->groups, fv_shape_text(&c->x), fv_shape_text(&c->weight));
    if (w[2] < 1 || w[3] < 1 || w[2] > limit || w[3] > limit || x[2] > limit || x[3] > limit)
        return fv_fail(FV_E_SHAPE, "conv2d: a kernel of shape %s over x %s", fv_shape_text(&c->weight),
                       fv_shape_text(&c->x));
    FV_TRY(fv_check_optional("conv2d", "bias", &c->bias, FV_TYPES_FLOAT, FV_DIMS(w[0])));
    return fv_check("conv2d", "out", &c->out, FV_TYPE(FV_F32),
                    FV_DIMS(x[0], w[0], out_size(c, x[2], w[2]), out_size(c, x[3], w[3])));
}

struct job {
    fv_conv2d_args conv;
    fv_tensor gradient, d_x, d_weight; /* contiguous, written whole */
};

/* Where input row (or column) `at` of a tap falls among the outputs, or -1. */
static int64_t output_of(const fv_conv2d_args *c, int64_t at, int64_t tap, int64_t outputs)
{
    int64_t reach = at + c->padding - tap * c->dilation;

    return reach >= 0 && reach % c->stride == 0 && reach / c->stride < outputs ? reach / c->stride : -1;
}

/* One channel of d_x. */
static void backward_x(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_conv2d_args *c = &job->conv;
    const fv_tensor *w = &c->weight, *g = &job->gradient;
    int64_t channels = c->x.dims[1], b = index / channels, channel = index % channels, width = channels / c->groups;
    int64_t outs = w->dims[0] / c->groups, first = channel / width * outs, ci = channel % width;
    float *to = (float *)job->d_x.data + index * c->x.dims[2] * c->x.dims[3];

    (void)thread;
    for (int64_t y = 0; y < c->x.dims[2]; y++)
        for (int64_t x = 0; x < c->x.dims[3]; x++) {
            double sum = 0;
            for (int64_t ky = 0; ky < w->dims[2]; ky++)
                for (int64_t kx = 0; kx < w->dims[3]; kx++) {
                    int64_t oy = output_of(c, y, ky, g->dims[2]), ox = output_of(c, x, kx, g->dims[3]);
                    for (int64_t o = first; oy >= 0 && ox >= 0 && o < first + outs; o++)
                        sum += *(const float *)fv_at(g, b, o, oy, ox) * fv_load(w->dtype, fv_at(w, o, ci, ky, kx), 0);
                }
            *to++ = (float)sum;
        }
}

/* The weights of one output channel. */
static void backward_weight(void *user, int64_t o, int thread)
{
    const struct job *job = user;
    const fv_conv2d_args *c = &job->conv;
    const fv_tensor *w = &c->weight, *g = &job->gradient;
    int64_t width = w->dims[1], first = o / (w->dims[0] / c->groups) * width;
    float *to = (float *)job->d_weight.data + o * width * w->dims[2] * w->dims[3];

    (void)thread;
    for (int64_t n = 0; n < width * w->dims[2] * w->dims[3]; n++) {
        int64_t kx = n % w->dims[3], ky = n / w->dims[3] % w->dims[2], ci = n / w->dims[3] / w->dims[2];
        double sum = 0;
        for (int64_t b = 0; b < c->x.dims[0]; b++)
            for (int64_t oy = 0; oy < g->dims[2]; oy++)
                for (int64_t ox = 0; ox < g->dims[3]; ox++) {
                    int64_t y = oy * c->stride - c->padding + ky * c->dilation;
                    int64_t x = ox * c->stride - c->padding + kx * c->dilation;
                    if (y < 0 || y >= c->x.dims[2] || x < 0 || x >= c->x.dims[3]) continue;
                    sum += (double)*(const float *)fv_at(g, b, o, oy, ox) *
                           *(const float *)fv_at(&c->x, b, first + ci, y, x);
                }
        to[n] = (float)sum;
    }
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    struct job job = {.conv = completed(args)};
    const fv_conv2d_args *c = &job.conv;
    fv_tensor x = fv_tape_shadow(ctx, &c->x), weight = fv_tape_shadow(ctx, &c->weight);
    fv_tensor bias = fv_tape_shadow(ctx, &c->bias);

    job.gradient = fv_tape_shadow(ctx, &c->out);
    if (fv_present(&x)) {
        FV_TRY(fv_tensor_new(ctx, &job.d_x, FV_F32, 4, c->x.dims));
        fv_run(ctx, c->x.dims[0] * c->x.dims[1], backward_x, &job);
        fv_add_into(ctx, &x, &job.d_x, 1);
    }
    if (fv_present(&weight)) {
        FV_TRY(fv_tensor_new(ctx, &job.d_weight, FV_F32, 4, c->weight.dims));
        fv_run(ctx, c->weight.dims[0], backward_weight, &job);
        fv_add_into(ctx, &weight, &job.d_weight, 1);
    }
    if (fv_present(&bias)) { /* sums over all but the channels */
        fv_tensor sums =
            fv_view(&bias, 4, (int64_t[]){1, bias.dims[0], 1, 1}, (int64_t[]){0, bias.strides[0], 0, 0}, 0);
        fv_add_into(ctx, &sums, &job.gradient, 1);
    }
    return FV_OK;
}

fv_status fv_conv2d(fv_ctx *ctx, const fv_conv2d_args *args)
{
    fv_conv2d_args c = completed(args);

    FV_TRY(check_conv(&c));
    if (fv_tensor_count(&c.out) > 0) FV_TRY(ctx->backend->conv2d(ctx, &c));
    return FV_TAPE_RECORD(ctx, backward, args, 3, &args->x, &args->weight, &args->bias, &args->out);
}
