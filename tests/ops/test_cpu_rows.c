/* Row-wise primitives of the CPU backend on every instruction set: elementwise functions within their stated bounds
 * over all exponents; everything else against the reference backend, and with the same bits for any number of threads.
 */
#include <math.h>
#include <stdlib.h>

#include "ops/backend.h"
#include "ops/cpu/kernels.h"
#include "support/stored.h"
#include "support/tensors.h"

/* ---- elementwise functions -------------------------------------------------------------------------------------- */

struct function {
    fv_map op;
    double (*exact)(double x);
    double from, to; /* where the bound holds; outside `rest` bounds the absolute error */
    double units;    /* bound on the relative error: (units + units_square x^2) 2^-23 */
    double units_square, rest;
};

static double exact_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double exact_silu(double x)
{
    return x / (1 + exp(-x));
}

static double exact_gelu(double x)
{
    return 0.5 * x * erfc(-x * M_SQRT1_2);
}

/* Beyond 88 exp stays at exp(88); below -87.3 results are not normal numbers. */
static double exact_exp(double x)
{
    return exp(fmin(x, 88));
}

static const struct function functions[] = {
    {FV_MAP_EXP, exact_exp, -87.3, INFINITY, 2, 0, 0x1p-125},
    {FV_MAP_LOG, log, 0x1p-149, INFINITY, 2, 0, 0},
    {FV_MAP_SQRT, sqrt, 0, INFINITY, 0.5, 0, 0},
    {FV_MAP_TANH, tanh, -INFINITY, INFINITY, 2, 0, 0},
    {FV_MAP_SIGMOID, exact_sigmoid, -87, INFINITY, 4, 0, 0x1p-125},
    {FV_MAP_SILU, exact_silu, -87, INFINITY, 5, 0, 0x1p-119}, /* it is 0 there */
    {FV_MAP_GELU, exact_gelu, -12, INFINITY, 8, 2, 0x1p-90},  /* exp(-x^2 / 2): its argument is rounded */
};

/* Every 4099th float of either sign: all exponents, every bit of the fraction. */
static void check_function(const struct fv_kernels *kernels, const char *isa, const struct function *f)
{
    enum { COUNT = 1021 };
    double worst = 0, at = 0;
    float x[COUNT], got[COUNT];

    for (uint64_t bits = 1; bits < 0x100000000u;) {
        int count = 0;
        for (; count < COUNT && bits < 0x100000000u; bits += 4099) {
            uint32_t word = (uint32_t)bits;
            memcpy(&x[count], &word, sizeof word);
            if (isfinite(x[count]) && fabsf(x[count]) < 1e37f) count++;
        }
        assert_true(kernels->map(f->op, count, x, NULL, 0, 0, 0, got));
        for (int i = 0; i < count; i++) {
            double exact = f->exact(x[i]), error = fabs((double)got[i] - exact);
            if (f->op == FV_MAP_LOG || f->op == FV_MAP_SQRT)
                if (x[i] < 0) continue;
            if (x[i] < f->from) {
                if (!(error <= f->rest))
                    fail_msg("%s: op %d(%.9g): expected %.9g within %.3g, got %.9g", isa, (int)f->op, (double)x[i],
                             exact, f->rest, (double)got[i]);
                continue;
            }
            double unit = fmax(fabs(exact) * 0x1p-23, 0x1p-149);
            error /= unit * (f->units + f->units_square * fmin((double)x[i] * x[i], 144));
            if (error > worst || isnan(error)) at = x[i];
            worst = isnan(error) ? INFINITY : fmax(worst, error);
        }
    }
    if (worst > 1)
        fail_msg("%s: op %d: expected within (%g + %g x^2) 2^-23 of itself, got %.3g times that at %.9g", isa,
                 (int)f->op, f->units, f->units_square, worst, at);
}

static void check_functions(fv_ctx *ctx)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    float edge[] = {-INFINITY, -1000, 1000, INFINITY, NAN, 0}, got[6];

    if (fv_ctx_threads(ctx) > 1) return;
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++)
        check_function(kernels, fv_ctx_backend(ctx), &functions[f]);
    kernels->map(FV_MAP_EXP, 5, edge, NULL, 0, 0, 0, got);
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == got[3] && got[2] > 1e38f && isnan(got[4]));
    kernels->map(FV_MAP_TANH, 5, edge, NULL, 0, 0, 0, got);
    assert_true(got[0] == -1 && got[1] == -1 && got[2] == 1 && got[3] == 1 && isnan(got[4]));
    kernels->map(FV_MAP_LOG, 6, edge, NULL, 0, 0, 0, got);
    assert_true(isnan(got[0]) && isnan(got[1]) && got[3] == INFINITY && isnan(got[4]) && got[5] == -INFINITY);
}

static void functions_keep_their_bounds(void **state)
{
    (void)state;
    test_each_isa(check_functions);
}

/* ---- soft-caps of a tile ---------------------------------------------------------------------------------------- */

enum { TILE = FV_KEY_TILE, MOST_WIDTH = 16 };

/* Weights and totals of logits under a cap, of two tiles alike: the first raises the maximum, the second finds it high
 * enough.  What bits hide was `hidden`. */
static void weigh_capped(const struct fv_kernels *kernels, const float *logits, const uint64_t *bits, float hidden,
                         float cap, bool pairs, float *s, float *maximum, float *total)
{
    static float o[TILE * MOST_WIDTH];
    struct fv_cap scaled;
    struct fv_softmax_step step = {.rows = TILE, .tokens = TILE, .to = TILE, .bits = bits, .s = s, .maximum = maximum};

    assert_true(kernels->scale_cap(pairs, cap, &scaled));
    for (int r = 0; r < TILE; r++)
        maximum[r] = -INFINITY;
    memset(total, 0, TILE * MOST_WIDTH * sizeof *total);
    step.total = total, step.o = o, step.o_row = kernels->width, step.pairs = pairs, step.cap = &scaled;
    for (int tile = 0; tile < 2; tile++) {
        for (int n = 0; n < TILE * TILE; n++)
            s[n] = bits[n / TILE] >> n % TILE & 1 ? logits[n] : hidden;
        kernels->softmax_tile(&step);
    }
}

/* A weight is exp(s - maximum).  In f32 s is within 4 ulp of itself, its distance from the maximum is taken with three
 * roundings, and the exponential adds 2 ulp.  For bf16 tanh may be off by 2.5e-6 and the exponential by 7.5e-5 of
 * itself before the weight is rounded.  What falls below 2^-120 may be 0. */
static void check_cap(const struct fv_kernels *kernels, const char *isa, fv_random *random, float cap, bool pairs)
{
    static float logits[TILE * TILE], s[2][TILE * TILE], maximum[2][TILE], total[2][TILE * MOST_WIDTH];
    uint64_t bits[TILE];

    for (int r = 0; r < TILE; r++) { /* rows from far below the cap to far above it; some are whole */
        double spread = cap * exp2(r / 4 - 10.0);
        bits[r] = r % 4 ? UINT64_MAX : (uint64_t)fv_random_u32(random) << 32 | fv_random_u32(random);
        for (int n = 0; n < TILE; n++)
            logits[r * TILE + n] = (float)(spread * fv_random_normal(random));
    }
    for (int n = 0; n < 2; n++)
        weigh_capped(kernels, logits, bits, n ? NAN : 3e38f, cap, pairs, s[n], maximum[n], total[n]);
    assert_memory_equal(maximum[0], maximum[1], sizeof maximum[0]);
    assert_memory_equal(total[0], total[1], sizeof total[0]);
    for (int n = 0; n < TILE * TILE; n++) {
        int r = n / TILE, key = n % TILE;
        double exact = cap * tanh(logits[n] / (double)cap), top = maximum[0][r];
        double got = s[0][n], again = s[1][n];
        if (pairs) {
            got = fv_bf16_to_f32(((const uint16_t *)(s[0] + r * TILE))[key]);
            again = fv_bf16_to_f32(((const uint16_t *)(s[1] + r * TILE))[key]);
        }
        double moved = 0x1p-22 * (2 + 3 * fabs(exact) + 2 * fabs(top)) + (pairs ? 2.5e-6 * cap + 7.5e-5 + 0x1p-8 : 0);
        double expected = bits[r] >> key & 1 ? exp(exact - top) : 0, bound = expected * (exp(moved) - 1) + 0x1p-120;
        if (got != again || !(fabs(got - expected) <= bound))
            fail_msg("%s: cap %g of %.9g: expected a weight of %.9g, got %.9g and %.9g (bound %.3g)", isa, (double)cap,
                     (double)logits[n], expected, got, again, bound);
    }
}

static void check_caps(fv_ctx *ctx)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    static const float caps[] = {0.01f, 1, 5, 50, 3000}, out_of_range[] = {0, -1, NAN, 1e-30f, 1e30f, INFINITY};
    struct fv_cap scaled;
    fv_random random = fv_random_new(test_seed(), 77);

    for (size_t n = 0; n < sizeof out_of_range / sizeof *out_of_range; n++)
        assert_false(kernels->scale_cap(false, out_of_range[n], &scaled));
    for (size_t n = 0; n < sizeof caps / sizeof *caps; n++)
        for (int pairs = 0; pairs <= (kernels->tile_bf16 ? 1 : 0); pairs++)
            check_cap(kernels, fv_ctx_backend(ctx), &random, caps[n], pairs);
}

static void caps_keep_their_bounds_whatever_is_hidden(void **state)
{
    (void)state;
    test_each_isa(check_caps);
}

/* ---- against the reference backend ------------------------------------------------------------------------------ */

enum { RESULTS = 1 << 22, PARTS = 1200 };

/* What a backend computes of the same inputs, one result behind the other. */
struct run {
    fv_ctx *ctx;
    const fv_backend *backend;
    uint64_t stream; /* of the next input */
    float *values;
    int64_t used;
    struct {
        const char *what;
        int64_t end;
        double tolerance;
    } part[PARTS];
    int parts;
};

static fv_tensor input(struct run *r, double scale, int rank, const int64_t *dims)
{
    fv_random random = fv_random_new(test_seed(), ++r->stream);
    fv_tensor t;

    assert_ok(fv_tensor_new(r->ctx, &t, FV_F32, rank, dims));
    for (int64_t i = 0; i < fv_tensor_count(&t); i++)
        ((float *)t.data)[i] = (float)(scale * fv_random_normal(&random));
    return t;
}

/* The same with gaps between rows. */
static fv_tensor gapped(struct run *r, double scale, int rank, const int64_t *dims)
{
    int64_t wide[FV_MAX_RANK];

    memcpy(wide, dims, sizeof *dims * (size_t)rank);
    wide[rank - 1] += 3;
    fv_tensor t = input(r, scale, rank, wide);
    return fv_slice(&t, rank - 1, 2, dims[rank - 1]);
}

static fv_tensor result(struct run *r, fv_dtype dtype, int rank, const int64_t *dims)
{
    fv_tensor t;

    assert_ok(fv_tensor_new(r->ctx, &t, dtype, rank, dims));
    memset(t.data, 0x5a, (size_t)fv_tensor_count(&t) * fv_dtype_size(dtype)); /* must be written */
    return t;
}

static void keep(struct run *r, const char *what, const fv_tensor *t, double tolerance)
{
    int64_t count = fv_tensor_count(t);

    assert_true(r->used + count <= RESULTS && r->parts < PARTS);
    for (int64_t i = 0; i < count; i++)
        r->values[r->used + i] = (float)test_element(t, i);
    r->used += count;
    r->part[r->parts].what = what;
    r->part[r->parts].end = r->used;
    r->part[r->parts++].tolerance = tolerance;
}

/* A few roundings of 2^-24 and the bounds of the functions above. */
#define CLOSE 1e-6

static void run_maps(struct run *r)
{
    for (int op = FV_MAP_COPY; op <= FV_MAP_SOFTCAP; op++)
        for (int other = 0; other < 4; other++) {
            bool two = op >= FV_MAP_ADD && op <= FV_MAP_MAX;
            const int64_t dims[] = {2, 3, 70, 34};
            fv_tensor x = input(r, 3, 4, dims), out = result(r, FV_F32, 4, dims), none = {0};
            fv_tensor y = other & 1 ? input(r, 1, FV_DIMS(3, 70, 1)) : input(r, 1, FV_DIMS(3, 1, 34));
            if (op == FV_MAP_LOG || op == FV_MAP_SQRT)
                for (int64_t i = 0; i < fv_tensor_count(&x); i++)
                    ((float *)x.data)[i] = fabsf(((float *)x.data)[i]);
            if (op == FV_MAP_DIV) /* away from zero */
                for (int64_t i = 0; i < fv_tensor_count(&y); i++)
                    ((float *)y.data)[i] = 0.5f + fabsf(((float *)y.data)[i]);
            if (other & 2) { /* x transposed in memory, along one dim or another */
                const int order[2][4] = {{0, 1, 3, 2}, {0, 3, 2, 1}};
                int64_t turned[4];
                for (int d = 0; d < 4; d++)
                    turned[d] = dims[order[other & 1][d]];
                x = fv_reshaped(&x, 4, turned);
                x = fv_permuted(&x, order[other & 1]);
            }
            fv_map_args m = {.op = (fv_map)op, .x = x, .out = out, .alpha = 1.5f, .beta = 0.25f};
            m.y = two ? fv_broadcast(&y, 4, dims) : none;
            assert_ok(r->backend->map(r->ctx, &m));
            if (other < 2 || op % 5 == 0) keep(r, "map", &out, CLOSE);
        }
}

static void run_norms(struct run *r)
{
    static const int64_t widths[] = {1, 34, 64, 129};

    for (int n = 0; n < 4 * 6; n++) {
        const int64_t width = widths[n % 4], kind = n / 4, dims[] = {3, 7, width};
        fv_tensor x = gapped(r, 3, 3, dims), out = result(r, FV_F32, 3, dims), sum = result(r, FV_F32, 3, dims);
        fv_norm_args a = {.layer = kind % 2, .x = x, .out = out, .epsilon = 1e-3f};
        a.weight = input(r, 1, FV_DIMS(width));
        if (a.layer) a.bias = input(r, 1, FV_DIMS(width));
        if (kind >= 2) a.add = gapped(r, 3, 3, dims), a.sum = sum;
        if (kind >= 4) a.add_weight = input(r, 1, FV_DIMS(width));
        assert_ok(r->backend->norm(r->ctx, &a));
        keep(r, "norm", &out, 2e-5); /* in a row of one, x - mean cancels to a rounding over sqrt(epsilon) */
        if (kind >= 2) keep(r, "sum of a norm", &sum, 2e-6);
    }
}

static void run_turns(struct run *r)
{
    static const int32_t places[] = {0, 5, 131071, 7, 1 << 20};

    for (int n = 0; n < 16; n++) {
        const int64_t D = n & 1 ? 70 : 96, dims[] = {2, 3, n & 2 ? 5 : 45, D};
        fv_tensor x = gapped(r, 1, 4, dims), out = result(r, FV_F32, 4, dims);
        fv_rope_args a = {
            .x = x, .out = out, .offset = 100000, .rotary = n & 4 ? 60 : D, .base = 10000, .magnitude = 1};
        if (n & 2) a.position = places;
        a.interleaved = n & 8;
        a.inverse = n & 4;
        assert_ok(r->backend->rope(r->ctx, &a));
        keep(r, "rope", &out, CLOSE);
    }
    for (int n = 1; n < 300; n = 2 * n + 1) {
        fv_tensor x = gapped(r, 4, FV_DIMS(5, n)), out = result(r, FV_F32, FV_DIMS(5, n));
        ((float *)x.data)[0] = -INFINITY;
        assert_ok(r->backend->softmax(r->ctx, &(fv_softmax_args){.x = x, .out = out, .scale = 0.7f}));
        keep(r, "softmax", &out, CLOSE);
    }
}

static void run_pools(struct run *r)
{
    static const int64_t shapes[][2] = {{3, 3}, {8, 4}, {32, 16}, {7, 2}, {5, 9}, {64, 8}, {16, 1}, {500, 500}};
    static const int64_t starts[] = {0, 4, 4, 77, 78, 203};
    const int64_t N = 203;

    for (int n = 0; n < 8 * 3 * 2; n++) {
        const int64_t C = n & 1 ? 34 : 300, *shape = shapes[n / 6];
        fv_tensor x = gapped(r, 1, FV_DIMS(2, N, C)), out = result(r, FV_F32, FV_DIMS(2, fv_ceil_div(N, shape[1]), C));
        assert_ok(r->backend->pool(
            r->ctx, &(fv_pool_args){
                        .kind = (fv_pool_kind)(n / 2 % 3), .x = x, .out = out, .block = shape[0], .stride = shape[1]}));
        keep(r, "pool", &out, 2e-5); /* sums of up to 203 numbers */
    }
    for (int kind = 0; kind < 3; kind++) {
        fv_tensor x = gapped(r, 1, FV_DIMS(2, N, 70)), grid = fv_slice(&x, 1, 0, 7 * 29);
        fv_tensor out = result(r, FV_F32, FV_DIMS(2, 5, 70)), cells = result(r, FV_F32, FV_DIMS(2, 3 * 4, 70));
        assert_ok(
            r->backend->pool(r->ctx, &(fv_pool_args){.kind = (fv_pool_kind)kind, .x = x, .out = out, .start = starts}));
        keep(r, "pool of given rows", &out, 2e-5);
        assert_ok(r->backend->pool(r->ctx, &(fv_pool_args){.kind = (fv_pool_kind)kind,
                                                           .x = grid,
                                                           .out = cells,
                                                           .grid_height = 7,
                                                           .grid_width = 29,
                                                           .out_height = 3,
                                                           .out_width = 4}));
        keep(r, "pool of a grid", &cells, 2e-5);
    }
}

/* Rows long enough that what was collected is cut down many times. */
static void run_selects(struct run *r)
{
    static const int64_t ks[] = {1, 2, 7, 40, 333}, ns[] = {33, 900, 2500};

    for (int n = 0; n < 5 * 3 * 4; n++) {
        const int64_t k = ks[n % 5], length = ns[n / 5 % 3], kind = n / 15;
        fv_tensor scores = gapped(r, 2, FV_DIMS(6, length)), index = result(r, FV_I32, FV_DIMS(6, k));
        fv_tensor count = result(r, FV_I32, FV_DIMS(6));
        for (int64_t e = 0; e < 6 * length; e++) {
            float *at = (float *)scores.data + e / length * scores.strides[0] + e % length;
            if (kind == 1) *at = roundf(*at);                     /* ties, of both zeros too */
            if (kind == 2) *at = (float)(e % length / 3) - 300.f; /* rising: each beats all before */
            if (kind == 3 && e % 5 == 0) *at = e % 10 ? NAN : e % 20 ? -INFINITY : INFINITY;
        }
        assert_ok(r->backend->select(r->ctx, &(fv_select_args){.scores = scores,
                                                               .index = index,
                                                               .count = count,
                                                               .by_score = n % 2,
                                                               .use_threshold = n % 3 == 0,
                                                               .threshold = 0}));
        keep(r, "select", &index, 0);
        keep(r, "count of a selection", &count, 0);
    }
}

static void run_gathers(struct run *r)
{
    for (int n = 0; n < 8; n++) {
        const int64_t C = n & 1 ? 5 : 64;
        fv_tensor x = gapped(r, 1, FV_DIMS(2, 90, C)), out = result(r, FV_F32, FV_DIMS(2, 200, C)), index;
        fv_dtype half = n & 2 ? FV_F16 : FV_BF16;
        fv_random random = fv_random_new(test_seed(), ++r->stream);
        assert_ok(fv_tensor_new(r->ctx, &index, FV_I32, FV_DIMS(2, 200)));
        for (int i = 0; i < 400; i++)
            ((int32_t *)index.data)[i] = (int32_t)fv_random_below(&random, 91) - 1;
        fv_tensor stored = test_cast(r->ctx, &x, half);
        assert_ok(r->backend->gather(r->ctx, &(fv_gather_args){.x = n & 4 ? stored : x, .index = index, .out = out}));
        keep(r, "gather", &out, 0);
        fv_tensor to_half = result(r, half, FV_DIMS(2, 200, C)), sums = input(r, 1, FV_DIMS(2, 90, C));
        assert_ok(r->backend->gather(r->ctx, &(fv_gather_args){.x = x, .index = index, .out = to_half}));
        keep(r, "gather to half", &to_half, 0);
        assert_ok(
            r->backend->gather(r->ctx, &(fv_gather_args){.x = out, .index = index, .out = sums, .scatter = true}));
        keep(r, "scatter", &sums, 0); /* both add in the order of rows */
    }
}

static void run_dots(struct run *r)
{
    for (int n = 0; n < 6; n++) {
        const int64_t D = n & 1 ? 5 : 64, R = n & 2 ? 100 : 3;
        fv_random random = fv_random_new(test_seed(), ++r->stream);
        fv_tensor x = gapped(r, 1, FV_DIMS(1, 6, 70, D)), y = gapped(r, 1, FV_DIMS(1, 2, 90, D)), index;
        fv_tensor out = result(r, FV_F32, FV_DIMS(1, 6, 70, R));
        assert_ok(fv_tensor_new(r->ctx, &index, FV_I32, FV_DIMS(1, n < 4 ? 6 : 1, 70, R)));
        for (int64_t i = 0; i < fv_tensor_count(&index); i++)
            ((int32_t *)index.data)[i] = (int32_t)fv_random_below(&random, 91) - 1;
        index = fv_broadcast(&index, 4, out.dims);
        assert_ok(r->backend->sampled_dots(
            r->ctx, &(fv_sampled_dots_args){.x = x, .y = y, .index = index, .out = out, .scale = 0.25f}));
        keep(r, "sampled dots", &out, 5e-6); /* 64 products */
        fv_tensor weight = input(r, 1, FV_DIMS(1, 6, 70, R)), sums = result(r, FV_F32, FV_DIMS(1, 6, 70, D));
        ((float *)weight.data)[7] = -INFINITY;
        fv_sampled_sums_args a = {.weight = weight, .y = y, .index = index, .out = sums};
        assert_ok(r->backend->sampled_sums(r->ctx, &a));
        keep(r, "sampled sums", &sums, 2e-5); /* 100 products */
        a.y = input(r, 1, FV_DIMS(1, 2, 90, D));
        a.out = x;
        assert_ok(r->backend->sampled_spread(r->ctx, &a));
        keep(r, "sampled spread", &a.y, 1e-4); /* 3 * 70 * 100 / 90 products, added in another order */
    }
}

/* Doubles in the same order: the reference's bits. */
static void run_sums(struct run *r)
{
    static const int64_t widths[] = {1, 5, 34, 300, 64};

    for (int n = 0; n < 5 * 8; n++) {
        const int64_t dims[] = {2, 45, widths[n % 5]};
        fv_tensor x = gapped(r, 1, 3, dims), out = result(r, FV_F32, 3, dims);
        ((float *)x.data)[20 * x.strides[1]] = n % 3 ? 1e30f : INFINITY;
        assert_ok(r->backend->cumsum(
            r->ctx,
            &(fv_cumsum_args){.x = x, .out = out, .max = n / 5 & 4, .exclusive = n / 5 & 1, .reverse = n / 5 & 2}));
        keep(r, "cumsum", &out, 0);
    }
}

static void run_features(struct run *r)
{
    for (int n = 0; n < 2; n++) {
        const int64_t C = n ? 37 : 4;
        fv_tensor x = gapped(r, 1, FV_DIMS(2, 45, C)), out = result(r, FV_F32, FV_DIMS(2, 45, 1 + C + C * (C + 1) / 2));
        assert_ok(r->backend->taylor(r->ctx, &(fv_taylor_args){.x = x, .out = out}));
        keep(r, "taylor", &out, 2e-7); /* two roundings more */
    }
}

static void run_convolutions(struct run *r)
{
    static const int64_t shapes[][7] = {/* channels, outs, groups, kernel, padding, dilation, stride */
                                        {70, 70, 70, 5, 2, 1, 1}, {6, 6, 6, 3, 1, 1, 1},   {4, 6, 2, 3, 2, 2, 1},
                                        {3, 5, 1, 1, 0, 1, 1},    {5, 5, 5, 5, 9, 3, 1},   {70, 70, 70, 3, 1, 1, 2},
                                        {3, 21, 1, 3, 1, 1, 2},   {4, 6, 2, 4, 0, 1, 4},   {6, 6, 6, 3, 4, 2, 3},
                                        {3, 5, 1, 2, 0, 1, 7},    {2, 20, 2, 5, 20, 3, 2}, {4, 4, 4, 1, 40, 1, 16}};
    enum { SHAPES = sizeof shapes / sizeof *shapes };

    for (int n = 0; n < SHAPES * 2; n++) {
        const int64_t *s = shapes[n / 2], C = s[0], H = 19, W = 37, reach = s[5] * (s[3] - 1) - 2 * s[4];
        const int64_t height = (H - reach - 1) / s[6] + 1, width = (W - reach - 1) / s[6] + 1;
        bool places = n & 1; /* channels side by side */
        fv_tensor x = input(r, 1, FV_DIMS(2, H, W, C)), w = input(r, 0.3, FV_DIMS(s[1], C / s[2], s[3], s[3])), out;
        if (places) {
            out = result(r, FV_F32, FV_DIMS(2, height, width, s[1]));
            x = fv_permuted(&x, (const int[]){0, 3, 1, 2});
            out = fv_permuted(&out, (const int[]){0, 3, 1, 2});
        } else {
            x = fv_reshaped(&x, FV_DIMS(2, C, H, W));
            out = result(r, FV_F32, FV_DIMS(2, s[1], height, width));
        }
        fv_conv2d_args a = {.x = x, .weight = w, .out = out, .stride = s[6]};
        a.padding = s[4], a.dilation = s[5], a.groups = s[2];
        if (n % 4 < 2) a.bias = input(r, 1, FV_DIMS(s[1]));
        assert_ok(r->backend->conv2d(r->ctx, &a));
        keep(r, "conv2d", &out, 5e-6); /* up to 27 products */
    }
}

static void run_merges(struct run *r)
{
    enum { ROWS = 140, SLOTS = 150 }; /* more rows than are weighed together */
    static int64_t start[2 * ROWS + 1];
    static int32_t slot[2 * ROWS * 70];

    for (int n = 0; n < 3; n++) {
        bool given = n == 1, slots = n == 2; /* slots go by lse */
        fv_merge_args a = {.parts = slots ? 1 : 3, .o = result(r, FV_F32, FV_DIMS(1, 2, ROWS, 70))};
        fv_random random = fv_random_new(test_seed(), ++r->stream);
        if (!given) a.lse = result(r, FV_F32, FV_DIMS(1, 2, ROWS));
        for (int p = 0; p < a.parts; p++) {
            const int64_t rows = slots ? SLOTS : ROWS;
            fv_tensor numbers = input(r, 3, FV_DIMS(1, 2, rows));
            a.o_part[p] = gapped(r, 1, FV_DIMS(1, 2, rows, 70));
            for (int i = 0; i < 2 * rows; i += 3 + p) { /* such a part may hold anything */
                ((float *)numbers.data)[i] = given ? 0 : -INFINITY;
                *(float *)fv_at(&a.o_part[p], 0, i / rows, i % rows, 7) = i % 2 ? NAN : INFINITY;
            }
            *(given ? &a.weight[p] : &a.lse_part[p]) = numbers;
        }
        for (int i = 0; slots && i < 2 * ROWS; i++) { /* 0 to 69 slots a row */
            int64_t count = i % 7 == 0 ? 0 : (int64_t)fv_random_below(&random, 70);
            start[i + 1] = start[i] + count;
            for (int64_t e = start[i]; e < start[i + 1]; e++)
                slot[e] = (int32_t)fv_random_below(&random, SLOTS);
        }
        if (slots) a.slot_start = start, a.slot = slot;
        assert_ok(r->backend->merge(r->ctx, &a));
        keep(r, "merge", &a.o, given ? 2e-5 : 4e-6); /* sums of up to 69 terms, or means of them */
        if (!given) keep(r, "lse of a merge", &a.lse, 2e-6);
    }
}

static struct run *run_all(fv_ctx *ctx, const fv_backend *backend)
{
    struct run *r = calloc(1, sizeof *r);
    fv_mark mark = fv_scratch_mark(ctx);

    assert_non_null(r);
    r->ctx = ctx;
    r->backend = backend;
    r->stream = UINT64_C(1) << 40;
    r->values = calloc(RESULTS, sizeof *r->values);
    assert_non_null(r->values);
    run_maps(r);
    run_norms(r);
    run_turns(r);
    run_pools(r);
    run_selects(r);
    run_gathers(r);
    run_dots(r);
    run_sums(r);
    run_features(r);
    run_convolutions(r);
    run_merges(r);
    fv_scratch_release(ctx, mark);
    return r;
}

static void free_run(struct run *r)
{
    free(r->values);
    free(r);
}

static void compare_runs(const struct run *got, const struct run *expected, const char *backend, bool exactly)
{
    int64_t i = 0;

    for (int p = 0; p < expected->parts; p++)
        for (int64_t first = i; i < expected->part[p].end; i++) {
            double a = got->values[i], b = expected->values[i], tolerance = exactly ? 0 : expected->part[p].tolerance;
            if (a == b || fabs(a - b) <= tolerance * fmax(1, fabs(b))) continue;
            fail_msg("%s: %s, element %lld of part %d: expected %.9g, got %.9g (tolerance %.3g)", backend,
                     expected->part[p].what, (long long)(i - first), p, b, a, tolerance);
        }
}

static void rows_agree_with_the_reference_for_any_number_of_threads(void **state)
{
    fv_ctx *ref = test_ctx("ref", 2);
    struct run *expected = run_all(ref, &fv_backend_ref);
    (void)state;

    for (int isa = 0; test_isas[isa]; isa++) {
        struct run *first = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            fv_ctx *ctx = test_isa_ctx(test_isas[isa], threads, FV_PRECISION_F32);
            if (!ctx) break;
            struct run *now = run_all(ctx, ctx->backend);
            if (!first) {
                first = now;
                compare_runs(now, expected, fv_ctx_backend(ctx), false);
            } else {
                compare_runs(now, first, fv_ctx_backend(ctx), true);
                free_run(now);
            }
            fv_ctx_free(ctx);
        }
        if (first) free_run(first);
    }
    free_run(expected);
    fv_ctx_free(ref);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(functions_keep_their_bounds),
        cmocka_unit_test(caps_keep_their_bounds_whatever_is_hidden),
        cmocka_unit_test(rows_agree_with_the_reference_for_any_number_of_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
