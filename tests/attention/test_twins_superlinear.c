/* The naive twin of superlinear attention: worked numbers of its definition. */
#include "support/twin.h"

static void superlinear_value(void **unused)
{
    static const double one = 1, expected = 2.178745;
    struct twin *f = twin_make(1, 1, 1, 9, 9, 1, 1);
    int64_t anchors[18];

    (void)unused;
    f->call.scale = &one;
    f->call.lse = NULL;
    f->call.selection = anchors;
    twin_set(f, "window_index", 1, 1);
    for (int64_t j = 0; j < 9; j++) {
        f->q[j] = 1;
        f->k[j] = j == 0 ? 2 : j == 5;
        f->v[j] = (double)j;
    }
    twin_forward(f, "superlinear");
    twin_close("o", &f->o[8], &expected, 1, TWIN_DIGITS);
    assert_true(anchors[16] == 0 && anchors[17] == 5 && anchors[0] == -1);
    twin_sees(f, 0, 8, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7, 8));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2));
    f->call.lse = f->lse;
    twin_refuses(f, "superlinear");
    twin_drop(f);
}

static void superlinear_positions(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 21, 21, 1, 1);

    (void)unused;
    f->call.lse = NULL;
    twin_set(f, "window_index", 1, 1);
    twin_set(f, "anchors", 1, 1);
    for (int64_t j = 0; j < 21; j++)
        f->k[j] = 0;
    twin_forward(f, "superlinear"); /* ties go to the farther stripe, 5 */
    twin_sees(f, 0, 20, TWIN_KEYS(0, 1, 2, 3, 4, 5, 18, 19, 20));
    for (int64_t j = 0; j < 21; j++)
        f->q[j] = 1;
    f->k[17] = 1;
    twin_forward(f, "superlinear");
    twin_sees(f, 0, 20, TWIN_KEYS(7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20));
    twin_set(f, "anchors", 1, 2);
    twin_forward(f, "superlinear");
    twin_sees(f, 0, 20, TWIN_KEYS(0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20));
    twin_set(f, "window_index", 1, 4);
    twin_equals_dense(f, "superlinear", true, false); /* the window is 24 keys */
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(superlinear_value),
        cmocka_unit_test(superlinear_positions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
