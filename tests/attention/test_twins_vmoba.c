/* The naive twin of VMoBA: the table of gates of its definition, partitions and limits. */
#include "support/twin.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD_GLOBAL, QUERY_HEAD, SCOPE_BLOCK, OVERALL, TOPK = 1 };

/* Unit vectors for keys, so that the queries are gates with blocks of one token. */
static struct twin *gates(void)
{
    static const double table[16] = {4, 2, 0, 1, 1, 2, 6, 3, 0, 2, 5, 1, 3, 1, 0, 2};
    struct twin *f = twin_make(1, 1, 1, 4, 4, 4, 1);

    memcpy(f->q, table, sizeof table);
    for (int n = 0; n < 16; n++)
        f->k[n] = n / 4 == n % 4;
    twin_set(f, "block", 1, 1);
    return f;
}

static void set_tau(struct twin *f, double tau)
{
    twin_set(f, "tau", 1, 0);
    for (int n = 0; n < f->call.options; n++)
        if (strcmp(f->option[n].name, "tau") == 0) f->values[n][0] = tau;
}

static void vmoba_table(void **unused)
{
    struct twin *f = gates();

    (void)unused;
    set_tau(f, 0.5);
    twin_set(f, "scope", 1, QUERY_HEAD);
    twin_forward(f, "vmoba");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1));
    twin_sees(f, 0, 1, TWIN_KEYS(1, 2));
    twin_set(f, "scope", 1, HEAD_GLOBAL);
    twin_forward(f, "vmoba");
    twin_sees(f, 0, 0, TWIN_KEYS(0));
    twin_sees(f, 0, 1, TWIN_KEYS(1, 2));
    twin_sees(f, 0, 3, TWIN_KEYS(3));
    set_tau(f, 0.9);
    twin_forward(f, "vmoba");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1));
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1, 2, 3));
    twin_set(f, "select", 1, TOPK);
    twin_set(f, "top", 1, 2);
    twin_forward(f, "vmoba");
    twin_sees(f, 0, 1, TWIN_KEYS(1, 2, 3));
    twin_sees(f, 0, 2, TWIN_KEYS(2));
    twin_drop(f);
}

/* Frames of 2 x 4 tokens; tiles of 1 x 2. */
static void vmoba_partitions(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 16, 16, 2, 1);

    (void)unused;
    twin_set(f, "select", 1, TOPK);
    twin_set(f, "top", 1, 1);
    twin_set(f, "partition", 1, 1);
    twin_set(f, "grid", 3, 2, 2, 4);
    twin_set(f, "tile2", 2, 1, 2);
    twin_forward(f, "vmoba");
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1, 8, 9));
    twin_sees(f, 0, 10, TWIN_KEYS(2, 3, 10, 11));
    twin_sees(f, 0, 15, TWIN_KEYS(6, 7, 14, 15));
    twin_set(f, "tile2", 2, 2, 4);
    twin_equals_dense(f, "vmoba", false, true);
    twin_set(f, "grid", 3, 2, 2, 3);
    twin_refuses(f, "vmoba");
    twin_drop(f);
}

static void vmoba_limits(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 13, 13, 4, 3);

    (void)unused;
    twin_set(f, "block", 1, 4);
    twin_set(f, "tau", 1, 1);
    for (int scope = 0; scope < 4; scope++) {
        twin_set(f, "scope", 1, scope);
        twin_equals_dense(f, "vmoba", false, true);
    }
    twin_set(f, "select", 1, TOPK);
    twin_set(f, "scope", 1, QUERY_HEAD);
    twin_set(f, "top", 1, 4);
    twin_equals_dense(f, "vmoba", false, true);
    f->call.causal = true;
    twin_set(f, "top", 1, 2);
    twin_forward(f, "vmoba");
    assert_true(twin_pairs(f) < 2 * 13 * 14 / 2);
    twin_set(f, "scope", 1, HEAD_GLOBAL);
    twin_refuses(f, "vmoba"); /* not causal */
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vmoba_table),
        cmocka_unit_test(vmoba_partitions),
        cmocka_unit_test(vmoba_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
