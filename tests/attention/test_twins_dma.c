/* The naive twin of dynamic mask attention: worked numbers of its definition and small cases by hand. */
#include <math.h>
#include <string.h>

#include "support/twin.h"

static const double example[] = {.1, .9, .3, .3, .7, .2};

/* Two places, later keys win ties: key 5 is not read even by its own query. */
static void keeps_the_most_important_keys(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 6, 6, 2, 2);

    (void)unused;
    f->call.causal = true;
    twin_give(f, "importance", example, TWIN_DIMS(1, 1, 6));
    twin_set(f, "keep", 1, 2);
    twin_forward(f, "dma");
    twin_sees(f, 0, 0, TWIN_KEYS(0));
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1));
    twin_sees(f, 0, 2, TWIN_KEYS(1, 2));
    twin_sees(f, 0, 3, TWIN_KEYS(1, 3));
    twin_sees(f, 0, 4, TWIN_KEYS(1, 4));
    twin_sees(f, 0, 5, TWIN_KEYS(1, 4));
    twin_set(f, "keep_self", 1, 1); /* the own key and the best other one */
    twin_forward(f, "dma");
    twin_sees(f, 0, 3, TWIN_KEYS(1, 3));
    twin_sees(f, 0, 5, TWIN_KEYS(1, 5));
    f->call.causal = false;
    twin_forward(f, "dma");
    for (int64_t i = 0; i < 6; i++)
        twin_sees(f, 0, i, TWIN_KEYS(1, 4));
    twin_drop(f);
}

/* Blocks of two keys, three places: of the last query's 1 3 4 none has more than half of block 2-3. */
static void smooths_by_majority(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 6, 6, 2, 2);

    (void)unused;
    f->call.causal = true;
    twin_give(f, "importance", example, TWIN_DIMS(1, 1, 6));
    twin_set(f, "keep", 1, 3);
    twin_set(f, "block_smooth", 1, 2);
    twin_forward(f, "dma");
    twin_sees(f, 0, 0, TWIN_KEYS(0)); /* one of the one key that has come */
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2));
    twin_sees(f, 0, 3, TWIN_KEYS(2, 3)); /* 1 2 3 live */
    twin_sees(f, 0, 4, TWIN_KEYS(4));    /* 1 3 4 */
    assert_int_equal(f->map[5 * 6 + 0] + f->map[5 * 6 + 1] + f->map[5 * 6 + 2] + f->map[5 * 6 + 3], 0);
    assert_int_equal(f->map[5 * 6 + 4] + f->map[5 * 6 + 5], 0); /* 4 of 4 and 5 */
    twin_drop(f);
}

static void is_dense_with_room_for_all(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 6, 6, 2, 2);
    double o[24], shifted[6];

    (void)unused;
    f->call.causal = true;
    f->call.lse = f->lse;
    twin_set(f, "keep", 1, 6);
    twin_equals_dense(f, "dma", true, true);
    twin_give(f, "importance", example, TWIN_DIMS(1, 1, 6));
    twin_set(f, "bias", 1, 0);
    twin_equals_dense(f, "dma", true, true);
    twin_set(f, "bias", 1, 1);
    twin_set(f, "keep", 1, 3);
    twin_forward(f, "dma");
    memcpy(o, f->o, sizeof o);
    for (int n = 0; n < 6; n++)
        shifted[n] = example[n] + 5;
    f->param[0].data = shifted; /* the same for all: nothing changes */
    twin_forward(f, "dma");
    twin_close("o", f->o, o, 24, TWIN_EXACT);
    twin_drop(f);
}

/* softplus(ln(e - 1)) = 1. */
static void makes_importance_of_values(void **unused)
{
    const double weight[] = {1, 0, 0, 0, 0, 0, 0, 1}, bias[] = {0, 0}, a[] = {2, -3};
    struct twin *f = twin_make(1, 2, 2, 1, 2, 2, 2);
    double expected;

    (void)unused;
    memset(f->k, 0, 8 * sizeof(double));
    f->v[0] = log(exp(1) - 1); /* value of key 0, head 0: dt of head 0 */
    f->v[2] = log(exp(2) - 1);
    f->v[5] = log(exp(1) - 1); /* second element of head 1: dt of head 1 */
    f->v[7] = log(exp(2) - 1);
    f->call.lse = f->lse;
    twin_give(f, "dt_weight", weight, TWIN_DIMS(2, 4));
    twin_give(f, "dt_bias", bias, TWIN_DIMS(2));
    twin_give(f, "a", a, TWIN_DIMS(2));
    twin_forward(f, "dma");
    expected = log(exp(2) + exp(4));
    twin_close("lse of head 0", &f->lse[0], &expected, 1, TWIN_EXACT);
    expected = log(exp(-3) + exp(-6));
    twin_close("lse of head 1", &f->lse[1], &expected, 1, TWIN_EXACT);
    twin_set(f, "delta", 1, 1);
    twin_forward(f, "dma");
    expected = log(exp(exp(2)) + exp(exp(4)));
    twin_close("lse with exp", &f->lse[0], &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_most_important_keys),
        cmocka_unit_test(smooths_by_majority),
        cmocka_unit_test(is_dense_with_room_for_all),
        cmocka_unit_test(makes_importance_of_values),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
