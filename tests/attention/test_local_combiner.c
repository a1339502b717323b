/* Combiner: the worked numbers of its definition, and what must hold. */
#include <math.h>
#include <string.h>

#include "support/beside.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 1e-5

/* Queries of 0, and the weights of all tokens as the result. */
static struct twin *weights_of(int64_t N)
{
    struct twin *f = twin_make(1, 1, 1, N, N, 2, N);

    memset(f->q, 0, (size_t)(2 * N) * sizeof *f->q);
    for (int64_t n = 0; n < N * N; n++)
        f->v[n] = n / N == n % N;
    return f;
}

/* With values 0, 1, 2 .. */
static double mean_of(const struct twin *f, int64_t i)
{
    double sum = 0;

    for (int64_t j = 0; j < f->call.N; j++)
        sum += (double)j * f->o[i * f->call.N + j];
    return sum;
}

static void spans_have_their_worked_numbers(void **unused)
{
    static const double fixed[] = {0, .5, 1.25, 11 / 6.0, 14 / 6.0, 3},
                        powers[] = {0, .5, 1.25, 11 / 6.0, 2.75, 3.5, 4, 4.75};
    struct twin *f = weights_of(6), *g = weights_of(8);

    (void)unused;
    f->call.causal = true;
    twin_set(f, "segment", 1, 2);
    beside_forward(f, "combiner:segment=2");
    for (int i = 0; i < 6; i++) {
        double mean = mean_of(f, i);
        twin_close("fixed", &mean, &fixed[i], 1, TWIN_EXACT);
    }
    twin_set(f, "span_bias", 1, 1);
    beside_forward(f, "combiner:segment=2,span_bias=1");
    for (int i = 0; i < 6; i++) {
        double mean = mean_of(f, i), even = i / 2.0;
        twin_close("fixed, biased", &mean, &even, 1, TWIN_EXACT);
    }
    twin_set(g, "form", 1, 1);
    beside_forward(g, "combiner:form=logn");
    for (int i = 0; i < 8; i++) {
        double mean = mean_of(g, i);
        twin_close("logn", &mean, &powers[i], 1, TWIN_EXACT);
    }
    /* 7 reads itself, {6}, {4, 5} and {0 .. 3}; 4 itself and {0 .. 3} */
    twin_close("logn", g->o + 7 * 8, (double[]){.0625, .0625, .0625, .0625, .125, .125, .25, .25}, 8, TWIN_EXACT);
    twin_close("logn", g->o + 4 * 8, (double[]){.125, .125, .125, .125, .5, 0, 0, 0}, 8, TWIN_EXACT);
    twin_set(g, "span_bias", 1, 1);
    beside_forward(g, "combiner:form=logn,span_bias=1");
    for (int i = 0; i < 8; i++) {
        double mean = mean_of(g, i), even = i / 2.0;
        twin_close("logn, biased", &mean, &even, 1, TWIN_EXACT);
    }
    twin_drop(f);
    twin_drop(g);
}

/* Every token that may be read is, and weights add up to 1; in a mixture of 3 rows of 4 those off the row and column
 * twice. */
static void every_token_has_a_weight_on(fv_ctx *ctx)
{
    static const char *const specs[] = {"combiner:segment=4", "combiner:form=logn",
                                        "combiner:form=axial_mixture,segment=4",
                                        "combiner:form=axial_rowmajor,segment=4"};
    fv_attention_args args = test_specs_args(ctx, 1, 2, 1, 14, 14, 16);

    for (int64_t n = 0; n < 14 * 16; n++)
        ((float *)args.v.data)[n] = n / 16 == n % 16;
    for (int s = 0; s < 5; s++) {
        args.causal = s < 4;
        fv_tensor o = test_specs_forward(ctx, specs[s % 4], &args);
        for (int64_t row = 0; row < 2 * 14; row++) {
            const float *weight = (const float *)o.data + row * 16;
            int64_t seen = args.causal ? row % 14 + 1 : 14;
            double sum = 0;
            for (int64_t j = 0; j < 14; j++) {
                sum += weight[j];
                if (j < seen ? !(weight[j] > 0) : weight[j] != 0)
                    fail_msg("%s: query %d, key %d: weight %g", specs[s % 4], (int)(row % 14), (int)j, weight[j]);
            }
            assert_float_equal(sum, 1, TOLERANCE);
        }
    }
}

static void every_token_has_a_weight(void **unused)
{
    (void)unused;
    test_each_device(every_token_has_a_weight_on);
}

static void limits_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 45, 45, 16);

    test_specs_equal(ctx, "combiner:segment=45", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:segment=100,pool=relu_sum", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:segment=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:segment=1,pool=mean,span_bias=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:form=axial_mixture,segment=45", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:form=axial_mixture,segment=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:form=axial_rowmajor,segment=45", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:form=axial_rowmajor,segment=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner", "combiner:segment=7", &args, 0, 0); /* 7 * 7 >= 45 */
    args.causal = false;
    test_specs_equal(ctx, "combiner:segment=45,own_span=0", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "combiner:segment=1,own_span=0", "dense", &args, 0, TOLERANCE);
}

static void is_dense_at_its_limits(void **unused)
{
    (void)unused;
    test_each_device(limits_on);
}

/* Long segments, longer rows, and steps of decoding that end within them. */
static void long_sequences_agree_with_the_twin(void **unused)
{
    static const char *const specs[] = {"combiner:segment=70", "combiner:form=logn,segment=70",
                                        "combiner:form=axial_mixture,segment=70",
                                        "combiner:form=axial_rowmajor,segment=70"};

    (void)unused;
    for (int form = 0; form < 4; form++) {
        struct twin *f = twin_make(1, 2, 1, 300, 300, 4, 4);
        struct beside l;
        f->call.causal = true;
        f->call.lse = f->lse;
        twin_set(f, "form", 1, form);
        twin_set(f, "segment", 1, 70);
        beside_forward(f, specs[form]);
        l = beside_open(f, specs[form], "cpu");
        assert_ok(fv_attention_decode(l.ctx, l.attention, &l.args));
        test_close(specs[form], &l.args.o, f->o, 2e-5);
        beside_close(&l);
        twin_drop(f);
    }
}

static void what_does_not_fit_is_refused(void **unused)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 4, 2, 12, 12, 8), own = args;
    fv_named_tensor params[] = {{"x", test_random(ctx, 1, FV_DIMS(1, 12, 6))},
                                {"w1", test_random(ctx, 1, FV_DIMS(6, 32))},
                                {"w2", test_random(ctx, 1, FV_DIMS(16, 6))}};
    fv_attention *attention;

    (void)unused;
    test_specs_refused(ctx, "combiner:form=axial_mixture,pool=mean", &args, FV_E_USAGE, "expected max");
    test_specs_refused(ctx, "combiner:row_summary=none", &args, FV_E_USAGE, "needs form=axial_rowmajor");
    test_specs_refused(ctx, "combiner:segment=-1", &args, FV_E_USAGE, "segment");
    test_specs_refused(ctx, "combiner:form=axial_rowmajor,row_summary=proj", &args, FV_E_USAGE, "expected param 'x'");
    args.param = params;
    args.params = 1;
    test_specs_refused(ctx, "combiner", &args, FV_E_USAGE, "param 'x' needs row_summary=proj");
    test_specs_refused(ctx, "combiner:form=axial_rowmajor,row_summary=proj", &args, FV_E_USAGE, "expected param 'w1'");
    args.params = 3;
    test_specs_refused(ctx, "combiner:form=axial_rowmajor,row_summary=proj", &args, FV_E_SHAPE, "got 2 and 4");
    own.q = fv_slice(&args.q, 2, 0, 5);
    own.o = fv_slice(&args.o, 2, 0, 5);
    own.lse.data = NULL;
    test_specs_refused(ctx, "combiner", &own, FV_E_SHAPE, "as many queries as keys");
    args.params = 0;
    assert_ok(fv_attention_new("combiner", &attention));
    assert_fails(fv_attention_decode(ctx, attention, &args), FV_E_USAGE, "need option 'segment'");
    args.causal = false;
    assert_fails(fv_attention_decode(ctx, attention, &args), FV_E_USAGE, "decoding needs causal attention");
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_have_their_worked_numbers), cmocka_unit_test(every_token_has_a_weight),
        cmocka_unit_test(is_dense_at_its_limits),          cmocka_unit_test(long_sequences_agree_with_the_twin),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
