/* The naive twin of anchor: the worked numbers of its definition, and what must hold. */
#include <math.h>

#include "support/twin.h"

/* Twelve tokens in groups of two blocks of two; all queries 1, v_j = j. */
static struct twin *example(void)
{
    static const double keys[] = {1, 0, 0, 3, 2, 0, 0, 1, 1, 0, 0, 0};
    struct twin *f = twin_make(1, 1, 1, 12, 12, 1, 1);

    for (int j = 0; j < 12; j++) {
        f->q[j] = 1;
        f->k[j] = keys[j];
        f->v[j] = j;
    }
    twin_set(f, "block", 1, 2);
    twin_set(f, "step", 1, 2);
    twin_set(f, "init", 1, 2);
    return f;
}

#define PRINTED 5.1e-5 /* four decimals */

static void outputs_for_four_thresholds(void **unused)
{
    static const double none[] = {0,      .2689,  .6358,  2.5503, 2.7510, 2.9367,
                                  3.1705, 3.8282, 3.5339, 4.2689, 4.9483, 5.5896};
    static const double zero[] = {2.9113, 2.9762, 3.0673, 3.3650, 3.5924, 3.7361, 3.8982, 4.0775};
    static const double one[] = {3.6485, 3.7802, 3.9296, 4.0955}, all[] = {2.8830, 2.9468, 3.0361, 3.3280};
    struct twin *f = example();

    (void)unused;
    twin_set_number(f, "theta", -INFINITY);
    twin_forward(f, "anchor");
    twin_close("-inf", f->o, none, 12, PRINTED);
    twin_set_number(f, "theta", 0);
    twin_forward(f, "anchor");
    twin_sees(f, 0, 4, TWIN_KEYS(0, 1, 3, 4));
    twin_sees(f, 0, 8, TWIN_KEYS(0, 1, 3, 4, 7, 8));
    twin_close("0", f->o, none, 4, PRINTED);
    twin_close("0", f->o + 4, zero, 8, PRINTED);
    twin_set_number(f, "theta", 1);
    twin_forward(f, "anchor");
    twin_sees(f, 0, 8, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7, 8));
    twin_close("1", f->o + 8, one, 4, PRINTED);
    twin_set_number(f, "theta", INFINITY);
    twin_equals_dense(f, "anchor", true, true);
    twin_close("inf", f->o + 4, all, 4, PRINTED);
    twin_close("inf", f->o + 8, one, 4, PRINTED);
    twin_drop(f);
}

/* As first published the third group's candidates are keys 2 to 5: of these 2 and 3, which everyone reads, count twice,
 * and 6 and 7 are never looked at. */
static void counts_as_first_published(void **unused)
{
    static const double o[] = {3.189934, 3.290113, 3.403847, 3.530456};
    static const double lse[] = {4.042993, 4.060386, 4.077481, 4.094289};
    struct twin *f = example();

    (void)unused;
    twin_set(f, "init", 1, 4);
    twin_set(f, "count_bug", 1, 1);
    twin_set_number(f, "theta", INFINITY);
    f->call.lse = f->lse;
    twin_forward(f, "anchor");
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7));
    twin_sees(f, 0, 8, TWIN_KEYS(0, 1, 2, 3, 4, 5, 8));
    twin_close("o", f->o + 8, o, 4, TWIN_DIGITS);
    twin_close("lse", f->lse + 8, lse, 4, TWIN_DIGITS);
    twin_drop(f);
}

static void larger_thresholds_add_keys(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 40, 40, 4, 2);
    int64_t before = 0, first = 0;

    (void)unused;
    twin_set(f, "block", 1, 3);
    twin_set(f, "step", 1, 2);
    twin_set(f, "init", 1, 1);
    for (int n = 0; n <= 12; n++) {
        twin_set_number(f, "theta", -1 + 0.5 * n);
        twin_forward(f, "anchor");
        assert_true(twin_pairs(f) >= before);
        before = twin_pairs(f);
        if (n == 0) first = before;
    }
    assert_true(before > first);
    twin_drop(f);
}

static void refusals(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 6, 8, 2, 2), *g = twin_make(1, 1, 1, 6, 6, 2, 2);

    (void)unused;
    twin_refuses(f, "anchor");
    twin_set(g, "block", 1, 2);
    twin_set(g, "step", 1, 2);
    twin_set(g, "init", 1, 5);
    twin_refuses(g, "anchor");
    twin_drop(f);
    twin_drop(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_for_four_thresholds),
        cmocka_unit_test(counts_as_first_published),
        cmocka_unit_test(larger_thresholds_add_keys),
        cmocka_unit_test(refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
