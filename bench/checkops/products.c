/* Products: plain and stored weights, from one row to many; stored rows; convolutions; the cost of a parallel region.
 */
#include "checkops.h"

#include <math.h>
#include <sched.h>
#include <stdatomic.h>

static double sum_of_squares(const float *values, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++)
        sum += (double)values[i] * (double)values[i];
    return sum;
}

/* What an element of a b may be off by, absolutely.  a is within -1..1, and `column` is the 2-norm of b's largest
 * column.  f32 sums of k terms err by 2^-24 of each partial sum, at most about column long: k of them.  Rounded factors
 * err independently, evenly within `rounding` of the largest of a: a spread of rounding / sqrt(3) * column, and seven
 * of those are passed once in 10^11 elements. */
static double product_tolerance(int64_t k, double column, double rounding)
{
    return (0x1p-24 * (double)(k + 8) + 7 * rounding / sqrt(3)) * column;
}

/* The 2-norm of the largest column of b, from up to 512 of its rows [n,k]: of noise, the others are no longer by more
 * than a fifth. */
static fv_status largest_column(struct checkops *c, const fv_tensor *rows, double *norm)
{
    int64_t k = rows->dims[1], count = fv_min(rows->dims[0], 512);
    fv_tensor some = fv_slice(rows, 0, 0, count), plain = checkops_empty(c, FV_F32, FV_DIMS(count, k));

    FV_TRY(c->status);
    FV_TRY(fv_dequantize_rows(c->reference, &(fv_dequantize_args){.x = some, .out = plain}));
    *norm = 0;
    for (int64_t r = 0; r < count; r++)
        *norm = fmax(*norm, 1.2 * sqrt(sum_of_squares((const float *)plain.data + r * k, k)));
    return FV_OK;
}

static fv_status call_gemm(fv_ctx *ctx, void *args)
{
    return fv_gemm(ctx, args);
}

/* a [m,k] f32 times a weight [n,k] seen transposed, as models do it; few rows with weights beyond the caches. */
static fv_status gemm(struct checkops *c, fv_dtype dtype, int64_t m)
{
    bool blocks = fv_dtype_block(dtype) > 1, pairs = blocks || dtype == FV_BF16;
    int64_t n = c->small ? 75 : 1024, k = c->small ? (blocks ? 512 : 333) : m > 4 ? 1024 : 4096;
    double row = (double)fv_dtype_block_bytes(dtype) / (double)fv_dtype_block(dtype) * (double)k;
    fv_gemm_args args = {0};
    double column = 0;
    trial t;

    while (!c->small && m <= 4 && (double)n * row < APP_FAR * c->peaks.cache)
        n *= 2;
    if (c->small && m > 4) m = m > 64 ? 131 : 37;
    if (!checkops_wanted(c, &t, "gemm", "%s m=%lld, %lld x %lld", fv_dtype_name(dtype), (long long)m, (long long)n,
                         (long long)k))
        return c->status;
    fv_tensor weight = checkops_noise(c, dtype, 1, 0, FV_DIMS(n, k));
    args.a = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(m, k));
    args.b = fv_transposed(&weight);
    args.c = checkops_output(&t, "c", checkops_empty(c, FV_F32, FV_DIMS(m, n)), 0);
    t.call = call_gemm;
    t.args = &args;
    t.work = (app_work){.flops = 2.0 * (double)m * (double)n * (double)k,
                        .read = checkops_bytes(&weight) + checkops_bytes(&args.a),
                        .written = checkops_bytes(&args.c),
                        .unit = pairs ? APP_DOT_BF16 : APP_FMA};
    FV_TRY(c->status);
    FV_TRY(largest_column(c, &weight, &column));
    /* beside blocks and bf16, a is rounded to 8 bits (bf16, or integers with the scale of a block: half a step of 2^-7
     * of the largest), and values of blocks to bf16 (2^-9): 1.12 * 2^-8 together */
    t.output[0].tolerance = product_tolerance(k, column, pairs ? 1.12 * 0x1p-8 : 0);
    t.output[0].of = OF_ONE;
    return checkops_try(c, &t);
}

static fv_status call_linear(fv_ctx *ctx, void *args)
{
    return fv_linear(ctx, args);
}

/* The same products from the packed form, which models use. */
static fv_status linear(struct checkops *c, fv_dtype dtype, int64_t m, bool gate)
{
    int64_t n = c->small ? 75 : 1024, k = c->small ? 512 : m > 4 ? 1024 : 4096;
    double row = (double)fv_dtype_block_bytes(dtype) / (double)fv_dtype_block(dtype) * (double)k, column = 0;
    fv_linear_args args = {.parts = gate ? 2 : 1, .gate = gate ? FV_MAP_SILU_MUL : 0};
    fv_packed packed[2];
    trial t;

    while (!c->small && m <= 4 && (double)(n * args.parts) * row < APP_FAR * c->peaks.cache)
        n *= 2;
    if (c->small && m > 4) m = m > 64 ? 131 : 37;
    if (!checkops_wanted(c, &t, "linear", "%s m=%lld, %lld x %lld%s", fv_dtype_name(dtype), (long long)m, (long long)n,
                         (long long)k, gate ? " twice, silu gate" : ""))
        return c->status;
    args.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(m, k));
    for (int p = 0; p < args.parts; p++) {
        fv_tensor weight = checkops_noise(c, dtype, 1, 0, FV_DIMS(n, k));
        FV_TRY(c->status);
        FV_TRY(app_pack(c->reference, &weight, &packed[p]));
        args.part[p] = (fv_linear_part){.weight = weight, .packed = &packed[p]};
        t.work.read += checkops_bytes(&weight);
    }
    FV_TRY(largest_column(c, &args.part[0].weight, &column));
    /* beside packed weights a few rows of x become integers of 15 bits, of the largest; otherwise rows are, like the
     * weights, bf16, with two roundings each */
    double tolerance = product_tolerance(k, column, m <= 4 && packed[0].data ? 0x1p-15 : 0x1p-8 * sqrt(2));
    if (gate) tolerance *= 2.2 * 5 * column / sqrt(3); /* of both factors, up to five standard deviations in size */
    args.part[0].out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(m, n)), tolerance);
    t.output[0].of = OF_ONE;
    t.call = call_linear;
    t.args = &args;
    t.work.flops = 2.0 * (double)(m * n * k * args.parts);
    t.work.read += checkops_bytes(&args.x);
    t.work.written = checkops_bytes(&args.part[0].out);
    t.work.unit = APP_DOT_BF16;
    return checkops_try(c, &t);
}

static fv_status call_dequantize(fv_ctx *ctx, void *args)
{
    return fv_dequantize_rows(ctx, args);
}

/* To blocks and back: equal. */
struct quantized {
    fv_quantize_args to;
    fv_dequantize_args back;
};

static fv_status call_quantize(fv_ctx *ctx, void *args)
{
    struct quantized *q = args;

    FV_TRY(fv_quantize_rows(ctx, &q->to));
    return fv_dequantize_rows(ctx, &q->back);
}

static fv_status quantize(struct checkops *c, fv_dtype dtype)
{
    int64_t rows = c->small ? 7 : 4096, width = c->small ? 512 : 4096;
    struct quantized q;
    trial t;

    if (!checkops_wanted(c, &t, "quantize", "%s %lld x %lld", fv_dtype_name(dtype), (long long)rows, (long long)width))
        return c->status;
    q.to.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(rows, width));
    q.to.out = checkops_empty(c, dtype, FV_DIMS(rows, width));
    q.back = (fv_dequantize_args){.x = q.to.out};
    q.back.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(rows, width)), 0);
    t.call = call_quantize;
    t.args = &q;
    t.work = (app_work){.flops = (double)rows * (double)width * 4,
                        .read = checkops_bytes(&q.to.x),
                        .written = checkops_bytes(&q.back.out)};
    return checkops_try(c, &t);
}

static fv_status dequantize(struct checkops *c, fv_dtype dtype)
{
    int64_t rows = c->small ? 7 : 4096, width = c->small ? 512 : 4096;
    fv_dequantize_args args;
    trial t;

    if (!checkops_wanted(c, &t, "dequantize", "%s %lld x %lld", fv_dtype_name(dtype), (long long)rows,
                         (long long)width))
        return c->status;
    args = (fv_dequantize_args){.x = checkops_noise(c, dtype, 1, 0, FV_DIMS(rows, width))};
    /* scale times quant plus minimum, fused or not: two roundings of the largest */
    args.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(rows, width)), 0x1p-22);
    t.call = call_dequantize;
    t.args = &args;
    t.work = (app_work){.flops = (double)rows * (double)width * 2,
                        .read = checkops_bytes(&args.x),
                        .written = checkops_bytes(&args.out)};
    return checkops_try(c, &t);
}

static fv_status call_conv2d(fv_ctx *ctx, void *args)
{
    return fv_conv2d(ctx, args);
}

static fv_status conv2d(struct checkops *c, int64_t channels, int64_t outs, int64_t groups, int64_t taps,
                        int64_t stride)
{
    int64_t side = c->small ? 9 : 56 * stride, padding = stride < taps ? taps / 2 : 0, shared = channels / groups;
    int64_t out_side = (side + 2 * padding - taps) / stride + 1;
    fv_conv2d_args args;
    trial t;

    if (!checkops_wanted(c, &t, "conv2d", "%lld to %lld channels, %lld groups, %lld x %lld by %lld on %lld x %lld",
                         (long long)channels, (long long)outs, (long long)groups, (long long)taps, (long long)taps,
                         (long long)stride, (long long)side, (long long)side))
        return c->status;
    args = (fv_conv2d_args){.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, channels, side, side)),
                            .weight = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(outs, shared, taps, taps)),
                            .bias = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(outs)),
                            .padding = padding,
                            .stride = stride,
                            .groups = groups};
    /* f32 sums of that many terms */
    args.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(1, outs, out_side, out_side)),
                               0x1p-24 * (double)(shared * taps * taps + 8));
    t.call = call_conv2d;
    t.args = &args;
    t.work = (app_work){.flops = 2.0 * (double)(outs * out_side * out_side * shared * taps * taps),
                        .read = checkops_bytes(&args.x),
                        .written = checkops_bytes(&args.out)};
    return checkops_try(c, &t);
}

fv_status checkops_products(struct checkops *c)
{
    static const int64_t rows[] = {1, 4, 64, 512};
    static const fv_dtype plain[] = {FV_F32, FV_F16, FV_BF16};
    const fv_dtype *blocks;
    int count = app_block_types(&blocks);

    for (int n = 0; n < 3 + count; n++)
        for (int m = 0; m < 4; m++)
            FV_TRY(gemm(c, n < 3 ? plain[n] : blocks[n - 3], rows[m]));
    for (int n = 0; n < count; n++)
        for (int m = 0; m < 4; m++)
            FV_TRY(linear(c, blocks[n], rows[m], false));
    for (int m = 0; m < 4; m++)
        FV_TRY(linear(c, FV_Q4_0, rows[m], true));
    for (int n = 1; n < 3 + count; n++)
        FV_TRY(dequantize(c, n < 3 ? plain[n] : blocks[n - 3]));
    FV_TRY(quantize(c, FV_Q8_0));
    FV_TRY(quantize(c, FV_Q4_0));
    for (int64_t stride = 1; stride <= 2; stride++) {
        FV_TRY(conv2d(c, c->small ? 12 : 256, c->small ? 12 : 256, c->small ? 12 : 256, 3, stride));
        FV_TRY(conv2d(c, c->small ? 12 : 256, c->small ? 12 : 256, c->small ? 12 : 256, 5, stride));
        FV_TRY(conv2d(c, c->small ? 12 : 64, c->small ? 12 : 64, c->small ? 3 : 1, 3, stride));
    }
    return conv2d(c, 3, c->small ? 10 : 384, 1, c->small ? 4 : 16, c->small ? 4 : 16); /* an image's patches */
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

struct region {
    fv_tensor seen; /* [threads] i32 */
    bool meet;      /* items wait for each other, so that every thread takes part */
    atomic_int arrived;
    int threads;
};

static void region_item(void *user, int64_t index, int thread)
{
    struct region *region = user;

    (void)thread;
    ((int32_t *)region->seen.data)[index * 16] = (int32_t)index; /* lines of their own */
    if (!region->meet) return;
    int goal = (atomic_fetch_add(&region->arrived, 1) / region->threads + 1) * region->threads;
    for (int spin = 0; atomic_load_explicit(&region->arrived, memory_order_relaxed) < goal; spin++)
        if (spin > 1000) sched_yield(); /* more threads than processors */
}

static fv_status call_region(fv_ctx *ctx, void *args)
{
    fv_run(ctx, fv_ctx_threads(ctx), region_item, args);
    return FV_OK;
}

static fv_status try_region(struct checkops *c, bool meet)
{
    int threads = fv_ctx_threads(c->reference);
    struct region region = {.meet = meet, .threads = threads};
    trial t;

    if (!checkops_wanted(c, &t, "region", "%d %s on %d threads", threads,
                         meet ? "items that wait for each other" : "empty items", threads))
        return c->status;
    region.seen = checkops_output(&t, "seen", checkops_empty(c, FV_I32, FV_DIMS(threads, 16)), 0);
    t.call = call_region;
    t.args = &region;
    return checkops_try(c, &t);
}

fv_status checkops_pool(struct checkops *c)
{
    FV_TRY(try_region(c, false));
    return try_region(c, true);
}
