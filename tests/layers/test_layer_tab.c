/* tab as a layer: what must hold of the block. */
#include <math.h>
#include <stdlib.h>

#include "support/layer_trial.h"

#define TOLERANCE 2e-5
enum { N = 15, C = 6, F = 4 };

static const char tensors[] = "x=2x15x6 centres=3x6 q_weight=4x6 k_weight=4x6 v_weight=6x6 centre_k_weight=4x6 "
                              "centre_v_weight=6x6 proj_weight=6x6 conv_weight=6x6 norm_weight=6 norm_bias=6 "
                              "ffn.norm_weight=6 ffn.norm_bias=6 ffn.fc1_weight=4x6 ffn.fc1_bias=4 ffn.dw_weight=4x5x5 "
                              "ffn.dw_bias=4 ffn.fc2_weight=6x4 ffn.fc2_bias=6";

static void norm(const double *x, double *y)
{
    double mean = 0, variance = 0;

    for (int c = 0; c < C; c++)
        mean += x[c] / C;
    for (int c = 0; c < C; c++)
        variance += (x[c] - mean) * (x[c] - mean) / C;
    for (int c = 0; c < C; c++)
        y[c] = (x[c] - mean) / sqrt(variance + 1e-6);
}

/* Both branches at 0 leave x as it is. */
static void is_a_residual_block(void **state)
{
    struct layer_trial *t = layer_trial_drawn("tab:heads=2,group=4,size=3x5", tensors);
    (void)state;

    layer_trial_zero(t, "conv_weight");
    layer_trial_zero(t, "ffn.fc2_weight");
    layer_trial_zero(t, "ffn.fc2_bias");
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 2 * N * C; n++)
        assert_float_equal(layer_trial_at(t, 0, n), layer_trial_data(t, "x")[n], 1e-7);
    layer_trial_close(t);
}

/* All tokens in one group, one head, no centres' values: dense attention of the norm, for each key stands there twice.
 */
static void one_group_is_dense_attention(void **state)
{
    static const char *const unit[] = {"v_weight", "proj_weight", "conv_weight"};
    struct layer_trial *t = layer_trial_drawn("tab:heads=1,group=100,size=3x5", tensors);
    double y[N][C], q[N][4], k[N][4];
    (void)state;

    for (int m = 0; m < 3; m++)
        for (int n = 0; n < C * C; n++)
            layer_trial_data(t, unit[m])[n] = n % C == n / C;
    layer_trial_zero(t, "centre_v_weight");
    layer_trial_zero(t, "ffn.fc2_weight");
    layer_trial_zero(t, "ffn.fc2_bias");
    layer_trial_zero(t, "norm_bias");
    for (int c = 0; c < C; c++)
        layer_trial_data(t, "norm_weight")[c] = 1;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int i = 0; i < N; i++) {
        norm(layer_trial_data(t, "x") + i * C, y[i]);
        layer_linear(&t->sheet, "q_weight", NULL, y[i], q[i]);
        layer_linear(&t->sheet, "k_weight", NULL, y[i], k[i]);
    }
    for (int i = 0; i < N; i++) {
        double p[N], o[C] = {0};
        for (int j = 0; j < N; j++)
            p[j] = sheet_dot(q[i], k[j], 4) / 2;
        sheet_softmax(p, N, -INFINITY);
        for (int n = 0; n < N * C; n++)
            o[n % C] += p[n / C] * y[n / C][n % C];
        for (int c = 0; c < C; c++)
            assert_float_equal(layer_trial_at(t, 0, i * C + c), layer_trial_data(t, "x")[i * C + c] + o[c], TOLERANCE);
    }
    layer_trial_close(t);
}

/* An image has in a batch what it has alone. */
static void images_do_not_mix(void **state)
{
    struct layer_trial *t = layer_trial_drawn("tab:heads=2,group=4,size=3x5", tensors);
    double second[N * C], expected[N * C];
    (void)state;

    layer_trial_forward(t);
    for (int n = 0; n < N * C; n++) {
        second[n] = layer_trial_data(t, "x")[N * C + n];
        expected[n] = layer_trial_at(t, 0, N * C + n);
    }
    layer_trial_give(t, "x", second, 0, LAYER_DIMS(1, N, C));
    layer_trial_forward(t);
    for (int n = 0; n < N * C; n++)
        assert_float_equal(layer_trial_at(t, 0, n), expected[n], TOLERANCE);
    layer_trial_close(t);
}

/* Only the direction of a centre assigns tokens, but its length counts where it is read. */
static void lengths_of_centres_count_as_they_are(void **state)
{
    struct layer_trial *t = layer_trial_drawn("tab:heads=2,group=4,size=3x5", tensors);
    double before[2 * N * C], apart = 0;
    (void)state;

    layer_trial_forward(t);
    for (int n = 0; n < 2 * N * C; n++)
        before[n] = layer_trial_at(t, 0, n);
    for (int c = 0; c < C; c++)
        layer_trial_data(t, "centres")[C + c] *= 3;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 2 * N * C; n++)
        apart = fmax(apart, fabs(layer_trial_at(t, 0, n) - before[n]));
    assert_true(apart > 1e-4);
    layer_trial_zero(t, "centre_v_weight"); /* now nobody sees it */
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 2 * N * C; n++)
        before[n] = layer_trial_at(t, 0, n);
    for (int c = 0; c < C; c++)
        layer_trial_data(t, "centres")[C + c] /= 3;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 2 * N * C; n++)
        assert_float_equal(layer_trial_at(t, 0, n), before[n], TOLERANCE);
    layer_trial_close(t);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"tab:heads=2,size=3x4", "input 'x': expected [B, N, C] = [2,12,6], got [2,15,6]"},
        {"tab:heads=3,size=3x5", "3 heads do not divide 4 channels (Cq)"},
        {"tab:heads=4,size=3x5", "4 heads do not divide 6 channels (C)"},
    };
    struct layer_trial *t = layer_trial_drawn("tab:heads=2,group=4,size=3x5", tensors);
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        assert_ok(fv_layer_new(wrong[n].spec, &layer));
        assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, wrong[n].words);
        fv_layer_free(layer);
    }
    layer_trial_close(t);
    assert_fails(fv_layer_new("tab", &layer), FV_E_USAGE, "size");
    assert_fails(fv_layer_new("tab:size=4", &layer), FV_E_USAGE, "expected HxW");
    assert_fails(fv_layer_new("tab:size=3x5,groups=4", &layer), FV_E_USAGE, "did you mean 'group'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_a_residual_block),     cmocka_unit_test(one_group_is_dense_attention),
        cmocka_unit_test(images_do_not_mix),       cmocka_unit_test(lengths_of_centres_count_as_they_are),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
