/* The naive twin of native sparse attention: worked numbers of its definition and small cases by hand. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* ---- nsa --------------------------------------------------------------------------------------------------------- */

static void nsa_importance_map(void **unused)
{
    static const double p[] = {.05, .1, .2, .05, 0, .1, .05, .15, .1, .05, .15}, expected[] = {.75, .50, .75};

    (void)unused;
    for (int64_t b = 0; b < 3; b++) {
        double got = sheet_nsa_importance(64, 16, 32, p, 11, b);
        twin_close("importance", &got, &expected[b], 1, TWIN_EXACT);
    }
}

static void nsa_visible_compressed_keys(void **unused)
{
    static const int64_t at[] = {0, 30, 31, 46, 47, 63, 64}, count[] = {0, 0, 1, 1, 2, 3, 3};
    struct twin *f = twin_make(1, 1, 1, 65, 65, 1, 1);
    double gate[65 * 3];

    (void)unused;
    for (int64_t i = 0; i < 65; i++) {
        f->q[i] = 0;
        f->v[i] = i < 16; /* half of the first compressed value, none of the others */
        gate[i * 3] = 60;
        gate[i * 3 + 1] = gate[i * 3 + 2] = -60;
    }
    twin_give(f, "gate", gate, TWIN_DIMS(1, 1, 65, 3));
    twin_forward(f, "nsa");
    for (int n = 0; n < 7; n++) {
        double expected = count[n] ? 0.5 / (double)count[n] : 0;
        twin_close("o", &f->o[at[n]], &expected, 1, TWIN_EXACT);
    }
    twin_drop(f);
}

/* Five blocks of two keys whose means are 0 3 1 2 0, two heads: alone the first prefers block 1, their sum block 2
 * (0.19 + 0.14 against 0.24 + 0.02). */
static void nsa_selects_by_group(void **unused)
{
    static const double means[] = {0, 3, 1, 2, 0}, one = 1;
    struct twin *f = twin_make(1, 2, 1, 10, 10, 1, 1);
    int64_t chosen[30];

    (void)unused;
    f->call.scale = &one;
    f->call.selection = chosen;
    twin_set(f, "compress_block", 1, 2);
    twin_set(f, "compress_stride", 1, 2);
    twin_set(f, "block", 1, 2);
    twin_set(f, "top", 1, 3);
    twin_set(f, "local", 1, 1);
    for (int64_t n = 0; n < 10; n++) {
        f->k[n] = means[n / 2] + (n % 2 ? 0.5 : -0.5);
        f->q[n] = 0.1;
        f->q[10 + n] = -1;
    }
    twin_forward(f, "nsa");
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 4, 5, 8, 9));
    twin_sees(f, 1, 9, TWIN_KEYS(0, 1, 4, 5, 8, 9));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2));
    assert_true(chosen[27] == 0 && chosen[28] == 2 && chosen[29] == 4 && chosen[2] == -1);
    for (int64_t n = 0; n < 10; n++)
        f->q[10 + n] = 0.1;
    twin_forward(f, "nsa");
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 2, 3, 8, 9));
    for (int64_t n = 0; n < 10; n++)
        f->k[n] = 0; /* ties go to the lower block */
    twin_forward(f, "nsa");
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 2, 3, 8, 9));
    twin_set(f, "top", 1, 1);
    twin_refuses(f, "nsa"); /* fewer than are forced */
    twin_drop(f);
}

/* Gate logits that leave one branch (or, -1, none). */
static void only(double *gate, int64_t rows, int branch)
{
    for (int64_t n = 0; n < rows * 3; n++)
        gate[n] = n % 3 == branch ? 60 : -60;
}

static struct twin *small_nsa(int64_t N, int64_t M)
{
    struct twin *f = twin_make(1, 4, 2, N, M, 4, 3);

    twin_set(f, "compress_block", 1, 4);
    twin_set(f, "compress_stride", 1, 2);
    twin_set(f, "block", 1, 4);
    twin_set(f, "top", 1, 4);
    twin_set(f, "window", 1, 5);
    return f;
}

static void nsa_branches(void **unused)
{
    struct twin *f = small_nsa(21, 21);
    double gate[4 * 21 * 3], *sum = sheet_zeros(4 * 21 * 3);

    (void)unused;
    twin_give(f, "gate", gate, TWIN_DIMS(1, 4, 21, 3));
    for (int branch = 0; branch < 3; branch++) {
        only(gate, 84, branch);
        twin_forward(f, "nsa");
        for (int64_t n = 0; n < 252; n++)
            sum[n] += f->o[n] / 2;
    }
    f->call.params = 0; /* no gate: each branch by half */
    twin_forward(f, "nsa");
    twin_close("half of each branch", f->o, sum, 252, TWIN_EXACT);
    free(sum);
    f->call.params = 1;
    twin_set(f, "top", 1, 6);
    only(gate, 84, 1);
    twin_equals_dense(f, "nsa", true, false);
    twin_set(f, "top", 1, 4);
    twin_set(f, "window", 1, 21);
    only(gate, 84, 2);
    twin_equals_dense(f, "nsa", true, false);
    f->call.lse = f->lse;
    twin_refuses(f, "nsa"); /* a sum of three softmaxes has none */
    twin_drop(f);
}

static void nsa_lists(void **unused)
{
    struct twin *f = small_nsa(31, 31), *tail = small_nsa(7, 31);
    int64_t chosen[2 * 31 * 4], seen = 0;

    (void)unused;
    f->call.selection = chosen;
    twin_forward(f, "nsa");
    for (int64_t g = 0; g < 2; g++)
        for (int64_t i = 0; i < 31; i++) {
            const int64_t *list = chosen + (g * 31 + i) * 4;
            int64_t filled = 0, own = i / 4;

            while (filled < 4 && list[filled] >= 0)
                filled++;
            assert_int_equal(filled, own + 1 < 4 ? own + 1 : 4);
            assert_true(list[0] == 0 && list[filled - 1] == own);
            if (own > 0) assert_int_equal(list[filled - 2], own - 1);
            for (int64_t t = 1; t < filled; t++)
                assert_true(list[t - 1] < list[t]);
            seen += 2 * ((filled - 1) * 4 + i % 4 + 1); /* two heads read each list */
        }
    assert_int_equal(twin_pairs(f), seen);
    /* The last seven queries of the same sequence. */
    for (int64_t h = 0; h < 4; h++)
        memcpy(tail->q + h * 28, f->q + (h * 31 + 24) * 4, 28 * sizeof(double));
    twin_forward(tail, "nsa");
    for (int64_t h = 0; h < 4; h++)
        twin_close("tail", tail->o + h * 21, f->o + (h * 31 + 24) * 3, 21, TWIN_EXACT);
    twin_drop(f);
    twin_drop(tail);
}

/* Weights of 1/length times the identity are the mean; what positions add to every compressed key of a head alike
 * changes nothing, but weights that read one token only tell it from the others. */
static void nsa_compression(void **unused)
{
    struct twin *f = small_nsa(13, 13), *g = small_nsa(13, 13);
    double *wk = sheet_zeros(2 * 16 * 4), *wv = sheet_zeros(2 * 12 * 3), *position = twin_sines(32, 8),
           gate[4 * 13 * 3];
    const double zero = 0;

    (void)unused;
    for (int64_t n = 0; n < 2 * 16; n++)
        wk[n * 4 + n % 4] = 0.25;
    for (int64_t n = 0; n < 2 * 12; n++)
        wv[n * 3 + n % 3] = 0.25;
    twin_give(g, "compress_k", wk, TWIN_DIMS(2, 16, 4));
    twin_give(g, "compress_v", wv, TWIN_DIMS(2, 12, 3));
    twin_forward(f, "nsa");
    twin_forward(g, "nsa");
    twin_close("mean", g->o, f->o, 4 * 13 * 3, TWIN_EXACT);
    twin_give(g, "compress_position", position, TWIN_DIMS(2, 4, 4));
    twin_forward(g, "nsa");
    twin_close("common shift", g->o, f->o, 4 * 13 * 3, TWIN_EXACT);
    memset(wv, 0, 2 * 12 * 3 * sizeof(double)); /* token 1 of the block, elements in reverse */
    for (int64_t n = 0; n < 2; n++)
        for (int64_t e = 0; e < 3; e++)
            wv[((n * 4 + 1) * 3 + e) * 3 + 2 - e] = 1;
    twin_give(g, "gate", gate, TWIN_DIMS(1, 4, 13, 3));
    only(gate, 52, 0);
    g->call.scale = &zero;
    twin_forward(g, "nsa");
    for (int64_t e = 0; e < 3; e++) { /* token 5 sees blocks at 0 and 2: values 1 and 3 */
        double expected = (g->v[1 * 3 + 2 - e] + g->v[3 * 3 + 2 - e]) / 2;
        twin_close("weighted", &g->o[5 * 3 + e], &expected, 1, TWIN_EXACT);
    }
    twin_set(g, "compress", 1, 1); /* the mean reads no weights */
    twin_forward(g, "nsa");
    for (int64_t e = 0; e < 3; e++) {
        double expected = 0;

        for (int64_t t = 0; t < 6; t++)
            expected += g->v[t * 3 + e] * (t == 2 || t == 3 ? 2 : 1) / 8;
        twin_close("unweighted", &g->o[5 * 3 + e], &expected, 1, TWIN_EXACT);
    }
    free(wk);
    free(wv);
    free(position);
    twin_drop(f);
    twin_drop(g);
}

/* Rotation inside equals rotation outside for the selected branch (three blocks in all, so the choice is everything);
 * compressed keys are turned to the position of their first token, after the mean. */
static void nsa_rotation(void **unused)
{
    struct twin *f = small_nsa(9, 9), *turned = small_nsa(9, 9);
    double gate[4 * 9 * 3], mean[4] = {0}, score[2] = {0}, expected;

    (void)unused;
    twin_give(f, "gate", gate, TWIN_DIMS(1, 4, 9, 3));
    twin_give(turned, "gate", gate, TWIN_DIMS(1, 4, 9, 3));
    twin_set(f, "rope_base", 1, 100);
    for (int64_t row = 0; row < 36 + 18; row++) {
        double *x = row < 36 ? turned->q + row * 4 : turned->k + (row - 36) * 4, y[4];
        double p = (double)(row % 9), slow = p / 10; /* 100^(-2/4) */

        y[0] = x[0] * cos(p) - x[2] * sin(p);
        y[2] = x[0] * sin(p) + x[2] * cos(p);
        y[1] = x[1] * cos(slow) - x[3] * sin(slow);
        y[3] = x[1] * sin(slow) + x[3] * cos(slow);
        memcpy(x, y, sizeof y);
    }
    only(gate, 36, 1);
    twin_forward(f, "nsa");
    twin_forward(turned, "nsa");
    twin_close("selected", f->o, turned->o, 4 * 9 * 3, TWIN_EXACT);

    only(gate, 36, 0);
    twin_forward(f, "nsa"); /* query 5 sees compressed keys at 0 and 2: relative angles 5 and 3 */
    for (int c = 0; c < 2; c++) {
        const double *q = f->q + 5 * 4;
        double fast = 5 - 2 * c, slow = fast / 10;

        for (int d = 0; d < 4; d++) {
            mean[d] = 0;
            for (int t = 0; t < 4; t++)
                mean[d] += f->k[(2 * c + t) * 4 + d] / 4;
        }
        score[c] =
            0.5 * ((q[0] * mean[0] + q[2] * mean[2]) * cos(fast) + (q[0] * mean[2] - q[2] * mean[0]) * sin(fast) +
                   (q[1] * mean[1] + q[3] * mean[3]) * cos(slow) + (q[1] * mean[3] - q[3] * mean[1]) * sin(slow));
    }
    expected = 0;
    for (int t = 0; t < 4; t++)
        expected +=
            (exp(score[0]) * f->v[t * 3] + exp(score[1]) * f->v[(t + 2) * 3]) / 4 / (exp(score[0]) + exp(score[1]));
    twin_close("compressed", &f->o[5 * 3], &expected, 1, TWIN_EXACT);
    twin_drop(f);
    twin_drop(turned);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nsa_importance_map),
        cmocka_unit_test(nsa_visible_compressed_keys),
        cmocka_unit_test(nsa_selects_by_group),
        cmocka_unit_test(nsa_branches),
        cmocka_unit_test(nsa_lists),
        cmocka_unit_test(nsa_compression),
        cmocka_unit_test(nsa_rotation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
