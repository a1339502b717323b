/* The CPU backend: every instruction set this machine has against plain double loops, bit-identical for any number of
 * threads. */
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

#include "ops/backend.h"
#include "ops/blocks.h"
#include "ops/cpu/kernels.h"

static const char *const isas[] = {"c", "avx2", "avx512"};

/* A context that is held to an instruction set, or NULL where the machine lacks it. */
static fv_ctx *isa_ctx(const char *isa, int threads)
{
    fv_ctx *ctx = NULL;

    setenv("FOVEA_ISA", isa, 1);
    fv_status status = fv_ctx_new(&(fv_ctx_options){.threads = threads, .precision = FV_PRECISION_F32}, &ctx);
    unsetenv("FOVEA_ISA");
    if (status == FV_E_UNSUPPORTED) return NULL;
    assert_ok(status);
    return ctx;
}

/* Runs `check` for each instruction set with 1, 2 and 3 threads. */
static void each_isa(void (*check)(fv_ctx *ctx))
{
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        for (int threads = 1; threads <= 3; threads++) {
            fv_ctx *ctx = isa_ctx(isas[i], threads);
            if (!ctx) continue;
            check(ctx);
            fv_ctx_free(ctx);
        }
}

static fv_random numbers(void)
{
    static uint64_t stream = 1000;

    return fv_random_new(test_seed(), ++stream);
}

/* ---- stored types ---------------------------------------------------------------------------------------------- */

/* Where the half-precision scales of a block lie; their bytes must not be random, lest they be infinite. */
static const struct {
    fv_dtype dtype;
    int scale[2];
} types[] = {
    {FV_Q4_0, {0, 0}}, {FV_Q4_1, {0, 2}},   {FV_Q5_0, {0, 0}},     {FV_Q5_1, {0, 2}},
    {FV_Q8_0, {0, 0}}, {FV_Q2_K, {80, 82}}, {FV_Q3_K, {108, 108}}, {FV_Q4_K, {0, 2}},
    {FV_Q5_K, {0, 2}}, {FV_Q6_K, {208, 208}}, {FV_IQ4_NL, {0, 0}},
};
enum { TYPES = sizeof types / sizeof *types };

/* rows x k random elements of a type, in scratch memory. */
static fv_tensor random_rows(fv_ctx *ctx, fv_dtype dtype, int64_t rows, int64_t k)
{
    fv_random random = numbers();
    fv_tensor t;
    size_t bytes = 0;

    assert_ok(fv_tensor_new(ctx, &t, dtype, FV_DIMS(rows, k)));
    assert_ok(fv_dtype_bytes(dtype, rows * k, &bytes));
    if (fv_dtype_block(dtype) == 1) {
        for (int64_t i = 0; i < rows * k; i++)
            fv_store(dtype, t.data, i, fv_random_normal(&random));
        return t;
    }
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)t.data)[i] = (uint8_t)(fv_random_normal(&random) * 1000);
    for (int n = 0; n < TYPES; n++) {
        if (types[n].dtype != dtype) continue;
        for (size_t at = 0; at < bytes; at += fv_dtype_block_bytes(dtype))
            for (int s = 0; s < 2; s++) {
                uint16_t scale = fv_f32_to_f16((float)(0.01 * fv_random_normal(&random)));
                memcpy((char *)t.data + at + types[n].scale[s], &scale, sizeof scale);
            }
    }
    return t;
}

static void check_load(fv_ctx *ctx)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);

    for (int n = 0; n < TYPES; n++) {
        int64_t block = fv_dtype_block(types[n].dtype), k = 3 * block;
        fv_tensor t = random_rows(ctx, types[n].dtype, 1, k);
        float got[3 * 256], expected[3 * 256];
        fv_kernels_load(kernels, t.dtype, t.data, block, k - block, got);
        fv_blocks_load(t.dtype, t.data, 1, 2, expected);
        for (int64_t i = 0; i < k - block; i++)
            if (got[i] != expected[i]) /* zeros may differ in sign */
                fail_msg("%s: %s element %lld: expected %.9g, got %.9g", kernels->name, fv_dtype_name(t.dtype),
                         (long long)i, (double)expected[i], (double)got[i]);
    }
}

static void rows_of_blocks_are_exact(void **state)
{
    (void)state;
    each_isa(check_load);
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
    fv_tensor a = g->a_transposed ? random_rows(ctx, g->a, g->k, g->m) : random_rows(ctx, g->a, g->m, g->k);
    fv_tensor b = g->b_rows ? random_rows(ctx, g->b, g->k, g->n) : random_rows(ctx, g->b, g->n, g->k);
    fv_tensor c = test_random(ctx, 1, FV_DIMS(g->m, g->n)), bias = test_random(ctx, 1, FV_DIMS(g->n)), old = c;
    float *af = f32_of(ctx, &a), *bf = f32_of(ctx, &b);
    fv_gemm_args args = {.a = g->a_transposed ? fv_transposed(&a) : a, .b = g->b_rows ? b : fv_transposed(&b),
                         .c = c, .alpha = g->alpha, .beta = g->beta};

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
    static const int64_t shapes[][3] = {{1, 1, 1},   {1, 67, 33},  {2, 33, 64},  {3, 130, 17}, {4, 31, 100}, {5, 1, 3},
                                        {14, 32, 5}, {15, 33, 65}, {29, 70, 40}, {64, 129, 96}, {7, 5, 1100}, {100, 40, 0}};
    static const fv_dtype plain[] = {FV_F32, FV_F16, FV_BF16};

    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int layout = 0; layout < 4; layout++)
            for (int t = 0; t < 3; t++)
                check_product(ctx, &(struct gemm_case){.m = shapes[s][0], .n = shapes[s][1], .k = shapes[s][2],
                                                       .a = plain[(t + (int)s) % 3], .b = plain[t],
                                                       .a_transposed = layout & 1, .b_rows = layout & 2,
                                                       .alpha = t == 1 ? 0.5f : 0, .beta = layout == 2 ? -0.25f : 0,
                                                       .bias = (layout + t) & 1});
    for (int n = 0; n < TYPES; n++)
        for (int64_t m = 1; m <= 9; m++)
            check_product(ctx, &(struct gemm_case){.m = m, .n = 37, .k = 3 * fv_dtype_block(types[n].dtype) * (1 + n % 2),
                                                   .b = types[n].dtype, .bias = m == 2});
}

static void products_agree_with_double_loops(void **state)
{
    (void)state;
    each_isa(check_gemm);
}

static void products_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        fv_ctx *one = isa_ctx(isas[i], 1);
        if (!one) continue;
        fv_tensor a = test_random(one, 1, FV_DIMS(77, 700)), b = test_random(one, 1, FV_DIMS(700, 300)), first, next;
        assert_ok(fv_tensor_new(one, &first, FV_F32, FV_DIMS(77, 300)));
        assert_ok(fv_tensor_new(one, &next, FV_F32, FV_DIMS(77, 300)));
        assert_ok(one->backend->gemm(one, &(fv_gemm_args){.a = a, .b = b, .c = first}));
        for (int threads = 2; threads <= 5; threads++) {
            fv_ctx *more = isa_ctx(isas[i], threads);
            assert_ok(more->backend->gemm(more, &(fv_gemm_args){.a = a, .b = b, .c = next}));
            assert_memory_equal(first.data, next.data, 77 * 300 * sizeof(float));
            fv_ctx_free(more);
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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
