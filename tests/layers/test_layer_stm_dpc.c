/* stm_dpc: what must hold of clusters and of what is merged. */
#include <math.h>
#include <stdlib.h>

#include "base/context.h"
#include "support/layer_trial.h"

enum { N = 12, C = 4 };
static const char tensors[] = "x=1x12x4 score_weight=1x4 q_weight=4x4 k_weight=4x4 v_weight=4x4 o_weight=4x4 "
                              "mlp1_weight=16x4 mlp2_weight=4x16 mlp2_bias=4 score_bias=1";

static int cluster_of(const struct layer_trial *t, int64_t i)
{
    return ((int32_t *)t->output[1].tensor.data)[i];
}

/* Tokens near three directions, in turn: three clusters. */
static void clusters_are_what_lies_together(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=3,k=4,heads=2", tensors);
    double *x = layer_trial_data(t, "x");
    (void)state;

    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++)
            x[i * C + c] = 4 * (c == i % 3) + .3 * sin(7 * i + 3 * c + 1);
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int i = 0; i < N; i++) {
        assert_int_equal(cluster_of(t, i), cluster_of(t, i % 3));
        for (int j = 0; j < i % 3; j++)
            assert_int_not_equal(cluster_of(t, i), cluster_of(t, j));
    }
    layer_trial_close(t);
}

static void norm(const double *x, double *y)
{
    double mean = 0, variance = 0;

    for (int c = 0; c < C; c++)
        mean += x[c] / C;
    for (int c = 0; c < C; c++)
        variance += (x[c] - mean) * (x[c] - mean) / C;
    for (int c = 0; c < C; c++)
        y[c] = (x[c] - mean) / sqrt(variance + 1e-5);
}

/* One score for all, and nothing behind merging: the plain means of normed tokens, peaks in their own clusters. */
static void equal_scores_give_plain_means(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=4,k=3,heads=1,noise=0", tensors);
    double mean[4][C] = {{0}}, count[4] = {0};
    (void)state;

    layer_trial_zero(t, "score_weight");
    layer_trial_zero(t, "score_bias");
    layer_trial_zero(t, "o_weight");
    layer_trial_zero(t, "mlp2_weight");
    layer_trial_zero(t, "mlp2_bias");
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int i = 0; i < N; i++) {
        double y[C];
        norm(layer_trial_data(t, "x") + i * C, y);
        count[cluster_of(t, i)]++;
        for (int c = 0; c < C; c++)
            mean[cluster_of(t, i)][c] += y[c];
    }
    for (int m = 0; m < 4; m++) {
        assert_int_equal(cluster_of(t, t->sheet.selection[N + m]), m);
        assert_true(count[m] > 0);
        for (int c = 0; c < C; c++)
            assert_float_equal(layer_trial_at(t, 0, m * C + c), mean[m][c] / (count[m] + 1e-6), 1e-5);
    }
    layer_trial_close(t);
}

/* The score's bias moves all logits alike, and weights but for the 1e-6, which is beside sums of weights down to 1e-3.
 */
static void a_score_for_all_changes_nothing(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=4,k=3,heads=2,noise=0", tensors);
    double before[4 * C];
    (void)state;

    for (int n = 0; n < 4 * C; n++)
        before[n] = layer_trial_at(t, 0, n);
    *layer_trial_data(t, "score_bias") += 2;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 4 * C; n++)
        assert_float_equal(layer_trial_at(t, 0, n), before[n], 2e-3 * fmax(1, fabs(before[n])));
    layer_trial_close(t);
}

static fv_status clusters_with(struct layer_trial *t, const char *spec, uint64_t seed, int32_t cluster[N])
{
    fv_layer_args args = t->args;
    fv_layer *layer;
    fv_status status;

    args.outputs = 1; /* it alone is computed on request */
    args.output = &t->output[1];
    t->ctx->seed = seed;
    assert_ok(fv_layer_new(spec, &layer));
    status = fv_layer_forward(t->ctx, layer, &args);
    fv_layer_free(layer);
    memcpy(cluster, t->output[1].tensor.data, N * sizeof *cluster);
    return status;
}

/* Tokens of equal density are told apart by the seed, always in the same way; without noise they are not. */
static void noise_comes_from_the_seed(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=4,k=3,heads=2,noise=0", tensors);
    int32_t first[N], again[N];
    bool apart = false;
    (void)state;

    for (int n = 0; n < N * C; n++) /* on the corners of a square, three on each */
        layer_trial_data(t, "x")[n] = n / C % 4 == n % C;
    layer_trial_take_over(t);
    assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2", 1, first));
    assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2", 1, again));
    assert_memory_equal(first, again, sizeof first);
    for (uint64_t seed = 2; seed < 12 && !apart; seed++) {
        assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2", seed, again));
        apart = memcmp(first, again, sizeof first) != 0;
    }
    assert_true(apart);
    assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2,noise=0", 1, first));
    assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2,noise=0", 2, again));
    assert_memory_equal(first, again, sizeof first);
    layer_trial_close(t);
}

/* No number is a token's place: what is not a number stays that, within its image. */
static void what_is_no_number_does_no_harm(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=4,k=3,heads=2", tensors);
    int32_t cluster[N];
    (void)state;

    for (int n = 0; n < N * C; n++)
        ((float *)t->input[0].tensor.data)[n] = NAN;
    assert_ok(fv_layer_forward(t->ctx, t->layer, &t->args));
    assert_true(isnan(layer_trial_at(t, 0, 0)));
    assert_ok(clusters_with(t, "stm_dpc:tokens=4,k=3,heads=2", 1, cluster));
    for (int i = 0; i < N; i++)
        assert_true(cluster[i] >= 0 && cluster[i] < 4);
    layer_trial_close(t);
}

static void wrong_calls_are_refused(void **state)
{
    struct layer_trial *t = layer_trial_drawn("stm_dpc:tokens=4,heads=2", tensors);
    int32_t cluster[N];
    fv_layer *layer;
    (void)state;

    assert_fails(clusters_with(t, "stm_dpc:tokens=13,heads=2", 1, cluster), FV_E_SHAPE,
                 "expected at most the tokens there are, 12, got 13");
    assert_fails(clusters_with(t, "stm_dpc:tokens=4,heads=3", 1, cluster), FV_E_SHAPE, "3 heads do not divide 4");
    layer_trial_close(t);
    assert_fails(fv_layer_new("stm_dpc:tokens=0", &layer), FV_E_USAGE, "tokens");
    assert_fails(fv_layer_new("stm_dpc:k=0", &layer), FV_E_USAGE, "k");
    assert_fails(fv_layer_new("stm_dpc:noise=-1", &layer), FV_E_USAGE, "noise");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clusters_are_what_lies_together), cmocka_unit_test(equal_scores_give_plain_means),
        cmocka_unit_test(a_score_for_all_changes_nothing), cmocka_unit_test(noise_comes_from_the_seed),
        cmocka_unit_test(what_is_no_number_does_no_harm),  cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
