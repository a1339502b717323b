/* mlpmix and lepe: worked numbers, and what must hold of them. */
#include <math.h>
#include <stdlib.h>

#include "support/layer_trial.h"

/* x = 1, 2: gate 2, -1, what passes 1, 2, down 3: 3 (SiLU(2) - 2 SiLU(-1)), and so on. */
static void a_gated_unit_by_hand(void **state)
{
    static const double x[] = {1, 2}, gate[] = {2, -1}, up[] = {1, 2}, down[] = {3, 1};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("mlpmix", test_devices[d], 1);
        layer_trial_give(t, "x", x, 0, LAYER_DIMS(1, 2, 1));
        layer_trial_give(t, "gate_weight", gate, 0, LAYER_DIMS(2, 1));
        layer_trial_give(t, "up_weight", up, 0, LAYER_DIMS(2, 1));
        layer_trial_give(t, "down_weight", down, 0, LAYER_DIMS(1, 2));
        layer_trial_forward(t);
        assert_float_equal(layer_trial_at(t, 0, 0), 3 * 1.7615942 - 2 * .2689414, 1e-5);
        assert_float_equal(layer_trial_at(t, 0, 1), 6 * 3.9280552 - 4 * .2384058, 1e-5);
        layer_trial_close(t);
    }
}

/* A token's change changes it alone. */
static void tokens_do_not_mix(void **state)
{
    struct layer_trial *t = layer_trial_drawn("mlpmix", "x=2x5x6 gate_weight=8x6 up_weight=8x6 down_weight=6x8");
    double before[60], apart = 0;
    (void)state;

    for (int n = 0; n < 60; n++)
        before[n] = layer_trial_at(t, 0, n);
    for (int c = 0; c < 6; c++)
        layer_trial_data(t, "x")[3 * 6 + c] += 1;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 60; n++) {
        if (n / 6 == 3)
            apart = fmax(apart, fabs(layer_trial_at(t, 0, n) - before[n]));
        else
            assert_true(layer_trial_at(t, 0, n) == before[n]);
    }
    assert_true(apart > 1e-3);
    layer_trial_close(t);
}

/* 3x3 of ones on 0 1 2 / 3 4 5: each window sums its own tokens.  Ragged: an odd pad stands behind. */
static void sums_of_windows_by_hand(void **state)
{
    static const struct {
        const char *spec;
        double expected[6];
    } cases[] = {
        {"lepe:grid=2x3", {8, 15, 12, 8, 15, 12}},         {"lepe:grid=2x3,window=1x0", {1, 3, 3, 7, 12, 9}},
        {"lepe:grid=2x3,window=0x1", {3, 5, 7, 3, 5, 7}},  {"lepe:grid=2x3,window=1", {0, 1, 2, 3, 4, 5}},
        {"lepe:grid=2x3,window=2", {8, 8, 7, 8, 8, 7}},    {"lepe:grid=3x2,window=2", {6, 6, 6, 6, 9, 9}},
        {"lepe:grid=6x1,window=4x1", {1, 3, 3, 7, 12, 9}}, /* _ 0 1 2 | 3 4 5 _ */
    };
    static const double x[] = {0, 1, 2, 3, 4, 5}, ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    (void)state;

    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        struct layer_trial *t = layer_trial_open(cases[n].spec, "cpu", 1);
        layer_trial_give(t, "x", x, 0, LAYER_DIMS(1, 6, 1));
        layer_trial_give(t, "weight", ones, 0, LAYER_DIMS(1, 3, 3));
        layer_trial_forward(t);
        for (int i = 0; i < 6; i++)
            if (fabs(layer_trial_at(t, 0, i) - cases[n].expected[i]) > 1e-6)
                fail_msg("%s: token %d: expected %g, got %g", cases[n].spec, i, cases[n].expected[i],
                         layer_trial_at(t, 0, i));
        layer_trial_close(t);
    }
}

/* A centre tap of 1 adds the values themselves. */
static void a_centre_tap_is_the_identity(void **state)
{
    struct layer_trial *t = layer_trial_drawn("lepe:grid=5x7,window=2x3", "x=2x35x3 weight=3x3x3");
    double *weight = layer_trial_data(t, "weight");
    (void)state;

    for (int n = 0; n < 27; n++)
        weight[n] = n % 9 == 4;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 2 * 35 * 3; n++)
        assert_true(layer_trial_at(t, 0, n) == layer_trial_data(t, "x")[n]);
    layer_trial_close(t);
}

/* A change stays within its stripe: columns 2 and 3. */
static void nothing_crosses_a_border(void **state)
{
    struct layer_trial *t = layer_trial_drawn("lepe:grid=4x6,window=0x2", "x=1x24x2 weight=2x3x3 bias=2");
    double before[48], apart = 0;
    (void)state;

    for (int n = 0; n < 48; n++)
        before[n] = layer_trial_at(t, 0, n);
    for (int c = 0; c < 2; c++)
        layer_trial_data(t, "x")[(1 * 6 + 2) * 2 + c] += 1;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 48; n++) {
        int column = n / 2 % 6;
        if (column == 2 || column == 3)
            apart = fmax(apart, fabs(layer_trial_at(t, 0, n) - before[n]));
        else
            assert_true(layer_trial_at(t, 0, n) == before[n]);
    }
    assert_true(apart > 1e-3);
    layer_trial_close(t);
}

/* On the whole grid it is what bra adds to its attention: o with the convolution less o without. */
static void it_is_the_local_part_of_bra(void **state)
{
    enum { N = 20, C = 3 };
    struct layer_trial *t = layer_trial_drawn("lepe:grid=4x5", "x=1x20x3 weight=3x5x5 bias=3");
    fv_named_tensor local[2] = {{"lepe_weight", t->param[0].tensor}, {"lepe_bias", t->param[1].tensor}};
    fv_attention_args args = {.param = local};
    fv_tensor o[2];
    fv_attention *bra;
    (void)state;

    args.q = args.k = args.v = fv_reshaped(&t->input[0].tensor, FV_DIMS(1, 1, N, C));
    assert_ok(fv_attention_new("bra:grid=4x5,regions=2,top=2", &bra));
    for (int with = 0; with < 2; with++) {
        assert_ok(fv_tensor_new(t->ctx, &o[with], FV_F32, FV_DIMS(1, 1, N, C)));
        args.params = 2 * with;
        args.o = o[with];
        assert_ok(fv_attention_forward(t->ctx, bra, &args));
    }
    fv_attention_free(bra);
    for (int n = 0; n < N * C; n++)
        assert_float_equal(((float *)o[1].data)[n] - ((float *)o[0].data)[n], layer_trial_at(t, 0, n), 1e-5);
    layer_trial_close(t);
}

/* In stripes it is what csw adds: columns of the image for the first half of the heads, rows for the second. */
static void it_is_the_local_part_of_csw(void **state)
{
    enum { N = 20, C = 3 };
    static const char *const stripes[] = {"lepe:grid=4x5,window=4x2", "lepe:grid=4x5,window=2x5"};
    struct layer_trial *t = layer_trial_drawn("lepe:grid=4x5", "x=1x20x3 weight=3x3x3 bias=3");
    fv_tensor twice[3], x = fv_reshaped(&t->input[0].tensor, FV_DIMS(1, 1, N, C)), o[2], y;
    fv_attention_args args = {0};
    fv_named_tensor local[2], out = {"y", {0}};
    fv_attention *csw;
    (void)state;

    assert_ok(fv_tensor_new(t->ctx, &twice[0], FV_F32, FV_DIMS(2, C, 3, 3)));
    assert_ok(fv_tensor_new(t->ctx, &twice[1], FV_F32, FV_DIMS(2, C)));
    assert_ok(fv_tensor_new(t->ctx, &twice[2], FV_F32, FV_DIMS(1, 2, N, C)));
    assert_ok(fv_map_apply(t->ctx, &(fv_map_args){.x = t->param[0].tensor, .out = twice[0]}));
    assert_ok(fv_map_apply(t->ctx, &(fv_map_args){.x = t->param[1].tensor, .out = twice[1]}));
    assert_ok(fv_map_apply(t->ctx, &(fv_map_args){.x = x, .out = twice[2]}));
    local[0] = (fv_named_tensor){"lepe_weight", fv_reshaped(&twice[0], FV_DIMS(2 * C, 3, 3))};
    local[1] = (fv_named_tensor){"lepe_bias", fv_reshaped(&twice[1], FV_DIMS(2 * C))};
    args.param = local;
    args.q = args.k = args.v = twice[2];
    assert_ok(fv_attention_new("csw:grid=4x5,stripe=2", &csw));
    for (int with = 0; with < 2; with++) {
        assert_ok(fv_tensor_new(t->ctx, &o[with], FV_F32, FV_DIMS(1, 2, N, C)));
        args.params = 2 * with;
        args.o = o[with];
        assert_ok(fv_attention_forward(t->ctx, csw, &args));
    }
    fv_attention_free(csw);
    assert_ok(fv_tensor_new(t->ctx, &y, FV_F32, FV_DIMS(1, N, C)));
    for (int h = 0; h < 2; h++) {
        fv_layer_args call = t->args;
        fv_layer *lepe;
        assert_ok(fv_layer_new(stripes[h], &lepe));
        out.tensor = y;
        call.outputs = 1;
        call.output = &out;
        assert_ok(fv_layer_forward(t->ctx, lepe, &call));
        fv_layer_free(lepe);
        for (int n = 0; n < N * C; n++)
            assert_float_equal(((float *)o[1].data)[h * N * C + n] - ((float *)o[0].data)[h * N * C + n],
                               ((float *)y.data)[n], 1e-5);
    }
    layer_trial_close(t);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"lepe", "grid"},
        {"lepe:grid=6", "expected rows x columns"},
        {"lepe:grid=2x3x4", "expected rows x columns"},
        {"lepe:grid=0x3", "grid"},
        {"lepe:grid=2x3,window=1x1x1", "expected 1 or 2 items"},
        {"lepe:grid=2x3,window=3", "axis 0: expected at most the grid, 2, got 3"},
        {"lepe:grid=2x3,window=-1", "window"},
        {"lepe:grid=2x3,stripe=1", "'stripe'"},
        {"mlpmix:heads=2", "heads"},
    };
    struct layer_trial *t = layer_trial_drawn("lepe:grid=2x3", "x=1x6x2 weight=2x3x3");
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    assert_ok(fv_layer_new("lepe:grid=2x4", &layer));
    assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, "expected [B, N, C] = [1,8,2], got [1,6,2]");
    fv_layer_free(layer);
    layer_trial_give(t, "weight", (const double[]){1, 1, 1, 1, 1, 1, 1, 1}, 0, LAYER_DIMS(2, 2, 2));
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_SHAPE, "expected an odd number");
    layer_trial_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gated_unit_by_hand),        cmocka_unit_test(tokens_do_not_mix),
        cmocka_unit_test(sums_of_windows_by_hand),     cmocka_unit_test(a_centre_tap_is_the_identity),
        cmocka_unit_test(nothing_crosses_a_border),    cmocka_unit_test(it_is_the_local_part_of_bra),
        cmocka_unit_test(it_is_the_local_part_of_csw), cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
