/* hcam as a layer: worked numbers, and what must hold of a memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/layer_trial.h"

#define TOLERANCE 1e-5

/* n x n, `scale` on the diagonal */
static void give_diagonal(struct layer_trial *t, const char *name, int64_t n, double scale)
{
    double *matrix = trial_zeros(n * n, sizeof *matrix);

    for (int64_t i = 0; i < n; i++)
        matrix[i * n + i] = scale;
    layer_trial_give(t, name, matrix, 0, LAYER_DIMS(n, n));
    free(matrix);
}

static void give_identities(struct layer_trial *t, int64_t n)
{
    static const char *const names[] = {"summary_q_weight", "summary_k_weight", "q_weight",
                                        "k_weight",         "v_weight",         "out_weight"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        give_diagonal(t, names[i], n, 1);
}

/* `y` of the library and of the definition. */
static void expect_row(struct layer_trial *t, int64_t row, int64_t count, const double *expected, double tolerance)
{
    for (int64_t i = 0; i < count; i++) {
        double got = ((float *)t->output[0].tensor.data)[row * count + i], twin = t->result[0].data[row * count + i];
        if (!(fabs(got - expected[i]) <= tolerance && fabs(twin - expected[i]) <= tolerance))
            fail_msg("%s: row %d, channel %d: expected %.9g, got %.9g, and %.9g of the definition", t->what, (int)row,
                     (int)i, expected[i], got, twin);
    }
}

/* Logits 2 0 1 -1: chunks 0 and 2, by .731059 and .268941. */
static void weights_are_a_softmax_over_the_chosen(void **state)
{
    static const double x[] = {2, 0, 0, 0}, contents[] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
    static const double keys[] = {2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, 0, 0, 0}, expected[] = {.731059, 0, .268941};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("hcam:chunk=1,top=2,heads=1,position=0", test_devices[d], 1);
        give_identities(t, 4);
        layer_trial_give(t, "x", x, 0, LAYER_DIMS(1, 1, 4));
        layer_trial_give(t, "keys", keys, 0, LAYER_DIMS(1, 4, 4));
        layer_trial_give(t, "contents", contents, 0, LAYER_DIMS(1, 4, 1, 4));
        layer_trial_forward(t);
        expect_row(t, 0, 3, expected, TOLERANCE);
        layer_trial_close(t);
    }
}

/* Four queries, each so sharp that it reads one row of a chunk of zeros: the row's position. */
static void positions_count_down(void **state)
{
    static const double positions[4][4] = {
        {.1411, .0300, -.9900, .9996}, {.9093, .0200, -.4161, .9998}, {.8415, .0100, .5403, 1}, {0, 0, 1, 1}};
    double x[16] = {0};
    (void)state;

    for (int u = 0; u < 4; u++) { /* channels 0 and 2: cos(position - (3 - u)), largest at row u */
        x[u * 4] = 1000 * sin(3 - u);
        x[u * 4 + 2] = 1000 * cos(3 - u);
    }
    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("hcam:chunk=4,top=1,heads=1", test_devices[d], 1);
        double zeros[16] = {0};
        give_identities(t, 4);
        layer_trial_give(t, "x", x, 0, LAYER_DIMS(1, 4, 4));
        layer_trial_give(t, "keys", zeros, 0, LAYER_DIMS(1, 1, 4));
        layer_trial_give(t, "contents", zeros, 0, LAYER_DIMS(1, 1, 4, 4));
        layer_trial_forward(t);
        for (int u = 0; u < 4; u++)
            expect_row(t, u, 4, positions[u], 6e-5); /* printed to four digits */
        layer_trial_close(t);
    }
}

static const char weights[] = "summary_q_weight=8x8 summary_k_weight=8x8 q_weight=8x8 k_weight=8x8 v_weight=8x8 "
                              "out_weight=8x8 q_bias=8 k_bias=8 v_bias=8 out_bias=8 ";

static struct layer_trial *draw_memory(const char *spec, const char *tensors)
{
    char text[512];

    snprintf(text, sizeof text, "%s%s", weights, tensors);
    return layer_trial_drawn(spec, text);
}

static double *numbers_of(const struct layer_trial *t)
{
    return trial_doubled(&t->output[0].tensor);
}

/* Equal logits of all chunks: the mean of attention within each alone. */
static void all_alike_are_a_mean(void **state)
{
    struct layer_trial *t = draw_memory("hcam:chunk=3,top=4,heads=2", "x=1x2x8 keys=1x4x8 contents=1x4x3x8");
    double *keys = layer_trial_data(t, "keys"), mean[16] = {0}, *all;
    static const double hide[4][8] = {
        {1, 0, 0, 0, 1, 0, 0, 0}, {0, 1, 0, 0, 0, 1, 0, 0}, {0, 0, 1, 0, 0, 0, 1, 0}, {0, 0, 0, 1, 0, 0, 0, 1}};
    (void)state;

    memset(keys, 0, 32 * sizeof *keys);
    layer_trial_take_over(t);
    layer_trial_forward(t);
    all = numbers_of(t);
    for (int c = 0; c < 4; c++) {
        layer_trial_give(t, "mask", hide[c], 0, LAYER_DIMS(1, 2, 4));
        layer_trial_forward(t);
        for (int n = 0; n < 16; n++)
            mean[n] += (double)((float *)t->output[0].tensor.data)[n] / 4;
    }
    for (int n = 0; n < 16; n++)
        assert_float_equal(all[n], mean[n], TOLERANCE);
    free(all);
    layer_trial_close(t);
}

static void swap_rows(double *x, int64_t a, int64_t b, int64_t width)
{
    for (int64_t e = 0; e < width; e++) {
        double kept = x[a * width + e];
        x[a * width + e] = x[b * width + e];
        x[b * width + e] = kept;
    }
}

/* Chunks may stand in any order; the rows of a chunk may not. */
static void order_matters_within_chunks_only(void **state)
{
    struct layer_trial *t = draw_memory("hcam:chunk=3,top=2,heads=2", "x=1x3x8 keys=1x5x8 contents=1x5x3x8");
    double *before, apart = 0;
    (void)state;

    layer_trial_forward(t);
    before = numbers_of(t);
    swap_rows(layer_trial_data(t, "keys"), 1, 4, 8);
    swap_rows(layer_trial_data(t, "contents"), 1, 4, 24);
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 24; n++)
        assert_float_equal(((float *)t->output[0].tensor.data)[n], before[n], TOLERANCE);
    for (int c = 0; c < 5; c++)
        swap_rows(layer_trial_data(t, "contents"), 3 * c, 3 * c + 2, 8);
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 24; n++)
        apart = fmax(apart, fabs((double)((float *)t->output[0].tensor.data)[n] - before[n]));
    assert_true(apart > 1e-4);
    free(before);
    layer_trial_close(t);
}

/* Chunks that were never written do not matter, whatever stands there; who may read none gets 0, without a bias. */
static void hidden_chunks_do_not_matter(void **state)
{
    static const double mask[] = {1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 1}, zeros[8] = {0};
    struct layer_trial *t = draw_memory("hcam:chunk=2,top=3,heads=4", "x=1x3x8 keys=1x4x8 contents=1x4x2x8");
    double *before;
    (void)state;

    layer_trial_give(t, "mask", mask, 0, LAYER_DIMS(1, 3, 4));
    layer_trial_forward(t);
    expect_row(t, 1, 8, zeros, 0);
    before = numbers_of(t);
    for (int n = 0; n < 16; n++)
        layer_trial_data(t, "contents")[16 + n] = layer_trial_data(t, "keys")[8 + n % 8] = 100; /* chunk 1 */
    layer_trial_take_over(t);
    layer_trial_forward(t);
    for (int n = 0; n < 24; n++)
        assert_float_equal(((float *)t->output[0].tensor.data)[n], before[n], TOLERANCE);
    free(before);
    layer_trial_close(t);
}

/* One query alone, for which few chunks' keys and values are made, has what it has among many. */
static void few_queries_are_like_many(void **state)
{
    struct layer_trial *t = draw_memory("hcam:chunk=2,top=2,heads=2", "x=2x7x8 keys=2x12x8 contents=2x12x2x8");
    double *x, *all;
    (void)state;

    layer_trial_forward(t);
    all = numbers_of(t);
    x = trial_zeros(7 * 16, sizeof *x);
    memcpy(x, layer_trial_data(t, "x"), 7 * 16 * sizeof *x);
    for (int i = 0; i < 7; i++) {
        double one[16];
        for (int n = 0; n < 16; n++)
            one[n] = x[(n / 8 * 7 + i) * 8 + n % 8];
        layer_trial_give(t, "x", one, 0, LAYER_DIMS(2, 1, 8));
        layer_trial_forward(t);
        for (int n = 0; n < 16; n++)
            assert_float_equal(((float *)t->output[0].tensor.data)[n], all[(n / 8 * 7 + i) * 8 + n % 8], TOLERANCE);
    }
    free(x);
    free(all);
    layer_trial_close(t);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec;
        fv_status status;
        const char *words;
    } wrong[] = {
        {"hcam:chunk=2,heads=3", FV_E_SHAPE, "3 heads do not divide 8 channels"},
        {"hcam:chunk=3,heads=2", FV_E_SHAPE, "'contents': expected [B, Mc, Cn, E] = [1,2,3,8], got [1,2,2,8]"},
    };
    struct layer_trial *t = draw_memory("hcam:chunk=2,heads=2", "x=1x3x8 keys=1x2x8 contents=1x2x2x8");
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        assert_ok(fv_layer_new(wrong[n].spec, &layer));
        assert_fails(fv_layer_forward(t->ctx, layer, &t->args), wrong[n].status, wrong[n].words);
        fv_layer_free(layer);
    }
    layer_trial_close(t);
    t = layer_trial_drawn(
        "hcam:chunk=2,heads=1,position=0",
        "x=1x1x5 keys=1x1x5 contents=1x1x2x5 summary_q_weight=5x5 summary_k_weight=5x5 q_weight=5x5 k_weight=5x5 "
        "v_weight=5x5 out_weight=5x5");
    assert_ok(fv_layer_new("hcam:chunk=2,heads=1", &layer));
    assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, "expected an even number of channels, got 5");
    fv_layer_free(layer);
    layer_trial_close(t);
    assert_fails(fv_layer_new("hcam:top=0", &layer), FV_E_USAGE, "top");
    assert_fails(fv_layer_new("hcma", &layer), FV_E_USAGE, "did you mean 'hcam'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_a_softmax_over_the_chosen),
        cmocka_unit_test(positions_count_down),
        cmocka_unit_test(all_alike_are_a_mean),
        cmocka_unit_test(order_matters_within_chunks_only),
        cmocka_unit_test(hidden_chunks_do_not_matter),
        cmocka_unit_test(few_queries_are_like_many),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
