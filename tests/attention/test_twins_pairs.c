/* The naive twins of what chooses pairs: worked numbers of their definitions and small cases by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* ---- gna --------------------------------------------------------------------------------------------------------- */

static struct twin *line(int tokens, int window, int stride)
{
    struct twin *f = twin_make(1, 1, 1, tokens, tokens, 1, 1);

    twin_set(f, "grid", 1, tokens);
    twin_set(f, "window", 1, window);
    twin_set(f, "stride", 1, stride);
    for (int64_t j = 0; j < tokens; j++) {
        f->q[j] = 0;
        f->v[j] = (double)j;
    }
    return f;
}

/* Query i sees keys from[i] .. min(from[i] + window, causal ? i + 1 : all) - 1. */
static void sees_from(const struct twin *f, int64_t window, const int64_t *from)
{
    for (int64_t i = 0; i < f->call.N; i++)
        for (int64_t j = 0; j < f->call.M; j++)
            if (f->map[i * f->call.M + j] != (from[i] <= j && j < from[i] + window && (!f->call.causal || j <= i)))
                fail_msg("query %d, key %d: got %d", (int)i, (int)j, f->map[i * f->call.M + j]);
}

static void gna_starts_and_outputs(void **unused)
{
    static const double three[] = {1, 1, 2, 3, 4, 5, 6, 6}, four[] = {1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5};
    static const int64_t starts[] = {0, 0, 0, 2, 2, 2, 4, 4, 4}, ragged[] = {0, 0, 0, 0, 4, 4, 4, 4, 6, 6};
    static const int64_t causal[] = {0, 0, 0, 0, 2, 2, 4, 4}, dilated[] = {0, 1, 0, 1, 2, 3, 2, 3};
    struct twin *f = line(8, 3, 1);

    (void)unused;
    twin_forward(f, "gna");
    twin_close("w=3 s=1", f->o, three, 8, TWIN_EXACT);
    twin_drop(f);

    f = line(8, 3, 1);
    twin_set(f, "dilation", 1, 2);
    twin_forward(f, "gna");
    for (int64_t i = 0; i < 8; i++)
        twin_sees(f, 0, i, TWIN_KEYS(dilated[i], dilated[i] + 2, dilated[i] + 4));
    twin_drop(f);

    f = line(7, 3, 1); /* groups 0 2 4 6 and 1 3 5 */
    twin_set(f, "dilation", 1, 2);
    twin_forward(f, "gna");
    twin_sees(f, 0, 6, TWIN_KEYS(2, 4, 6));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 2, 4));
    twin_sees(f, 0, 5, TWIN_KEYS(1, 3, 5));
    twin_drop(f);

    f = line(8, 4, 2);
    twin_forward(f, "gna");
    twin_close("w=4 s=2", f->o, four, 8, TWIN_EXACT);
    f->call.causal = true;
    twin_forward(f, "gna");
    sees_from(f, 4, causal);
    twin_drop(f);

    f = line(9, 5, 3);
    twin_forward(f, "gna");
    sees_from(f, 5, starts);
    twin_drop(f);

    f = line(10, 4, 4);
    twin_forward(f, "gna");
    sees_from(f, 4, ragged);
    f->call.causal = true; /* the last group {8, 9} has its leader at 9 when clipped, at 11 when not */
    twin_forward(f, "gna");
    twin_sees(f, 0, 8, TWIN_KEYS(6, 7, 8));
    twin_set(f, "tail_leader", 1, 1);
    twin_forward(f, "gna");
    twin_sees(f, 0, 8, TWIN_KEYS(8));
    twin_sees(f, 0, 9, TWIN_KEYS(8, 9));
    twin_drop(f);
}

static void gna_axes(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 24, 24, 2, 3);

    (void)unused;
    twin_set(f, "grid", 3, 2, 3, 4);
    twin_set(f, "window", 3, 0, 2, 3);
    twin_forward(f, "gna");
    assert_int_equal(twin_pairs(f), 2 * 24 * 2 * 2 * 3);
    /* Token (1, 2, 3): both planes, rows 1-2, columns 1-3. */
    twin_sees(f, 1, 23, TWIN_KEYS(5, 6, 7, 9, 10, 11, 17, 18, 19, 21, 22, 23));
    twin_set(f, "causal", 3, 1, 0, 0);
    twin_forward(f, "gna");
    twin_sees(f, 1, 11, TWIN_KEYS(5, 6, 7, 9, 10, 11));
    f->call.causal = true;
    twin_forward(f, "gna");
    twin_sees(f, 0, 23, TWIN_KEYS(5, 6, 7, 9, 10, 11, 17, 18, 19, 21, 22, 23));
    twin_sees(f, 0, 14, TWIN_KEYS(0, 1, 2, 12, 13, 14));
    f->call.causal = false;
    twin_set(f, "causal", 1, 0);
    twin_set(f, "window", 1, 0);
    twin_equals_dense(f, "gna", false, true);
    twin_set(f, "window", 3, 2, 3, 5);
    twin_refuses(f, "gna"); /* wider than the axis */
    twin_set(f, "window", 1, 2);
    twin_set(f, "stride", 1, 3);
    twin_refuses(f, "gna"); /* stride past the window */
    twin_set(f, "stride", 1, 1);
    twin_set(f, "grid", 2, 5, 5);
    twin_refuses(f, "gna"); /* not N tokens */
    twin_drop(f);
}

/* Extra keys: one softmax over the concatenation. */
static void gna_extra_keys(void **unused)
{
    struct twin *f = twin_make(1, 4, 2, 4, 4, 2, 2), *dense = twin_make(1, 4, 2, 4, 7, 2, 2);
    double *extra_k = twin_sines(12, 6), *extra_v = twin_sines(12, 7);

    (void)unused;
    for (int64_t h = 0; h < 2; h++) {
        memcpy(dense->k + h * 14, f->k + h * 8, 8 * sizeof(double));
        memcpy(dense->k + h * 14 + 8, extra_k + h * 6, 6 * sizeof(double));
        memcpy(dense->v + h * 14, f->v + h * 8, 8 * sizeof(double));
        memcpy(dense->v + h * 14 + 8, extra_v + h * 6, 6 * sizeof(double));
    }
    f->call.lse = f->lse;
    dense->call.lse = dense->lse;
    twin_set(f, "grid", 2, 2, 2);
    twin_set(f, "window", 1, 0);
    twin_give(f, "extra_k", extra_k, TWIN_DIMS(1, 2, 3, 2));
    twin_refuses(f, "gna"); /* keys without values */
    twin_give(f, "extra_v", extra_v, TWIN_DIMS(1, 2, 3, 2));
    twin_forward(f, "gna");
    twin_forward(dense, "dense");
    twin_close("o", f->o, dense->o, 32, TWIN_EXACT);
    twin_close("lse", f->lse, dense->lse, 16, TWIN_EXACT);
    free(extra_k);
    free(extra_v);
    twin_drop(f);
    twin_drop(dense);
}

/* ---- power, sinkwin ---------------------------------------------------------------------------------------------- */

static void power_lists(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 14, 14, 1, 1);

    (void)unused;
    twin_set(f, "block", 1, 1);
    twin_set(f, "window_blocks", 1, 2);
    twin_set(f, "sink_blocks", 1, 1);
    twin_forward(f, "power");
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 3, 4, 5));
    twin_sees(f, 0, 13, TWIN_KEYS(0, 5, 9, 11, 12, 13));
    twin_set(f, "base", 1, 3); /* distances 1, 3, 9 */
    twin_forward(f, "power");
    twin_sees(f, 0, 13, TWIN_KEYS(0, 4, 10, 12, 13));
    twin_drop(f);

    f = twin_make(1, 1, 1, 1, 32768, 1, 1); /* defaults; the last row of 128 blocks */
    twin_forward(f, "power");
    for (int64_t j = 0; j < 32768; j++) {
        int64_t J = j / 256;
        assert_int_equal(f->map[j], J == 0 || J == 63 || J == 95 || J == 111 || J == 119 || J >= 123);
    }
    twin_drop(f);
}

static void sinkwin_lists(void **unused)
{
    struct twin *f = twin_make(1, 4, 2, 8, 10, 1, 1);

    (void)unused;
    twin_set(f, "sink", 1, 1);
    twin_set(f, "window", 1, 2);
    twin_forward(f, "sinkwin");
    twin_sees(f, 0, 3, TWIN_KEYS(0, 4, 5)); /* position 5 */
    twin_set(f, "sink", 2, 1, 2);
    twin_set(f, "window", 2, 3, 2);
    twin_forward(f, "sinkwin");
    twin_sees(f, 1, 7, TWIN_KEYS(0, 7, 8, 9));
    twin_sees(f, 2, 7, TWIN_KEYS(0, 1, 8, 9));
    twin_set(f, "block", 1, 3); /* position 7: blocks 0 to 2, sink 1, window 1 */
    twin_set(f, "sink", 1, 1);
    twin_set(f, "window", 1, 1);
    twin_forward(f, "sinkwin");
    twin_sees(f, 3, 5, TWIN_KEYS(0, 1, 2, 6, 7));
    twin_set(f, "sink", 3, 1, 1, 1);
    twin_refuses(f, "sinkwin"); /* three entries for two key heads */
    twin_drop(f);
}

/* A span of S keys in n tokens: 64 sinks and S - 64 recent ones, so the last query sees exactly S; counted in blocks of
 * 64 as well.  S = alpha + beta n for (-1024, 1/2) and (0, 1/4), at least 128. */
static void sinkwin_spans(void **unused)
{
    static const int spans[][2] = {{1024, 4096}, {3072, 8192}, {128, 2048}, {512, 2048}, {1024, 4096}, {2048, 8192}};

    (void)unused;
    for (size_t n = 0; n < sizeof spans / sizeof *spans; n++) {
        struct twin *f = twin_make(1, 1, 1, 1, spans[n][1], 1, 1);

        twin_set(f, "sink", 1, 64);
        twin_set(f, "window", 1, spans[n][0] - 64);
        twin_forward(f, "sinkwin");
        assert_int_equal(twin_pairs(f), spans[n][0]);
        twin_set(f, "sink", 1, 1);
        twin_set(f, "window", 1, spans[n][0] / 64 - 1);
        twin_set(f, "block", 1, 64);
        twin_forward(f, "sinkwin");
        assert_int_equal(twin_pairs(f), spans[n][0]);
        twin_drop(f);
    }
}

/* ---- bra --------------------------------------------------------------------------------------------------------- */

static void bra_routing(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 4, 4, 1, 1);
    int64_t chosen[8];

    (void)unused;
    f->call.selection = chosen;
    twin_set(f, "grid", 2, 2, 2);
    twin_set(f, "regions", 1, 2);
    twin_set(f, "top", 1, 2);
    for (int64_t j = 0; j < 4; j++) {
        f->k[j] = (double)(j + 1);
        f->q[j] = j < 3 ? 1 : -1;
    }
    twin_forward(f, "bra");
    for (int64_t i = 0; i < 3; i++)
        twin_sees(f, 0, i, TWIN_KEYS(2, 3));
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1));
    assert_true(chosen[0] == 2 && chosen[1] == 3 && chosen[6] == 0 && chosen[7] == 1);
    twin_set(f, "route_scale", 1, -1); /* the routing alone turns round */
    twin_forward(f, "bra");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1));
    chosen[0] = 1;
    chosen[1] = 3;
    f->call.frozen = true; /* the given choice holds */
    twin_forward(f, "bra");
    twin_sees(f, 0, 0, TWIN_KEYS(1, 3));
    f->call.frozen = false;
    for (int64_t j = 0; j < 4; j++)
        f->k[j] = 1; /* ties go to the lower region */
    twin_forward(f, "bra");
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1));
    f->call.causal = true;
    twin_refuses(f, "bra");
    twin_drop(f);
}

/* 5 x 4 cells in regions of 2 x 2, three a side: the last row of regions is one cell high, the last column empty. */
static void bra_ragged_regions(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 20, 20, 1, 1);
    double weight[50] = {0}, bias[] = {0.25, 0}, *expected = sheet_zeros(40);

    (void)unused;
    twin_set(f, "grid", 2, 5, 4);
    twin_set(f, "regions", 1, 3);
    twin_set(f, "top", 1, 1);
    for (int64_t n = 0; n < 40; n++)
        f->q[n] = 1;
    for (int64_t j = 0; j < 20; j++)
        f->k[j] = j >= 18 ? 3 : j < 16 ? 2 : 0; /* the best mean is that of two cells; an empty region's would be 0 */
    twin_forward(f, "bra");
    twin_sees(f, 0, 0, TWIN_KEYS(18, 19));
    twin_sees(f, 1, 19, TWIN_KEYS(18, 19));
    for (int64_t j = 0; j < 20; j++)
        f->k[j] -= 4;
    twin_forward(f, "bra");
    twin_sees(f, 0, 0, TWIN_KEYS(18, 19));
    twin_set(f, "top", 1, 9);
    twin_equals_dense(f, "bra", false, true);
    weight[25 + 0 * 5 + 3] = 1; /* head 1: the value two rows up, one column right */
    twin_give(f, "lepe_weight", weight, TWIN_DIMS(2, 5, 5));
    twin_give(f, "lepe_bias", bias, TWIN_DIMS(2));
    for (int64_t i = 0; i < 20; i++) {
        expected[i] = f->o[i] + 0.25;
        expected[20 + i] = f->o[20 + i] + (i / 4 >= 2 && i % 4 < 3 ? f->v[i - 8 + 1] : 0);
    }
    twin_forward(f, "bra");
    twin_close("local term", f->o, expected, 40, TWIN_EXACT);
    free(expected);
    twin_drop(f);
}

/* ---- moba -------------------------------------------------------------------------------------------------------- */

/* Mean keys with gates 4 2 0 1 for head 0 and 1 2 6 3 for head 1. */
static void moba_gates(void **unused)
{
    static const double table[2][4] = {{4, 2, 0, 1}, {1, 2, 6, 3}};
    struct twin *f = twin_make(1, 2, 1, 8, 8, 2, 1);
    int64_t chosen[2 * 8 * 3];

    (void)unused;
    twin_set(f, "block", 1, 2);
    for (int64_t n = 0; n < 8; n++)
        for (int64_t g = 0; g < 2; g++) {
            f->k[n * 2 + g] = table[g][n / 2] + (n % 2 ? 0.25 : -0.25);
            f->q[(g * 8 + n) * 2 + g] = 1;
            f->q[(g * 8 + n) * 2 + 1 - g] = 0;
        }
    twin_set(f, "top", 1, 2);
    twin_forward(f, "moba");
    twin_sees(f, 0, 0, TWIN_KEYS(0));
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1, 2, 3));
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 6, 7));
    twin_sees(f, 1, 4, TWIN_KEYS(2, 3, 4));
    twin_sees(f, 1, 6, TWIN_KEYS(4, 5, 6));
    twin_set(f, "top", 1, 3);
    f->call.selection = chosen;
    twin_forward(f, "moba");
    twin_sees(f, 0, 7, TWIN_KEYS(0, 1, 2, 3, 6, 7));
    twin_sees(f, 1, 7, TWIN_KEYS(2, 3, 4, 5, 6, 7));
    assert_true(chosen[(8 + 7) * 3] == 1 && chosen[(8 + 7) * 3 + 2] == 3 && chosen[1] == -1);
    f->call.selection = NULL;
    for (int64_t n = 0; n < 16; n++)
        f->k[n] = 1; /* ties go to the lower block */
    twin_set(f, "top", 1, 2);
    twin_forward(f, "moba");
    twin_sees(f, 1, 7, TWIN_KEYS(0, 1, 6, 7));
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gna_starts_and_outputs),
        cmocka_unit_test(gna_axes),
        cmocka_unit_test(gna_extra_keys),
        cmocka_unit_test(power_lists),
        cmocka_unit_test(sinkwin_lists),
        cmocka_unit_test(sinkwin_spans),
        cmocka_unit_test(bra_routing),
        cmocka_unit_test(bra_ragged_regions),
        cmocka_unit_test(moba_gates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
