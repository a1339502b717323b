/* The naive twin of PAROAttention: the worked numbers of its definition, and what must hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* Blocks of one token whose mask shows each the next: so token at place n sees that at place n + 1, and the last. */
static void orders_read_axes(void **unused)
{
    static const int64_t tables[6][12] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11},
        {0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}, {0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11},
        {0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11}, {0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11},
    };
    double mask[144] = {0};
    struct twin *f = twin_make(1, 6, 6, 12, 12, 1, 1);

    (void)unused;
    for (int n = 0; n < 11; n++)
        mask[n * 12 + n + 1] = 1;
    twin_give(f, "mask", mask, TWIN_DIMS(1, 1, 12, 12));
    twin_set(f, "grid", 3, 2, 2, 3);
    twin_set(f, "block", 1, 1);
    twin_set(f, "order", 4, 0, 1, 2, 3);
    twin_forward(f, "paro"); /* heads 4 and 5 begin again */
    for (int64_t h = 0; h < 6; h++)
        for (int64_t n = 0; n < 10; n++)
            twin_sees(f, h, tables[h % 4][n], TWIN_KEYS(tables[h % 4][n + 1], 11));
    twin_set(f, "order", 2, 4, 5);
    twin_forward(f, "paro");
    for (int64_t h = 0; h < 2; h++)
        for (int64_t n = 0; n < 10; n++)
            twin_sees(f, h, tables[4 + h][n], TWIN_KEYS(tables[4 + h][n + 1], 11));
    twin_drop(f);
}

static void is_dense_in_every_order(void **unused)
{
    struct twin *f = twin_make(2, 2, 2, 15, 15, 3, 2);

    (void)unused;
    twin_set(f, "grid", 3, 3, 2, 2);
    twin_set(f, "text", 1, 3);
    for (int order = 0; order < 6; order++) {
        twin_set(f, "order", 1, order);
        twin_equals_dense(f, "paro", false, true);
    }
    twin_set(f, "smooth_k", 1, 1);
    twin_equals_dense(f, "paro", false, true);
    twin_drop(f);
}

/* [.3 -1.2 .05 .9] in 8 bits is [32 -127 5 95] times .00944882. */
static void rounds_to_few_bits(void **unused)
{
    static const double x[] = {.3, -1.2, .05, .9}, codes[] = {32, -127, 5, 95}, low[] = {2, -7, 0, 5};
    struct twin *f = twin_make(1, 1, 1, 1, 1, 4, 4);
    double expected = 0;

    (void)unused;
    memcpy(f->q, x, sizeof x);
    memcpy(f->k, x, sizeof x);
    f->call.lse = f->lse;
    twin_set(f, "grid", 3, 1, 1, 1);
    twin_set(f, "qk_bits", 1, 1);
    twin_forward(f, "paro");
    for (int d = 0; d < 4; d++)
        expected += codes[d] * codes[d] * .0094488189 * .0094488189 / 2;
    twin_close("8 bits", f->lse, &expected, 1, TWIN_DIGITS);
    twin_set(f, "qk_bits", 1, 2);
    twin_forward(f, "paro");
    expected = 0;
    for (int d = 0; d < 4; d++)
        expected += low[d] * low[d] * 1.2 / 7 * 1.2 / 7 / 2;
    twin_close("4 bits", f->lse, &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

/* Two keys of weights 1 and .3: 127 and 38 of 127 steps, over a sum of 1.3. */
static void weights_are_truncated(void **unused)
{
    static const double one = 1;
    struct twin *f = twin_make(1, 1, 1, 2, 2, 1, 1);
    double expected = (127 + 38 * 2) / 127.0 / 1.3;

    (void)unused;
    f->call.scale = &one;
    f->q[0] = f->q[1] = 1;
    f->k[0] = 0;
    f->k[1] = log(.3);
    f->v[0] = 1; /* 64 and 127 steps of 2 / 127, if they share a scale */
    f->v[1] = 2;
    twin_set(f, "grid", 3, 1, 1, 2);
    twin_set(f, "pv_bits", 1, 1);
    twin_set(f, "k_group", 1, 1);
    twin_forward(f, "paro");
    twin_close("o", f->o, &expected, 1, TWIN_EXACT);
    twin_set(f, "k_group", 1, 2);
    twin_forward(f, "paro");
    expected = (127 * 64 + 38 * 127) * (2 / 127.0) / 127.0 / 1.3;
    twin_close("o", f->o, &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_read_axes),
        cmocka_unit_test(is_dense_in_every_order),
        cmocka_unit_test(rounds_to_few_bits),
        cmocka_unit_test(weights_are_truncated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
