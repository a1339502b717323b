/* The naive twin of token aggregation: the worked numbers of its definition, and what must hold. */
#include "support/twin.h"

/* Seven tokens near two centres: order 0 2 4 6 1 3 5, and the array goes on 5 3 1 6 ... */
static void groups_read_themselves_and_the_next(void **unused)
{
    static const double features[] = {1, 0, 0, 1, .9, .1, .2, .9, .8, .3, .1, 1, .95, .05}, centres[] = {1, 0, 0, 1};
    struct twin *f = twin_make(1, 1, 1, 7, 7, 2, 2);

    (void)unused;
    twin_give(f, "features", features, TWIN_DIMS(1, 7, 2));
    twin_give(f, "centres", centres, TWIN_DIMS(2, 2));
    twin_set(f, "group", 1, 3);
    twin_forward(f, "tab");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 2, 3, 4, 6));
    twin_sees(f, 0, 4, TWIN_KEYS(0, 1, 2, 3, 4, 6));
    twin_sees(f, 0, 1, TWIN_KEYS(1, 3, 5, 6));
    twin_sees(f, 0, 5, TWIN_KEYS(1, 3, 4, 5, 6));
    twin_set(f, "mask_pad", 1, 1);
    twin_forward(f, "tab");
    twin_sees(f, 0, 5, TWIN_KEYS(5));
    twin_set(f, "windows", 1, 1);
    twin_forward(f, "tab");
    twin_sees(f, 0, 1, TWIN_KEYS(1, 3, 6));
    twin_drop(f);
}

/* The last token reads itself and its neighbour twice and thrice: 6 places, 5 5 3 1 6 4, of equal weight. */
static void mirrored_keys_weigh_again(void **unused)
{
    static const double clusters[] = {0, 1, 0, 1, 0, 1, 0};
    struct twin *f = twin_make(1, 1, 1, 7, 7, 1, 1);
    double expected = (5 + 5 + 3 + 1 + 6 + 4) / 6.0;

    (void)unused;
    for (int n = 0; n < 7; n++) {
        f->q[n] = 0;
        f->v[n] = n;
    }
    twin_give(f, "assign", clusters, TWIN_DIMS(1, 7));
    twin_set(f, "group", 1, 3);
    twin_forward(f, "tab");
    twin_close("o", &f->o[5], &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

/* One group reads every key twice: nothing changes. */
static void is_dense_in_one_group(void **unused)
{
    struct twin *f = twin_make(2, 3, 3, 9, 9, 2, 3);

    (void)unused;
    twin_equals_dense(f, "tab", false, false);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_read_themselves_and_the_next),
        cmocka_unit_test(mirrored_keys_weigh_again),
        cmocka_unit_test(is_dense_in_one_group),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
