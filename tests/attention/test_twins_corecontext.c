/* The naive twin of core context aware attention: worked numbers of its definition and small cases by hand. */
#include <math.h>
#include <string.h>

#include "support/twin.h"

/* The query of token 5 reads the pooled row of tokens 1 to 4 alone, as its own key repels it. */
static void pools_by_the_last_query_of_a_group(void **unused)
{
    static const double keys[] = {0, 1, 2, 0, -1000}, values[] = {1, 2, 3, 4, 100}, one = 1;
    static const double alpha[] = {.08259, .22452, .61030, .08259};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 1, 1);
    double sum = 0, c = 2.692890;

    (void)unused;
    for (int n = 0; n < 5; n++)
        f->q[n] = 1;
    memcpy(f->k, keys, sizeof keys);
    memcpy(f->v, values, sizeof values);
    f->call.scale = &one;
    f->call.lse = f->lse;
    twin_set(f, "group", 1, 4);
    twin_set(f, "window", 1, 1);
    twin_forward(f, "corecontext");
    twin_close("c", &f->o[4], &c, 1, TWIN_DIGITS);
    for (int n = 0; n < 4; n++)
        sum += alpha[n] * keys[n];
    twin_close("pooled logit", &f->lse[4], &sum, 1, 2e-5); /* weights are given to five digits */
    twin_drop(f);
}

/* group 4, window 8: pooled rows and first raw token (both counted from 1) of tokens 8 to 17. */
static void every_token_is_read_once(void **unused)
{
    static const int first[] = {1, 1, 1, 1, 5, 5, 5, 5, 9, 9};
    struct twin *f = twin_make(1, 1, 1, 17, 17, 2, 2);

    (void)unused;
    twin_set(f, "group", 1, 4);
    twin_set(f, "window", 1, 8);
    twin_forward(f, "corecontext");
    for (int64_t i = 8; i <= 17; i++)
        for (int64_t j = 1; j <= 17; j++)
            assert_int_equal(f->map[(i - 1) * 17 + j - 1], j >= first[i - 8] && j <= i);
    twin_drop(f);
}

static void is_dense_where_nothing_is_pooled(void **unused)
{
    struct twin *f = twin_make(2, 2, 1, 11, 11, 2, 2);

    (void)unused;
    twin_set(f, "group", 1, 4);
    twin_set(f, "window", 1, 8); /* up to window + group - 1 */
    twin_equals_dense(f, "corecontext", true, true);
    twin_set(f, "group", 1, 1);
    twin_set(f, "window", 1, 1);
    for (int pool = 0; pool < 4; pool++) {
        twin_set(f, "pool", 1, pool);
        twin_equals_dense(f, "corecontext", true, true);
    }
    twin_drop(f);
}

/* Tokens of a group alike: a pooled row is each of them, and log_bias counts it as often. */
static void counts_groups_of_equals_with_log_bias(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 19, 19, 2, 2);

    (void)unused;
    for (int64_t j = 0; j < 19; j++)
        for (int64_t d = 0; d < 2; d++) {
            f->k[j * 2 + d] = f->k[j / 3 * 6 + d];
            f->v[j * 2 + d] = f->v[j / 3 * 6 + d];
        }
    twin_set(f, "group", 1, 3);
    twin_set(f, "window", 1, 2);
    twin_set(f, "log_bias", 1, 1);
    twin_equals_dense(f, "corecontext", true, true);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pools_by_the_last_query_of_a_group),
        cmocka_unit_test(every_token_is_read_once),
        cmocka_unit_test(is_dense_where_nothing_is_pooled),
        cmocka_unit_test(counts_groups_of_equals_with_log_bias),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
