/* The naive twin of Sparsifiner: the worked numbers of its definition, and what must hold. */
#include <math.h>

#include "support/twin.h"

static void chooses_by_a_sparse_code_times_a_sparse_basis(void **unused)
{
    static const double c[] = {.5, .3, .15, .05};
    static const double basis[4][6] = {{.5, .01, .3, 0, 0, .2}, {0, .4, .1, 0, .3, 0}, {0, 0, 0, 9, 9, 9}, {0}};
    struct twin *f = twin_make(1, 1, 1, 6, 6, 1, 1);
    double down[6 * 4] = {0}, up[6 * 4];

    (void)unused;
    for (int j = 0; j < 6; j++) {
        f->q[j] = 1;
        f->k[j] = j == 0;
        for (int r = 0; r < 4; r++)
            up[j * 4 + r] = basis[r][j];
    }
    for (int r = 0; r < 4; r++)
        down[r] = log(c[r]); /* of key 0, the only one that is not 0 */
    twin_give(f, "down", down, TWIN_DIMS(6, 4));
    twin_give(f, "up", up, TWIN_DIMS(6, 4));
    twin_set(f, "coef_top", 1, 2);
    twin_set(f, "keep", 1, 1);
    f->values[1][0] = 0.5;
    twin_forward(f, "sparsifiner"); /* .25 .12 .18 0 .09 .1 */
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 2, 3, 4, 5));
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2));
    twin_set(f, "coef_top", 1, 1); /* .25 0 .15 0 0 .1 */
    twin_forward(f, "sparsifiner");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 2, 5));
    f->values[1][0] = 0.75; /* zeros fill up from the lowest */
    twin_forward(f, "sparsifiner");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2, 3, 5));
    up[1 * 4] = -.9; /* its size counts */
    f->values[1][0] = 0.3;
    twin_forward(f, "sparsifiner");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1));
    twin_drop(f);
}

static void is_dense_where_everything_is_kept(void **unused)
{
    struct twin *f = twin_make(2, 4, 2, 15, 15, 3, 2);

    (void)unused;
    twin_set(f, "keep", 1, 1);
    twin_equals_dense(f, "sparsifiner", false, true);
    twin_drop(f);
}

static void is_no_cross_attention(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 4, 5, 2, 2);

    (void)unused;
    twin_refuses(f, "sparsifiner");
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chooses_by_a_sparse_code_times_a_sparse_basis),
        cmocka_unit_test(is_dense_where_everything_is_kept),
        cmocka_unit_test(is_no_cross_attention),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
