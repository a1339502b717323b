/* Rounding to the steps of few bits: worked numbers, groups, what is not a number, the gradient. */
#include <math.h>

#include "ops/tape.h"
#include "support/support.h"
#include "support/tensors.h"

static void worked_numbers_on(fv_ctx *ctx)
{
    static const float x[] = {.3f, -1.2f, .05f, .9f, 0, 0, 0, 0, 6, -7, 2.5f, .4f};
    static const double codes[] = {32, -127, 5, 95}, low[] = {0, 0, 0, 0, 6, -7, 2, 0}; /* 2.5 to the even */
    fv_tensor in, out, rest;
    double expected[4];

    assert_ok(fv_tensor_wrap(&in, (void *)x, FV_F32, FV_DIMS(3, 4)));
    assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(1, 4)));
    for (int n = 0; n < 4; n++)
        expected[n] = codes[n] * 1.2 / 127;
    assert_ok(fv_round_rows(ctx, &(fv_round_args){.x = fv_slice(&in, 0, 0, 1), .out = out, .rows = 1, .steps = 127}));
    test_close("8 bits", &out, expected, 1e-6);
    rest = fv_slice(&in, 0, 1, 2);
    assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(2, 4)));
    assert_ok(fv_round_rows(ctx, &(fv_round_args){.x = rest, .out = out, .rows = 1, .steps = 7}));
    test_close("4 bits", &out, low, 0);
}

static void worked_numbers(void **state)
{
    (void)state;
    test_each_device(worked_numbers_on);
}

/* Each of the groups, and with by_channel each channel of it, has a scale of its own. */
static void groups_on(fv_ctx *ctx)
{
    int64_t dims[] = {2, 3, 37, 5}, rows = 8;
    fv_tensor x = test_strided(ctx, 1, 4, dims), out;

    assert_ok(fv_tensor_new(ctx, &out, FV_F32, 4, dims));
    for (int by_channel = 0; by_channel < 2; by_channel++) {
        assert_ok(fv_round_rows(
            ctx, &(fv_round_args){.x = x, .out = out, .rows = rows, .steps = 127, .by_channel = by_channel}));
        for (int64_t p = 0; p < 6; p++)
            for (int64_t n = 0; n < dims[2]; n++)
                for (int64_t c = 0; c < dims[3]; c++) {
                    double most = 0, got = *(float *)fv_at(&out, p / 3, p % 3, n, c);
                    double given = *(float *)fv_at(&x, p / 3, p % 3, n, c);
                    for (int64_t i = n / rows * rows; i < n / rows * rows + rows && i < dims[2]; i++)
                        for (int64_t e = 0; e < dims[3]; e++)
                            if (!by_channel || e == c)
                                most = fmax(most, fabs((double)*(float *)fv_at(&x, p / 3, p % 3, i, e)));
                    double code = got / (most / 127);
                    assert_true(fabs(got - given) <= most / 254 * 1.0001);
                    assert_true(fabs(code - nearbyint(code)) < 1e-4 && fabs(code) < 127.001);
                }
    }
}

static void groups_have_scales_of_their_own(void **state)
{
    (void)state;
    test_each_device(groups_on);
}

static void what_is_no_number_stays_one(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(3, 4)), out = test_random(ctx, 1, FV_DIMS(3, 4));
    (void)state;

    ((float *)x.data)[1] = NAN;
    ((float *)x.data)[4] = INFINITY;
    assert_ok(fv_round_rows(ctx, &(fv_round_args){.x = x, .out = out, .rows = 1, .steps = 127}));
    assert_true(isnan(((float *)out.data)[1]) && isfinite(((float *)out.data)[0]) && isfinite(((float *)out.data)[8]));
    fv_ctx_free(ctx);
}

static void gradients_pass_straight_through(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(5, 4)), seed = test_random(ctx, 1, FV_DIMS(5, 4)), out, gradient;
    (void)state;

    assert_ok(fv_tape_begin(ctx));
    assert_ok(fv_tape_watch(ctx, &x));
    assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(5, 4)));
    assert_ok(fv_round_rows(ctx, &(fv_round_args){.x = x, .out = out, .rows = 2, .steps = 7}));
    assert_ok(fv_tape_seed(ctx, &out, &seed));
    assert_ok(fv_tape_backward(ctx));
    assert_true(fv_tape_gradient(ctx, &x, &gradient));
    for (int n = 0; n < 20; n++)
        assert_true(((float *)gradient.data)[n] == ((float *)seed.data)[n]);
    fv_ctx_free(ctx);
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(3, 4)), narrow = fv_slice(&x, 1, 0, 3);
    (void)state;

    assert_fails(fv_round_rows(ctx, &(fv_round_args){.x = x, .out = x, .rows = 0, .steps = 127}), FV_E_ARGUMENT,
                 "round: expected groups");
    assert_fails(fv_round_rows(ctx, &(fv_round_args){.x = x, .out = x, .rows = 1, .steps = 128}), FV_E_ARGUMENT,
                 "1 to 127 steps, got 1 and 128");
    assert_fails(fv_round_rows(ctx, &(fv_round_args){.x = x, .out = narrow, .rows = 1, .steps = 7}), FV_E_SHAPE,
                 "round: out");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_numbers),
        cmocka_unit_test(groups_have_scales_of_their_own),
        cmocka_unit_test(what_is_no_number_stays_one),
        cmocka_unit_test(gradients_pass_straight_through),
        cmocka_unit_test(bad_calls_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
