/* 2-d convolution.  Two layouts: with channels side by side (tokens on a grid), depthwise, all channels of
 * a place go through the taps together; otherwise rows of planes, copied into a buffer with zeros around them, so that
 * no tap looks where it stands.  Both read and write memory once; bound by the taps: a multiply-add for each, and
 * loads, of channels two, so half of the FMA peak at best, of planes one and a fourth.  Of the peak: 12 % with 3 x 3
 * taps of 64 channels (10 % by a stride of 2), depthwise 7 % with 3 x 3 taps and 11 % with 5 x 5, patches of 16 x 16
 * pixels 6 %. */
#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum { ROWS = 16, OUTS = 8, PLACES = 32 }; /* of an item */

struct job {
    const struct fv_kernels *kernels;
    const fv_conv2d_args *conv;
    int64_t bands, blocks; /* items of a plane, and of the channels of a group */
    int64_t band;          /* rows of out that an item makes */
    int64_t phase, width;  /* floats of a phase of a buffer row, and of the row */
    int64_t rows;          /* of a buffer */
    int64_t *offset;       /* [kh * kw]: where taps read in the buffer */
    float *buffer;         /* [threads, rows, width] and taps, or */
    float *taps;           /* [kh * kw, channels] and a row of bias */
    int64_t floats;        /* of a thread's buffer */
};

static float weight_at(const fv_conv2d_args *c, int64_t o, int64_t i, int64_t y, int64_t x)
{
    return (float)fv_load(c->weight.dtype, fv_at(&c->weight, o, i, y, x), 0);
}

static float bias_at(const fv_conv2d_args *c, int64_t o)
{
    return fv_present(&c->bias) ? (float)fv_load(c->bias.dtype, c->bias.data, o * c->bias.strides[0]) : 0;
}

/* ---- planes ---------------------------------------------------------------------------------------------------- */

/* Rows top.. of a channel, with zeros where there are none; each as its phases: every stride-th column from the first
 * on, then from the second, ... */
static void fill(const struct job *job, int64_t b, int64_t channel, int64_t top, int64_t rows, float *buffer)
{
    const fv_conv2d_args *c = job->conv;
    int64_t H = c->x.dims[2], W = c->x.dims[3], step = c->x.strides[3], stride = c->stride;

    memset(buffer, 0, (size_t)(rows * job->width) * sizeof *buffer);
    for (int64_t r = fv_max(-top, 0); r < rows && top + r < H; r++) {
        const float *x = fv_at(&c->x, b, channel, top + r, 0);
        if (step == 1 && stride == 1) {
            memcpy(buffer + r * job->width + c->padding, x, (size_t)W * sizeof *x);
            continue;
        }
        for (int64_t first = 0; first < fv_min(stride, W); first++) {
            int64_t place = first + c->padding, n = 0;
            float *to = buffer + r * job->width + place % stride * job->phase + place / stride;
            for (int64_t i = first; i < W; i += stride)
                to[n++] = x[i * step];
        }
    }
}

/* A band of OUTS channels that read the same input. */
static void plane_item(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_conv2d_args *c = job->conv;
    int64_t outs = c->out.dims[1] / c->groups, inputs = c->weight.dims[1],
            count = c->weight.dims[2] * c->weight.dims[3];
    int64_t band = index % job->bands, block = index / job->bands % job->blocks;
    int64_t group = index / job->bands / job->blocks % c->groups, b = index / job->bands / job->blocks / c->groups;
    int64_t first = band * job->band, rows = fv_min(job->band, c->out.dims[2] - first),
            from = group * outs + block * OUTS;
    int64_t end = fv_min(from + OUTS, (group + 1) * outs), needed = job->rows - (job->band - rows) * c->stride;
    float *buffer = job->buffer + thread * job->floats, *taps = buffer + job->floats - count;

    for (int64_t o = from; o < end; o++)
        for (int64_t r = 0; r < rows; r++) {
            float *out = fv_at(&c->out, b, o, first + r, 0), bias = bias_at(c, o);
            for (int64_t x = 0; x < c->out.dims[3]; x++)
                out[x] = bias;
        }
    for (int64_t i = 0; i < inputs; i++) {
        fill(job, b, group * inputs + i, first * c->stride - c->padding, needed, buffer);
        for (int64_t o = from; o < end; o++) {
            for (int64_t t = 0; t < count; t++)
                taps[t] = weight_at(c, o, i, t / c->weight.dims[3], t % c->weight.dims[3]);
            for (int64_t r = 0; r < rows; r++)
                job->kernels->convolve(c->out.dims[3], count, job->offset, buffer + r * c->stride * job->width, taps,
                                       fv_at(&c->out, b, o, first + r, 0));
        }
    }
}

/* Sizes of a thread's buffer, which stays within the second-level cache; false if not even one row of out does. */
static bool measure(const fv_conv2d_args *c, struct job *job)
{
    /* whole vectors may be read behind the last */
    job->phase = fv_ceil_div(c->x.dims[3] + 2 * c->padding, c->stride) + FV_MAX_TILE_COLUMNS;
    job->width = c->stride * job->phase;
    for (job->band = ROWS; job->band > 0; job->band /= 2) {
        job->rows = (job->band - 1) * c->stride + (c->weight.dims[2] - 1) * c->dilation + 1;
        if (job->rows < 1024 && job->width < (1 << 18) / job->rows) return true;
    }
    return false;
}

static fv_status planes(fv_ctx *ctx, struct job *job)
{
    const fv_conv2d_args *c = job->conv;
    int64_t kh = c->weight.dims[2], kw = c->weight.dims[3], threads = fv_ctx_threads(ctx);
    double work = 2.0 * (double)fv_tensor_count(&c->out) * (double)(kh * kw * c->weight.dims[1]);

    job->floats = job->rows * job->width + kh * kw;
    job->bands = fv_ceil_div(c->out.dims[2], job->band);
    job->blocks = fv_ceil_div(c->out.dims[1] / c->groups, OUTS);
    FV_TRY(FV_SCRATCH(ctx, job->buffer, threads * job->floats));
    FV_TRY(FV_SCRATCH(ctx, job->offset, kh * kw));
    for (int64_t t = 0; t < kh * kw; t++) {
        int64_t x = t % kw * c->dilation;
        job->offset[t] = t / kw * c->dilation * job->width + x % c->stride * job->phase + x / c->stride;
    }
    fv_cpu_run(ctx, c->out.dims[0] * c->groups * job->blocks * job->bands, work, plane_item, job);
    return FV_OK;
}

/* ---- channels side by side ------------------------------------------------------------------------------------- */

/* Taps from..to-1 of `count` fall inside. */
static void clip(int64_t place, int64_t padding, int64_t dilation, int64_t size, int64_t count, int64_t *from,
                 int64_t *to)
{
    int64_t first = place - padding;

    *from = first < 0 ? fv_min(fv_ceil_div(-first, dilation), count) : 0;
    *to = first >= size ? *from : fv_clamp((size - 1 - first) / dilation + 1, *from, count);
}

static void places_item(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_conv2d_args *c = job->conv;
    int64_t C = c->x.dims[1], kh = c->weight.dims[2], kw = c->weight.dims[3], width = c->out.dims[3];
    int64_t b = index / job->bands, first = index % job->bands * PLACES;
    int64_t end = fv_min(first + PLACES, c->out.dims[2] * width), y0, y1, x0, x1;

    (void)thread;
    for (int64_t place = first; place < end; place++) {
        int64_t row = place / width, column = place % width, y = row * c->stride, x = column * c->stride;
        clip(y, c->padding, c->dilation, c->x.dims[2], kh, &y0, &y1);
        clip(x, c->padding, c->dilation, c->x.dims[3], kw, &x0, &x1);
        const float *from = NULL;
        if (y1 > y0 && x1 > x0)
            from = fv_at(&c->x, b, 0, y - c->padding + y0 * c->dilation, x - c->padding + x0 * c->dilation);
        job->kernels->convolve_channels(C, y1 - y0, from ? x1 - x0 : 0, from, c->dilation * c->x.strides[2],
                                        c->dilation * c->x.strides[3], job->taps + (y0 * kw + x0) * C, kw * C,
                                        job->taps + kh * kw * C, fv_at(&c->out, b, 0, row, column));
    }
}

static fv_status places(fv_ctx *ctx, struct job *job)
{
    const fv_conv2d_args *c = job->conv;
    int64_t C = c->x.dims[1], kh = c->weight.dims[2], kw = c->weight.dims[3], count = c->out.dims[2] * c->out.dims[3];

    FV_TRY(FV_SCRATCH(ctx, job->taps, (kh * kw + 1) * C));
    for (int64_t t = 0; t < kh * kw; t++)
        for (int64_t o = 0; o < C; o++)
            job->taps[t * C + o] = weight_at(c, o, 0, t / kw, t % kw);
    for (int64_t o = 0; o < C; o++)
        job->taps[kh * kw * C + o] = bias_at(c, o);
    job->bands = fv_ceil_div(count, PLACES);
    fv_cpu_run(ctx, c->x.dims[0] * job->bands, 2.0 * (double)(c->x.dims[0] * count * C * kh * kw), places_item, job);
    return FV_OK;
}

fv_status fv_cpu_conv2d(fv_ctx *ctx, const fv_conv2d_args *args)
{
    struct job job = {.kernels = fv_kernels_of(ctx), .conv = args};
    bool depthwise = args->groups == args->x.dims[1] && args->groups == args->out.dims[1];
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status;

    if (depthwise && args->x.strides[1] == 1 && args->out.strides[1] == 1)
        status = places(ctx, &job);
    else if (args->out.strides[3] == 1 && measure(args, &job))
        status = planes(ctx, &job);
    else
        status = fv_backend_ref.conv2d(ctx, args);
    fv_scratch_release(ctx, mark);
    return status;
}
