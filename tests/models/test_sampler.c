/* Sampling: greedy and its ties, the cuts, the penalty, and frequencies against the distribution they come from. */
#include <math.h>

#include "fovea/model.h"
#include "support/support.h"

static fv_sampler *make(fv_sampler_options options, int64_t vocabulary)
{
    fv_sampler *sampler;

    assert_ok(fv_sampler_new(&options, vocabulary, &sampler));
    return sampler;
}

static void greedy_takes_the_best_and_ties_go_down(void **state)
{
    const float logits[5] = {1, 3, (float)NAN, 3, -1}, none[3] = {-INFINITY, -INFINITY, (float)NAN};
    const float infinite[3] = {0, INFINITY, 5};
    fv_sampler *s = make((fv_sampler_options){0}, 5), *t = make((fv_sampler_options){.temperature = 1}, 3);
    (void)state;

    for (int i = 0; i < 3; i++)
        assert_int_equal(fv_sampler_pick(s, logits), 1);
    assert_int_equal(fv_sampler_pick(t, none), 0);
    assert_int_equal(fv_sampler_pick(s, (const float[5]){(float)NAN, -INFINITY, -3, -3, (float)NAN}), 2);
    assert_int_equal(fv_sampler_pick(t, infinite), 1);
    fv_sampler_free(s);
    fv_sampler_free(t);
}

/* Draws many times; each share must lie within five standard deviations of `expected`, and at 0 where that is 0. */
static void check_shares(fv_sampler_options options, const float *logits, const double *expected, int count)
{
    enum { DRAWS = 40000 };
    int64_t drawn[600] = {0};
    options.seed = test_seed();
    fv_sampler *s = make(options, count);

    for (int i = 0; i < DRAWS; i++)
        drawn[fv_sampler_pick(s, logits)]++;
    for (int i = 0; i < count; i++) {
        double p = expected[i], share = (double)drawn[i] / DRAWS, bound = 5 * sqrt(p * (1 - p) / DRAWS);
        if (!(fabs(share - p) <= bound + 1e-12))
            fail_msg("token %d: expected a share of %g, got %g (tolerance %g)", i, p, share, bound);
    }
    fv_sampler_free(s);
}

/* Softmax at a temperature over the tokens of the mask, 0 elsewhere. */
static void softmax(const float *logits, int count, double temperature, const bool *mask, double *out)
{
    double sum = 0;

    for (int i = 0; i < count; i++)
        sum += mask[i] ? exp((double)logits[i] / temperature) : 0;
    for (int i = 0; i < count; i++)
        out[i] = mask[i] ? exp((double)logits[i] / temperature) / sum : 0;
}

static const float logits6[6] = {2, 0.5f, 1.5f, -1, 1, -3}; /* best first: 0 2 4 1 3 5 */

static void temperature_shapes_the_distribution(void **state)
{
    const bool all[6] = {1, 1, 1, 1, 1, 1};
    double expected[6];
    (void)state;

    for (int t = 0; t < 3; t++) {
        double temperature = (const double[]){0.5, 1, 3}[t];
        softmax(logits6, 6, temperature, all, expected);
        check_shares((fv_sampler_options){.temperature = (float)temperature}, logits6, expected, 6);
    }
}

static void cuts_leave_the_best(void **state)
{
    double expected[6];
    (void)state;

    /* probabilities at temperature 1: 0.426 0.095 0.259 0.021 0.157 0.003 (to what is left of 1) */
    softmax(logits6, 6, 1, (const bool[6]){1, 0, 1, 0, 1, 0}, expected);
    check_shares((fv_sampler_options){.temperature = 1, .top_k = 3}, logits6, expected, 6);
    check_shares((fv_sampler_options){.temperature = 1, .top_p = 0.8f}, logits6, expected, 6);
    check_shares((fv_sampler_options){.temperature = 1, .min_p = 0.3f}, logits6, expected, 6); /* exp(-1) > 0.3 */
    softmax(logits6, 6, 1, (const bool[6]){1, 0, 0, 0, 0, 0}, expected);
    check_shares((fv_sampler_options){.temperature = 1, .top_p = 0.1f}, logits6, expected, 6);
    check_shares((fv_sampler_options){.temperature = 1, .min_p = 1}, logits6, expected, 6);
    check_shares((fv_sampler_options){.temperature = 5, .top_k = 1}, logits6, expected, 6);
    softmax(logits6, 6, 2, (const bool[6]){1, 0, 1, 0, 0, 0}, expected);
    /* top-p counts what top-k left: at temperature 2 the shares of three are 0.42 0.33 0.25 */
    check_shares((fv_sampler_options){.temperature = 2, .top_k = 3, .top_p = 0.7f}, logits6, expected, 6);
}

/* The search for the mass grows in steps: a flat distribution needs most of the vocabulary. */
static void mass_is_found_among_many(void **state)
{
    enum { COUNT = 600 };
    float logits[COUNT];
    double expected[COUNT];
    bool mask[COUNT];
    (void)state;

    for (int i = 0; i < COUNT; i++) {
        logits[i] = (float)(i * 7 % COUNT) / 1e4f; /* a permutation, nearly flat */
        mask[i] = i * 7 % COUNT >= 0;
    }
    softmax(logits, COUNT, 1, mask, expected);
    for (double sum = 0, best = COUNT - 1; best >= 0; best--)
        for (int i = 0; i < COUNT; i++)
            if (i * 7 % COUNT == (int)best) {
                mask[i] = sum < (double)0.9f;
                sum += expected[i];
            }
    softmax(logits, COUNT, 1, mask, expected);
    check_shares((fv_sampler_options){.temperature = 1, .top_p = 0.9f}, logits, expected, COUNT);
}

static void repetition_is_penalised_for_64_tokens(void **state)
{
    const float logits[4] = {4, 3, 2.5f, -1};
    fv_sampler *s = make((fv_sampler_options){.repeat_penalty = 2}, 4);
    (void)state;

    assert_int_equal(fv_sampler_pick(s, logits), 0);
    assert_int_equal(fv_sampler_pick(s, logits), 1); /* 4 / 2 < 3 */
    assert_int_equal(fv_sampler_pick(s, logits), 2);
    assert_int_equal(fv_sampler_pick(s, logits), 0); /* 2, 1.5, 1.25: penalised once, not once per time */
    for (int i = 0; i < 63; i++)
        fv_sampler_accept(s, 3);
    assert_int_equal(fv_sampler_pick(s, logits), 1); /* 0 is the oldest of the 64 */
    for (int i = 0; i < 64; i++)
        fv_sampler_accept(s, 3);
    assert_int_equal(fv_sampler_pick(s, logits), 0);
    fv_sampler_free(s);

    const float negative[2] = {-1, -1.5f};
    s = make((fv_sampler_options){.repeat_penalty = 2}, 2);
    fv_sampler_accept(s, 0);
    fv_sampler_accept(s, 99); /* ids outside the vocabulary are of no account */
    assert_int_equal(fv_sampler_pick(s, negative), 1);
    fv_sampler_free(s);
}

static void seeds_repeat(void **state)
{
    fv_sampler *a = make((fv_sampler_options){.temperature = 1, .seed = 7}, 6);
    fv_sampler *b = make((fv_sampler_options){.temperature = 1, .seed = 7}, 6);
    fv_sampler *c = make((fv_sampler_options){.temperature = 1, .seed = 8}, 6);
    int differ = 0;
    (void)state;

    for (int i = 0; i < 200; i++) {
        int32_t id = fv_sampler_pick(a, logits6);
        assert_int_equal(id, fv_sampler_pick(b, logits6));
        differ += id != fv_sampler_pick(c, logits6);
    }
    assert_true(differ > 20);
    fv_sampler_free(a);
    fv_sampler_free(b);
    fv_sampler_free(c);
}

static void bad_options_are_refused(void **state)
{
    fv_sampler *s;
    (void)state;

    assert_fails(fv_sampler_new(&(fv_sampler_options){.temperature = -1}, 6, &s), FV_E_USAGE, "temperature");
    assert_fails(fv_sampler_new(&(fv_sampler_options){.temperature = (float)NAN}, 6, &s), FV_E_USAGE, "temperature");
    assert_fails(fv_sampler_new(&(fv_sampler_options){.top_k = -1}, 6, &s), FV_E_USAGE, "top-k");
    assert_fails(fv_sampler_new(&(fv_sampler_options){.top_p = 1.5f}, 6, &s), FV_E_USAGE, "top-p");
    assert_fails(fv_sampler_new(&(fv_sampler_options){.min_p = -0.1f}, 6, &s), FV_E_USAGE, "min-p");
    assert_fails(fv_sampler_new(&(fv_sampler_options){.repeat_penalty = -2}, 6, &s), FV_E_USAGE, "repeat");
    assert_fails(fv_sampler_new(&(fv_sampler_options){0}, 0, &s), FV_E_ARGUMENT, "vocabulary");
    for (int64_t nth = 1; nth <= 2; nth++) {
        test_alloc_fail(nth);
        assert_int_equal(fv_sampler_new(&(fv_sampler_options){0}, 6, &s), FV_E_MEMORY);
        test_alloc_fail(0);
        assert_null(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_best_and_ties_go_down),
        cmocka_unit_test(temperature_shapes_the_distribution),
        cmocka_unit_test(cuts_leave_the_best),
        cmocka_unit_test(mass_is_found_among_many),
        cmocka_unit_test(repetition_is_penalised_for_64_tokens),
        cmocka_unit_test(seeds_repeat),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
