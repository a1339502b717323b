/* Rows of kernels: attention over whole prompts, attention of one token over a cache, recurrences, products. */
#include <math.h>

#include "app/bench.h"
#include "ops/ops.h"

static double bytes_of(const fv_tensor *tensor)
{
    size_t bytes = 0;

    if (fv_present(tensor) && fv_dtype_bytes(tensor->dtype, fv_tensor_count(tensor), &bytes) != FV_OK) bytes = 0;
    return (double)bytes;
}

/* ---- attend and decode ----------------------------------------------------------------------------------------- */

struct attend_shape {
    const char *what;
    int64_t heads, key_heads, queries, keys, dim;
    fv_dtype dtype; /* of keys and values */
    bool causal;
    fv_precision precision;
};

struct attend_call {
    fv_tensor q, k, v, o;
    fv_plan plan;
    fv_attend_args args;
};

static fv_status run_attend(fv_ctx *ctx, void *user)
{
    return fv_attend(ctx, &((struct attend_call *)user)->args);
}

/* f32 and f16 are exact only in f32. */
static app_unit unit_of(const struct attend_shape *s)
{
    return s->dtype == FV_BF16 ? APP_DOT_BF16 : fv_dtype_block(s->dtype) > 1 ? APP_DOT_INT8 : APP_FMA;
}

static fv_status attend_row(struct bench *b, const struct attend_shape *s)
{
    int64_t offset = s->keys - s->queries;
    struct attend_call call = {.plan = {.causal = s->causal, .offset = offset}};
    bench_row row = bench_named(s->what, "%lld/%lld heads, %lld x %lld, D=%lld, %s%s", (long long)s->heads,
                                (long long)s->key_heads, (long long)s->queries, (long long)s->keys, (long long)s->dim,
                                fv_dtype_name(s->dtype), s->causal && s->queries > 1 ? ", causal" : "");
    double pairs = (double)s->queries * (double)s->keys;
    fv_mark mark = fv_scratch_mark(b->app->ctx);

    if (bench_counts(b, 1)) return FV_OK;
    if (s->causal) pairs -= (double)s->queries * (double)(s->queries - 1) / 2;
    FV_TRY(bench_noise(b, &call.q, FV_F32, FV_DIMS(1, s->heads, s->queries, s->dim)));
    FV_TRY(bench_noise(b, &call.k, s->dtype, FV_DIMS(1, s->key_heads, s->keys, s->dim)));
    FV_TRY(bench_noise(b, &call.v, s->dtype, FV_DIMS(1, s->key_heads, s->keys, s->dim)));
    FV_TRY(fv_tensor_new(b->app->ctx, &call.o, FV_F32, FV_DIMS(1, s->heads, s->queries, s->dim)));
    call.args = (fv_attend_args){.q = call.q, .k = call.k, .v = call.v, .o = call.o, .plan = &call.plan};
    row.work = (app_work){.flops = 4 * pairs * (double)s->heads * (double)s->dim,
                          .read = bytes_of(&call.q) + bytes_of(&call.k) + bytes_of(&call.v),
                          .written = bytes_of(&call.o),
                          .unit = unit_of(s)};
    FV_TRY(bench_measure(b, &row, s->precision, run_attend, &call));
    fv_scratch_release(b->app->ctx, mark);
    return FV_OK;
}

fv_status bench_attend(struct bench *b)
{
    static const int64_t dims[] = {64, 128, 256}, lengths[] = {1024, 4096};
    cli_ints sizes = bench_sizes(b, 2, lengths);

    for (int i = 0; i < sizes.count; i++)
        for (int d = 0; d < 3; d++)
            for (int causal = 0; causal < 2; causal++) {
                struct attend_shape s = {"attend", 8,      8,      sizes.items[i],  sizes.items[i],
                                         dims[d],  FV_F32, causal, FV_PRECISION_F32};
                if (b->f32) FV_TRY(attend_row(b, &s));
                s.dtype = FV_BF16;
                s.precision = FV_PRECISION_BF16;
                if (b->bf16) FV_TRY(attend_row(b, &s));
            }
    return FV_OK;
}

/* Keys whose bytes, with those of the values, are far more than the caches hold. */
static int64_t far_keys(const struct bench *b, const struct attend_shape *s)
{
    double row = 2.0 * (double)s->key_heads * (double)s->dim * (double)fv_dtype_block_bytes(s->dtype) /
                 (double)fv_dtype_block(s->dtype);
    int64_t keys = 1024;

    while ((double)keys * row < APP_FAR * b->peaks.cache)
        keys *= 2;
    return keys;
}

fv_status bench_decode(struct bench *b)
{
    static const int64_t layouts[][3] = {{32, 8, 128}, {64, 8, 64}, {9, 3, 64}, {4, 1, 256}};
    static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0, FV_Q4_0};

    for (int l = 0; l < 4; l++)
        for (int t = 0; t < 5; t++) {
            struct attend_shape s = {"decode", layouts[l][0], layouts[l][1],    1, 0, layouts[l][2],
                                     types[t], true,          FV_PRECISION_AUTO};
            const int64_t lengths[] = {2048, far_keys(b, &s)};
            cli_ints sizes = bench_sizes(b, 2, lengths);
            for (int i = 0; i < sizes.count; i++) {
                s.keys = sizes.items[i];
                FV_TRY(attend_row(b, &s));
            }
        }
    return FV_OK;
}

/* ---- scan ------------------------------------------------------------------------------------------------------ */

static const struct scan_kind {
    const char *name;
    fv_decay decay;
    bool delta, normalise;
} scan_kinds[] = {
    {"decay per head", FV_DECAY_PER_HEAD, false, false},
    {"decay per key", FV_DECAY_PER_KEY, false, false},
    {"normalised", FV_DECAY_NONE, false, true},
    {"delta, decay per token", FV_DECAY_PER_TOKEN, true, false},
};

struct scan_call {
    fv_tensor q, k, v, o, decay;
    fv_scan_args args;
};

static fv_status run_scan(fv_ctx *ctx, void *user)
{
    return fv_scan(ctx, &((struct scan_call *)user)->args);
}

/* Logarithms of decays: -0.1 to 0.  Features of a normaliser: positive. */
static void shift(fv_tensor *tensor, float factor, float add)
{
    float *values = tensor->data;

    for (int64_t i = 0; values && i < fv_tensor_count(tensor); i++)
        values[i] = factor * values[i] + add;
}

static fv_status scan_row(struct bench *b, const struct scan_kind *kind, int64_t heads, int64_t n, int64_t dim)
{
    bench_row row = bench_named("scan", "%lld heads, %lld tokens, D=%lld, %s", (long long)heads, (long long)n,
                                (long long)dim, kind->name);
    int rank = kind->decay == FV_DECAY_PER_HEAD ? 1 : kind->decay == FV_DECAY_PER_TOKEN ? 3 : 4;
    const int64_t shape[] = {1, heads, n, dim};
    float positive = kind->normalise ? 1.1f : 0, size = 1 / sqrtf((float)dim);
    struct scan_call call = {0};
    fv_mark mark = fv_scratch_mark(b->app->ctx);

    if (bench_counts(b, 1)) return FV_OK;
    FV_TRY(bench_noise(b, &call.q, FV_F32, 4, shape));
    FV_TRY(bench_noise(b, &call.k, FV_F32, 4, shape));
    FV_TRY(bench_noise(b, &call.v, FV_F32, 4, shape));
    FV_TRY(fv_tensor_new(b->app->ctx, &call.o, FV_F32, 4, shape));
    if (kind->decay != FV_DECAY_NONE) FV_TRY(bench_noise(b, &call.decay, FV_F32, rank, rank == 1 ? shape + 1 : shape));
    shift(&call.q, 1, positive);
    shift(&call.k, size, positive * size);
    shift(&call.decay, 0.05f, -0.05f);
    call.args = (fv_scan_args){.q = call.q,
                               .k = call.k,
                               .v = call.v,
                               .o = call.o,
                               .decay = kind->decay,
                               .log_decay = call.decay,
                               .delta = kind->delta,
                               .normalise = kind->normalise,
                               .epsilon = 1e-6f};
    /* read-out and update of the state, and with the delta rule one more read-out */
    row.work.flops = (kind->delta ? 6.0 : 4.0) * (double)(heads * n) * (double)(dim * dim);
    row.work.read = bytes_of(&call.q) + bytes_of(&call.k) + bytes_of(&call.v) + bytes_of(&call.decay);
    row.work.written = bytes_of(&call.o);
    FV_TRY(bench_measure(b, &row, FV_PRECISION_F32, run_scan, &call));
    fv_scratch_release(b->app->ctx, mark);
    return FV_OK;
}

fv_status bench_scan(struct bench *b)
{
    static const int64_t lengths[] = {1024, 4096};
    cli_ints sizes = bench_sizes(b, 2, lengths);

    for (int i = 0; i < sizes.count; i++)
        for (size_t kind = 0; kind < sizeof scan_kinds / sizeof *scan_kinds; kind++)
            for (int64_t dim = 64; dim <= 128; dim *= 2)
                FV_TRY(scan_row(b, &scan_kinds[kind], 8, sizes.items[i], dim));
    return FV_OK;
}

/* ---- gemm ------------------------------------------------------------------------------------------------------ */

static fv_status run_gemm(fv_ctx *ctx, void *user)
{
    return fv_gemm(ctx, user);
}

static fv_status run_linear(fv_ctx *ctx, void *user)
{
    return fv_linear(ctx, user);
}

/* x [m,k] times a weight [n,k] of some type; blocks are packed first, as models do when they are loaded. */
static fv_status gemm_row(struct bench *b, fv_dtype dtype, int64_t m, int64_t n, int64_t k)
{
    bench_row row =
        bench_named("gemm", "%lld x %lld x %lld, %s", (long long)m, (long long)n, (long long)k, fv_dtype_name(dtype));
    bool exact = dtype == FV_F32 || dtype == FV_F16, stored = fv_dtype_block(dtype) > 1;
    fv_tensor x = {0}, weight = {0}, y = {0};
    fv_mark mark = fv_scratch_mark(b->app->ctx);
    fv_packed packed = {0};

    if (bench_counts(b, 1)) return FV_OK;
    FV_TRY(bench_noise(b, &x, dtype == FV_BF16 ? FV_BF16 : FV_F32, FV_DIMS(m, k)));
    FV_TRY(bench_noise(b, &weight, dtype, FV_DIMS(n, k)));
    FV_TRY(fv_tensor_new(b->app->ctx, &y, FV_F32, FV_DIMS(m, n)));
    if (stored) FV_TRY(app_pack(b->app->ctx, &weight, &packed));
    row.work = (app_work){.flops = 2.0 * (double)m * (double)n * (double)k,
                          .read = bytes_of(&x) + bytes_of(&weight),
                          .written = bytes_of(&y),
                          .unit = exact ? APP_FMA : APP_DOT_BF16};
    fv_gemm_args plain = {.a = x, .b = fv_transposed(&weight), .c = y};
    fv_linear_args linear = {.x = x, .parts = 1, .part = {{.weight = weight, .out = y, .packed = &packed}}};
    FV_TRY(bench_measure(b, &row, FV_PRECISION_AUTO, stored ? run_linear : run_gemm,
                         stored ? (void *)&linear : (void *)&plain));
    fv_scratch_release(b->app->ctx, mark);
    return FV_OK;
}

/* One row of x: far more weights than the caches hold, or as many as asked for. */
static fv_status matrix_vector(struct bench *b, fv_dtype dtype)
{
    double bytes = (double)fv_dtype_block_bytes(dtype) / (double)fv_dtype_block(dtype) * 4096;
    int64_t far = 1024;

    for (int i = 0; i < b->sizes.count; i++) {
        int64_t n = b->sizes.items[i], block = fv_dtype_block(dtype);
        FV_TRY(gemm_row(b, dtype, 1, n, (n + block - 1) / block * block));
    }
    if (b->sizes.count) return FV_OK;
    while ((double)far * bytes < APP_FAR * b->peaks.cache)
        far *= 2;
    return gemm_row(b, dtype, 1, far, 4096);
}

fv_status bench_gemm(struct bench *b)
{
    static const int64_t sides[] = {512, 2048};
    cli_ints sizes = bench_sizes(b, 2, sides);
    const fv_dtype *types;
    int count = app_block_types(&types);

    for (int i = 0; i < sizes.count; i++) {
        int64_t n = sizes.items[i];
        if (b->f32) FV_TRY(gemm_row(b, FV_F32, n, n, n));
        if (b->bf16) FV_TRY(gemm_row(b, FV_BF16, n, n, n));
    }
    if (b->f32) FV_TRY(matrix_vector(b, FV_F32));
    if (b->f32) FV_TRY(matrix_vector(b, FV_F16));
    if (b->bf16) FV_TRY(matrix_vector(b, FV_BF16));
    for (int t = 0; t < count && b->bf16; t++) { /* stored weights are multiplied as bf16 or integers */
        int64_t n = b->sizes.count ? b->sizes.items[b->sizes.count - 1] : 2048, block = fv_dtype_block(types[t]);
        FV_TRY(matrix_vector(b, types[t]));
        FV_TRY(gemm_row(b, types[t], 512, n, (n + block - 1) / block * block));
    }
    return FV_OK;
}
