/* Matrix products, convolution and stored rows against double loops, on every device. */
#include "support/stored.h"
#include "support/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "ops/blocks.h"
#include "ops/ops.h"

/* f32 sums of `terms` products of size 1 */
static double tolerance(int64_t terms)
{
    return 0x1p-23 * (double)(terms + 4);
}

static void compare_gemm(fv_ctx *ctx, fv_tensor a, fv_tensor b, int rank, const int64_t *dims, bool rich)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor c = rich ? test_strided(ctx, 1, rank, dims) : test_random(ctx, 1, rank, dims), none = {0};
    fv_tensor bias = test_random(ctx, 1, FV_DIMS(dims[rank - 1]));
    int64_t count = fv_tensor_count(&c), k = a.dims[a.rank - 1], at[FV_MAX_RANK], bt[FV_MAX_RANK];
    double *expected = test_doubles(count);

    for (int64_t e = 0; e < count; e++) {
        double sum = 0;
        test_index(rank, dims, e, at);
        memcpy(bt, at, sizeof bt);
        for (int64_t i = 0; i < k; i++) {
            at[rank - 1] = bt[rank - 2] = i;
            sum += test_spread_at(&a, rank, at) * test_spread_at(&b, rank, bt);
        }
        expected[e] = rich ? 0.5 * sum - 2 * test_element(&c, e) + test_element(&bias, bt[rank - 1]) : sum;
    }
    assert_ok(fv_gemm(
        ctx, &(fv_gemm_args){
                 .a = a, .b = b, .c = c, .bias = rich ? bias : none, .alpha = rich ? 0.5f : 0, .beta = rich ? -2 : 0}));
    /* half-precision operands may be rounded products of 8 bits on some backends: see fv_precision */
    test_close("gemm", &c, expected, tolerance(k) + (a.dtype == FV_BF16 ? 1e-2 : 0));
    free(expected);
    fv_scratch_release(ctx, mark);
}

static void check_gemm(fv_ctx *ctx)
{
    static const int64_t sizes[][3] = {{1, 1, 1}, {1, 33, 70}, {7, 5, 3}, {40, 17, 64}, {65, 48, 129}};

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
        for (int rich = 0; rich < 2; rich++) {
            fv_tensor a = test_random(ctx, 1, FV_DIMS(2, 3, m, k)), b = test_random(ctx, 1, FV_DIMS(k, n));
            fv_tensor as = test_strided(ctx, 1, FV_DIMS(3, m, k)), bs = test_strided(ctx, 1, FV_DIMS(2, 1, k, n));
            fv_tensor bt = test_random(ctx, 1, FV_DIMS(n, k)), ah = test_cast(ctx, &a, FV_F16);
            fv_tensor same = test_random(ctx, 1, FV_DIMS(m, k));
            bt = fv_transposed(&bt);
            fv_tensor bh = test_cast(ctx, &b, FV_F16);
            compare_gemm(ctx, a, b, FV_DIMS(2, 3, m, n), rich);   /* a weight for all */
            compare_gemm(ctx, a, bt, FV_DIMS(2, 3, m, n), rich);  /* seen transposed */
            compare_gemm(ctx, as, bs, FV_DIMS(2, 3, m, n), rich); /* both repeat */
            compare_gemm(ctx, same, bs, FV_DIMS(2, 3, m, n), rich);
            compare_gemm(ctx, same, b, FV_DIMS(m, n), rich);
            compare_gemm(ctx, ah, bh, FV_DIMS(2, 3, m, n), rich);
        }
    }
}

static void products_agree_with_double_loops(void **state)
{
    (void)state;
    test_each_device(check_gemm);
}

/* ---- stored rows ----------------------------------------------------------------------------------------------- */

/* Rows of q8_0 from their definition: 32 numbers of 8 bits times one half-precision scale. */
static fv_tensor q8_rows(fv_ctx *ctx, int64_t rows, int64_t width, double *values)
{
    fv_random random = fv_random_new(test_seed(), 991);
    fv_tensor t;

    assert_ok(fv_tensor_new(ctx, &t, FV_Q8_0, FV_DIMS(rows, width)));
    for (int64_t n = 0; n < rows * width / 32; n++) {
        uint8_t *block = (uint8_t *)t.data + n * 34;
        uint16_t scale = fv_f32_to_f16((float)(0.01 * (1 + fv_random_uniform(&random))));
        memcpy(block, &scale, sizeof scale);
        for (int i = 0; i < 32; i++) {
            int8_t number = (int8_t)(fv_random_below(&random, 255) - 127);
            block[2 + i] = (uint8_t)number;
            values[n * 32 + i] = (double)fv_f16_to_f32(scale) * number;
        }
    }
    return t;
}

static void check_dequantize(fv_ctx *ctx)
{
    static const int32_t index[4] = {3, 0, 3, 4};
    double values[5 * 96], expected[4 * 96];
    fv_tensor x = q8_rows(ctx, 5, 96, values), out = test_random(ctx, 1, FV_DIMS(4, 96));
    fv_tensor strided = test_strided(ctx, 1, FV_DIMS(4, 96)), plain = test_strided(ctx, 1, FV_DIMS(5, 96));

    for (int i = 0; i < 4 * 96; i++)
        expected[i] = values[index[i / 96] * 96 + i % 96];
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = x, .out = out, .index = index}));
    test_close("rows of q8_0", &out, expected, 1e-7);
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = x, .out = strided, .index = index}));
    test_close("strided rows of q8_0", &strided, expected, 1e-7);
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = x, .out = out}));
    test_close("first rows", &out, values, 1e-7);
    for (int i = 0; i < 4 * 96; i++)
        expected[i] = test_element(&plain, i);
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = plain, .out = out}));
    test_close("rows of f32", &out, expected, 0);

    fv_tensor a = test_random(ctx, 1, FV_DIMS(7, 96)), c = test_random(ctx, 1, FV_DIMS(7, 5));
    double product[7 * 5] = {0}; /* and as the weight of a product */
    for (int64_t e = 0; e < 7 * 5; e++)
        for (int64_t i = 0; i < 96; i++)
            product[e] += test_element(&a, e / 5 * 96 + i) * values[e % 5 * 96 + i];
    assert_ok(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = fv_transposed(&x), .c = c}));
    /* a backend may round a's rows to 8 bits: sqrt(96) roundings of 2^-8 of the largest, weights below 2.6 */
    test_close("product with q8_0", &c, product, strcmp(fv_ctx_backend(ctx), "ref") == 0 ? tolerance(96) : 0.3);
}

/* Values of every size, ties, blocks of zeros and of what is not finite: the same bits on every device. */
static void check_quantize(fv_ctx *ctx)
{
    static const fv_dtype types[] = {FV_Q8_0, FV_Q4_0};
    enum { ROWS = 90, WIDTH = 96 };
    fv_random random = fv_random_new(test_seed(), 77);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(ROWS, WIDTH + 5)), out, part = fv_slice(&x, 1, 2, WIDTH);

    for (int64_t r = 0; r < ROWS; r++) {
        float *row = (float *)part.data + r * part.strides[0],
              size = ldexpf(1, (int)fv_random_below(&random, 270) - 149);
        for (int i = 0; i < WIDTH; i++) {
            float step = (float)(fv_random_below(&random, 509) - 254) / 2; /* halves: ties, where 127 is the largest */
            row[i] = r % 3 == 0 ? row[i] * size : r % 3 == 1 ? step : step * size;
        }
        if (r % 3 == 1) row[r % 32] = r % 2 ? 127 : -127;
        if (r % 7 == 5) memset(row + 32, 0, 32 * sizeof *row);
        if (r % 5 == 3) row[fv_random_below(&random, WIDTH)] = r % 2 ? NAN : r % 4 ? INFINITY : -INFINITY;
        if (r % 11 == 4) row[40] = -0.0F;
    }
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        int64_t bytes = (int64_t)fv_dtype_block_bytes(types[t]) * (WIDTH / 32);
        assert_ok(fv_tensor_new(ctx, &out, types[t], FV_DIMS(ROWS, WIDTH)));
        assert_ok(fv_quantize_rows(ctx, &(fv_quantize_args){.x = part, .out = out}));
        for (int64_t r = 0; r < ROWS; r++) {
            uint8_t expected[3 * 34], *got = (uint8_t *)out.data + r * bytes;
            fv_blocks_store(types[t], (const float *)part.data + r * part.strides[0], WIDTH, expected);
            for (int64_t i = 0; i < bytes; i++)
                if (got[i] != expected[i])
                    fail_msg("%s on %s: row %d, byte %d: expected %d, got %d", fv_dtype_name(types[t]),
                             fv_ctx_backend(ctx), (int)r, (int)i, expected[i], got[i]);
        }
    }
    fv_tensor odd = test_random(ctx, 1, FV_DIMS(2, 48)), half = test_random(ctx, 1, FV_DIMS(2, 64));
    out = fv_view(&out, FV_DIMS(2, 48), (const int64_t[]){64, 1}, 0);
    assert_fails(fv_quantize_rows(ctx, &(fv_quantize_args){.x = odd, .out = out}), FV_E_SHAPE,
                 "whole q4_0 blocks of 32");
    assert_fails(fv_quantize_rows(ctx, &(fv_quantize_args){.x = half, .out = half}), FV_E_DTYPE, "quantize: out");
}

static void quantised_rows_have_the_same_bits(void **state)
{
    (void)state;
    test_each_device(check_quantize);
    test_each_isa(check_quantize);
}

static void stored_rows_are_what_they_encode(void **state)
{
    (void)state;
    test_each_device(check_dequantize);
}

/* ---- convolution ----------------------------------------------------------------------------------------------- */

static void compare_conv(fv_ctx *ctx, int64_t groups, int64_t channels, int64_t outs, int64_t stride, int64_t padding,
                         int64_t dilation)
{
    fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, channels, 9, 7)), bias = test_random(ctx, 1, FV_DIMS(outs));
    fv_tensor weight = test_strided(ctx, 1, FV_DIMS(outs, channels / groups, 3, 2));
    int64_t height = (9 + 2 * padding - 2 * dilation - 1) / stride + 1;
    int64_t width = (7 + 2 * padding - dilation - 1) / stride + 1, count = 2 * outs * height * width;
    fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, outs, height, width));
    double *expected = test_doubles(count);

    for (int64_t e = 0; e < count; e++) { /* every input and output pair, if a tap joins them */
        int64_t at[4];
        test_index(4, out.dims, e, at);
        expected[e] = test_element(&bias, at[1]);
        for (int64_t n = 0; n < channels * 63; n++) {
            int64_t c = n / 63, y = n % 63 / 7 - at[2] * stride + padding, column = n % 7 - at[3] * stride + padding;
            if (c / (channels / groups) != at[1] / (outs / groups)) continue;
            if (y < 0 || column < 0 || y % dilation || column % dilation || y / dilation > 2 || column / dilation > 1)
                continue;
            expected[e] += test_element(&x, at[0] * channels * 63 + n) *
                           test_spread_at(&weight, 4,
                                          (int64_t[]){at[1], c % (channels / groups), y / dilation, column / dilation});
        }
    }
    assert_ok(fv_conv2d(ctx, &(fv_conv2d_args){.x = x,
                                               .weight = weight,
                                               .bias = bias,
                                               .out = out,
                                               .stride = stride,
                                               .padding = padding,
                                               .dilation = dilation,
                                               .groups = groups}));
    test_close("conv2d", &out, expected, tolerance(channels * 6));
    free(expected);
}

static void check_conv(fv_ctx *ctx)
{
    compare_conv(ctx, 1, 4, 6, 1, 0, 1);
    compare_conv(ctx, 2, 4, 6, 2, 1, 1);
    compare_conv(ctx, 4, 4, 4, 1, 2, 2);
    compare_conv(ctx, 4, 4, 8, 3, 1, 1);
}

static void convolution_agrees_with_pairs(void **state)
{
    (void)state;
    test_each_device(check_conv);
}

static void bad_arguments_are_refused_in_words(void **state)
{
    static const int32_t index[4] = {3, 0, 5, 4};
    double values[5 * 96];
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor a = test_random(ctx, 1, FV_DIMS(2, 6, 96)), b = test_random(ctx, 1, FV_DIMS(96, 3));
    fv_tensor c = test_random(ctx, 1, FV_DIMS(2, 6, 3)), x = q8_rows(ctx, 5, 96, values), half = x;
    fv_tensor out = test_random(ctx, 1, FV_DIMS(4, 96)), image = test_random(ctx, 1, FV_DIMS(1, 4, 5, 5));
    (void)state;

    assert_fails(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = c, .c = c}), FV_E_SHAPE,
                 "gemm: a [2,6,96] times b [2,6,3] does not give c [2,6,3]");
    assert_fails(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = b, .c = c, .bias = out}), FV_E_SHAPE, "gemm: bias");
    half = test_cast(ctx, &c, FV_F16);
    assert_fails(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = b, .c = half}), FV_E_DTYPE, "gemm: c: expected f32");
    assert_fails(fv_gemm(ctx, &(fv_gemm_args){.a = out, .b = x, .c = c}), FV_E_SHAPE, "gemm");
    fv_tensor slim = fv_slice(&out, 1, 0, 5), square = test_random(ctx, 1, FV_DIMS(4, 96));
    assert_fails(fv_gemm(ctx, &(fv_gemm_args){.a = slim, .b = x, .c = square}), FV_E_SHAPE, "blocks of 32 along k");
    assert_fails(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = x, .out = out, .index = index}), FV_E_ARGUMENT,
                 "index 2: expected 0 to 4, got 5");
    assert_fails(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = out, .out = a}), FV_E_SHAPE, "dequantize: out");
    assert_fails(fv_conv2d(ctx, &(fv_conv2d_args){.x = image, .weight = image, .out = image}), FV_E_SHAPE,
                 "conv2d: out: expected shape [1,1,1,1], got [1,4,5,5]");
    assert_fails(fv_conv2d(ctx, &(fv_conv2d_args){.x = image, .weight = image, .out = image, .groups = 3}), FV_E_SHAPE,
                 "conv2d");
    assert_fails(fv_conv2d(ctx, &(fv_conv2d_args){.x = image, .weight = image, .out = image, .padding = -1}),
                 FV_E_ARGUMENT, "padding -1");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree_with_double_loops),   cmocka_unit_test(stored_rows_are_what_they_encode),
        cmocka_unit_test(quantised_rows_have_the_same_bits),  cmocka_unit_test(convolution_agrees_with_pairs),
        cmocka_unit_test(bad_arguments_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
