/* The naive twin of psa: the worked numbers of its definition, and what must hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* One query over keys whose blocks have these levels; products are not scaled. */
static struct twin *leveled(int64_t keys, const double *levels, int64_t blocks)
{
    static const double one = 1;
    struct twin *f = twin_make(1, 1, 1, 1, keys, 2, 1);

    f->call.scale = &one;
    twin_set(f, "block_k", 1, 8);
    twin_give(f, "levels", levels, TWIN_DIMS(1, 1, 1, blocks));
    return f;
}

static void equal_keys_are_read_as_one(void **unused)
{
    static const double dense[] = {5.813840}, unbiased[] = {7.165250}, k[] = {.3, .2, .3, .2, 1, 0}, v[] = {1, 3, 10};
    double level = 1;
    struct twin *f = leveled(3, &level, 1);

    (void)unused;
    f->q[0] = 1;
    f->q[1] = 0.5;
    memcpy(f->k, k, sizeof k);
    memcpy(f->v, v, sizeof v);
    twin_forward(f, "psa");
    twin_close("dense", f->o, dense, 1, TWIN_DIGITS);
    level = 2;
    twin_forward(f, "psa");
    twin_close("level 2", f->o, dense, 1, TWIN_DIGITS);
    assert_true(f->map[0] == 2 && f->map[1] == 2 && f->map[2] == 2);
    twin_set(f, "log_bias", 1, 0);
    twin_forward(f, "psa");
    twin_close("without bias", f->o, unbiased, 1, TWIN_DIGITS);
    twin_drop(f);
}

/* Two keys in a block beside six that weigh nothing, and two in the next. */
static void a_pair_is_read_as_one_or_not_at_all(void **unused)
{
    static const double expected[] = {2.944685, 2.924714, 3.475021}, first[] = {1, 2, 0};
    double levels[] = {1, 1};
    struct twin *f = leveled(10, levels, 2);

    (void)unused;
    f->q[0] = 1;
    f->q[1] = 0;
    for (int j = 0; j < 10; j++)
        f->k[2 * j] = -1e4, f->v[j] = 0;
    f->k[0] = 0, f->k[2] = .4, f->k[16] = 1.2, f->k[18] = 1.1;
    f->v[0] = 1, f->v[1] = 2, f->v[8] = 3, f->v[9] = 4;
    for (int n = 0; n < 3; n++) {
        levels[0] = first[n];
        twin_forward(f, "psa");
        twin_close("o", f->o, &expected[n], 1, TWIN_DIGITS);
    }
    twin_drop(f);
}

static void levels_are(const struct twin *f, const int *expected)
{
    for (int j = 0; j < 64; j++)
        if (f->map[j] != expected[j / 8]) fail_msg("key %d: expected level %d, got %d", j, expected[j / 8], f->map[j]);
}

/* Options that are not integers. */
static void set_shares(struct twin *f, const char *name, double a, double b, double c, double d)
{
    twin_set(f, name, 4, 0, 0, 0, 0);
    for (int n = 0; n < f->call.options; n++)
        if (strcmp(f->option[n].name, name) == 0) memcpy(f->values[n], (double[]){a, b, c, d}, 4 * sizeof(double));
}

static void ranks_become_levels(void **unused)
{
    static const double importance[] = {.40, .02, .25, .03, .10, .08, .07, .05};
    static const double wide[] = {.3, .3, .3, .3, .3, .3, .3, .3};
    struct twin *f = twin_make(1, 1, 1, 1, 64, 2, 1);

    (void)unused;
    twin_set(f, "block_k", 1, 8);
    twin_set(f, "min_full", 1, 0);
    twin_set(f, "round", 1, 0);
    twin_give(f, "importance", importance, TWIN_DIMS(1, 1, 1, 8));
    twin_forward(f, "psa"); /* bound, by 0.4 0.5 0.6 0.8 */
    levels_are(f, (const int[]){1, 0, 1, 0, 8, 8, 0, 0});
    twin_set(f, "mode", 1, 3); /* within bounds: 0.4, -, -, 0.65 0.75 */
    twin_forward(f, "psa");
    levels_are(f, (const int[]){1, 0, 8, 0, 8, 0, 0, 0});
    twin_set(f, "mode", 1, 1);
    set_shares(f, "widths", .25, .25, .125, .125);
    twin_forward(f, "psa");
    levels_are(f, (const int[]){1, 0, 1, 0, 2, 2, 4, 8});
    twin_set(f, "round", 1, 1);
    twin_set(f, "tile", 1, 2); /* level 8 in twos: of the last three one is left over */
    set_shares(f, "widths", .25, .25, .125, .375);
    twin_forward(f, "psa");
    levels_are(f, (const int[]){1, 0, 1, 8, 2, 2, 4, 8});
    f->call.params = 0;
    f->call.options = 3;
    twin_set(f, "round", 1, 0);
    twin_give(f, "importance", wide, TWIN_DIMS(1, 1, 1, 8));
    twin_set(f, "mode", 1, 1);
    set_shares(f, "widths", 0, 0, .25, .25); /* ties to the lower block, and one at level 1 */
    twin_forward(f, "psa");
    levels_are(f, (const int[]){1, 4, 8, 8, 0, 0, 0, 0});
    twin_drop(f);
}

static void limits(void **unused)
{
    double levels[2 * 3 * 5];
    struct twin *f = twin_make(1, 2, 1, 37, 37, 2, 3);
    double *mean = sheet_zeros(3);

    (void)unused;
    twin_set(f, "block_q", 1, 16);
    twin_set(f, "block_k", 1, 8);
    twin_give(f, "levels", levels, TWIN_DIMS(1, 2, 3, 5));
    for (int n = 0; n < 30; n++)
        levels[n] = 1;
    twin_equals_dense(f, "psa", false, true);
    f->call.causal = true;
    twin_equals_dense(f, "psa", true, true);
    f->call.causal = false;
    for (int n = 0; n < 30; n++) /* no skips: equal keys weigh alike */
        levels[n] = 1 << (n * n + n / 7) % 4;
    for (int j = 0; j < 37; j++)
        f->k[2 * j] = 0.3, f->k[2 * j + 1] = -0.2;
    for (int n = 0; n < 111; n++)
        mean[n % 3] += f->v[n] / 37;
    twin_forward(f, "psa");
    for (int row = 0; row < 74; row++)
        twin_close("mean", f->o + 3 * row, mean, 3, TWIN_EXACT);
    for (int n = 0; n < 30; n++) /* levels 1 and 0: the blocks that are read, no more */
        levels[n] = n * n % 3 > 0;
    twin_forward(f, "psa");
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 37; i++)
            for (int j = 0; j < 37; j++)
                assert_int_equal(f->map[(h * 37 + i) * 37 + j], levels[(h * 3 + i / 16) * 5 + j / 8] > 0);
    twin_set(f, "block_k", 1, 12);
    twin_refuses(f, "psa");
    free(mean);
    twin_drop(f);
}

/* A query sees a mean when it sees its last key. */
static void means_are_seen_by_their_last_key(void **unused)
{
    static const double levels[] = {4, 2, 8};
    struct twin *f = twin_make(1, 1, 1, 20, 20, 2, 1);

    (void)unused;
    twin_set(f, "block_k", 1, 8);
    twin_give(f, "levels", levels, TWIN_DIMS(1, 1, 1, 3));
    f->call.causal = true;
    twin_forward(f, "psa");
    twin_sees(f, 0, 2, TWIN_KEYS(-1));
    for (int i = 0; i < 20; i++)
        for (int j = 0; j < 20; j++) {
            int level = (int)levels[j / 8], last = j / level * level + level - 1;
            if (last > 19) last = 19; /* of four keys */
            assert_int_equal(f->map[i * 20 + j], last <= i ? level : 0);
        }
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_keys_are_read_as_one),
        cmocka_unit_test(a_pair_is_read_as_one_or_not_at_all),
        cmocka_unit_test(ranks_become_levels),
        cmocka_unit_test(limits),
        cmocka_unit_test(means_are_seen_by_their_last_key),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
