/* Probes on tensors (logit_growth, attn_indicators, attn_influence): worked numbers, and what must hold of them. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "support/layer_trial.h"

/* ---- logit_growth ----------------------------------------------------------------------------------------------- */

/* Logits -3; -6 2 (and 1 behind the first query, where it sees that): the largest magnitude is a negative one's. */
static void growth_by_hand(void **state)
{
    static const double q[] = {1, 2}, k[] = {-3, 1}, sharp = 3.35406e-4 * 8 + 3.35350e-4; /* of -6 2, to 1e-6 */
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int causal = 0; causal < 2; causal++) {
            struct layer_trial *t =
                layer_trial_open(causal ? "logit_growth" : "logit_growth:causal=0", test_devices[d], 1);
            double first = causal ? 0 : -.0179862 * log(.0179862) - .9820138 * log(.9820138); /* of -3 1 */
            layer_trial_give(t, "q", q, 0, LAYER_DIMS(1, 1, 2, 1));
            layer_trial_give(t, "k", k, 0, LAYER_DIMS(1, 1, 2, 1));
            layer_trial_forward(t);
            assert_float_equal(layer_trial_at(t, 0, 0), 6, 1e-6);
            assert_float_equal(layer_trial_at(t, 0, 1), (first + sharp) / 2, 2e-6);
            layer_trial_close(t);
        }
}

/* Queries of 0: no logits, and rows as even as they can be. */
static void even_rows_have_the_most_entropy(void **state)
{
    struct layer_trial *t = layer_trial_drawn("logit_growth", "q=1x2x9x6 k=1x1x9x6");
    double expected = 0;
    (void)state;

    memset(layer_trial_data(t, "q"), 0, 2 * 9 * 6 * sizeof(double));
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int i = 1; i <= 9; i++)
        expected += log(i) / 9;
    for (int h = 0; h < 2; h++) {
        assert_true(layer_trial_at(t, 0, h * 2) == 0);
        assert_float_equal(layer_trial_at(t, 0, h * 2 + 1), expected, 1e-6);
    }
    layer_trial_close(t);
}

/* Queries c times as large: the largest logit too.  So does the scale. */
static void growth_grows_with_queries(void **state)
{
    struct layer_trial *t = layer_trial_drawn("logit_growth:scale=1", "q=1x3x9x6 k=1x3x9x6"), *scaled;
    double before[3];
    (void)state;

    for (int h = 0; h < 3; h++)
        before[h] = layer_trial_at(t, 0, h * 2);
    for (int n = 0; n < 3 * 9 * 6; n++)
        layer_trial_data(t, "q")[n] *= 4;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    scaled = layer_trial_open("logit_growth:scale=0.25", "cpu", 1);
    layer_trial_give(scaled, "q", layer_trial_data(t, "q"), 0, LAYER_DIMS(1, 3, 9, 6));
    layer_trial_give(scaled, "k", layer_trial_data(t, "k"), 0, LAYER_DIMS(1, 3, 9, 6));
    layer_trial_forward(scaled);
    for (int h = 0; h < 3; h++) {
        assert_float_equal(layer_trial_at(t, 0, h * 2), 4 * before[h], 1e-5 * before[h]);
        assert_float_equal(layer_trial_at(scaled, 0, h * 2), before[h], 1e-5 * before[h]);
    }
    layer_trial_close(t);
    layer_trial_close(scaled);
}

/* ---- attn_indicators -------------------------------------------------------------------------------------------- */

/* Even rows: entropy sum ln i, norm of sum 1/i, no spread, sink = the query's own = mean 1/i. */
static void indicators_of_even_maps(void **state)
{
    enum { L = 6, H = 3 };
    double a[H * L * L] = {0}, expected[8] = {0};
    (void)state;

    for (int i = 0; i < L; i++) {
        for (int n = 0; n < H * (i + 1); n++)
            a[(n / (i + 1) * L + i) * L + n % (i + 1)] = 1 / (double)(i + 1);
        expected[0] += log(i + 1);
        expected[1] += 1 / (double)(i + 1);
        expected[3] += 1 / (double)(i + 1) / L;
        for (int n = 0; n <= i && n < 4; n++)
            expected[4 + n] += 1 / (double)(i + 1) / (L - n);
    }
    expected[1] = sqrt(expected[1]);
    assert_float_equal(expected[3], expected[4], 1e-12);
    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("attn_indicators", test_devices[d], 1);
        layer_trial_give(t, "a", a, 0, LAYER_DIMS(H, L, L));
        layer_trial_forward(t);
        for (int n = 0; n < 8; n++)
            assert_float_equal(layer_trial_at(t, 0, n), expected[n], 1e-5);
        layer_trial_close(t);
    }
}

/* One head reads itself, the other the first key: norms sqrt 3, heads apart by 1/2 at the 4 pairs of queries 1 and 2
 * where they differ, of 6. */
static void indicators_by_hand(void **state)
{
    static const double a[] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0};
    static const double expected[] = {0, 1.7320508, 2 / 6., (1 / 3. + 1) / 2, (1 + 1 / 3.) / 2, .25, .5, 0};
    struct layer_trial *t = layer_trial_open("attn_indicators", "cpu", 1);
    (void)state;

    layer_trial_give(t, "a", a, 0, LAYER_DIMS(2, 3, 3));
    layer_trial_forward(t);
    for (int n = 0; n < 8; n++)
        if (fabs(layer_trial_at(t, 0, n) - expected[n]) > 1e-6)
            fail_msg("indicator %d: expected %g, got %g", n, expected[n], layer_trial_at(t, 0, n));
    layer_trial_close(t);
}

/* ---- attn_influence --------------------------------------------------------------------------------------------- */

/* For a loss do.o what an entry's removal and the others' growth change is E itself; a row's alone is -A G. */
static void influence_is_the_change_of_a_linear_loss(void **state)
{
    enum { N = 6, D = 4 };
    struct layer_trial *t =
        layer_trial_drawn("attn_influence:block=1,absolute=0", "q=1x1x6x4 k=1x1x6x4 v=1x1x6x4 do=1x1x6x4");
    const double *q = layer_trial_data(t, "q"), *k = layer_trial_data(t, "k"), *v = layer_trial_data(t, "v"),
                 *d_o = layer_trial_data(t, "do");
    (void)state;

    assert_float_equal(layer_trial_at(t, 0, 0), -sheet_dot(d_o, v, D), 1e-5);
    for (int i = 1; i < N; i++) {
        double a[N], loss = 0, balance = 0;
        for (int j = 0; j <= i; j++)
            a[j] = sheet_dot(q + i * D, k + j * D, D) / 2;
        sheet_softmax(a, i + 1, -INFINITY);
        for (int j = 0; j <= i; j++)
            loss += a[j] * sheet_dot(d_o + i * D, v + j * D, D);
        for (int j = 0; j <= i; j++) {
            double without = 0, e = layer_trial_at(t, 0, i * N + j);
            for (int m = 0; m <= i; m++)
                if (m != j) without += a[m] / (1 - a[j]) * sheet_dot(d_o + i * D, v + m * D, D);
            assert_float_equal(e, without - loss, 1e-3 * fmax(1, fabs(e)));
            balance += e * (1 - a[j] + FLT_EPSILON);
        }
        assert_float_equal(balance, 0, 1e-4);
        for (int j = i + 1; j < N; j++)
            assert_true(layer_trial_at(t, 0, i * N + j) == 0);
    }
    layer_trial_close(t);
}

/* Magnitudes of larger blocks are the sums of smaller ones. */
static void blocks_add_up(void **state)
{
    struct layer_trial *t = layer_trial_drawn("attn_influence:block=2", "q=1x2x9x4 k=1x2x9x4 v=1x2x9x3 do=1x2x9x3");
    static const char *const names[] = {"q", "k", "v", "do"};
    struct layer_trial *large = layer_trial_open("attn_influence:block=6", "cpu", 1);
    (void)state;

    for (int n = 0; n < 4; n++) {
        const sheet_param *given = layer_tensor(&t->sheet, names[n]);
        layer_trial_give(large, names[n], given->data, 0, given->rank, given->dims);
    }
    layer_trial_forward(large);
    for (int n = 0; n < 2 * 2 * 2; n++) {
        double sum = 0;
        for (int i = n / 2 % 2 * 3; i < fmin(5, n / 2 % 2 * 3 + 3); i++)
            for (int j = n % 2 * 3; j < fmin(5, n % 2 * 3 + 3); j++)
                sum += layer_trial_at(t, 0, (n / 4 * 5 + i) * 5 + j);
        assert_float_equal(layer_trial_at(large, 0, n), sum, 1e-5 * fmax(1, sum));
    }
    layer_trial_close(t);
    layer_trial_close(large);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"logit_growth:causal=2", "causal"},       {"logit_growth:scale=-1", "scale"},
        {"attn_indicators:heads=2", "heads"},      {"attn_influence:block=0", "block"},
        {"attn_influence:absolute=2", "absolute"},
    };
    struct layer_trial *t = layer_trial_drawn("attn_influence", "q=1x4x5x4 k=1x2x5x4 v=1x2x5x3 do=1x4x5x3");
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    for (int n = 1; n < 3; n++) {
        const char *name = n == 1 ? "k" : "v";
        double room[3 * 5 * 4] = {0};
        layer_trial_give(t, name, room, 0, LAYER_DIMS(1, 3, 5, n == 1 ? 4 : 3));
    }
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_SHAPE, "divide those of queries, got 3 and 4");
    layer_trial_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(growth_by_hand),
        cmocka_unit_test(even_rows_have_the_most_entropy),
        cmocka_unit_test(growth_grows_with_queries),
        cmocka_unit_test(indicators_of_even_maps),
        cmocka_unit_test(indicators_by_hand),
        cmocka_unit_test(influence_is_the_change_of_a_linear_loss),
        cmocka_unit_test(blocks_add_up),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
