/* The naive twin of dhsa: the worked numbers of its definition, and small cases by hand. */
#include <string.h>

#include "support/twin.h"

/* One query block over all of it, queries all 1, keys 0: no key is forced, and none is read without a choice. */
static struct twin *block_of(int64_t N, int64_t D)
{
    struct twin *f = twin_make(1, 1, 1, N, N, D, 1);

    for (int64_t n = 0; n < N * D; n++) {
        f->q[n] = 1;
        f->k[n] = 0;
    }
    twin_set(f, "block", 1, (int)N);
    twin_set(f, "local", 1, 0);
    twin_set(f, "global", 1, 0);
    twin_set(f, "instruction", 1, 0);
    return f;
}

/* Accepted gaps 8, 4 and 10 make chunks [0,5) [5,9) [9,11) [11,12): the best chunk's tokens are taken before others. */
static void suppression_leaves_the_boundaries(void **unused)
{
    static const double logits[] = {-9, -9, .2, 1.5, 2, 1.9, -1, 1.3, 3, -2, 1.2, -9};
    static const int start[] = {0, 5, 9, 11, 12};
    struct twin *f = block_of(12, 1);

    (void)unused;
    twin_give(f, "boundary_logits", logits, TWIN_DIMS(1, 12));
    twin_set(f, "half_width", 1, 1);
    twin_set(f, "reach", 1, 1);
    for (int chunk = 0; chunk < 4; chunk++)
        for (int more = 0; more < 2; more++) { /* one more is the first of the rest */
            int64_t keys[8], n = 0, extra = chunk == 0 ? 5 : 0;

            if (more && chunk > 0) keys[n++] = extra;
            for (int64_t j = start[chunk]; j < start[chunk + 1]; j++)
                keys[n++] = j;
            if (more && chunk == 0) keys[n++] = extra;
            keys[n] = -1;
            memset(f->k, 0, 12 * sizeof *f->k);
            f->k[start[chunk + 1] - 1] = 8;
            twin_set(f, "budget", 1, (int)n);
            twin_forward(f, "dhsa");
            twin_sees(f, 0, 11, keys);
        }
    twin_drop(f);
}

/* Four keys (1,0) and one (0,2): both score 2, and the lower goes first; without the root of the length 1 and 2. */
static void lengths_count_by_their_root(void **unused)
{
    static const double boundaries[] = {0, 4, 5};
    struct twin *f = block_of(5, 2);

    (void)unused;
    twin_give(f, "boundaries", boundaries, TWIN_DIMS(3));
    twin_set(f, "budget", 1, 1);
    for (int j = 0; j < 4; j++)
        f->k[2 * j] = 1;
    f->k[9] = 2;
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 4, TWIN_KEYS(0));
    twin_set(f, "pool", 1, 1); /* avg */
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 4, TWIN_KEYS(4));
    twin_drop(f);
}

static void forced_keys_and_instruction(void **unused)
{
    struct twin *f = block_of(12, 1);

    (void)unused;
    twin_set(f, "block", 1, 6);
    twin_set(f, "chunk", 1, 3);
    twin_set(f, "budget", 1, 4);
    twin_set(f, "local", 1, 2);
    twin_set(f, "global", 1, 1);
    f->k[7] = 5; /* chunk 6..8 is the best */
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 4, 5)); /* 6 is not the block's to see */
    twin_sees(f, 0, 11, TWIN_KEYS(0, 6, 10, 11));
    twin_sees(f, 0, 8, TWIN_KEYS(0, 6));
    twin_set(f, "instruction", 1, 4);
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 8, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7, 8));
    twin_sees(f, 0, 7, TWIN_KEYS(0, 6));
    twin_set(f, "strict", 1, 1);
    for (int i = 0; i < 6; i++)
        f->q[i] = -1; /* the block before wants the worst: all others are equal, and 1 is the first of them */
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2, 3, 4, 5));
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1));
    twin_set(f, "budget", 1, 12);
    twin_equals_dense(f, "dhsa", true, true);
    twin_drop(f);
}

/* Queries of 0 attend to all alike: of the diagonals that the four last rows share the nearest go first.  Of 0..5 five
 * join rows 4..7 with keys 2 and 3, and four with keys 4 and 5. */
static void columns_and_diagonals(void **unused)
{
    struct twin *f = block_of(12, 1);

    (void)unused;
    memset(f->q, 0, 12 * sizeof *f->q);
    twin_set(f, "score", 1, 1); /* vs */
    twin_set(f, "block", 1, 4);
    twin_set(f, "chunk", 1, 2);
    twin_set(f, "vertical", 1, 0);
    twin_set_number(f, "density", 0.5);
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1, 2, 3)); /* two of three chunks */
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 2, 3, 6, 7));
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2, 3));
    twin_sees(f, 0, 10, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)); /* the last block */
    twin_set_number(f, "density", 0.34);                              /* two chunks */
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 6, 7));
    twin_set_number(f, "density", 0.5);
    twin_set(f, "vertical", 1, 1); /* columns alone: of 0..5 two in each chunk, until key 4 draws more */
    for (int i = 8; i < 12; i++)
        f->q[i] = 1;
    f->k[4] = 1;
    twin_forward(f, "dhsa");
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 4, 5, 6, 7));
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(suppression_leaves_the_boundaries),
        cmocka_unit_test(lengths_count_by_their_root),
        cmocka_unit_test(forced_keys_and_instruction),
        cmocka_unit_test(columns_and_diagonals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
