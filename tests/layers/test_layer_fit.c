/* fit_read and fit_write: what must hold of the exchange between groups and latents. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/layer_trial.h"

static const char matrices[] = " q_weight=4x6 k_weight=4x6 v_weight=4x6 o_weight=6x4 q_bias=4 k_bias=4 v_bias=4 "
                               "o_bias=6 q_norm_weight=6 q_norm_bias=6 kv_norm_weight=6 kv_norm_bias=6";
enum { GROUPS = 3, TOKENS = 4, LATENTS = 2, WIDTH = 6 };

static struct layer_trial *draw(const char *spec)
{
    char text[256];

    snprintf(text, sizeof text, "x=1x3x4x6 z=1x3x2x6%s", matrices);
    return layer_trial_drawn(spec, text);
}

/* Which groups' results change when group g of a tensor does, as bits. */
static int reach(struct layer_trial *t, const char *name, int g, int rows, int out_rows)
{
    int size = out_rows * WIDTH, changed = 0;
    double before[GROUPS * TOKENS * WIDTH];

    layer_trial_forward(t);
    for (int n = 0; n < GROUPS * size; n++)
        before[n] = layer_trial_at(t, 0, n);
    for (int n = g * rows * WIDTH; n < (g + 1) * rows * WIDTH; n++)
        layer_trial_data(t, name)[n] += (n % 5) * .25;
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < GROUPS * size; n++)
        if (layer_trial_at(t, 0, n) != before[n]) changed |= 1 << n / size;
    return changed;
}

/* A group reads its own latents or tokens, or with the shift those of the group before. */
static void groups_read_their_own(void **state)
{
    struct layer_trial *t = draw("fit_read:heads=2");
    (void)state;

    for (int g = 0; g < GROUPS; g++) {
        assert_int_equal(reach(t, "x", g, TOKENS, LATENTS), 1 << g);
        assert_int_equal(reach(t, "z", g, LATENTS, LATENTS), 1 << g);
    }
    layer_trial_close(t);
    t = draw("fit_write:heads=2");
    for (int g = 0; g < GROUPS; g++) {
        assert_int_equal(reach(t, "z", g, LATENTS, TOKENS), 1 << g);
        assert_int_equal(reach(t, "x", g, TOKENS, TOKENS), 1 << g);
    }
    layer_trial_close(t);
    t = draw("fit_write:heads=2,shift=1");
    for (int g = 0; g < GROUPS; g++) {
        assert_int_equal(reach(t, "z", g, LATENTS, TOKENS), g + 1 < GROUPS ? 2 << g : 0);
        assert_int_equal(reach(t, "x", g, TOKENS, TOKENS), 1 << g);
    }
    layer_trial_close(t);
}

/* The first group of a shift reads zeros, which the norm makes its bias: x + o_weight (v_weight bias + v_bias) +
 * o_bias. */
static void the_first_group_reads_the_norms_bias(void **state)
{
    struct layer_trial *t = draw("fit_write:heads=2,shift=1");
    double value[4], expected[WIDTH];
    (void)state;

    layer_linear(&t->sheet, "v_weight", "v_bias", layer_trial_data(t, "kv_norm_bias"), value);
    layer_linear(&t->sheet, "o_weight", "o_bias", value, expected);
    for (int n = 0; n < TOKENS * WIDTH; n++)
        assert_float_equal(layer_trial_at(t, 0, n), layer_trial_data(t, "x")[n] + expected[n % WIDTH], 1e-5);
    layer_trial_close(t);
}

/* The result's weights at 0 leave what asks as it is. */
static void nothing_written_changes_nothing(void **state)
{
    static const char *const specs[] = {"fit_read:heads=2", "fit_write:heads=2", "fit_write:heads=2,shift=1"};
    (void)state;

    for (int s = 0; s < 3; s++) {
        struct layer_trial *t = draw(specs[s]);
        memset(layer_trial_data(t, "o_weight"), 0, 24 * sizeof(double));
        memset(layer_trial_data(t, "o_bias"), 0, 6 * sizeof(double));
        layer_trial_take_over(t);
        layer_trial_forward(t);
        for (int n = 0; n < GROUPS * (s ? TOKENS : LATENTS) * WIDTH; n++)
            assert_true(layer_trial_at(t, 0, n) == layer_trial_data(t, s ? "x" : "z")[n]);
        layer_trial_close(t);
    }
}

/* The same layer with its sides exchanged. */
static void reading_is_writing_the_other_way(void **state)
{
    static const char *const names[] = {"q_weight",      "k_weight",    "v_weight",       "o_weight",
                                        "q_bias",        "k_bias",      "v_bias",         "o_bias",
                                        "q_norm_weight", "q_norm_bias", "kv_norm_weight", "kv_norm_bias"};
    struct layer_trial *read = draw("fit_read:heads=2"), *write = layer_trial_open("fit_write:heads=2", "cpu", 1);
    (void)state;

    layer_trial_give(write, "x", layer_trial_data(read, "z"), 0, LAYER_DIMS(1, GROUPS, LATENTS, WIDTH));
    layer_trial_give(write, "z", layer_trial_data(read, "x"), 0, LAYER_DIMS(1, GROUPS, TOKENS, WIDTH));
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const sheet_param *param = layer_tensor(&read->sheet, names[n]);
        layer_trial_give(write, names[n], param->data, 0, param->rank, param->dims);
    }
    layer_trial_forward(write);
    for (int n = 0; n < GROUPS * LATENTS * WIDTH; n++)
        assert_true(layer_trial_at(read, 0, n) == layer_trial_at(write, 0, n));
    layer_trial_close(read);
    layer_trial_close(write);
}

static void wrong_calls_are_refused(void **state)
{
    struct layer_trial *t = draw("fit_write:heads=2");
    fv_layer *layer;
    (void)state;

    assert_ok(fv_layer_new("fit_write:heads=3", &layer));
    assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, "3 heads do not divide 4 channels");
    fv_layer_free(layer);
    layer_trial_close(t);
    assert_fails(fv_layer_new("fit_read", &layer), FV_E_USAGE, "heads");
    assert_fails(fv_layer_new("fit_read:heads=0", &layer), FV_E_USAGE, "heads");
    assert_fails(fv_layer_new("fit_read:heads=2,shift=1", &layer), FV_E_USAGE, "shift");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_read_their_own),           cmocka_unit_test(the_first_group_reads_the_norms_bias),
        cmocka_unit_test(nothing_written_changes_nothing), cmocka_unit_test(reading_is_writing_the_other_way),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
