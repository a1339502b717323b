/* na_qk and na_av: worked numbers, and that with a softmax between them they are the mechanism na. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/layer_trial.h"

static void expect(const struct layer_trial *t, const double *expected, int count)
{
    for (int n = 0; n < count; n++)
        if (!(layer_trial_at(t, 0, n) == expected[n]) && !(fabs(layer_trial_at(t, 0, n) - expected[n]) <= 1e-6))
            fail_msg("%s: number %d: expected %g, got %g", t->what, n, expected[n], layer_trial_at(t, 0, n));
}

static const double counting[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

/* Sums of values j by these weights for each of the queries. */
static struct layer_trial *sum_places(const char *spec, const char *device, int N, int W, const double *weights)
{
    struct layer_trial *t = layer_trial_open(spec, device, 1);
    double *a = trial_zeros(N * W, sizeof *a);

    for (int n = 0; n < N * W; n++)
        a[n] = weights[n % W];
    layer_trial_give(t, "a", a, 0, LAYER_DIMS(1, 1, N, W));
    layer_trial_give(t, "v", counting, 0, LAYER_DIMS(1, 1, N, 1));
    layer_trial_forward(t);
    free(a);
    return t;
}

/* Even weights give the middles of windows, and those of one slot what stands in it. */
static void windows_by_hand(void **state)
{
    static const struct {
        const char *spec;
        int N, W;
        double weights[6], expected[12];
    } cases[] = {
        {"na_av:grid=8,window=3", 8, 3, {1 / 3., 1 / 3., 1 / 3.}, {1, 1, 2, 3, 4, 5, 6, 6}},
        {"na_av:grid=8,window=3", 8, 3, {1, 0, 0}, {0, 0, 1, 2, 3, 4, 5, 5}},
        {"na_av:grid=8,window=3,dilation=2", 8, 3, {1, 0, 0}, {0, 1, 0, 1, 2, 3, 2, 3}},
        {"na_av:grid=8,window=3,dilation=2", 8, 3, {0, 0, 1}, {4, 5, 4, 5, 6, 7, 6, 7}},
        {"na_av:grid=8,window=4", 8, 4, {1, 0, 0, 0}, {0, 0, 0, 1, 2, 3, 4, 4}},
        {"na_av:grid=5,window=3,causal=1", 5, 3, {1, 0, 0}, {0, 0, 0, 1, 2}},
        {"na_av:grid=5,window=3,causal=1", 5, 3, {0, 0, 1}, {0, 0, 2, 3, 4}}, /* the first two have no third slot */
        {"na_av:grid=3x4,window=2x3", 12, 6, {0, 0, 0, 1, 0, 0}, {4, 4, 5, 5, 4, 4, 5, 5, 8, 8, 9, 9}},
    };
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct layer_trial *t =
                sum_places(cases[n].spec, test_devices[d], cases[n].N, cases[n].W, cases[n].weights);
            expect(t, cases[n].expected, cases[n].N);
            layer_trial_close(t);
        }
}

/* Keys j and queries 1: logits name the key of each slot. */
static void causal_slots_end_with_infinity(void **state)
{
    static const double ones[] = {1, 1, 1, 1, 1};
    static const double expected[] = {0, -INFINITY, -INFINITY, 0, 2, -INFINITY, 0, 2, 4, 2, 4, 6, 4, 6, 8};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("na_qk:grid=5,window=3,causal=1,scale=2", test_devices[d], 1);
        layer_trial_give(t, "q", ones, 0, LAYER_DIMS(1, 1, 5, 1));
        layer_trial_give(t, "k", counting, 0, LAYER_DIMS(1, 1, 5, 1));
        layer_trial_forward(t);
        expect(t, expected, 15);
        layer_trial_close(t);
    }
}

/* The bias of each slot is that of its offset: w - 1 + j - i, in steps of the dilation. */
static void bias_goes_by_offset(void **state)
{
    static const double zeros[8] = {0}, rpb[] = {10, 11, 12, 13, 14};
    static const double expected[] = {12, 13, 14, 11, 12, 13, 11, 12, 13, 10, 11, 12};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("na_qk:grid=8,window=3,dilation=2", test_devices[d], 1);
        layer_trial_give(t, "q", zeros, 0, LAYER_DIMS(1, 1, 8, 1));
        layer_trial_give(t, "k", zeros, 0, LAYER_DIMS(1, 1, 8, 1));
        layer_trial_give(t, "rpb", rpb, 0, LAYER_DIMS(1, 5));
        layer_trial_forward(t);
        for (int i = 0; i < 8; i++)
            for (int slot = 0; slot < 3; slot++)
                assert_true(layer_trial_at(t, 0, i * 3 + slot) == expected[i / 2 * 3 + slot]);
        layer_trial_close(t);
    }
}

/* Weights of -inf count 0, and so do slots behind a causal window's end, whatever stands there or is its value. */
static void what_does_not_count_does_no_harm(void **state)
{
    static const double a[] = {1, NAN, INFINITY, 1, 1, NAN, 1, -INFINITY, 1, 2, 3, -INFINITY},
                        v[] = {1, 2, 4, INFINITY};
    static const double expected[] = {1, 3, 5, 2 * 2 + 3 * 4};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct layer_trial *t = layer_trial_open("na_av:grid=4,window=3,causal=1", test_devices[d], 1);
        fv_named_tensor d_o, d_a, d_v;
        layer_trial_give(t, "a", a, 0, LAYER_DIMS(1, 1, 4, 3));
        layer_trial_give(t, "v", v, 0, LAYER_DIMS(1, 1, 4, 1));
        layer_trial_define(t);
        assert_ok(fv_layer_forward(t->ctx, t->layer, &t->args));
        expect(t, expected, 4);
        d_o = (fv_named_tensor){"o", test_random(t->ctx, 1, FV_DIMS(1, 1, 4, 1))};
        d_a = (fv_named_tensor){"a", test_random(t->ctx, 1, FV_DIMS(1, 1, 4, 3))};
        d_v = (fv_named_tensor){"v", test_random(t->ctx, 1, FV_DIMS(1, 1, 4, 1))};
        assert_ok(fv_layer_backward(
            t->ctx, t->layer, &t->args,
            &(fv_layer_grads){.outputs = 1, .d_output = &d_o, .inputs = 2, .d_input = (fv_named_tensor[]){d_a, d_v}}));
        for (int n = 0; n < 12; n++) {
            bool used = n % 3 <= n / 3 && !isinf(a[n]);
            double j = n / 3 < 3 ? v[n % 3] : v[n % 3 + 1];
            assert_float_equal(((float *)d_a.tensor.data)[n], used ? ((float *)d_o.tensor.data)[n / 3] * j : 0, 1e-6);
        }
        assert_true(((float *)d_v.tensor.data)[3] == 0);
        layer_trial_close(t);
    }
}

/* ---- the mechanism ---------------------------------------------------------------------------------------------- */

enum { B = 2, H = 4, HKV = 2, D = 5, DV = 6 };

/* Both operators, and what goes between them. */
struct pair {
    fv_ctx *ctx;
    fv_layer *qk, *av;
    fv_named_tensor qk_in[2], rpb, a, av_in[2], o;
    fv_layer_args qk_args, av_args;
};

static fv_named_tensor draw(fv_ctx *ctx, const char *name, int rank, const int64_t *dims)
{
    return (fv_named_tensor){name, test_random(ctx, 1, rank, dims)};
}

static void open_pair(struct pair *p, const char *device, const char *options, float scale, int64_t N, int rank,
                      const int64_t *bias)
{
    char spec[160];
    fv_tensor shape;

    *p = (struct pair){.ctx = test_ctx(device, 2)};
    snprintf(spec, sizeof spec, "na_qk:%s,scale=%.9g", options, (double)scale);
    assert_ok(fv_layer_new(spec, &p->qk));
    snprintf(spec, sizeof spec, "na_av:%s", options);
    assert_ok(fv_layer_new(spec, &p->av));
    p->qk_in[0] = draw(p->ctx, "q", FV_DIMS(B, H, N, D));
    p->qk_in[1] = draw(p->ctx, "k", FV_DIMS(B, HKV, N, D));
    p->av_in[1] = draw(p->ctx, "v", FV_DIMS(B, HKV, N, DV));
    p->o = draw(p->ctx, "o", FV_DIMS(B, H, N, DV));
    if (rank > 0) p->rpb = draw(p->ctx, "rpb", rank, bias);
    p->qk_args = (fv_layer_args){
        .inputs = 2, .input = p->qk_in, .params = rank > 0, .param = &p->rpb, .outputs = 1, .output = &p->a};
    assert_ok(fv_layer_output(p->qk, &p->qk_args, "a", &shape));
    p->a = draw(p->ctx, "a", 4, shape.dims);
    p->av_in[0] = draw(p->ctx, "a", 4, shape.dims);
    p->av_args = (fv_layer_args){.inputs = 2, .input = p->av_in, .outputs = 1, .output = &p->o};
}

static void close_pair(struct pair *p)
{
    fv_layer_free(p->qk);
    fv_layer_free(p->av);
    fv_ctx_free(p->ctx);
}

static void run_pair(struct pair *p)
{
    assert_ok(fv_layer_forward(p->ctx, p->qk, &p->qk_args));
    assert_ok(fv_softmax(p->ctx, &(fv_softmax_args){.x = p->a.tensor, .out = p->av_in[0].tensor}));
    assert_ok(fv_layer_forward(p->ctx, p->av, &p->av_args));
}

/* d_a of the softmax, in the place of d_p: P (d_p - sum P d_p). */
static void softmax_back(const fv_tensor *p, const fv_tensor *d_p)
{
    int64_t W = p->dims[3];

    for (int64_t row = 0; row < fv_tensor_count(p) / W; row++) {
        const float *x = (float *)p->data + row * W;
        float *d = (float *)d_p->data + row * W;
        double sum = 0;
        for (int64_t t = 0; t < W; t++)
            sum += (double)x[t] * d[t];
        for (int64_t t = 0; t < W; t++)
            d[t] = (float)(x[t] * (d[t] - sum));
    }
}

static void same(const char *what, const fv_tensor *got, const fv_tensor *expected, double tolerance)
{
    double *numbers = trial_doubled(expected);

    test_close(what, got, numbers, tolerance);
    free(numbers);
}

/* Results, and gradients for one d_o, of the pair and of na. */
static void compare(struct pair *p, const char *options, const float *scale)
{
    const fv_tensor *q = &p->qk_in[0].tensor, *k = &p->qk_in[1].tensor, *v = &p->av_in[1].tensor;
    int64_t N = q->dims[2], W = p->a.tensor.dims[3];
    bool biased = fv_present(&p->rpb.tensor);
    double tolerance = 16 * FLT_EPSILON * (double)(W + D + DV);
    fv_named_tensor d_o = draw(p->ctx, "o", FV_DIMS(B, H, N, DV)), d_rpb = p->rpb, d_na = p->rpb, d_in[4];
    fv_attention *na;
    fv_attention_args args = {.q = *q, .k = *k, .v = *v, .scale = scale, .params = biased, .param = &p->rpb};
    fv_attention_grads grads = {.d_o = d_o.tensor, .params = biased, .d_param = &d_na};
    char spec[160];

    snprintf(spec, sizeof spec, "na:%s", options);
    assert_ok(fv_attention_new(spec, &na));
    assert_ok(fv_tensor_new(p->ctx, &args.o, FV_F32, 4, p->o.tensor.dims));
    assert_ok(fv_tensor_new(p->ctx, &grads.d_q, FV_F32, 4, q->dims));
    assert_ok(fv_tensor_new(p->ctx, &grads.d_k, FV_F32, 4, k->dims));
    assert_ok(fv_tensor_new(p->ctx, &grads.d_v, FV_F32, 4, v->dims));
    if (biased) assert_ok(fv_tensor_new(p->ctx, &d_na.tensor, FV_F32, d_na.tensor.rank, p->rpb.tensor.dims));
    if (biased) assert_ok(fv_tensor_new(p->ctx, &d_rpb.tensor, FV_F32, d_na.tensor.rank, p->rpb.tensor.dims));
    assert_ok(fv_attention_backward(p->ctx, na, &args, &grads));
    fv_attention_free(na);
    same(options, &p->o.tensor, &args.o, tolerance);

    d_in[0] = draw(p->ctx, "a", 4, p->a.tensor.dims);
    d_in[1] = draw(p->ctx, "v", 4, v->dims);
    d_in[2] = draw(p->ctx, "q", 4, q->dims);
    d_in[3] = draw(p->ctx, "k", 4, k->dims);
    assert_ok(fv_layer_backward(
        p->ctx, p->av, &p->av_args,
        &(fv_layer_grads){
            .outputs = 1, .d_output = &d_o, .inputs = 2, .d_input = (fv_named_tensor[]){d_in[0], d_in[1]}}));
    softmax_back(&p->av_in[0].tensor, &d_in[0].tensor);
    assert_ok(fv_layer_backward(p->ctx, p->qk, &p->qk_args,
                                &(fv_layer_grads){.outputs = 1,
                                                  .d_output = &d_in[0],
                                                  .inputs = 2,
                                                  .d_input = &d_in[2],
                                                  .params = biased,
                                                  .d_param = &d_rpb}));
    tolerance *= 8; /* of sums over the queries and heads that read a key */
    same("d_v", &d_in[1].tensor, &grads.d_v, tolerance);
    same("d_q", &d_in[2].tensor, &grads.d_q, tolerance);
    same("d_k", &d_in[3].tensor, &grads.d_k, tolerance);
    if (biased) same("d_rpb", &d_rpb.tensor, &d_na.tensor, tolerance * (double)N / 8); /* over all queries */
}

static void with_a_softmax_they_are_na(void **state)
{
    static const struct {
        const char *options;
        int64_t N;
        int rank;
        int64_t bias[4];
    } cases[] = {
        {"grid=29,window=5", 29, 2, {H, 9}},
        {"grid=30,window=3,dilation=4", 30, 2, {H, 5}},
        {"grid=7x8,window=3x5", 56, 3, {H, 5, 9}},
        {"grid=3x5x4,window=3", 60, 4, {H, 5, 5, 5}},
        {"grid=6x7,window=4x2,causal=1x0", 42, 0, {0}},
        {"grid=33,window=6,dilation=2,causal=1", 33, 0, {0}},
        {"grid=70,window=0", 70, 0, {0}},
        {"grid=1,window=1", 1, 2, {H, 1}},
    };
    const float scale = 0.6f;
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct pair p;
            open_pair(&p, test_devices[d], cases[n].options, scale, cases[n].N, cases[n].rank, cases[n].bias);
            run_pair(&p);
            compare(&p, cases[n].options, &scale);
            close_pair(&p);
        }
}

/* The gradient of na_av for its weights is na_qk of d_o and values. */
static void gradient_of_sums_is_the_product(void **state)
{
    struct pair p;
    fv_named_tensor d_o, d_a, dots, in[2];
    fv_layer *qk;
    (void)state;

    open_pair(&p, "cpu", "grid=6x7,window=4x3,dilation=1x2,causal=1x0", 1, 42, 0, NULL);
    d_o = draw(p.ctx, "o", FV_DIMS(B, H, 42, DV));
    d_a = draw(p.ctx, "a", 4, p.a.tensor.dims);
    dots = draw(p.ctx, "a", 4, p.a.tensor.dims);
    in[0] = (fv_named_tensor){"q", d_o.tensor};
    in[1] = (fv_named_tensor){"k", p.av_in[1].tensor};
    assert_ok(fv_layer_backward(
        p.ctx, p.av, &p.av_args,
        &(fv_layer_grads){.outputs = 1, .d_output = &d_o, .inputs = 1, .d_input = (fv_named_tensor[]){d_a}}));
    assert_ok(fv_layer_new("na_qk:grid=6x7,window=4x3,dilation=1x2,causal=1x0", &qk));
    assert_ok(fv_layer_forward(p.ctx, qk, &(fv_layer_args){.inputs = 2, .input = in, .outputs = 1, .output = &dots}));
    fv_layer_free(qk);
    for (int64_t n = 0; n < fv_tensor_count(&dots.tensor); n++) {
        float dot = ((float *)dots.tensor.data)[n];
        assert_true(((float *)d_a.tensor.data)[n] == (isinf(dot) ? 0 : dot));
    }
    close_pair(&p);
}

/* A bias for all offsets alike changes nothing; one that leaves only the query's own key gives its value. */
static void biases_that_say_who_is_read(void **state)
{
    struct pair p;
    double *before;
    (void)state;

    open_pair(&p, "cpu", "grid=7x8,window=3x5,dilation=2x1", 1, 56, 3, (const int64_t[]){H, 5, 9});
    for (int n = 0; n < H * 45; n++)
        ((float *)p.rpb.tensor.data)[n] = 0;
    run_pair(&p);
    before = trial_doubled(&p.o.tensor);
    for (int n = 0; n < H * 45; n++)
        ((float *)p.rpb.tensor.data)[n] = (float)(n / 45);
    run_pair(&p);
    test_close("one bias for all", &p.o.tensor, before, 1e-5);
    for (int n = 0; n < H * 45; n++)
        ((float *)p.rpb.tensor.data)[n] = n % 45 == 22 ? 0 : -INFINITY;
    run_pair(&p);
    for (int64_t n = 0; n < fv_tensor_count(&p.o.tensor); n++) {
        int64_t head = n / (56 * DV), place = n % (56 * DV);
        assert_true(((float *)p.o.tensor.data)[n] ==
                    ((float *)p.av_in[1].tensor.data)[head / (H / HKV) * 56 * DV + place]);
    }
    free(before);
    close_pair(&p);
}

static void wrong_calls_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"na_qk:window=3", "'grid' must be given"},
        {"na_qk:grid=8", "'window' must be given"},
        {"na_qk:grid=8,window=9", "na_qk: axis 0: window 9"},
        {"na_av:grid=8,window=3,dilation=3", "na_av: axis 0: window 3 x dilation 3"},
        {"na_av:grid=8x8,window=3x3x3", "expected 1 or 2 items"},
        {"na_av:grid=2x2x2x2,window=2", "1 to 3 axes"},
        {"na_qk:grid=8,window=3,causal=2", "causal"},
        {"na_qk:grid=8,window=3,stride=2", "'stride' is not known"},
        {"na_qk:grid=8,window=3,impl=gemm", "'impl' is not known"},
        {"na_qk:grid=8,window=3,scale=nan", "scale"},
        {"na_av:grid=8,window=3,scale=1", "'scale' is not known"},
    };
    static const struct {
        const char *spec;
        int rank;
        int64_t bias[3];
        fv_status status;
        const char *words;
    } biased[] = {
        {"na_qk:grid=3x4,window=3x4",
         3,
         {H, 5, 7},
         FV_E_USAGE,
         "needs odd windows and no causal axis; axis 1: window 4"},
        {"na_qk:grid=3x4,window=3,causal=0x1", 3, {H, 5, 5}, FV_E_USAGE, "axis 1: window 3, causal"},
        {"na_qk:grid=3x4,window=3", 3, {H, 5, 7}, FV_E_SHAPE, "got [4,5,7]"},
        {"na_qk:grid=3x4,window=3", 2, {H, 5}, FV_E_SHAPE, "expected 2 axes after the heads"},
        {"na_qk:grid=3x4,window=3", 3, {HKV, 5, 5}, FV_E_SHAPE, "got [2,5,5]"},
    };
    struct pair p;
    fv_layer *layer;
    (void)state;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++)
        assert_fails(fv_layer_new(wrong[n].spec, &layer), FV_E_USAGE, wrong[n].words);
    open_pair(&p, "cpu", "grid=3x4,window=3", 1, 12, 0, NULL);
    p.qk_args.params = 1;
    for (size_t n = 0; n < sizeof biased / sizeof *biased; n++) {
        fv_tensor shape;
        p.rpb = draw(p.ctx, "rpb", biased[n].rank, biased[n].bias);
        assert_ok(fv_layer_new(biased[n].spec, &layer));
        assert_fails(fv_layer_output(layer, &p.qk_args, "a", &shape), biased[n].status, biased[n].words);
        fv_layer_free(layer);
    }
    p.qk_args.params = 0;
    p.qk_in[1] = draw(p.ctx, "k", FV_DIMS(B, 3, 12, D));
    assert_fails(fv_layer_forward(p.ctx, p.qk, &p.qk_args), FV_E_SHAPE, "got 3 and 4");
    assert_ok(fv_layer_new("na_av:grid=99999999x99999999x9999999,window=0", &layer));
    assert_fails(fv_layer_forward(p.ctx, layer, &p.av_args), FV_E_SHAPE, "input 'a': expected");
    fv_layer_free(layer);
    close_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_by_hand),
        cmocka_unit_test(causal_slots_end_with_infinity),
        cmocka_unit_test(bias_goes_by_offset),
        cmocka_unit_test(what_does_not_count_does_no_harm),
        cmocka_unit_test(with_a_softmax_they_are_na),
        cmocka_unit_test(gradient_of_sums_is_the_product),
        cmocka_unit_test(biases_that_say_who_is_read),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
