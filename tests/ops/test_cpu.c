/* The CPU backend: every instruction set this machine has against plain double loops, bit-identical for any number of
 * threads. */
#include "support/stored.h"

#include <math.h>
#include <stdlib.h>

#include "ops/backend.h"
#include "ops/blocks.h"
#include "ops/cpu/kernels.h"

enum { MOST_KEYS = 7168 }; /* of a case of attention */

/* ---- stored types ---------------------------------------------------------------------------------------------- */

static void check_load(fv_ctx *ctx)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);

    for (int n = 0; n < TEST_BLOCK_TYPES; n++) {
        int64_t block = fv_dtype_block(test_block_types[n]), k = 3 * block;
        fv_tensor t = test_stored(ctx, test_block_types[n], 1, k);
        float got[3 * 256], expected[3 * 256];
        fv_kernels_load(kernels, t.dtype, t.data, block, k - block, got);
        fv_blocks_load(t.dtype, t.data, 1, 2, expected);
        for (int64_t i = 0; i < k - block; i++)
            if (got[i] != expected[i]) /* zeros may differ in sign */
                fail_msg("%s: %s element %lld: expected %.9g, got %.9g", fv_ctx_backend(ctx), fv_dtype_name(t.dtype),
                         (long long)i, (double)expected[i], (double)got[i]);
    }
}

static void rows_of_blocks_are_exact(void **state)
{
    (void)state;
    test_each_isa(check_load);
}

/* ---- gemm ------------------------------------------------------------------------------------------------------ */

static float *f32_of(fv_ctx *ctx, const fv_tensor *rows)
{
    int64_t count = fv_tensor_count(rows);
    float *out;

    assert_ok(FV_SCRATCH(ctx, out, count));
    for (int64_t r = 0; r < rows->dims[0]; r++) {
        int64_t k = rows->dims[1], block = fv_dtype_block(rows->dtype);
        const char *row = (const char *)rows->data + r * k / block * (int64_t)fv_dtype_block_bytes(rows->dtype);
        if (block > 1)
            fv_blocks_load(rows->dtype, row, 0, k / block, out + r * k);
        else
            fv_load_row(rows->dtype, row, 0, 1, out + r * k, k);
    }
    return out;
}

struct gemm_case {
    int64_t m, n, k;
    fv_dtype a, b;
    bool a_transposed, b_rows; /* a stored [k,m]; b stored [k,n] rather than [n,k] */
    float alpha, beta;
    bool bias;
};

/* |error| <= (k + 4) eps sum |a b|: a sum of k products in any order, fused or not, and the epilogue. */
static void check_product(fv_ctx *ctx, const struct gemm_case *g)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor a = g->a_transposed ? test_stored(ctx, g->a, g->k, g->m) : test_stored(ctx, g->a, g->m, g->k);
    fv_tensor b = g->b_rows ? test_stored(ctx, g->b, g->k, g->n) : test_stored(ctx, g->b, g->n, g->k);
    fv_tensor c = test_random(ctx, 1, FV_DIMS(g->m, g->n)), bias = test_random(ctx, 1, FV_DIMS(g->n)), old = c;
    float *af = f32_of(ctx, &a), *bf = f32_of(ctx, &b);
    fv_gemm_args args = {.a = g->a_transposed ? fv_transposed(&a) : a,
                         .b = g->b_rows ? b : fv_transposed(&b),
                         .c = c,
                         .alpha = g->alpha,
                         .beta = g->beta};

    if (g->bias) args.bias = bias;
    assert_ok(fv_tensor_new(ctx, &old, FV_F32, 2, c.dims));
    memcpy(old.data, c.data, (size_t)(g->m * g->n) * sizeof(float));
    assert_ok(ctx->backend->gemm(ctx, &args));
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            double sum = 0, size = 0, alpha = g->alpha != 0 ? g->alpha : 1;
            for (int64_t p = 0; p < g->k; p++) {
                double x = af[g->a_transposed ? p * g->m + i : i * g->k + p];
                double y = bf[g->b_rows ? p * g->n + j : j * g->k + p];
                sum += alpha * x * y;
                size += fabs(alpha * x * y);
            }
            double before = g->beta * (double)((float *)old.data)[i * g->n + j];
            double shift = g->bias ? ((float *)bias.data)[j] : 0, expected = sum + before + shift;
            double got = ((float *)c.data)[i * g->n + j];
            double bound = ((double)g->k + 4) * 0x1p-24 * (size + fabs(before) + fabs(shift)) + 1e-30;
            if (!(fabs(got - expected) <= bound))
                fail_msg("%s: gemm %lldx%lldx%lld %s x %s%s%s: c[%lld,%lld]: expected %.9g, got %.9g (bound %.3g)",
                         fv_ctx_backend(ctx), (long long)g->m, (long long)g->n, (long long)g->k, fv_dtype_name(g->a),
                         fv_dtype_name(g->b), g->a_transposed ? " aT" : "", g->b_rows ? " rows" : "", (long long)i,
                         (long long)j, expected, got, bound);
        }
    fv_scratch_release(ctx, mark);
}

static void check_gemm(fv_ctx *ctx)
{
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 67, 33},   {2, 33, 64},  {3, 130, 17},
                                        {4, 31, 100}, {5, 1, 3},     {14, 32, 5},  {15, 33, 65},
                                        {29, 70, 40}, {64, 129, 96}, {7, 5, 1100}, {100, 40, 0}};
    static const fv_dtype plain[] = {FV_F32, FV_F16, FV_BF16};

    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int layout = 0; layout < 4; layout++)
            for (int t = 0; t < 3; t++)
                check_product(ctx, &(struct gemm_case){.m = shapes[s][0],
                                                       .n = shapes[s][1],
                                                       .k = shapes[s][2],
                                                       .a = plain[(t + (int)s) % 3],
                                                       .b = plain[t],
                                                       .a_transposed = layout & 1,
                                                       .b_rows = layout & 2,
                                                       .alpha = t == 1 ? 0.5f : 0,
                                                       .beta = layout == 2 ? -0.25f : 0,
                                                       .bias = (layout + t) & 1});
    for (int n = 0; n < TEST_BLOCK_TYPES; n++)
        for (int64_t m = 1; m <= 9; m++)
            check_product(ctx, &(struct gemm_case){.m = m,
                                                   .n = 37,
                                                   .k = 3 * fv_dtype_block(test_block_types[n]) * (1 + n % 2),
                                                   .b = test_block_types[n],
                                                   .bias = m == 2});
}

static void products_agree_with_double_loops(void **state)
{
    (void)state;
    test_each_isa(check_gemm);
}

static void products_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (size_t i = 0; test_isas[i]; i++) {
        fv_ctx *one = test_isa_ctx(test_isas[i], 1, FV_PRECISION_F32);
        if (!one) continue;
        fv_tensor a = test_random(one, 1, FV_DIMS(77, 700)), b = test_random(one, 1, FV_DIMS(700, 300)), first, next;
        assert_ok(fv_tensor_new(one, &first, FV_F32, FV_DIMS(77, 300)));
        assert_ok(fv_tensor_new(one, &next, FV_F32, FV_DIMS(77, 300)));
        assert_ok(one->backend->gemm(one, &(fv_gemm_args){.a = a, .b = b, .c = first}));
        for (int threads = 2; threads <= 5; threads++) {
            fv_ctx *more = test_isa_ctx(test_isas[i], threads, FV_PRECISION_F32);
            assert_ok(more->backend->gemm(more, &(fv_gemm_args){.a = a, .b = b, .c = next}));
            assert_memory_equal(first.data, next.data, 77 * 300 * sizeof(float));
            fv_ctx_free(more);
        }
        fv_ctx_free(one);
    }
}

/* ---- attend ---------------------------------------------------------------------------------------------------- */

static double *doubles_of(fv_ctx *ctx, const fv_tensor *t)
{
    double *out;

    assert_true(fv_tensor_contiguous(t));
    assert_ok(FV_SCRATCH(ctx, out, fv_tensor_count(t)));
    for (int64_t i = 0; i < fv_tensor_count(t); i++)
        out[i] = fv_load(t->dtype, t->data, i);
    return out;
}

struct attend_case {
    int64_t B, H, Hkv, N, M, D, Dv;
    fv_dtype k, v;
    fv_plan plan;
    float softcap, gain;
    bool bias, sinks;
};

static fv_tensor random_keys(fv_ctx *ctx, fv_dtype dtype, int64_t B, int64_t H, int64_t M, int64_t D)
{
    fv_tensor rows = test_stored(ctx, dtype, B * H * M, D);

    return fv_reshaped(&rows, FV_DIMS(B, H, M, D));
}

static void load_key(const fv_tensor *t, int64_t b, int64_t h, int64_t n, float *out)
{
    int64_t at = (b * t->dims[1] + h) * t->dims[2] + n, columns = t->dims[3], block = fv_dtype_block(t->dtype);

    if (block > 1)
        fv_blocks_load(t->dtype, t->data, at * columns / block, columns / block, out);
    else
        fv_load_row(t->dtype, t->data, at * columns, 1, out, columns);
}

/* One row by its definition.  In f32 the bound is eps times the length of its sums, on outputs that are means of v.  In
 * bf16, whose 8 bits round a number by up to u / (1 + u) of itself, u = 2^-8, a product of two rounded numbers is
 * within 2 u of itself.  So q and k move a logit by up to 2 u scale sum |q k| (what curves it does not add to that but
 * for gain), which moves weights by as much and o by twice that, as the denominator moves too; rounded weights times
 * rounded v add 2 u; all of sum p |v|. */
static void check_attend_row(fv_ctx *ctx, const struct attend_case *c, const fv_attend_args *a, int64_t b, int64_t h,
                             int64_t i)
{
    bool pairs = ctx->precision == FV_PRECISION_BF16 && fv_kernels_of(ctx)->tile_bf16;
    int64_t hk = h / (c->H / c->Hkv);
    double total = 0, top = -INFINITY, logit[MOST_KEYS], o[300] = {0}, size[300] = {0}, scale = 1 / sqrt((double)c->D);
    double moved = 0, u = 0x1p-8;
    float value[300];
    fv_plan open = {0};

    if (c->sinks) top = ((float *)a->sinks.data)[h];
    for (int64_t j = 0; j < c->M; j++) {
        logit[j] = -INFINITY;
        if (!fv_plan_sees(a->plan ? a->plan : &open, c->H, b, h, i, j)) continue;
        double s = 0, sum = 0, temperature = *(float *)fv_at(&a->logits.temperature, b, h, i, 0);
        load_key(&a->k, b, hk, j, value);
        for (int64_t d = 0; d < c->D; d++) {
            double product = (double)*(float *)fv_at(&a->q, b, h, i, d) * value[d];
            s += product;
            sum += fabs(product);
        }
        s *= scale * temperature;
        moved = fmax(moved, 2 * u * sum * scale * fabs(temperature) * (1 + c->gain));
        s += c->gain * fabs(s);
        if (c->softcap > 0) s = c->softcap * tanh(s / c->softcap);
        if (c->bias) s += *(float *)fv_at(&a->logits.bias, b, h, i, j);
        logit[j] = s;
        top = fmax(top, s);
    }
    if (c->sinks) total = exp(((float *)a->sinks.data)[h] - top);
    for (int64_t j = 0; j < c->M; j++) {
        if (logit[j] == -INFINITY) continue;
        total += exp(logit[j] - top);
        load_key(&a->v, b, hk, j, value);
        for (int64_t d = 0; d < c->Dv; d++) {
            o[d] += exp(logit[j] - top) * value[d];
            size[d] += exp(logit[j] - top) * fabs((double)value[d]);
        }
    }
    double lse = total > 0 ? top + log(total) : -INFINITY, got = *(float *)fv_at(&a->lse, b, h, i, 0);
    double bound = 2e-5 * fmax(1, fabs(lse)) + (pairs ? moved + 1e-4 : 0); /* 1e-4: the coarse exponential */
    if (!(got == lse || fabs(got - lse) < bound))
        fail_msg("%s: lse[%lld,%lld,%lld] of %lldx%lldx%lld: expected %.9g, got %.9g (bound %.3g)", fv_ctx_backend(ctx),
                 (long long)b, (long long)h, (long long)i, (long long)c->N, (long long)c->M, (long long)c->D, lse, got,
                 bound);
    for (int64_t d = 0; d < c->Dv; d++) {
        double expected = total > 0 ? o[d] / total : 0, is = *(float *)fv_at(&a->o, b, h, i, d);
        bound = 2e-5;
        if (pairs && total > 0) bound += (exp(2 * moved) * (1 + 2 * u + 1e-4) - 1) * size[d] / total;
        if (!(fabs(is - expected) < bound))
            fail_msg("%s: o[%lld,%lld,%lld,%lld] of %lldx%lldx%lld: expected %.9g, got %.9g (bound %.3g)",
                     fv_ctx_backend(ctx), (long long)b, (long long)h, (long long)i, (long long)d, (long long)c->N,
                     (long long)c->M, (long long)c->D, expected, is, bound);
    }
}

static void compare(const char *what, fv_ctx *ctx, const fv_tensor got[2], double tolerance)
{
    test_close(what, &got[0], doubles_of(ctx, &got[1]), tolerance);
}

/* Against the reference backend, which central differences check; sums of up to M (or N H/Hkv) terms of size about 1 */
static void check_attend_gradients(fv_ctx *ctx, const fv_attend_args *a)
{
    fv_tensor d_q[2], d_k[2], d_v[2], d_bias[2], d_sinks[2], d_temperature[2];
    fv_tensor d_o = test_random(ctx, 1, 4, a->o.dims), d_lse = test_random(ctx, 1, 3, a->lse.dims);
    bool biased = fv_present(&a->logits.bias), sinks = fv_present(&a->sinks);

    for (int n = 0; n < 2; n++) {
        fv_attend_grads grads = {.d_o = d_o, .d_lse = d_lse};
        assert_ok(fv_tensor_zeros(ctx, &d_q[n], FV_F32, 4, a->q.dims));
        assert_ok(fv_tensor_zeros(ctx, &d_k[n], FV_F32, 4, a->k.dims));
        assert_ok(fv_tensor_zeros(ctx, &d_v[n], FV_F32, 4, a->v.dims));
        assert_ok(fv_tensor_zeros(ctx, &d_temperature[n], FV_F32, 3, a->q.dims));
        assert_ok(fv_tensor_zeros(ctx, &d_sinks[n], FV_F32, FV_DIMS(a->q.dims[1])));
        assert_ok(fv_tensor_zeros(ctx, &d_bias[n], FV_F32, FV_DIMS(a->q.dims[1], 1, a->k.dims[2])));
        grads.d_q = d_q[n], grads.d_k = d_k[n], grads.d_v = d_v[n], grads.d_temperature = d_temperature[n];
        if (biased) grads.d_bias = fv_broadcast(&d_bias[n], 4, a->logits.bias.dims);
        if (sinks) grads.d_sinks = d_sinks[n];
        assert_ok(n ? fv_backend_ref.attend_backward(ctx, a, &grads) : ctx->backend->attend_backward(ctx, a, &grads));
    }
    compare("attend: d_q", ctx, d_q, 1e-4);
    compare("attend: d_k", ctx, d_k, 1e-4);
    compare("attend: d_v", ctx, d_v, 1e-4);
    compare("attend: d_temperature", ctx, d_temperature, 1e-4);
    compare("attend: d_bias", ctx, d_bias, 1e-3); /* over batches and queries too */
    compare("attend: d_sinks", ctx, d_sinks, 1e-3);
}

/* By-products, given normalisers and statistics against the reference backend; tolerances as for o. */
static void check_attend_by_products(fv_ctx *ctx, const fv_attend_args *given, const fv_tensor *lse)
{
    int64_t B = given->q.dims[0], H = given->q.dims[1], N = given->q.dims[2], M = given->k.dims[2];
    fv_tensor o[2], top[2], weights[2], sums[2], entropy[2], distance[2], mass[2], by_row[2], by_key[2];
    fv_tensor key_lse = test_random(ctx, 1, FV_DIMS(B, H, M));
    static uint8_t set[MOST_KEYS];
    float highest = 0;
    const struct {
        fv_tensor *t;
        int64_t last[2];
    } made[] = {{o, {N, given->o.dims[3]}},
                {by_row, {N, given->o.dims[3]}},
                {by_key, {N, given->o.dims[3]}},
                {top, {N, 0}},
                {weights, {N, M - 3}},
                {sums, {M, 0}},
                {entropy, {N, 0}},
                {distance, {N, 0}},
                {mass, {N, 0}}};

    for (int64_t j = 0; j < M; j++)
        set[j] = j % 3 == 0;
    for (int n = 0; n < 2; n++) {
        const fv_backend *backend = n ? &fv_backend_ref : ctx->backend;
        for (size_t t = 0; t < sizeof made / sizeof *made; t++)
            assert_ok(fv_tensor_new(ctx, &made[t].t[n], FV_F32, made[t].last[1] ? 4 : 3,
                                    (const int64_t[]){B, H, made[t].last[0], made[t].last[1]}));
        fv_attend_args a = *given;
        a.o = o[n], a.lse = (fv_tensor){0}, a.row_max = top[n], a.weights = weights[n], a.weight_from = 2;
        assert_ok(backend->attend(ctx, &a));
        for (int64_t r = 0; n == 0 && r < B * H * N; r++) /* so that weights are of the size of 1 / M at most */
            highest = fmaxf(highest, ((float *)top[0].data)[r]);
        for (int64_t j = 0; n == 0 && j < B * H * M; j++)
            ((float *)key_lse.data)[j] += highest + logf((float)M);
        a.o = by_row[n], a.lse_in = *lse, a.row_max = a.weights = (fv_tensor){0};
        assert_ok(backend->attend(ctx, &a));
        a.o = by_key[n], a.lse_in = (fv_tensor){0}, a.lse_in_key = key_lse;
        assert_ok(backend->attend(ctx, &a));
        fv_stats_args s = {.q = a.q, .k = a.k, .lse = *lse, .plan = a.plan, .logits = a.logits, .key_set = set};
        s.column_sum = sums[n], s.entropy = entropy[n], s.distance = distance[n], s.mass = mass[n];
        s.distance_clip = 50;
        assert_ok(backend->attend_stats(ctx, &s));
    }
    compare("attend: o with by-products", ctx, o, 2e-5);
    compare("attend: row_max", ctx, top, 2e-5);
    compare("attend: weights", ctx, weights, 2e-5);
    compare("attend: o by lse_in", ctx, by_row, 2e-5);
    compare("attend: o by lse_in_key", ctx, by_key, 2e-5);
    compare("attend_stats: column_sum", ctx, sums, 1e-4);
    compare("attend_stats: entropy", ctx, entropy, 1e-4);
    compare("attend_stats: distance", ctx, distance, 1e-3); /* of up to 50 */
    compare("attend_stats: mass", ctx, mass, 2e-5);
}

static double nearest_to_zero(const fv_attend_args *a, const float *q, int64_t b, int64_t h)
{
    int64_t D = a->q.dims[3], group = a->q.dims[1] / a->k.dims[1];
    double nearest = INFINITY;
    float key[300];

    for (int64_t j = 0; j < a->k.dims[2]; j++) {
        double s = 0;
        load_key(&a->k, b, h / group, j, key);
        for (int64_t d = 0; d < D; d++)
            s += (double)q[d] * key[d];
        nearest = fmin(nearest, fabs(s));
    }
    return nearest;
}

/* s + gain |s| bends at 0, where rounding decides between two slopes, and a cap that is tiny has a slope there alone,
 * which rounding moves along: rows of q that come so near are drawn anew. */
static void keep_from_kinks(fv_ctx *ctx, const fv_attend_args *a)
{
    int64_t B = a->q.dims[0], H = a->q.dims[1], N = a->q.dims[2], D = a->q.dims[3];

    for (int64_t r = 0; r < B * H * N; r++) {
        float *q = (float *)a->q.data + r * D;
        while (nearest_to_zero(a, q, r / (H * N), r / N % H) < 1e-4) {
            fv_tensor fresh = test_random(ctx, 1, FV_DIMS(D));
            memcpy(q, fresh.data, (size_t)D * sizeof *q);
        }
    }
}

static void check_attend_case(fv_ctx *ctx, const struct attend_case *c)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(c->B, c->H, c->N, c->D)), .plan = &c->plan};

    a.k = random_keys(ctx, c->k, c->B, c->Hkv, c->M, c->D);
    a.v = random_keys(ctx, c->v, c->B, c->Hkv, c->M, c->Dv);
    a.logits = (fv_logits){.scale = (float)(1 / sqrt((double)c->D)), .softcap = c->softcap, .gain = c->gain};
    if (c->bias) {
        fv_tensor bias = test_random(ctx, 1, FV_DIMS(c->H, 1, c->M));
        a.logits.bias = fv_broadcast(&bias, FV_DIMS(c->B, c->H, c->N, c->M));
    }
    if (c->sinks) a.sinks = test_random(ctx, 1, FV_DIMS(c->H));
    a.logits.temperature = test_random(ctx, 1, FV_DIMS(c->B, c->H, c->N));
    if (c->gain != 0 || (c->softcap > 0 && c->softcap < 1e-4f)) keep_from_kinks(ctx, &a);
    assert_ok(fv_tensor_new(ctx, &a.o, FV_F32, FV_DIMS(c->B, c->H, c->N, c->Dv)));
    assert_ok(fv_tensor_new(ctx, &a.lse, FV_F32, FV_DIMS(c->B, c->H, c->N)));
    for (int bf16 = 1; bf16 >= 0; bf16--) {
        ctx->precision = bf16 ? FV_PRECISION_BF16 : FV_PRECISION_F32;
        assert_ok(ctx->backend->attend(ctx, &a));
        for (int64_t b = 0; b < c->B; b++)
            for (int64_t h = 0; h < c->H; h++)
                for (int64_t i = 0; i < c->N; i += 1 + i % 3)
                    check_attend_row(ctx, c, &a, b, h, i);
    }
    check_attend_gradients(ctx, &a);
    check_attend_by_products(ctx, &a, &a.lse);
    fv_scratch_release(ctx, mark);
}

static void check_attend(fv_ctx *ctx)
{
    static const int32_t from[] = {0, 3, 9, 0, 40}, to[] = {1, 3, 70, 75, 75};
    static const int64_t row_start[] = {0, 3, 3, 8};
    static const int32_t entry[] = {0, 2, 9, 1, 3, 4, 5, 11}, tile[] = {0, 1, 0, 0, 2, 0, 0, 1};
    static const uint64_t tiles[] = {0x123456789abcdef, 0xf0f0f0f00f0f0f0f, 1, 0x8000000000000001};
    fv_lists lists = {.query_block = 16,
                      .key_block = 8,
                      .groups = 3,
                      .key_blocks = 12,
                      .heads = 1,
                      .row_start = row_start,
                      .entry = entry,
                      .tile = tile,
                      .tiles = tiles,
                      .tile_words = 2};
    struct attend_case cases[] = {
        {1, 3, 1, 100, 100, 64, 64, FV_F32, FV_F32, {.causal = true}, 0, 0, false, false},
        {2, 4, 2, 33, 70, 40, 24, FV_F32, FV_F32, {0}, 0, 0, false, true},
        {1, 4, 4, 1, 1500, 64, 64, FV_F32, FV_F32, {.causal = true, .offset = 1499}, 0, 0, false, false},
        {1, 9, 3, 1, 1300, 64, 64, FV_F16, FV_F16, {.causal = true, .offset = 1250}, 0, 0, false, true},
        {1, 2, 1, 130, 700, 17, 33, FV_BF16, FV_F16, {.causal = true, .offset = 570}, 0, 0, true, false},
        {1,
         2,
         2,
         90,
         90,
         32,
         32,
         FV_F32,
         FV_F32,
         {.causal = true, .window = {.sink = 4, .window = 10}},
         0,
         0,
         false,
         false},
        {1, 2, 1, 5, 75, 16, 16, FV_F32, FV_F32, {.key_from = from, .key_to = to}, 5, 0.5f, true, false},
        {1, 2, 1, 41, 90, 16, 16, FV_F32, FV_F32, {.lists = lists}, 0, 0, false, false},
        {1, 2, 1, 80, 300, 96, 64, FV_Q8_0, FV_Q8_0, {.causal = true, .offset = 220}, 20, 0, true, false},
        /* caps whose coefficients no float holds, and one that logits reach */
        {1, 2, 1, 30, 70, 16, 16, FV_F32, FV_F32, {0}, 1e5f, 0.3f, true, false},
        {1, 2, 1, 30, 70, 16, 16, FV_F32, FV_F32, {0}, 1e-5f, 0, true, true},
        {1, 2, 2, 70, 140, 32, 32, FV_BF16, FV_BF16, {0}, 0.5f, 0.2f, false, false},
        {1, 2, 1, 80, 300, 96, 64, FV_Q4_0, FV_Q4_0, {.causal = true, .offset = 220}, 20, 0, true, false},
        {1, 3, 1, 1, 1400, 64, 64, FV_Q4_0, FV_Q4_0, {.causal = true, .offset = 1399}, 0, 0, false, false},
        {1, 8, 2, 2, 1400, 96, 32, FV_Q8_0, FV_Q4_0, {.causal = true, .offset = 1398}, 0, 0.2f, true, true},
        {1, 8, 1, 1, 1400, 64, 64, FV_Q8_0, FV_Q8_0, {.causal = true, .offset = 1399}, 0, 0, false, false},
        {1, 5, 1, 1, 1100, 33, 20, FV_F16, FV_BF16, {.causal = true, .offset = 1099}, 0, 0.2f, true, true},
        {1, 2, 2, 4, 1200, 128, 128, FV_BF16, FV_F32, {.causal = true, .offset = 1196}, 0, 0, false, false},
        {1,
         3,
         1,
         2,
         900,
         64,
         64,
         FV_F32,
         FV_F16,
         {.causal = true, .offset = 898, .window = {.sink = 3, .window = 70}},
         0,
         0,
         false,
         false},
        {1, 7, 1, 1, 650, 24, 40, FV_F16, FV_F16, {0}, 9, 0, false, false},
        /* few rows whose keys are cut into pieces */
        {2, 6, 2, 1, 3001, 64, 64, FV_F32, FV_F32, {.causal = true, .offset = 3000}, 0, 0, false, true},
        {2, 4, 2, 1, 4100, 64, 64, FV_F16, FV_F16, {.causal = true, .offset = 4090}, 0, 0, true, false},
        {1, 8, 1, 1, 2000, 128, 128, FV_BF16, FV_BF16, {.causal = true, .offset = 1999}, 30, 0, false, false},
        {1, 5, 1, 1, 7001, 64, 128, FV_Q4_0, FV_F16, {.causal = true, .offset = 7000}, 0, 0, false, false},
        {1, 3, 1, 1, 7001, 64, 64, FV_Q8_0, FV_Q8_0, {.causal = true, .offset = 7000}, 0, 0, false, false},
        {1, 2, 1, 41, 90, 16, 16, FV_F16, FV_F32, {.causal = true, .offset = 30, .lists = lists}, 0, 0, false, true},
        {1,
         4,
         2,
         315,
         315,
         32,
         48,
         FV_F32,
         FV_F16,
         {.grid = {.rank = 2, .dims = {15, 21}, .window = {5, 7}}},
         0,
         0,
         false,
         false},
    };

    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++)
        check_attend_case(ctx, &cases[n]);
}

static void attention_agrees_with_its_definition(void **state)
{
    (void)state;
    test_each_isa(check_attend);
}

/* Prefill with shared panels, decode in many pieces, a grid; in f32 and in bf16. */
static void attention_does_not_depend_on_threads(void **state)
{
    static const struct {
        int64_t N, M;
        fv_plan plan;
    } calls[] = {{300, 300, {.causal = true}},
                 {1, 5000, {.causal = true, .offset = 4999}},
                 {1, 5000, {.causal = true, .offset = 4999, .window = {.sink = 4, .window = 900}}},
                 {240, 240, {.grid = {.rank = 2, .dims = {12, 20}, .window = {5, 5}}}}};
    int64_t H = 8, Hkv = 2, D = 64;
    (void)state;

    for (size_t i = 0; test_isas[i]; i++) {
        fv_ctx *one = test_isa_ctx(test_isas[i], 1, FV_PRECISION_F32);
        if (!one) continue;
        for (int n = 0; n < 8; n++) {
            int64_t N = calls[n / 2].N, M = calls[n / 2].M;
            fv_attend_args a = {.q = test_random(one, 1, FV_DIMS(1, H, N, D)), .plan = &calls[n / 2].plan};
            a.k = random_keys(one, n % 4 ? FV_F32 : FV_F16, 1, Hkv, M, D);
            a.v = random_keys(one, FV_F16, 1, Hkv, M, D);
            a.logits.scale = 0.125f;
            fv_tensor o[2];
            for (int threads = 1; threads <= 3; threads++) {
                fv_ctx *ctx = test_isa_ctx(test_isas[i], threads, n % 2 ? FV_PRECISION_BF16 : FV_PRECISION_F32);
                assert_ok(fv_tensor_new(one, &o[threads > 1], FV_F32, FV_DIMS(1, H, N, D)));
                a.o = o[threads > 1];
                assert_ok(ctx->backend->attend(ctx, &a));
                if (threads > 1) assert_memory_equal(o[0].data, o[1].data, (size_t)(H * N * D) * sizeof(float));
                fv_ctx_free(ctx);
            }
        }
        fv_ctx_free(one);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_blocks_are_exact),
        cmocka_unit_test(products_agree_with_double_loops),
        cmocka_unit_test(products_do_not_depend_on_threads),
        cmocka_unit_test(attention_agrees_with_its_definition),
        cmocka_unit_test(attention_does_not_depend_on_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
