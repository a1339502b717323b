/* PAROAttention: the worked numbers of its definition, and what must hold beside what every mechanism promises. */
#include <math.h>
#include <stdio.h>

#include "attention/mechanism.h"
#include "support/seen.h"
#include "support/specs.h"
#include "support/tensors.h"
#include "support/twin.h"

#define TOLERANCE 1e-5

static fv_attention_args args_of(fv_ctx *ctx, int64_t B, int64_t H, int64_t N, int64_t D)
{
    fv_attention_args args = test_specs_args(ctx, B, H, H, N, N, D);

    args.causal = false;
    return args;
}

/* Blocks of one token whose mask shows each the next, and the last one all. */
static void orders_on(fv_ctx *ctx)
{
    static const int tables[6][12] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11},
        {0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}, {0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11},
        {0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11}, {0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11},
    };
    fv_attention_args args = args_of(ctx, 1, 6, 12, 4);
    fv_named_tensor param = {.name = "mask"};
    char expected[32];

    assert_ok(fv_tensor_zeros(ctx, &param.tensor, FV_U8, FV_DIMS(1, 1, 12, 12)));
    for (int n = 0; n < 11; n++)
        ((uint8_t *)param.tensor.data)[n * 12 + n + 1] = 1;
    args.params = 1;
    args.param = &param;
    for (int h = 0; h < 6; h++)
        for (int n = 0; n < 10; n++) {
            snprintf(expected, sizeof expected, "%d 11", tables[h][n + 1]);
            test_seen(ctx, "paro:grid=2x2x3,block=1,order=0+1+2+3+4+5", &args, 0, h, tables[h][n], expected);
        }
    /* two tokens of text, which every block reads and which read every block */
    args = args_of(ctx, 1, 1, 14, 4);
    assert_ok(fv_tensor_zeros(ctx, &param.tensor, FV_U8, FV_DIMS(1, 1, 7, 7)));
    args.params = 1;
    args.param = &param;
    test_seen(ctx, "paro:grid=2x2x3,block=2,order=2,text=2", &args, 0, 0, 3, "0 1 7 13"); /* at places 4, 5 of 14 */
    test_seen(ctx, "paro:grid=2x2x3,block=2,order=2,text=2", &args, 0, 0, 1, "0 1 2 3 4 5 6 7 8 9 10 11 12 13");
}

static void orders_read_axes(void **state)
{
    (void)state;
    test_each_device(orders_on);
}

static void dense_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 2, 3, 150, 16);

    test_specs_equal(ctx, "paro:grid=5x4x7,text=10,order=0+3+5", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "paro:grid=5x4x7,text=10,order=auto,block=16", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "paro:grid=5x5x6,order=1,smooth_k=1", "dense", &args, 0, TOLERANCE);
}

static void is_dense_in_every_order(void **state)
{
    (void)state;
    test_each_device(dense_on);
}

/* Tokens that attend to their place in all four frames of 8 x 8: as FHW reads them a quarter of the 16 x 16 blocks
 * holds all weight, as HWF does the diagonal.  Codes of places are nearly at right angles. */
static void gathers_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 1, 2, 256, 64);
    const char *const sparse[] = {"paro:grid=4x8x8,block=16,order=2,density=0.0625",
                                  "paro:grid=4x8x8,block=16,order=auto,density=0.0625"};

    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < 256; i++)
            for (int64_t d = 0; d < 64; d++) {
                float x = d == i % 64 ? 12 : 0;
                ((float *)args.q.data)[(h * 256 + i) * 64 + d] = x;
                ((float *)args.k.data)[(h * 256 + i) * 64 + d] = x;
            }
    for (int n = 0; n < 2; n++) {
        test_specs_equal(ctx, sparse[n], "dense", &args, 0, 1e-4);
        test_seen(ctx, sparse[n], &args, 0, 1, 64 + 5,
                  "4 5 6 7 60 61 62 63 68 69 70 71 124 125 126 127 132 133 134 135 188 189 190 191 196 197 198 199 "
                  "252 253 254 255");
    }
    test_specs_equal(ctx, "paro:grid=4x8x8,block=16,density=0.25", "dense", &args, 0, 1e-4);
}

static void the_right_order_gathers_a_pattern(void **state)
{
    (void)state;
    test_each_device(gathers_on);
}

/* The twin of a call whose options are ints. */
static struct twin *twin_of(const fv_attention_args *args)
{
    const int64_t *dims = args->q.dims;
    struct twin *f = twin_make(dims[0], dims[1], dims[1], dims[2], dims[2], dims[3], dims[3]);

    for (int64_t n = 0; n < fv_tensor_count(&args->q); n++) {
        f->q[n] = ((float *)args->q.data)[n];
        f->k[n] = ((float *)args->k.data)[n];
        f->v[n] = ((float *)args->v.data)[n];
    }
    f->call.lse = f->lse;
    return f;
}

/* Whole numbers below an odd largest one are never half way between steps; of weights, which are, a rounding error may
 * turn one into the next: by 1 / 127 of the largest among 60.  So few keys are one stretch: maxima are final. */
static void few_bits_on(fv_ctx *ctx)
{
    static const char *const bits[] = {"16", "8", "4"};
    fv_random random = fv_random_new(test_seed(), 61);
    fv_attention_args args = args_of(ctx, 1, 2, 60, 32);
    fv_tensor *const tensors[] = {&args.q, &args.k, &args.v};
    struct twin *f;
    char spec[128];

    for (int t = 0; t < 3; t++)
        for (int64_t n = 0; n < 2 * 60 * 32; n++)
            ((float *)tensors[t]->data)[n] =
                (n / 32 % 8 == 0 ? 101 : (float)fv_random_below(&random, 201) - 100) * (1.0f / 64);
    f = twin_of(&args);
    twin_set(f, "grid", 3, 3, 4, 5);
    twin_set(f, "order", 2, 2, 4);
    for (int qk = 0; qk < 3; qk++)
        for (int pv = 0; pv < 2; pv++) {
            snprintf(spec, sizeof spec, "paro:grid=3x4x5,order=2+4,qk_bits=%s,pv_bits=%s", bits[qk], bits[pv]);
            twin_set(f, "qk_bits", 1, qk);
            twin_set(f, "pv_bits", 1, pv);
            twin_forward(f, "paro");
            test_specs_run(ctx, spec, &args);
            test_close(spec, &args.o, f->o, pv ? 2e-2 : TOLERANCE);
            test_close(spec, &args.lse, f->lse, TOLERANCE);
        }
    twin_drop(f);
}

static void few_bits_follow_the_definition(void **state)
{
    (void)state;
    test_each_device(few_bits_on);
}

/* Codes of 8 bits that stand for themselves, each group with a scale of its own: rounding finds them again. */
static void codes_on(fv_ctx *ctx)
{
    fv_random random = fv_random_new(test_seed(), 60);
    fv_attention_args args = args_of(ctx, 1, 1, 144, 16);
    fv_tensor *const tensors[] = {&args.q, &args.k};

    for (int t = 0; t < 2; t++)
        for (int64_t i = 0; i < 144; i++)
            for (int64_t d = 0; d < 16; d++) {
                float scale = ldexpf(1 + 0.125f * (float)(i / (t ? 64 : 32)), -7); /* in the order FHW */
                int64_t code = d == i % 16 && i % 8 == 0 ? 127 : fv_random_below(&random, 255) - 127;
                ((float *)tensors[t]->data)[i * 16 + d] = scale * (float)code;
            }
    test_specs_equal(ctx, "paro:grid=4x6x6,qk_bits=8", "dense", &args, 0, TOLERANCE);
}

static void groups_have_scales_of_their_own(void **state)
{
    (void)state;
    test_each_device(codes_on);
}

/* Two keys of weights 1 and .3: 127 and 38 of 127 steps, over a sum of 1.3. */
static void truncated_on(fv_ctx *ctx)
{
    static const float one = 1;
    fv_attention_args args = args_of(ctx, 1, 1, 2, 4);

    for (int n = 0; n < 8; n++) {
        ((float *)args.q.data)[n] = n % 4 == 0;
        ((float *)args.k.data)[n] = n == 4 ? logf(.3f) : 0;
        ((float *)args.v.data)[n] = n < 4 ? 1 : 2; /* 64 and 127 steps of 2 / 127, if they share a scale */
    }
    args.scale = &one;
    test_specs_run(ctx, "paro:grid=1x1x2,pv_bits=8,k_group=1", &args);
    assert_float_equal(((float *)args.o.data)[0], (127 + 38 * 2) / 127.0 / 1.3, TOLERANCE);
    test_specs_run(ctx, "paro:grid=1x1x2,pv_bits=8", &args);
    assert_float_equal(((float *)args.o.data)[3], (127 * 64 + 38 * 127) * (2 / 127.0) / 127 / 1.3, TOLERANCE);
}

static void weights_are_truncated(void **state)
{
    (void)state;
    test_each_device(truncated_on);
}

static void what_is_no_number_does_no_harm(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = args_of(ctx, 1, 2, 24, 16);
    (void)state;

    ((float *)args.q.data)[5] = NAN;
    ((float *)args.k.data)[50] = INFINITY;
    ((float *)args.v.data)[70] = NAN;
    test_specs_run(ctx, "paro:grid=2x3x4,block=4,order=auto,density=0.5,qk_bits=4,pv_bits=8,smooth_k=1", &args);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = args_of(ctx, 1, 2, 12, 4), grouped = test_specs_args(ctx, 1, 2, 1, 12, 12, 4);
    fv_named_tensor mask = {.name = "mask"};
    (void)state;

    test_specs_refused(ctx, "paro", &args, FV_E_USAGE, "'grid' must be given");
    test_specs_refused(ctx, "paro:grid=3x4", &args, FV_E_USAGE, "frames x rows x columns");
    test_specs_refused(ctx, "paro:grid=2x2x3,order=6", &args, FV_E_USAGE, "expected 0 to 5");
    test_specs_refused(ctx, "paro:grid=2x2x3,order=best", &args, FV_E_USAGE, "joined by '+'");
    test_specs_refused(ctx, "paro:grid=2x2x3,qk_bits=5", &args, FV_E_USAGE, "16 or 8 or 4");
    test_specs_refused(ctx, "paro:grid=2x2x3,pv_bits=4", &args, FV_E_USAGE, "16 or 8");
    test_specs_refused(ctx, "paro:grid=2x2x3,density=0", &args, FV_E_USAGE, "density");
    test_specs_refused(ctx, "paro:grid=2x2x4", &args, FV_E_SHAPE, "16 cells, but there are 12 tokens");
    test_specs_refused(ctx, "paro:grid=2x2x3,text=1", &args, FV_E_SHAPE, "12 cells, but there are 11 tokens");
    test_specs_refused(ctx, "paro:grid=2147483647x2147483647x2147483647", &args, FV_E_SHAPE, "cells");
    test_specs_refused(ctx, "paro:grid=2x2x3", &grouped, FV_E_USAGE, "cannot be causal");
    grouped.causal = false;
    test_specs_refused(ctx, "paro:grid=2x2x3", &grouped, FV_E_SHAPE, "as many key-value heads");
    assert_ok(fv_tensor_zeros(ctx, &mask.tensor, FV_U8, FV_DIMS(1, 1, 2, 3)));
    args.params = 1;
    args.param = &mask;
    test_specs_refused(ctx, "paro:grid=2x2x3,block=5", &args, FV_E_SHAPE, "= [1,2,3,3], got [1,1,2,3]");
    mask.tensor = test_random(ctx, 1, FV_DIMS(1, 1, 3, 3));
    test_specs_refused(ctx, "paro:grid=2x2x3,block=5", &args, FV_E_DTYPE, "expected u8");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_read_axes),
        cmocka_unit_test(is_dense_in_every_order),
        cmocka_unit_test(the_right_order_gathers_a_pattern),
        cmocka_unit_test(few_bits_follow_the_definition),
        cmocka_unit_test(groups_have_scales_of_their_own),
        cmocka_unit_test(weights_are_truncated),
        cmocka_unit_test(what_is_no_number_does_no_harm),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
