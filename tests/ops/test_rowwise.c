/* Elementwise functions, norms, rope and softmax against double loops; what they refuse, and in which words. */
#include "support/tensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops/ops.h"

/* f32 storage of results computed from f32 inputs: a few roundings of 2^-24, and fast exponentials on some backends */
#define TOLERANCE 4e-6

static double expected_map(fv_map op, double x, double y, double alpha)
{
    switch (op) {
    case FV_MAP_COPY: return alpha * x + 0.5;
    case FV_MAP_ADD: return x + alpha * y;
    case FV_MAP_SUB: return x - y;
    case FV_MAP_MUL: return alpha * x * y;
    case FV_MAP_DIV: return x / y;
    case FV_MAP_SILU_MUL: return x / (1 + exp(-x)) * y;
    case FV_MAP_GELU_TANH_MUL: return expected_map(FV_MAP_GELU_TANH, x, 0, alpha) * y;
    case FV_MAP_MAX: return fmax(x, y);
    case FV_MAP_EXP: return exp(fmin(x, 88));
    case FV_MAP_LOG: return log(x);
    case FV_MAP_SQRT: return sqrt(x);
    case FV_MAP_TANH: return tanh(x);
    case FV_MAP_SIGMOID: return 1 / (1 + exp(-x));
    case FV_MAP_SILU: return x / (1 + exp(-x));
    case FV_MAP_GELU: return x * 0.5 * erfc(-x / sqrt(2));
    case FV_MAP_GELU_TANH: return x / (1 + exp(-2 * sqrt(2 / acos(-1)) * (x + 0.044715 * pow(x, 3))));
    case FV_MAP_RELU: return fmax(x, 0);
    case FV_MAP_ELU1: return x > 0 ? x + 1 : exp(x);
    case FV_MAP_SOFTPLUS: return fmax(x, 0) + log1p(exp(-fabs(x)));
    case FV_MAP_SOFTCAP: return alpha * tanh(x / alpha);
    }
    return NAN;
}

static bool is_binary(fv_map op)
{
    return op >= FV_MAP_ADD && op <= FV_MAP_MAX;
}

static void compare_map(fv_ctx *ctx, fv_map op, fv_tensor x, fv_tensor y, int rank, const int64_t *dims)
{
    bool positive = op == FV_MAP_LOG || op == FV_MAP_SQRT;
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor out = test_strided(ctx, 1, rank, dims);
    int64_t count = fv_tensor_count(&out), index[FV_MAX_RANK];
    double *expected = test_doubles(count);
    char what[32];

    if (positive) x = y; /* those hold numbers of 0.5 and more */
    assert_ok(fv_map_apply(
        ctx, &(fv_map_args){
                 .op = op, .x = x, .y = is_binary(op) ? y : (fv_tensor){0}, .out = out, .alpha = 1.5f, .beta = 0.5f}));
    for (int64_t n = 0; n < count; n++) {
        test_index(rank, dims, n, index);
        expected[n] = expected_map(op, test_spread_at(&x, rank, index), test_spread_at(&y, rank, index), 1.5);
    }
    snprintf(what, sizeof what, "map %d", (int)op);
    test_close(what, &out, expected, TOLERANCE);
    free(expected);
    fv_scratch_release(ctx, mark);
}

static fv_tensor away_from_zero(fv_tensor t)
{
    for (int64_t n = 0; n < fv_tensor_count(&t); n++)
        ((float *)t.data)[n] = fabsf(((float *)t.data)[n]) + 0.5f;
    return t;
}

static void check_map(fv_ctx *ctx)
{
    int64_t dims[] = {2, 3, 5, 37};

    for (int op = FV_MAP_COPY; op <= FV_MAP_SOFTCAP; op++) {
        for (int rank = 0; rank <= 4; rank++) {
            const int64_t *last = dims + 4 - rank;
            fv_tensor plain = test_random(ctx, 2, rank, last), strided = test_strided(ctx, 2, rank, last);
            fv_tensor y = away_from_zero(test_random(ctx, 2, rank, last));
            compare_map(ctx, (fv_map)op, plain, y, rank, last);
            compare_map(ctx, (fv_map)op, strided, y, rank, last);
        }
        fv_tensor x = test_random(ctx, 2, FV_DIMS(3, 1, 37)), y = away_from_zero(test_random(ctx, 2, FV_DIMS(5, 1)));
        compare_map(ctx, (fv_map)op, x, y, 4, dims);
        fv_tensor half = test_cast(ctx, &x, FV_F16), brain = test_cast(ctx, &y, FV_BF16);
        compare_map(ctx, (fv_map)op, half, brain, 4, dims);
    }
}

static void maps_agree_with_double_loops(void **state)
{
    (void)state;
    test_each_device(check_map);
}

static void check_copy(fv_ctx *ctx)
{
    static const int32_t numbers[6] = {INT32_MIN, -1, 0, 7, 16777217, INT32_MAX};
    int32_t copied[6];
    fv_tensor x, out;

    assert_ok(fv_tensor_wrap(&x, (void *)(uintptr_t)numbers, FV_I32, FV_DIMS(2, 3)));
    assert_ok(fv_tensor_wrap(&out, copied, FV_I32, FV_DIMS(3, 2)));
    x = fv_transposed(&x);
    assert_ok(fv_map_apply(ctx, &(fv_map_args){.x = x, .out = out}));
    for (int i = 0; i < 6; i++)
        assert_int_equal(copied[i], numbers[i % 2 * 3 + i / 2]);
    out.dtype = FV_I16;
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.x = x, .out = out}), FV_E_DTYPE, "expected the same type");
    for (int type = FV_F16; type <= FV_F64; type++) { /* casts round once */
        fv_tensor from = test_strided(ctx, 100, FV_DIMS(4, 19)), to = test_cast(ctx, &from, (fv_dtype)type), got = to;
        double *expected = test_doubles(4 * 19);
        for (int64_t n = 0; n < 4 * 19; n++)
            expected[n] = test_element(&to, n);
        assert_ok(fv_tensor_new(ctx, &got, (fv_dtype)type, FV_DIMS(4, 19)));
        assert_ok(fv_map_apply(ctx, &(fv_map_args){.x = from, .out = got}));
        test_close("cast", &got, expected, 0);
        free(expected);
    }
}

static void copies_keep_every_value(void **state)
{
    (void)state;
    test_each_device(check_copy);
}

static void check_norm(fv_ctx *ctx)
{
    static const int64_t widths[] = {1, 7, 64, 130};

    for (int n = 0; n < 4 * 8; n++) {
        int64_t width = widths[n % 4], rows = 6;
        bool layer = n & 4, weighted = n & 8, strided = n & 16;
        fv_tensor x = strided ? test_strided(ctx, 3, FV_DIMS(2, 3, width)) : test_random(ctx, 3, FV_DIMS(2, 3, width));
        fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, 3, width)), w = test_random(ctx, 1, FV_DIMS(width));
        fv_tensor brain = test_cast(ctx, &w, FV_BF16), none = {0}, bias = test_random(ctx, 1, FV_DIMS(width));
        fv_norm_args args = {.layer = layer,
                             .x = x,
                             .out = out,
                             .weight = weighted ? brain : none,
                             .bias = weighted && layer ? bias : none,
                             .epsilon = 1e-5f};
        double *expected = test_doubles(rows * width);
        for (int64_t r = 0; r < rows; r++) {
            double mean = 0, square = 0;
            for (int64_t i = 0; i < width; i++)
                mean += layer ? test_element(&x, r * width + i) / (double)width : 0;
            for (int64_t i = 0; i < width; i++)
                square += pow(test_element(&x, r * width + i) - mean, 2) / (double)width;
            for (int64_t i = 0; i < width; i++)
                expected[r * width + i] = (test_element(&x, r * width + i) - mean) / sqrt(square + (double)1e-5f) *
                                              (weighted ? test_element(&brain, i) : 1) +
                                          (weighted && layer ? test_element(&bias, i) : 0);
        }
        assert_ok(fv_norm(ctx, &args));
        test_close("norm", &out, expected, 1e-5); /* a row of one: x - mean cancels to roundings over sqrt(epsilon) */
        args.out = x;                             /* in place */
        assert_ok(fv_norm(ctx, &args));
        test_close("norm in place", &x, expected, 1e-5);
        free(expected);
    }
}

/* A residual step and the norm behind it, against the two apart. */
static void check_norm_of_sum(fv_ctx *ctx)
{
    static const int64_t widths[] = {1, 7, 64, 130};

    for (int n = 0; n < 4 * 16; n++) {
        int64_t width = widths[n % 4], rows = 6;
        bool layer = n & 4, weighted = n & 8, strided = n & 16, kept = n & 32;
        fv_tensor x = strided ? test_strided(ctx, 3, FV_DIMS(2, 3, width)) : test_random(ctx, 3, FV_DIMS(2, 3, width));
        fv_tensor add = test_random(ctx, 3, FV_DIMS(2, 3, width)), w = test_random(ctx, 1, FV_DIMS(width)), none = {0};
        fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, 3, width)), brain = test_cast(ctx, &w, FV_BF16);
        fv_norm_args args = {.layer = layer,
                             .x = x,
                             .out = out,
                             .add = add,
                             .add_weight = weighted ? (strided ? brain : w) : none,
                             .weight = w,
                             .sum = kept ? x : none, /* in place */
                             .epsilon = 1e-3f};
        double *sum = test_doubles(rows * width), *expected = test_doubles(rows * width);
        for (int64_t r = 0; r < rows; r++) {
            double mean = 0, square = 0, part = 0;
            for (int64_t i = 0; i < width; i++)
                part += pow(test_element(&add, r * width + i), 2) / (double)width;
            for (int64_t i = 0; i < width; i++) {
                double own = test_element(&add, r * width + i);
                if (weighted) own *= test_element(&args.add_weight, i) / sqrt(part + (double)1e-3f);
                sum[r * width + i] = test_element(&x, r * width + i) + own;
                mean += layer ? sum[r * width + i] / (double)width : 0;
            }
            for (int64_t i = 0; i < width; i++)
                square += pow(sum[r * width + i] - mean, 2) / (double)width;
            for (int64_t i = 0; i < width; i++)
                expected[r * width + i] =
                    (sum[r * width + i] - mean) / sqrt(square + (double)1e-3f) * test_element(&w, i);
        }
        assert_ok(fv_norm(ctx, &args));
        if (kept) test_close("sum", &x, sum, 2e-6);        /* of a sum of size 9 */
        test_close("norm of a sum", &out, expected, 1e-5); /* and its error over sqrt(epsilon) in a row of one */
        free(sum);
        free(expected);
    }
}

static void norms_agree_with_double_loops(void **state)
{
    (void)state;
    test_each_device(check_norm);
    test_each_device(check_norm_of_sum);
}

static void check_rope(fv_ctx *ctx)
{
    static const int32_t places[5] = {0, 3, 1000, 17, 2};

    for (int n = 0; n < 64; n++) {
        int64_t width = n & 1 ? 12 : 34, rotary = n & 2 ? 8 : 0, turned = rotary ? rotary : width;
        bool interleaved = n & 4, given = n & 8, listed = n & 16, inverse = n & 32;
        fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, 3, 5, width)), out = test_random(ctx, 1, FV_DIMS(2, 3, 5, width));
        fv_tensor frequency = test_random(ctx, 0.3, FV_DIMS(turned / 2)), none = {0};
        fv_rope_args args = {.x = x,
                             .out = out,
                             .position = listed ? places : NULL,
                             .offset = 11,
                             .rotary = rotary,
                             .base = 10000,
                             .magnitude = n & 1 ? 1.25f : 0,
                             .frequency = given ? frequency : none,
                             .interleaved = interleaved,
                             .inverse = inverse};
        double *expected = test_doubles(30 * width);
        for (int64_t e = 0; e < 30 * width; e++) {
            int64_t c = e % width, row = e / width, pair = interleaved ? c / 2 : c % (turned / 2);
            bool second = interleaved ? c % 2 : c >= turned / 2;
            int64_t other = e + (second ? -1 : 1) * (interleaved ? 1 : turned / 2);
            double position = listed ? places[row % 5] : (double)(11 + row % 5);
            double angle =
                position * (given ? test_element(&frequency, pair) : pow(10000, -2.0 * (double)pair / (double)turned));
            expected[e] = test_element(&x, e);
            if (c >= turned) continue;
            double turn = (second != inverse ? 1 : -1) * sin(angle) * test_element(&x, other);
            expected[e] = (n & 1 ? 1.25 : 1) * (cos(angle) * expected[e] + turn);
        }
        assert_ok(fv_rope(ctx, &args));
        test_close("rope", &out, expected, listed ? 2e-4 : 5e-6); /* position 1000: 2^-24 of the angle, in f32 */
        args.out = x;
        assert_ok(fv_rope(ctx, &args));
        test_close("rope in place", &x, expected, listed ? 2e-4 : 5e-6);
        free(expected);
    }
}

static void rope_agrees_with_double_loops(void **state)
{
    (void)state;
    test_each_device(check_rope);
}

static void check_softmax(fv_ctx *ctx)
{
    static const int64_t widths[] = {1, 5, 64, 133};

    for (int n = 0; n < 32; n++) {
        int64_t width = widths[n % 4], valid[7] = {width, 0, width, width, width / 2, width + 3, 1};
        fv_tensor x = n & 4 ? test_strided(ctx, 4, FV_DIMS(7, width)) : test_random(ctx, 4, FV_DIMS(7, width));
        fv_tensor out = n & 8 ? test_strided(ctx, 1, FV_DIMS(7, width)) : test_random(ctx, 1, FV_DIMS(7, width));
        double *expected = test_doubles(7 * width), scale = n & 8 ? 0.5 : 1;
        for (int64_t i = 0; i < width; i++) {
            ((float *)x.data)[2 * x.strides[0] + i * x.strides[1]] = -INFINITY; /* row 2 shows nothing */
            if (i) ((float *)x.data)[3 * x.strides[0] + i * x.strides[1]] = -INFINITY;
        }
        for (int64_t r = 0; r < 7; r++) {
            int64_t count = n & 16 ? fv_min(valid[r], width) : width;
            double sum = 0;
            for (int64_t i = count; i < width; i++)
                ((float *)x.data)[r * x.strides[0] + i * x.strides[1]] = NAN; /* must not be read */
            for (int64_t i = 0; i < count; i++)
                sum += exp(scale * test_element(&x, r * width + i));
            for (int64_t i = 0; i < width; i++)
                expected[r * width + i] = i < count && sum > 0 ? exp(scale * test_element(&x, r * width + i)) / sum : 0;
        }
        fv_softmax_args softmax = {.x = x, .out = out, .scale = n & 8 ? 0.5f : 0, .valid = n & 16 ? valid : NULL};
        assert_ok(fv_softmax(ctx, &softmax));
        test_close("softmax", &out, expected, TOLERANCE);
        softmax.out = x;
        assert_ok(fv_softmax(ctx, &softmax));
        test_close("softmax in place", &x, expected, TOLERANCE);
        free(expected);
    }
}

static void softmax_agrees_with_double_loops(void **state)
{
    (void)state;
    test_each_device(check_softmax);
}

static void bad_arguments_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4)), y = test_random(ctx, 1, FV_DIMS(3)), none = {0};
    fv_tensor half = test_cast(ctx, &x, FV_F16), line = test_random(ctx, 1, FV_DIMS(5));
    (void)state;

    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .y = y, .out = x}), FV_E_SHAPE,
                 "map: y: expected a shape that repeats to [1,2,3,4], got [3]");
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .out = x}), FV_E_ARGUMENT, "y");
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = x, .y = x, .out = x}), FV_E_ARGUMENT, "none");
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = x, .out = x}), FV_E_ARGUMENT, "cap");
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = (fv_map)99, .x = x, .out = x}), FV_E_ARGUMENT, "99");
    assert_fails(fv_norm(ctx, &(fv_norm_args){.x = x, .out = line}), FV_E_SHAPE, "norm: out: expected shape [1,2,3,4]");
    assert_fails(fv_norm(ctx, &(fv_norm_args){.x = half, .out = x}), FV_E_DTYPE, "norm: x: expected f32, got f16");
    assert_fails(fv_norm(ctx, &(fv_norm_args){.x = x, .out = x, .weight = line}), FV_E_SHAPE, "weight");
    assert_fails(fv_norm(ctx, &(fv_norm_args){.x = x, .out = x, .epsilon = -1}), FV_E_ARGUMENT, "epsilon");
    assert_fails(fv_rope(ctx, &(fv_rope_args){.x = x, .out = x, .base = 1e4f, .rotary = 3}), FV_E_SHAPE, "rotary");
    assert_fails(fv_rope(ctx, &(fv_rope_args){.x = x, .out = x, .base = 1e4f, .rotary = 6}), FV_E_SHAPE, "at most 4");
    assert_fails(fv_rope(ctx, &(fv_rope_args){.x = x, .out = x}), FV_E_ARGUMENT, "base");
    assert_fails(fv_rope(ctx, &(fv_rope_args){.x = x, .out = x, .frequency = y}), FV_E_SHAPE, "frequency");
    assert_fails(fv_softmax(ctx, &(fv_softmax_args){.x = none, .out = x}), FV_E_ARGUMENT, "softmax: x");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_agree_with_double_loops),     cmocka_unit_test(copies_keep_every_value),
        cmocka_unit_test(norms_agree_with_double_loops),    cmocka_unit_test(rope_agrees_with_double_loops),
        cmocka_unit_test(softmax_agrees_with_double_loops), cmocka_unit_test(bad_arguments_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
