/* HyLRA's plan: the sheet's examples, and the least gain of all plans there are. */
#include <math.h>

#include "cache/reuse_plan.h"
#include "support/support.h"

enum { MOST = 10 };

static void expect(const double *overlap, int64_t layers, int64_t most, const int64_t *expected, double least,
                   double sum)
{
    int64_t plan[MOST];
    fv_reuse_gains gains;

    assert_ok(fv_reuse_plan(overlap, layers, most, plan, &gains));
    if (fabs(gains.least - least) > 1e-12 || fabs(gains.sum - sum) > 1e-12)
        fail_msg("%d layers, %d sources: expected gains of %g, %g in all, got %g and %g", (int)layers, (int)most, least,
                 sum, gains.least, gains.sum);
    for (int64_t l = 0; l < layers; l++)
        if (plan[l] != expected[l])
            fail_msg("%d layers, %d sources, layer %d: expected %d, got %d", (int)layers, (int)most, (int)l,
                     (int)expected[l], (int)plan[l]);
}

static void worked_examples(void **state)
{
    static const double overlap[] = {1, .9, .6, .5, 0, 1, .8, .7, 0, 0, 1, .95, 0, 0, 0, 1};
    static const double without_1[] = {1, 0, .6, .5, 0, 0, 0, 0, 0, 0, 1, .95, 0, 0, 0, 1};
    (void)state;

    expect(overlap, 4, 1, (const int64_t[]){-1, 0, 0, 0}, .5, 3);
    expect(overlap, 4, 2, (const int64_t[]){-1, 0, -1, 2}, .9, 3.85);
    expect(overlap, 4, 4, (const int64_t[]){-1, -1, -1, -1}, 1, 4);
    expect(without_1, 4, 3, (const int64_t[]){-1, -1, -1, 2}, .95, 3.95); /* layer 1 reads everything */
    expect(overlap, 1, 3, (const int64_t[]){-1}, 1, 1);
}

/* Gains of a plan; -1 for one with too many sources. */
static double least_of(const double *overlap, int64_t layers, int64_t most, unsigned own)
{
    int64_t source = 0, sources = 1;
    double least = 1;

    for (int64_t l = 1; l < layers; l++) {
        if (own >> (l - 1) & 1) {
            source = l;
            sources++;
        } else {
            least = fmin(least, overlap[source * layers + l]);
        }
    }
    return sources <= most ? least : -1;
}

static void no_plan_has_a_larger_least_gain(void **state)
{
    fv_random random = fv_random_new(test_seed(), 7500);
    (void)state;

    for (int trial = 0; trial < 300; trial++) {
        int64_t layers = 1 + fv_random_below(&random, MOST), most = 1 + fv_random_below(&random, layers), plan[MOST];
        double overlap[MOST * MOST], best = -1;
        fv_reuse_gains gains;
        unsigned own = 0;
        for (int i = 0; i < MOST * MOST; i++)
            overlap[i] = fv_random_below(&random, 5) ? fv_random_uniform(&random) : 0;
        for (unsigned way = 0; way < 1U << (layers - 1); way++)
            best = fmax(best, least_of(overlap, layers, most, way));
        assert_ok(fv_reuse_plan(overlap, layers, most, plan, &gains));
        for (int64_t l = 1, source = 0; l < layers; l++) {
            if (plan[l] < 0) source = l;
            assert_true(plan[l] == -1 || plan[l] == source);
            own |= plan[l] < 0 ? 1U << (l - 1) : 0;
        }
        assert_int_equal(plan[0], -1);
        assert_true(least_of(overlap, layers, most, own) == best && gains.least == best);
    }
    assert_fails(fv_reuse_plan(NULL, 3, 0, NULL, NULL), FV_E_ARGUMENT, "reuse plan");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_examples),
        cmocka_unit_test(no_plan_has_a_larger_least_gain),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
