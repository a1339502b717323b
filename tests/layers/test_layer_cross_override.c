/* cross_override: worked numbers, and what must hold of both copies. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/layer_trial.h"

#define TOLERANCE 1e-5
static const char *const matrices[] = {"self_q",  "self_k",  "self_v",  "self_o",
                                       "cross_q", "cross_k", "cross_v", "cross_o"};

/* n x n, `scale` on the diagonal. */
static void give_diagonal(struct layer_trial *t, const char *name, int64_t n, double scale)
{
    double *matrix = trial_zeros(n * n, sizeof *matrix);

    for (int64_t i = 0; i < n; i++)
        matrix[i * n + i] = scale;
    layer_trial_give(t, name, matrix, 0, LAYER_DIMS(n, n));
    free(matrix);
}

/* Tokens w = f of n channels, matrices of 1, and nothing read of the text. */
static struct layer_trial *open_plain(const char *spec, const char *device, int64_t N, int64_t n, const double *w)
{
    struct layer_trial *t = layer_trial_open(spec, device, 1);
    double *text = trial_zeros(n, sizeof *text);

    layer_trial_give(t, "w", w, 0, LAYER_DIMS(1, N, n));
    layer_trial_give(t, "f", w, 0, LAYER_DIMS(1, N, n));
    layer_trial_give(t, "c", text, 0, LAYER_DIMS(1, 1, n));
    for (int m = 0; m < 8; m++)
        give_diagonal(t, matrices[m], n, m < 7);
    free(text);
    return t;
}

static struct layer_trial *draw(const char *spec, int64_t N)
{
    char text[512];
    int length = snprintf(text, sizeof text, "w=1x%dx6 f=1x%dx6 c=1x3x6", (int)N, (int)N);

    for (int m = 0; m < 8; m++)
        length += snprintf(text + length, sizeof text - (size_t)length, " %s=6x6 %s_bias=6", matrices[m], matrices[m]);
    return layer_trial_drawn(spec, text);
}

/* Eight columns 0..7, windows of three: moved inwards at the ends, or cut off there.  Queries of 0 read means. */
static void windows_by_hand(void **state)
{
    static const double w[] = {0, 1, 2, 3, 4, 5, 6, 7}, inward[] = {1, 1, 2, 3, 4, 5, 6, 6},
                        cut[] = {.5, 1, 2, 3, 4, 5, 6, 6.5};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int moved = 0; moved < 2; moved++) {
            struct layer_trial *t = open_plain(moved ? "cross_override:grid=1x1x8,native=1x3,heads=1"
                                                     : "cross_override:grid=1x1x8,native=1x3,heads=1,inward=0",
                                               test_devices[d], 8, 1, w);
            give_diagonal(t, "self_q", 1, 0);
            layer_trial_forward(t);
            for (int n = 0; n < 8; n++) {
                assert_float_equal(layer_trial_at(t, 0, n), w[n] + (moved ? inward : cut)[n], TOLERANCE);
                assert_float_equal(layer_trial_at(t, 1, n), w[n] + 3.5, TOLERANCE);
            }
            layer_trial_close(t);
        }
}

/* 30 x 52 native tokens and 128 channels: .092461, not .088388. */
static void the_scale_by_hand(void **state)
{
    double w[2 * 128] = {4};
    (void)state;

    for (int fix = 0; fix < 2; fix++) {
        struct layer_trial *t = open_plain(fix ? "cross_override:grid=1x1x2,native=30x52,heads=1"
                                               : "cross_override:grid=1x1x2,native=30x52,heads=1,temp_fix=0",
                                           "cpu", 2, 128, w);
        double weight = 1 / (1 + exp(-16 * (fix ? .092461 : .088388)));
        layer_trial_forward(t);
        for (int copy = 0; copy < 2; copy++)
            assert_float_equal(layer_trial_at(t, copy, 0), 4 + 4 * weight, TOLERANCE);
        layer_trial_close(t);
    }
}

/* Windows are gna's: of all frames, and of 2 (native div 2) + 1 rows and columns. */
static void windows_are_those_of_gna(void **state)
{
    enum { N = 2 * 5 * 6, C = 4 };
    struct layer_trial *t;
    fv_attention_args args = {0};
    fv_attention *gna;
    double w[N * C];
    fv_random random = fv_random_new(test_seed(), 5);
    fv_tensor tokens, o;
    (void)state;

    for (int n = 0; n < N * C; n++)
        w[n] = fv_random_normal(&random);
    t = open_plain("cross_override:grid=2x5x6,native=3x4,heads=1,temp_fix=0", "cpu", N, C, w);
    layer_trial_forward(t);
    tokens = fv_reshaped(&t->input[0].tensor, FV_DIMS(1, 1, N, C));
    assert_ok(fv_tensor_new(t->ctx, &o, FV_F32, FV_DIMS(1, 1, N, C)));
    args.q = args.k = args.v = tokens;
    args.o = o;
    assert_ok(fv_attention_new("gna:grid=2x5x6,window=0x3x5", &gna));
    assert_ok(fv_attention_forward(t->ctx, gna, &args));
    fv_attention_free(gna);
    for (int n = 0; n < N * C; n++)
        assert_float_equal(layer_trial_at(t, 0, n), ((float *)tokens.data)[n] + ((float *)o.data)[n], TOLERANCE);
    layer_trial_close(t);
}

/* At the native resolution, where windows are whole sides, both copies are the unchanged model. */
static void native_copies_are_alike(void **state)
{
    struct layer_trial *t = draw("cross_override:grid=2x3x4,native=3x4,heads=2,temp_fix=0", 24);
    (void)state;

    memcpy(layer_trial_data(t, "w"), layer_trial_data(t, "f"), 24 * 6 * sizeof(double));
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 24 * 6; n++)
        assert_float_equal(layer_trial_at(t, 0, n), layer_trial_at(t, 1, n), TOLERANCE);
    layer_trial_close(t);
}

/* How far w moves when f does. */
static double moved(struct layer_trial *t, int64_t count)
{
    double before[40 * 6], most = 0;

    for (int n = 0; n < count; n++) {
        before[n] = layer_trial_at(t, 0, n);
        layer_trial_data(t, "f")[n] += .5 * (n % 3);
    }
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < count; n++)
        most = fmax(most, fabs(layer_trial_at(t, 0, n) - before[n]));
    return most;
}

static void copies_meet_in_the_override_alone(void **state)
{
    struct layer_trial *t = draw("cross_override:grid=2x5x4,native=3x2,heads=2,override=0", 40);
    (void)state;

    assert_true(moved(t, 240) == 0);
    layer_trial_close(t);
    t = draw("cross_override:grid=2x5x4,native=3x2,heads=2", 40);
    assert_true(moved(t, 240) > 1e-4);
    layer_trial_close(t);
}

/* What is read of the text is the same for both, here all that is read. */
static void both_receive_the_same(void **state)
{
    struct layer_trial *t = draw("cross_override:grid=2x5x4,native=3x2,heads=2", 40);
    (void)state;

    memset(layer_trial_data(t, "self_o"), 0, 36 * sizeof(double));
    memset(layer_trial_data(t, "self_o_bias"), 0, 6 * sizeof(double));
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 240; n++)
        assert_float_equal(layer_trial_at(t, 0, n) - layer_trial_data(t, "w")[n],
                           layer_trial_at(t, 1, n) - layer_trial_data(t, "f")[n], TOLERANCE);
    layer_trial_close(t);
}

/* A copy alone is what it is beside the other. */
static void copies_may_be_asked_for_alone(void **state)
{
    static const char *const specs[] = {"cross_override:grid=2x5x4,native=3x2,heads=2",
                                        "cross_override:grid=2x5x4,native=3x2,heads=2,override=0"};
    (void)state;

    for (int s = 0; s < 2; s++)
        for (int copy = 0; copy < 2; copy++) {
            struct layer_trial *t = draw(specs[s], 40);
            fv_layer_args args = t->args;
            double *both = trial_doubled(&t->output[copy].tensor);
            memset(t->output[copy].tensor.data, 0, 240 * sizeof(float));
            args.outputs = 1;
            args.output = &t->output[copy];
            assert_ok(fv_layer_forward(t->ctx, t->layer, &args));
            test_close(t->what, &t->output[copy].tensor, both, 0);
            free(both);
            layer_trial_close(t);
        }
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"cross_override:native=3x3,heads=2", "grid"},
        {"cross_override:grid=1x4x4,heads=2", "native"},
        {"cross_override:grid=1x4x4,native=3x3", "heads"},
        {"cross_override:grid=4x4,native=3x3,heads=2", "expected frames x rows x columns"},
        {"cross_override:grid=1x4x4,native=3,heads=2", "expected rows x columns"},
        {"cross_override:grid=1x4x4,native=1x1,heads=2", "temp_fix=1 needs more than one token"},
        {"cross_override:grid=2147483647x2147483647x2147483647,native=3x3,heads=2", "2^63"},
    };
    struct layer_trial *t = draw("cross_override:grid=2x5x4,native=3x2,heads=2", 40);
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    assert_ok(fv_layer_new("cross_override:grid=2x5x5,native=3x2,heads=2", &layer));
    assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, "= [1,50,6], got [1,40,6]");
    fv_layer_free(layer);
    assert_ok(fv_layer_new("cross_override:grid=2x5x4,native=3x2,heads=4", &layer));
    assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, "4 heads do not divide 6 channels");
    fv_layer_free(layer);
    layer_trial_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_by_hand),
        cmocka_unit_test(the_scale_by_hand),
        cmocka_unit_test(windows_are_those_of_gna),
        cmocka_unit_test(native_copies_are_alike),
        cmocka_unit_test(copies_meet_in_the_override_alone),
        cmocka_unit_test(both_receive_the_same),
        cmocka_unit_test(copies_may_be_asked_for_alone),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
