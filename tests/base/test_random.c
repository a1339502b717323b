/* Random numbers: the published generator, its moments, and independence of order. */
#include "support/support.h"

#include <math.h>

enum { DRAWS = 200000 };

/* Salmon et al. give Philox 4x32-10 of counter 0 and key 0, and of all ones. */
static void published_numbers(void **state)
{
    fv_random zero = fv_random_new(0, 0), ones = fv_random_new(UINT64_MAX, UINT64_MAX);
    static const uint32_t of_zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    static const uint32_t of_ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    (void)state;

    ones.counter = UINT64_MAX;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(fv_random_u32(&zero), of_zero[i]);
        assert_int_equal(fv_random_u32(&ones), of_ones[i]);
    }
}

static void streams_are_functions_of_seed_and_number(void **state)
{
    fv_random a = fv_random_new(5, 1), b = fv_random_new(5, 1), c = fv_random_new(5, 2), d = fv_random_new(6, 1);
    int same_c = 0, same_d = 0;
    (void)state;

    for (int i = 0; i < 1000; i++) {
        uint32_t draw = fv_random_u32(&a);
        assert_int_equal(draw, fv_random_u32(&b));
        same_c += draw == fv_random_u32(&c);
        same_d += draw == fv_random_u32(&d);
    }
    assert_true(same_c < 3 && same_d < 3);
}

/* Five standard deviations of the mean of DRAWS numbers. */
static void moments_are_right(void **state)
{
    fv_random random = fv_random_new(test_seed(), 3);
    double uniform = 0, normal = 0, square = 0;
    (void)state;

    for (int i = 0; i < DRAWS; i++) {
        double u = fv_random_uniform(&random), n = fv_random_normal(&random);
        assert_true(u >= 0 && u < 1 && isfinite(n));
        uniform += u;
        normal += n;
        square += n * n;
    }
    assert_true(fabs(uniform / DRAWS - 0.5) < 5 * sqrt(1 / 12.0 / DRAWS));
    assert_true(fabs(normal / DRAWS) < 5 * sqrt(1.0 / DRAWS));
    assert_true(fabs(square / DRAWS - 1) < 5 * sqrt(2.0 / DRAWS));
}

static void bounded_numbers_are_even(void **state)
{
    fv_random random = fv_random_new(test_seed(), 4);
    int64_t counts[7] = {0};
    (void)state;

    for (int i = 0; i < DRAWS; i++) {
        int64_t draw = fv_random_below(&random, 7);
        assert_true(draw >= 0 && draw < 7);
        counts[draw]++;
    }
    for (int i = 0; i < 7; i++)
        assert_true(fabs((double)counts[i] - DRAWS / 7.0) < 5 * sqrt(DRAWS / 7.0));
    for (int i = 0; i < 100; i++)
        assert_int_equal(fv_random_below(&random, 1), 0);
    for (int i = 0; i < 1000; i++)
        assert_true(fv_random_below(&random, INT64_MAX) >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_numbers),
        cmocka_unit_test(streams_are_functions_of_seed_and_number),
        cmocka_unit_test(moments_are_right),
        cmocka_unit_test(bounded_numbers_are_even),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
