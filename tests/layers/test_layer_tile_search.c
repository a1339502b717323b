/* tile_search: worked numbers, the rules of the search, and the layer plan it decides on. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "support/layer_trial.h"

enum { REFS, ERRORS };

static int refs_of(const struct layer_trial *t, int layer)
{
    return ((int32_t *)t->output[REFS].tensor.data)[layer];
}

/* Queries of 0, so that rows are means of values: v [L,1,N,1]. */
static struct layer_trial *means(const char *spec, const char *device, int L, int N, const double *v)
{
    struct layer_trial *t = layer_trial_open(spec, device, 2);
    double *zeros = trial_zeros(L * N, sizeof *zeros);

    layer_trial_give(t, "q", zeros, 0, LAYER_DIMS(L, 1, N, 1));
    layer_trial_give(t, "k", zeros, 0, LAYER_DIMS(L, 1, N, 1));
    layer_trial_give(t, "v", v, 0, LAYER_DIMS(L, 1, N, 1));
    layer_trial_forward(t);
    free(zeros);
    return t;
}

/* Values 0 1 2 3 of four frames, 3/2 on the whole.  R = {0}: frames 1 2 3 read 1/2 1 3/2; R = {0, 2}: 1 and 3 read 1
 * and 5/3.  The least that a threshold lets through, itself included. */
static void errors_and_thresholds_by_hand(void **state)
{
    static const struct {
        const char *spec;
        int refs;
    } cases[] = {
        {"tile_search:frames=4,family=2+1,threshold=0", 4},      {"tile_search:frames=4,family=2+1,threshold=0.069", 4},
        {"tile_search:frames=4,family=2+1,threshold=0.07", 2},   {"tile_search:frames=4,family=2+1,threshold=0.312", 2},
        {"tile_search:frames=4,family=2+1,threshold=0.3125", 1}, {"tile_search:frames=4,family=2+1,threshold=1e9", 1},
    };
    static const double v[] = {0, 1, 2, 3};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct layer_trial *t = means(cases[n].spec, test_devices[d], 1, 4, v);
            assert_float_equal(layer_trial_at(t, ERRORS, 0), (1 / 4. + 1 / 36.) / 4, 1e-7);
            assert_true(layer_trial_at(t, ERRORS, 1) == (1 + 1 / 4.) / 4);
            if (refs_of(t, 0) != cases[n].refs)
                fail_msg("%s: expected %d, got %d", cases[n].spec, cases[n].refs, refs_of(t, 0));
            layer_trial_close(t);
        }
}

/* Without values no mask makes a difference, and 0 is no more than a threshold of 0.  All frames are never wrong. */
static void nothing_is_no_more_than_nothing(void **state)
{
    static const double v[4] = {0}, apart[] = {0, 1, 2, 9};
    struct layer_trial *t = means("tile_search:frames=4,family=4+3+1+2,threshold=0", "cpu", 1, 4, v);
    (void)state;

    assert_int_equal(refs_of(t, 0), 1);
    layer_trial_close(t);
    t = means("tile_search:frames=4,family=4+3,threshold=0", "cpu", 1, 4, apart);
    assert_int_equal(refs_of(t, 0), 4);
    assert_true(layer_trial_at(t, ERRORS, 0) == 0 && layer_trial_at(t, ERRORS, 1) > 0);
    layer_trial_close(t);
}

/* Values 0 1 1 2 1 1, 1 on the whole.  R = {0, 3}: everybody else reads 1 as well; {0, 2, 4}: frames 1 and 5 read 3/4.
 * Sets of references are not nested, and more of them may be worse: the fewest that do are taken, in whatever order the
 * family is, and alone (the search ends there) as beside all errors. */
static void the_fewest_are_taken_in_any_order(void **state)
{
    static const char *const specs[] = {"tile_search:frames=6,family=1+2+3,threshold=0.01",
                                        "tile_search:frames=6,family=3+1+2,threshold=0.01",
                                        "tile_search:frames=6,family=2+3+1,threshold=0.01"};
    static const double v[] = {0, 1, 1, 2, 1, 1}, expected[] = {4 / 24., 0, 2 / 96.};
    static const int place[][3] = {{0, 1, 2}, {1, 2, 0}, {2, 0, 1}}; /* of 1, 2 and 3 */
    (void)state;

    for (int n = 0; n < 3; n++) {
        struct layer_trial *t = means(specs[n], "cpu", 1, 6, v);
        fv_layer_args alone = t->args;
        for (int k = 0; k < 3; k++)
            assert_float_equal(layer_trial_at(t, ERRORS, place[n][k]), expected[k], 1e-7);
        assert_int_equal(refs_of(t, 0), 2);
        alone.outputs = 1;
        ((int32_t *)t->output[REFS].tensor.data)[0] = 77;
        assert_ok(fv_layer_forward(t->ctx, t->layer, &alone));
        assert_int_equal(refs_of(t, 0), 2);
        layer_trial_close(t);
    }
}

/* Errors are the mean squares between frame_tile and dense, as these mechanisms compute them. */
static void errors_are_those_of_frame_tile(void **state)
{
    struct layer_trial *t =
        layer_trial_open("tile_search:frames=6,family=1+2+3,threshold=0.01,text=3,block=4", "cpu", 2);
    const fv_tensor *q, *k, *v;
    (void)state;

    layer_trial_draw(t, "q=3x4x33x5 k=3x2x33x5 v=3x2x33x7");
    layer_trial_forward(t);
    q = &t->input[0].tensor, k = &t->input[1].tensor, v = &t->input[2].tensor;
    for (int n = 0; n < 9; n++) {
        fv_attention_args args = {
            .q = fv_slice(q, 0, n / 3, 1), .k = fv_slice(k, 0, n / 3, 1), .v = fv_slice(v, 0, n / 3, 1)};
        double *o[2], sum = 0;
        assert_ok(fv_tensor_new(t->ctx, &args.o, FV_F32, FV_DIMS(1, 4, 33, 7)));
        assert_ok(fv_layer_attend(t->ctx, &args, "dense"));
        o[0] = trial_doubled(&args.o);
        assert_ok(fv_layer_attend(t->ctx, &args, "frame_tile:frames=6,refs=%d,text=3,block=4", n % 3 + 1));
        o[1] = trial_doubled(&args.o);
        for (int i = 0; i < 4 * 33 * 7; i++)
            sum += pow(o[1][i] - o[0][i], 2) / (4 * 33 * 7);
        assert_float_equal(layer_trial_at(t, ERRORS, n), sum, 1e-5 * sum);
        free(o[0]);
        free(o[1]);
    }
    layer_trial_close(t);
}

/* What is not a number is not near. */
static void what_is_no_number_stays_dense(void **state)
{
    static const double v[] = {0, 1, 2, NAN, 0, 0, 0, 0};
    struct layer_trial *t = layer_trial_open("tile_search:frames=4,family=1+2,threshold=1e9", "cpu", 2);
    static const double zeros[8] = {0};
    (void)state;

    layer_trial_give(t, "q", zeros, 0, LAYER_DIMS(2, 1, 4, 1));
    layer_trial_give(t, "k", zeros, 0, LAYER_DIMS(2, 1, 4, 1));
    layer_trial_give(t, "v", v, 0, LAYER_DIMS(2, 1, 4, 1));
    layer_trial_define(t);
    assert_ok(fv_layer_forward(t->ctx, t->layer, &t->args));
    assert_int_equal(refs_of(t, 0), 4);
    assert_true(isnan(layer_trial_at(t, ERRORS, 0)) && isnan(layer_trial_at(t, ERRORS, 1)));
    assert_int_equal(refs_of(t, 1), 1);
    layer_trial_close(t);
}

/* Layers that follow each other and agree are one range; each SPEC is one that an attention is made of. */
static void plans_are_layer_plans(void **state)
{
    static const struct {
        const char *spec, *plan;
    } cases[] = {
        {"tile_search:frames=4,family=1+2,threshold=0.07",
         "0-1/frame_tile:frames=4,refs=1;2/frame_tile:frames=4,refs=2;3/dense;4/frame_tile:frames=4,refs=1"},
        {"tile_search:frames=2,family=1,threshold=9,text=2,block=3", "0-4/frame_tile:frames=2,refs=1,text=2,block=3"},
        {"tile_search:frames=4,family=4,threshold=0", "0-4/dense"},
    };
    static const double v[] = {5, 5, 5, 5, 0, 0, 0, 0, 0, 1, 2, 3, 0, 3, 6, 9, 1, 1, 1, 1};
    (void)state;

    for (int outputs = REFS; outputs <= ERRORS; outputs++) /* whichever is asked for */
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct layer_trial *t = means(cases[n].spec, "cpu", 5, 4, v);
            fv_layer_args one = t->args;
            fv_layer_plan plan;
            fv_text text = {0};
            one.outputs = 1;
            one.output = &t->output[outputs];
            assert_ok(fv_layer_decide(t->ctx, t->layer, &one, &text));
            assert_string_equal(fv_text_get(&text), cases[n].plan);
            assert_ok(fv_layer_plan_parse(&plan, fv_text_get(&text), 5));
            for (int layer = 0; layer < 5; layer++) {
                fv_attention *attention;
                assert_ok(fv_attention_from(fv_layer_plan_at(&plan, layer), &attention));
                fv_attention_free(attention);
            }
            fv_layer_plan_free(&plan);
            fv_text_free(&text);
            layer_trial_close(t);
        }
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] =
        {
            {"tile_search:family=1,threshold=0", "'frames' must be given"},
            {"tile_search:frames=4,threshold=0", "'family' must be given"},
            {"tile_search:frames=4,family=1", "'threshold' must be given"},
            {"tile_search:frames=4,family=1+5,threshold=0", "expected at most the frames, 4, got 5"},
            {"tile_search:frames=4,family=0,threshold=0", "family"},
            {"tile_search:frames=4,family=1,threshold=-1", "threshold"},
            {"tile_search:frames=4,family=1,threshold=nan", "threshold"},
            {"tile_search:frames=4,family=1,threshold=0,refs=1", "'refs' is not known"},
        },
      unfit[] = {
          {"tile_search:frames=3,family=1,threshold=0",
           "expected 3 frames of equal length and 0 tokens of text, got 4"},
          {"tile_search:frames=3,family=3,threshold=0", "expected 3 frames of equal length"},
          {"tile_search:frames=1,family=1,threshold=0,text=4",
           "expected 1 frames of equal length and 4 tokens of text"},
      };
    static const double v[4] = {0};
    struct layer_trial *t = means("tile_search:frames=4,family=1,threshold=0", "cpu", 1, 4, v);
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    for (size_t n = 0; n < sizeof unfit / sizeof *unfit; n++) {
        assert_ok(fv_layer_new(unfit[n].spec, &layer));
        assert_fails(fv_layer_forward(t->ctx, layer, &t->args), FV_E_SHAPE, unfit[n].words);
        fv_layer_free(layer);
    }
    layer_trial_give(t, "k", NULL, 0, LAYER_DIMS(1, 2, 4, 1));
    layer_trial_give(t, "v", NULL, 0, LAYER_DIMS(1, 2, 4, 1));
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_SHAPE, "got 2 and 1");
    layer_trial_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_and_thresholds_by_hand),     cmocka_unit_test(nothing_is_no_more_than_nothing),
        cmocka_unit_test(the_fewest_are_taken_in_any_order), cmocka_unit_test(errors_are_those_of_frame_tile),
        cmocka_unit_test(what_is_no_number_stays_dense),     cmocka_unit_test(plans_are_layer_plans),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
