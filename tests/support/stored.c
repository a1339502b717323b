#include "support/stored.h"

#include <stdio.h>
#include <stdlib.h>

const char *const test_isas[] = {"c", "avx2", "avx512f", "avx512", NULL};

fv_ctx *test_isa_ctx(const char *isa, int threads, fv_precision precision)
{
    fv_ctx *ctx = NULL;
    char *before = getenv("FOVEA_ISA"), kept[32] = "";

    if (before) snprintf(kept, sizeof kept, "%s", before);
    setenv("FOVEA_ISA", isa, 1);
    fv_status status = fv_ctx_new(&(fv_ctx_options){.threads = threads, .precision = precision}, &ctx);
    if (before)
        setenv("FOVEA_ISA", kept, 1);
    else
        unsetenv("FOVEA_ISA");
    if (status == FV_E_UNSUPPORTED) return NULL;
    assert_ok(status);
    return ctx;
}

void test_each_isa(void (*check)(fv_ctx *ctx))
{
    for (int i = 0; test_isas[i]; i++)
        for (int threads = 1; threads <= 3; threads++) {
            fv_ctx *ctx = test_isa_ctx(test_isas[i], threads, FV_PRECISION_F32);
            if (!ctx) continue;
            check(ctx);
            fv_ctx_free(ctx);
        }
}

/* Where the half-precision scales of a block lie; their bytes must not be random, lest they be infinite. */
static const struct {
    fv_dtype dtype;
    int scale[2];
} types[] = {
    {FV_Q4_0, {0, 0}}, {FV_Q4_1, {0, 2}},     {FV_Q5_0, {0, 0}},     {FV_Q5_1, {0, 2}},
    {FV_Q8_0, {0, 0}}, {FV_Q2_K, {80, 82}},   {FV_Q3_K, {108, 108}}, {FV_Q4_K, {0, 2}},
    {FV_Q5_K, {0, 2}}, {FV_Q6_K, {208, 208}}, {FV_IQ4_NL, {0, 0}},
};

const fv_dtype test_block_types[TEST_BLOCK_TYPES] = {FV_Q4_0, FV_Q4_1, FV_Q5_0, FV_Q5_1, FV_Q8_0,  FV_Q2_K,
                                                     FV_Q3_K, FV_Q4_K, FV_Q5_K, FV_Q6_K, FV_IQ4_NL};

fv_tensor test_stored(fv_ctx *ctx, fv_dtype dtype, int64_t rows, int64_t k)
{
    static uint64_t stream = 1 << 20;
    fv_random random = fv_random_new(test_seed(), ++stream);
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
    for (int n = 0; n < TEST_BLOCK_TYPES; n++) {
        if (types[n].dtype != dtype) continue;
        for (size_t at = 0; at < bytes; at += fv_dtype_block_bytes(dtype))
            for (int s = 0; s < 2; s++) {
                uint16_t scale = fv_f32_to_f16((float)(0.01 * fv_random_normal(&random)));
                memcpy((char *)t.data + at + types[n].scale[s], &scale, sizeof scale);
            }
    }
    return t;
}
