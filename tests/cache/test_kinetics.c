/* The cost law of test-time runs: the numbers of its table, sums over steps, clamps, and what it makes one choose. */
#include <math.h>
#include <stdio.h>

#include "cache/kinetics.h"
#include "support/support.h"

static fv_kinetics read(const char *spec)
{
    fv_kinetics k;

    assert_ok(fv_kinetics_read(spec, &k));
    return k;
}

static void near(const char *what, double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: expected %.12g within %g, got %.12g", what, expected, tolerance, got);
}

/* In units of 1e12, as printed: half of the last digit. */
static void gives_the_table(void **state)
{
    static const struct {
        const char *model;
        double comp, memory, sparse_comp, sparse_memory, parameters;
    } rows[] = {
        {"params=.752e9,layers=28,heads=16,kv_heads=8,dim=128", 59.28, 9740.99, 28.49, 1082.33, 24.64},
        {"params=2.03e9,layers=28,heads=16,kv_heads=8,dim=128", 101.15, 9740.99, 70.37, 1082.33, 66.52},
        {"params=4.02e9,layers=36,heads=32,kv_heads=8,dim=128", 220.79, 12524.12, 141.62, 1391.57, 131.73},
        {"params=8.19e9,layers=36,heads=32,kv_heads=8,dim=128", 357.43, 12524.12, 278.27, 1391.57, 268.37},
        {"params=14.77e9,layers=40,heads=40,kv_heads=8,dim=128", 607.68, 13915.69, 497.73, 1546.19, 483.98},
        {"params=32.76e9,layers=64,heads=64,kv_heads=8,dim=128", 1390.14, 22265.11, 1108.66, 2473.90, 1073.48},
    };
    (void)state;

    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (int sparse = 0; sparse < 2; sparse++) {
            char spec[200];
            snprintf(spec, sizeof spec, "kinetics_cost:%s,in=1024,out=16384%s", rows[r].model,
                     sparse ? ",budget=1024" : "");
            fv_kinetics k = read(spec);
            fv_kinetics_cost c = fv_kinetics_cost_of(&k);
            near(spec, c.comp / 1e12, sparse ? rows[r].sparse_comp : rows[r].comp, 0.005 + 1e-9);
            near(spec, c.memory / 1e12, sparse ? rows[r].sparse_memory : rows[r].memory, 0.005 + 1e-9);
            near(spec, c.parameters / 1e12, rows[r].parameters, 0.005 + 1e-9);
            if (sparse) continue;
            fv_kinetics own = fv_kinetics_with(&k, &fv_kinetics_models[r]); /* the shapes to choose among are these */
            fv_kinetics_cost same = fv_kinetics_cost_of(&own);
            near(fv_kinetics_models[r].name, same.comp, c.comp, 0);
            near(fv_kinetics_models[r].name, same.memory, c.memory, 0);
        }
}

/* Step by step: a step reads the keys of the prompt and of the tokens before it, half of its own on average, or as many
 * as the budget allows.  A sum over steps of a law that is linear within a step is exact. */
static void equals_the_sum_over_steps(void **state)
{
    static const struct {
        int in, out, budget, local, trials;
        double bytes;
    } runs[] = {{100, 50, 0, 0, 1, 2},   {100, 50, 0, 0, 7, 2},     {100, 50, 40, 0, 3, 1},
                {100, 50, 100, 0, 1, 2}, {100, 50, 100, 20, 2, 4},  {100, 50, 149, 1, 1, 2},
                {100, 50, 400, 0, 5, 2}, {0, 64, 16, 0, 2, 1.0625}, {0, 64, 0, 0, 2, 2}};
    enum { PARTS = 1024 }; /* of a step */
    (void)state;

    for (size_t n = 0; n < sizeof runs / sizeof *runs; n++) {
        char spec[300];
        double budget = runs[n].budget ? runs[n].budget + runs[n].local : INFINITY, prompt = 0, own = 0;
        snprintf(spec, sizeof spec,
                 "kinetics_cost:params=1e6,layers=3,heads=4,kv_heads=2,dim=8,in=%d,out=%d,budget=%d,local=%d,trials=%d,"
                 "bytes=%g,intensity=10",
                 runs[n].in, runs[n].out, runs[n].budget, runs[n].local, runs[n].trials, runs[n].bytes);
        for (int t = 0; t < runs[n].out * PARTS; t++) {
            double seen = fmin(runs[n].in + (t + 0.5) / PARTS, budget) / PARTS;
            prompt += fmin(seen, (double)runs[n].in / PARTS);
            own += seen - fmin(seen, (double)runs[n].in / PARTS);
        }
        fv_kinetics k = read(spec);
        fv_kinetics_cost c = fv_kinetics_cost_of(&k);
        double N = runs[n].trials, flops = N * (2 * 1e6 * runs[n].out + 4 * (prompt + own) * 4 * 8 * 3);
        double once = runs[n].budget ? N : 1;
        near(spec, c.comp, flops, 1e-9 * flops);
        near(spec, c.memory, 10 * 2 * runs[n].bytes * (once * prompt + N * own) * 2 * 8 * 3, 1e-9 * c.memory);
    }
}

/* Everything the law must hold. */
static void clamps_and_limits(void **state)
{
    fv_kinetics dense = read("kinetics_cost:in=1000,out=500"), wide = read("kinetics_cost:in=1000,out=500,budget=1500");
    fv_kinetics wider = read("kinetics_cost:in=1000,out=500,budget=100000"), free = read("kinetics_cost:intensity=0");
    fv_kinetics shared = read("kinetics_cost:in=1000,out=500,budget=1500,trials=4,share_prompt=1");
    fv_kinetics many = read("kinetics_cost:in=1000,out=500,trials=4");
    fv_kinetics apart = read("kinetics_cost:in=1000,out=500,trials=4,share_prompt=0");
    fv_kinetics_cost d = fv_kinetics_cost_of(&dense), w = fv_kinetics_cost_of(&wide), r = fv_kinetics_cost_of(&wider);
    fv_kinetics_cost s = fv_kinetics_cost_of(&shared), m = fv_kinetics_cost_of(&many), a = fv_kinetics_cost_of(&apart);
    (void)state;

    near("a budget of everything", w.comp, d.comp, 1e-12 * d.comp);
    near("a budget of everything", w.memory, d.memory, 1e-12 * d.memory);
    near("a budget of more than there is", r.comp, d.comp, 1e-12 * d.comp);
    near("a budget of more than there is", r.memory, d.memory, 1e-12 * d.memory);
    near("shared by trials", s.memory, m.memory, 1e-12 * m.memory);
    near("each trial on its own", a.memory, 4 * d.memory, 1e-12 * a.memory);
    near("each trial on its own", a.comp, 4 * d.comp, 1e-12 * a.comp);
    assert_true(m.memory < a.memory);
    near("no intensity", fv_kinetics_cost_of(&free).memory, 0, 0);
}

/* The search: trials * floor((2 in + out) / b) out H D' flops, and floor((2 in + trials out) / b) out Hkv D' bytes. */
static void finding_blocks_costs(void **state)
{
    fv_kinetics plain = read("kinetics_cost:in=1001,out=500,budget=1024,local=64,trials=3");
    fv_kinetics block = read("kinetics_cost:in=1001,out=500,budget=1024,local=64,trials=3,block=16");
    fv_kinetics apart = read("kinetics_cost:in=1001,out=500,budget=1024,local=64,trials=3,block=16,share_prompt=0");
    fv_kinetics_cost p = fv_kinetics_cost_of(&plain), b = fv_kinetics_cost_of(&block), a = fv_kinetics_cost_of(&apart);
    double width = 128.0 * 36;
    (void)state;

    near("searching", b.comp - p.comp, 3 * 156.0 * 500 * 32 * width, 1e-12 * b.comp);        /* 2502 / 16 = 156.4 */
    near("searching", b.memory - p.memory, 562.5 * 218 * 500 * 8 * width, 1e-12 * b.memory); /* 3502 / 16 = 218.9 */
    near("searching alone", a.memory - p.memory, 562.5 * 3 * 156 * 500 * 8 * width, 1e-12 * a.memory);
    fv_kinetics whole = read("kinetics_cost:in=1001,out=500,budget=1088,trials=3");
    near("local keys are of the step's", fv_kinetics_cost_of(&whole).comp, p.comp, 0);
}

/* Counting memory moves the choice to larger models, up to a size, and never to smaller ones; a budget of keys buys
 * more tokens. */
static void memory_moves_the_choice(void **state)
{
    fv_kinetics dense = read("kinetics_cost"), sparse = read("kinetics_cost:budget=1024");
    int moved = 0;
    (void)state;

    for (double cost = 1e12; cost < 2e17; cost *= 10) {
        int64_t alone_out, out, sparse_out;
        int alone = fv_kinetics_choose(&dense, cost, false, &alone_out);
        int with = fv_kinetics_choose(&dense, cost, true, &out);
        int thin = fv_kinetics_choose(&sparse, cost, true, &sparse_out);
        if (!(alone >= 0 && with >= alone && thin >= 0))
            fail_msg("at %g: expected models of growing size, got %d and %d (with a budget %d)", cost, alone, with,
                     thin);
        moved += with > alone;
        for (int m = 0; m < FV_KINETICS_MODELS; m++) {
            fv_kinetics k = fv_kinetics_with(&dense, &fv_kinetics_models[m]);
            fv_kinetics t = fv_kinetics_with(&sparse, &fv_kinetics_models[m]);
            int64_t longest = fv_kinetics_longest(&k, cost, true);
            assert_true(fv_kinetics_longest(&t, cost, true) >= longest);
            k.out = longest;
            fv_kinetics_cost c = fv_kinetics_cost_of(&k);
            if (longest > 0) assert_true(c.comp + c.memory <= cost);
            k.out = longest + 1;
            c = fv_kinetics_cost_of(&k);
            assert_true(c.comp + c.memory > cost);
        }
    }
    assert_true(moved >= 5);
    int64_t none;
    assert_int_equal(fv_kinetics_choose(&dense, 1, true, &none), -1);
    assert_int_equal(none, 0);
}

static void wrong_options_are_refused(void **state)
{
    fv_kinetics k;
    (void)state;

    assert_fails(fv_kinetics_read("kinetics_cost:out=0", &k), FV_E_USAGE, "out");
    assert_fails(fv_kinetics_read("kinetics_cost:params=-1", &k), FV_E_USAGE, "params");
    assert_fails(fv_kinetics_read("kinetics_cost:heads=30", &k), FV_E_USAGE, "do not divide 30 query heads");
    assert_fails(fv_kinetics_read("kinetics_cost:block=16", &k), FV_E_USAGE, "'block' needs a budget");
    assert_fails(fv_kinetics_read("kinetics_cost:local=16", &k), FV_E_USAGE, "'local' needs a budget");
    assert_fails(fv_kinetics_read("kinetics_cost:share_prompt=2", &k), FV_E_USAGE, "share_prompt");
    assert_fails(fv_kinetics_read("kinetics_cost:budge=2", &k), FV_E_USAGE, "did you mean 'budget'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_table),         cmocka_unit_test(equals_the_sum_over_steps),
        cmocka_unit_test(clamps_and_limits),       cmocka_unit_test(finding_blocks_costs),
        cmocka_unit_test(memory_moves_the_choice), cmocka_unit_test(wrong_options_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
