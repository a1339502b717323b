/* The naive twin of hip: the worked numbers of its definition, and what must hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* Keys of one channel with these scores, block by block, before a window of one key; one query. */
static struct twin *scored(const double *score, int64_t blocks, int block, int wanted)
{
    struct twin *f = twin_make(1, 1, 1, 1, blocks * block + 1, 1, 1);

    f->q[0] = 1;
    for (int64_t j = 0; j < blocks * block; j++)
        f->k[j] = score[j / block];
    twin_set(f, "k", 1, wanted * block);
    twin_set(f, "block_k", 1, block);
    twin_set(f, "window", 1, 1);
    return f;
}

static void example_1_misses_a_lone_peak(void **unused)
{
    static const double score[] = {3, 0, 1, 2, 0, 9, 4, 1, 5, 2, 0, 0, 1, 0, 8, 0};
    struct twin *f = scored(score, 16, 1, 4);

    (void)unused;
    twin_forward(f, "hip");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 6, 8, 14, 16));
    twin_set(f, "rep", 1, 1); /* of 2 4 6 8 the centres 3 5 7 9 are best; of 2..9 then 9 5 4 and the first 2 */
    twin_forward(f, "hip");
    twin_sees(f, 0, 0, TWIN_KEYS(3, 5, 6, 8, 16));
    twin_drop(f);
}

static void example_2_ties_to_the_lower(void **unused)
{
    double score[16];
    struct twin *f;

    (void)unused;
    for (int i = 0; i < 16; i++)
        score[i] = cos((i - 11) / 6.0);
    f = scored(score, 16, 1, 4);
    twin_forward(f, "hip");
    twin_sees(f, 0, 0, TWIN_KEYS(9, 10, 11, 12, 16));
    twin_drop(f);
}

/* A peak wider than the first groups: the best blocks are found, up to one at the border. */
static void a_wide_peak_is_found(void **unused)
{
    double score[64];

    (void)unused;
    for (int peak = 0; peak < 64; peak++) {
        int64_t inside = 0;
        for (int i = 0; i < 64; i++)
            score[i] = -fabs(i - peak - 0.25);
        struct twin *f = scored(score, 64, 2, 16);
        twin_forward(f, "hip");
        assert_int_equal(twin_pairs(f), 33);
        int first = peak - 7 < 0 ? 0 : peak - 7 > 48 ? 48 : peak - 7; /* of the true ones */
        for (int i = first; i < first + 16; i++)
            inside += f->map[2 * i];
        if (inside < 15) fail_msg("peak %d: %d of 16", peak, (int)inside);
        twin_drop(f);
    }
}

/* What the first round knows is never lost: the best block chosen is at least as good as every group's first. */
static void the_best_known_stays(void **unused)
{
    fv_random random = fv_random_new(test_seed(), 91);
    double found = 0, rounds = 200;

    (void)unused;
    for (int round = 0; round < rounds; round++) {
        double score[50], most = -INFINITY, known = -INFINITY, order[50];
        for (int i = 0; i < 50; i++)
            score[i] = order[i] = fv_random_normal(&random);
        struct twin *f = scored(score, 50, 3, 8);
        twin_forward(f, "hip");
        assert_int_equal(twin_pairs(f), 3 * 8 + 1);
        for (int i = 0; i < 50; i++)
            if (f->map[3 * i]) most = fmax(most, score[i]);
        for (int n = 0; n < 8; n++)
            known = fmax(known, score[n * 50 / 8]);
        assert_true(most >= known);
        for (int i = 0; i < 50; i++) { /* of the eight best, how many */
            int better = 0;
            for (int other = 0; other < 50; other++)
                better += order[other] > order[i];
            found += better < 8 && f->map[3 * i];
        }
        twin_drop(f);
    }
    /* by chance 8/50; each of the eight is one of 1600 trials, so 0.16 + 5 sigma = 0.21 */
    if (!(found / (8 * rounds) > 0.21)) fail_msg("%g of the best blocks found", found / (8 * rounds));
}

static void few_keys_are_all_read(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 23, 23, 2, 3);

    (void)unused;
    twin_set(f, "k", 1, 12);
    twin_set(f, "window", 1, 8);
    twin_set(f, "sink", 1, 3);
    twin_equals_dense(f, "hip", true, true);
    twin_set(f, "k", 1, 11);
    twin_refuses(f, "hip"); /* no multiple of two keys */
    twin_drop(f);
}

/* Row by row a search is used four times, and its window grows meanwhile. */
static void steps_use_a_search_again(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 12, 12, 1, 1), *fresh = twin_make(1, 1, 1, 12, 12, 1, 1);

    (void)unused;
    for (int n = 0; n < 2; n++) {
        struct twin *t = n ? fresh : f;
        twin_set(t, "k", 1, 1);
        twin_set(t, "block_k", 1, 1);
        twin_set(t, "window", 1, 2);
        twin_set(t, "refresh", 1, n ? 1 : 4);
        for (int i = 0; i < 12; i++)
            t->q[i] = 1, t->k[i] = -i; /* the first is best; the tree knows it */
    }
    f->call.decode = true;
    twin_forward(f, "hip");
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1, 2, 3)); /* the search of token 0 saw one key */
    twin_sees(f, 0, 4, TWIN_KEYS(0, 3, 4));
    twin_sees(f, 0, 7, TWIN_KEYS(0, 3, 4, 5, 6, 7));
    twin_sees(f, 0, 8, TWIN_KEYS(0, 7, 8));
    f->call.decode = false;
    twin_set(f, "block_q", 1, 1);
    fresh->call.decode = true;
    twin_forward(f, "hip");
    twin_forward(fresh, "hip");
    assert_memory_equal(f->map, fresh->map, 144);
    twin_drop(f);
    twin_drop(fresh);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(example_1_misses_a_lone_peak), cmocka_unit_test(example_2_ties_to_the_lower),
        cmocka_unit_test(a_wide_peak_is_found),         cmocka_unit_test(the_best_known_stays),
        cmocka_unit_test(few_keys_are_all_read),        cmocka_unit_test(steps_use_a_search_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
