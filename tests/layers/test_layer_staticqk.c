/* fixedmap and staticqk: worked numbers, what their maps depend on, and where they agree with each other and dense. */
#include <math.h>
#include <stdlib.h>

#include "support/layer_trial.h"

#define MATRICES " q_weight=8x8 k_weight=8x8 v_weight=8x8 o_weight=8x8"
enum { B = 3, N = 7, C = 8 };

static void same(const struct layer_trial *t, const double *expected, double tolerance)
{
    for (int64_t n = 0; n < B * N * C; n++)
        if (!(fabs(layer_trial_at(t, 0, n) - expected[n]) <= tolerance * fmax(1, fabs(expected[n]))))
            fail_msg("%s: number %lld: expected %g, got %g", t->what, (long long)n, expected[n],
                     layer_trial_at(t, 0, n));
}

/* Tokens 1 and 3, logits ln 3 s_i s_j of s = 0 1: the second reads them as 1 to 3. */
static void maps_by_hand(void **state)
{
    static const struct {
        const char *spec;
        int rank;
        int64_t dims[3];
        double expected[2];
    } cases[] = {
        {"fixedmap:heads=1", 2, {2, 1}, {1, (1 * 1 + 3 * 3) / 4.}},
        {"fixedmap:heads=1,causal=0", 2, {2, 1}, {2, (1 * 1 + 3 * 3) / 4.}},
        {"staticqk:heads=1", 3, {1, 2, 1}, {1, (1 * 1 + 3 * 3) / 4.}},
        {"staticqk:heads=1,causal=0", 3, {1, 2, 1}, {2, (1 * 1 + 3 * 3) / 4.}},
    };
    static const double x[] = {1, 3}, s[] = {0, 1}, two = 2, half = .5, one = 1, ln3 = 1.0986122886681098;
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct layer_trial *t = layer_trial_open(cases[n].spec, test_devices[d], 1);
            layer_trial_give(t, "x", x, 0, LAYER_DIMS(1, 2, 1));
            layer_trial_give(t, "s", s, 0, cases[n].rank, cases[n].dims);
            layer_trial_give(t, "q_weight", &ln3, 0, LAYER_DIMS(1, 1));
            layer_trial_give(t, "k_weight", &one, 0, LAYER_DIMS(1, 1));
            layer_trial_give(t, "v_weight", &two, 0, LAYER_DIMS(1, 1));
            layer_trial_give(t, "o_weight", &half, 0, LAYER_DIMS(1, 1));
            layer_trial_forward(t);
            assert_float_equal(layer_trial_at(t, 0, 0), cases[n].expected[0], 1e-6);
            assert_float_equal(layer_trial_at(t, 0, 1), cases[n].expected[1], 1e-6);
            layer_trial_close(t);
        }
}

/* Whatever x is, the map is the same: results of a sum are the sum of results. */
static void maps_do_not_depend_on_the_input(void **state)
{
    static const char *const calls[][2] = {{"fixedmap:heads=2,rope_base=10000", "x=3x7x8 s=9x8" MATRICES},
                                           {"staticqk:heads=2,causal=0", "x=3x7x8 s=3x7x8" MATRICES}};
    (void)state;

    for (int n = 0; n < 2; n++) {
        struct layer_trial *t = layer_trial_drawn(calls[n][0], calls[n][1]);
        double *x = layer_trial_data(t, "x"), sum[B * N * C], first[B * N * C];
        for (int i = 0; i < B * N * C; i++) {
            sum[i] = layer_trial_at(t, 0, i);
            first[i] = x[i];
            x[i] = sin(3 * i + 1);
        }
        layer_trial_take_over(t);
        layer_trial_forward(t);
        for (int i = 0; i < B * N * C; i++) {
            sum[i] += layer_trial_at(t, 0, i);
            x[i] += first[i];
        }
        layer_trial_take_over(t);
        layer_trial_forward(t);
        same(t, sum, 1e-5);
        layer_trial_close(t);
    }
}

/* Token 4 changes: of the input, only later results; of the source, no earlier ones. */
static void what_comes_later_is_not_read(void **state)
{
    static const char *const changed[] = {"x", "s"};
    (void)state;

    for (int n = 0; n < 2; n++) {
        struct layer_trial *t = layer_trial_drawn("staticqk:heads=2", "x=3x7x8 s=3x7x8" MATRICES);
        double before[B * N * C], apart = 0;
        for (int i = 0; i < B * N * C; i++)
            before[i] = layer_trial_at(t, 0, i);
        for (int c = 0; c < C; c++)
            layer_trial_data(t, changed[n])[4 * C + c] += 1; /* of the first batch */
        layer_trial_take_over(t);
        layer_trial_forward(t);
        for (int i = 0; i < B * N * C; i++) {
            if (i < 4 * C || i >= N * C)
                assert_true(layer_trial_at(t, 0, i) == before[i]);
            else
                apart = fmax(apart, fabs(layer_trial_at(t, 0, i) - before[i]));
        }
        assert_true(apart > 1e-3);
        layer_trial_close(t);
    }
}

/* One stream for every batch, written out for each; rows of it behind the tokens are not read and have no gradient. */
static void a_fixed_stream_is_static_in_every_batch(void **state)
{
    struct layer_trial *fixed = layer_trial_drawn("fixedmap:heads=4,rope_base=100", "x=3x7x8 s=9x8" MATRICES), *still;
    double expected[B * N * C], source[B * N * C];
    fv_named_tensor d_y = {"y", test_random(fixed->ctx, 1, FV_DIMS(B, N, C))};
    fv_named_tensor d_s = {"s", test_random(fixed->ctx, 1, FV_DIMS(9, C))};
    (void)state;

    for (int i = 0; i < B * N * C; i++) {
        expected[i] = layer_trial_at(fixed, 0, i);
        source[i] = layer_trial_data(fixed, "s")[i % (N * C)];
    }
    still = layer_trial_open("staticqk:heads=4,rope_base=100", "cpu", 2);
    layer_trial_give(still, "x", layer_trial_data(fixed, "x"), 0, LAYER_DIMS(B, N, C));
    layer_trial_give(still, "s", source, 0, LAYER_DIMS(B, N, C));
    for (int w = 0; w < 4; w++) {
        static const char *const names[] = {"q_weight", "k_weight", "v_weight", "o_weight"};
        layer_trial_give(still, names[w], layer_trial_data(fixed, names[w]), 0, LAYER_DIMS(C, C));
    }
    layer_trial_forward(still);
    same(still, expected, 1e-5);
    layer_trial_close(still);

    assert_ok(fv_layer_backward(fixed->ctx, fixed->layer, &fixed->args,
                                &(fv_layer_grads){.outputs = 1, .d_output = &d_y, .inputs = 1, .d_input = &d_s}));
    for (int n = N * C; n < 9 * C; n++)
        assert_true(((float *)d_s.tensor.data)[n] == 0);
    for (int c = 0; c < 2 * C; c++)
        layer_trial_data(fixed, "s")[N * C + c] += 5;
    layer_trial_take_over(fixed);
    layer_trial_forward(fixed);
    for (int i = 0; i < B * N * C; i++)
        assert_true(layer_trial_at(fixed, 0, i) == expected[i]);
    layer_trial_close(fixed);
}

/* With unit matrices and the input as its own source it is dense attention of the input's heads. */
static void its_own_source_makes_it_dense(void **state)
{
    struct layer_trial *t = layer_trial_drawn("staticqk:heads=2", "x=3x7x8 s=3x7x8" MATRICES);
    static const char *const matrices[] = {"q_weight", "k_weight", "v_weight", "o_weight"};
    fv_tensor x, o;
    double *expected;
    (void)state;

    for (int w = 0; w < 4; w++)
        for (int n = 0; n < C * C; n++)
            layer_trial_data(t, matrices[w])[n] = n / C == n % C;
    memcpy(layer_trial_data(t, "s"), layer_trial_data(t, "x"), B * N * C * sizeof(double));
    layer_trial_take_over(t);
    layer_trial_forward(t);
    x = fv_layer_heads(&t->input[0].tensor, 2);
    assert_ok(fv_tensor_new(t->ctx, &o, FV_F32, FV_DIMS(B, N, C)));
    assert_ok(fv_layer_attend(
        t->ctx, &(fv_attention_args){.q = x, .k = x, .v = x, .o = fv_layer_heads(&o, 2), .causal = true}, "dense"));
    expected = trial_doubled(&o);
    same(t, expected, 1e-5);
    free(expected);
    layer_trial_close(t);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] =
        {
            {"fixedmap", "'heads' must be given"},
            {"staticqk", "'heads' must be given"},
            {"staticqk:heads=0", "heads"},
            {"staticqk:heads=2,causal=2", "causal"},
            {"fixedmap:heads=2,rope_base=-1", "rope_base"},
            {"fixedmap:heads=2,base=1", "'base' is not known"},
        },
      unfit[] = {
          {"fixedmap:heads=3", "3 heads do not divide 8 channels (C)"},
          {"fixedmap:heads=8,rope_base=10000", "an even number of channels in a head, got 1"},
          {"staticqk:heads=2", "input 's': expected [B, N, C] = [3,7,8], got [9,8]"},
      };
    struct layer_trial *t = layer_trial_drawn("fixedmap:heads=2", "x=3x7x8 s=9x8" MATRICES);
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    for (size_t n = 0; n < sizeof unfit / sizeof *unfit; n++) {
        assert_ok(fv_layer_new(unfit[n].spec, &layer));
        assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, unfit[n].words);
        fv_layer_free(layer);
    }
    layer_trial_give(t, "s", NULL, 0, LAYER_DIMS(6, C));
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_SHAPE,
                 "at least as many rows as there are tokens, 7");
    layer_trial_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_by_hand),
        cmocka_unit_test(maps_do_not_depend_on_the_input),
        cmocka_unit_test(what_comes_later_is_not_read),
        cmocka_unit_test(a_fixed_stream_is_static_in_every_batch),
        cmocka_unit_test(its_own_source_makes_it_dense),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
