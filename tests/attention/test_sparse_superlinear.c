/* Superlinear attention: worked numbers of its definition, what it is at its limits, and what it refuses. */
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

#include "fovea/attention.h"

enum { N = 61 };

/* One head of one channel, with scale 1. */
static fv_attention_args line(fv_ctx *ctx, int64_t tokens)
{
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 1, tokens, 1)),
                              .k = test_random(ctx, 1, FV_DIMS(1, 1, tokens, 1)),
                              .v = test_random(ctx, 1, FV_DIMS(1, 1, tokens, 1)),
                              .o = test_random(ctx, 1, FV_DIMS(1, 1, tokens, 1))};

    for (int64_t i = 0; i < tokens; i++) {
        ((float *)args.q.data)[i] = 1;
        ((float *)args.k.data)[i] = 0;
        ((float *)args.v.data)[i] = (float)i;
    }
    return args;
}

static void run(fv_ctx *ctx, const char *spec, const fv_attention_args *args)
{
    fv_attention *attention;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_attention_forward(ctx, attention, args));
    fv_attention_free(attention);
}

/* Stripes 5 (score 1) and 0 (score 2) of t = 8, spans [0, 5] and [0, 0]; gates .268941 and .731059. */
static void the_worked_value(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 1);
        fv_attention_args args = line(ctx, 9);
        float o;
        ((float *)args.k.data)[0] = 2;
        ((float *)args.k.data)[5] = 1;
        run(ctx, "superlinear:window_index=1", &args);
        o = ((float *)args.o.data)[8];
        if (!(fabsf(o - 2.178745f) <= 1e-6f)) fail_msg("%s: expected 2.178745, got %.9g", test_devices[d], o);
        run(ctx, "superlinear:window_index=1,anchors=1", &args); /* keys 0, 6, 7, 8 */
        o = ((float *)args.o.data)[8];
        if (!(fabsf(o - 2.021358f) <= 1e-6f)) fail_msg("%s: expected 2.021358, got %.9g", test_devices[d], o);
        fv_ctx_free(ctx);
    }
}

/* Fails unless the last query sees exactly the keys of up to two ranges, ends included. */
static void expect_ranges(fv_ctx *ctx, const char *spec, const fv_attention_args *args, int64_t a, int64_t b, int64_t c,
                          int64_t d)
{
    int64_t tokens = args->k.dims[2];
    fv_attention *attention;
    fv_tensor map;
    void *owned;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_attention_map(ctx, attention, args, &map, &owned));
    for (int64_t j = 0; j < tokens; j++) {
        bool seen = ((const uint8_t *)map.data)[(tokens - 1) * tokens + j];
        if (seen != ((j >= a && j <= b) || (j >= c && j <= d))) fail_msg("%s: key %d: got %d", spec, (int)j, seen);
    }
    fv_release(owned);
    fv_attention_free(attention);
}

/* t = 20, w0 = 1: window 18..20, stripes 17, 12, 5, spans [7,17], [2,12], [0,5]. */
static void the_worked_positions(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = line(ctx, 21);
    float *k = args.k.data;
    (void)state;

    expect_ranges(ctx, "superlinear:window_index=1,anchors=1", &args, 0, 5, 18, 20); /* of equals the farthest */
    expect_ranges(ctx, "superlinear:window_index=1,anchors=2", &args, 0, 12, 18, 20);
    expect_ranges(ctx, "superlinear:window_index=1,anchors=3", &args, 0, 17, 18, 20);
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1,back=0,forward=1", &args, 5, 10, 18, 20);
    k[12] = 1;
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1", &args, 2, 12, 18, 20);
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1,span_align=8", &args, 0, 15, 18, 20);
    k[17] = 2;
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1", &args, 7, 17, 18, 20);
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1,span_align=4", &args, 4, 17, 18, 20); /* not past t - W */
    expect_ranges(ctx, "superlinear:window_index=1,anchors=1,back=0,forward=9", &args, 17, 17, 18, 20);
    expect_ranges(ctx, "superlinear:window_index=0,anchors=1,back=0", &args, 17, 17, 17, 17); /* no window */
    fv_ctx_free(ctx);
}

/* Whatever is searched for, some stripe's span holds every key that is no window's. */
static void no_key_is_out_of_reach(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    (void)state;

    for (int64_t tokens = 2; tokens <= N; tokens += 3) {
        fv_attention_args args = line(ctx, tokens);
        fv_attention *attention;
        uint8_t seen[N] = {0};
        assert_ok(fv_attention_new("superlinear:window_index=1,anchors=1", &attention));
        for (int64_t i = 2; i * i <= tokens; i++) {
            float *k = args.k.data;
            fv_tensor map;
            void *owned;
            k[tokens - i * i] = (float)i; /* the stripe that is best now */
            assert_ok(fv_attention_map(ctx, attention, &args, &map, &owned));
            for (int64_t j = 0; j < tokens; j++)
                seen[j] |= ((const uint8_t *)map.data)[(tokens - 1) * tokens + j];
            fv_release(owned);
        }
        for (int64_t j = 0; j < tokens && tokens > 3; j++)
            if (!seen[j]) fail_msg("%d tokens: key %d is in no span", (int)tokens, (int)j);
        fv_attention_free(attention);
    }
    fv_ctx_free(ctx);
}

/* The last rows of `spec` are those of `other`. */
static void expect_same(fv_ctx *ctx, const char *spec, const char *other, bool causal)
{
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(2, 4, N, 16)),
                              .k = test_random(ctx, 1, FV_DIMS(2, 2, N, 16)),
                              .v = test_random(ctx, 1, FV_DIMS(2, 2, N, 16)),
                              .o = test_random(ctx, 1, FV_DIMS(2, 4, N, 16))};
    int64_t count = fv_tensor_count(&args.o);
    double *expected = calloc((size_t)count, sizeof *expected);

    assert_non_null(expected);
    run(ctx, spec, &args);
    for (int64_t n = 0; n < count; n++)
        expected[n] = (double)((const float *)args.o.data)[n];
    args.causal = causal;
    run(ctx, other, &args);
    test_close(spec, &args.o, expected, 1e-5); /* f32 sums of 61 terms, twice */
    free(expected);
}

static void limits_are_other_mechanisms(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        expect_same(ctx, "superlinear", "dense", true); /* shorter than the window */
        expect_same(ctx, "superlinear:window_index=7", "sinkwin:sink=0,window=63", false);
        expect_same(ctx, "superlinear:window_index=1,anchors=1,back=99,forward=99", "dense", true);
        expect_same(ctx, "superlinear:window_index=1,anchors=3,back=99,forward=99", "dense", true);
        fv_ctx_free(ctx);
    }
}

/* One anchor is weighed by 1 whatever its score, so scores have no gradient; two are not. */
static void one_anchor_teaches_nothing(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 2, N, 16)),
                              .k = test_random(ctx, 1, FV_DIMS(1, 1, N, 16)),
                              .v = test_random(ctx, 1, FV_DIMS(1, 1, N, 16)),
                              .o = test_random(ctx, 1, FV_DIMS(1, 2, N, 16)),
                              .params = 1};
    fv_named_tensor search = {"search_q", test_random(ctx, 0.1, FV_DIMS(1, 2, N, 16))}, d_search = search;
    fv_attention_grads grads = {.d_o = test_random(ctx, 1, FV_DIMS(1, 2, N, 16)), .params = 1, .d_param = &d_search};
    (void)state;

    args.param = &search;
    for (int anchors = 1; anchors <= 2; anchors++) {
        double sum = 0;
        fv_attention *attention;
        d_search.tensor = test_random(ctx, 1, FV_DIMS(1, 2, N, 16));
        assert_ok(fv_attention_new(anchors == 1 ? "superlinear:window_index=1,anchors=1" : "superlinear:window_index=1",
                                   &attention));
        assert_ok(fv_attention_backward(ctx, attention, &args, &grads));
        for (int64_t n = 0; n < 2 * N * 16; n++)
            sum += fabs((double)((const float *)d_search.tensor.data)[n]);
        assert_true(anchors == 1 ? sum == 0 : sum > 1e-3);
        fv_attention_free(attention);
    }
    fv_ctx_free(ctx);
}

static void what_cannot_be_is_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"superlinear:search_power=1", "'search_power': expected more than 0 and less than 1"},
        {"superlinear:search_power=0", "'search_power': expected more than 0 and less than 1"},
        {"superlinear:span_power=1", "'span_power': expected more than 0 and less than 1"},
        {"superlinear:anchors=9", "expected 1 to 8"},
        {"superlinear:anchors=0", "expected 1 to 8"},
        {"superlinear:search_scale=0", "search_scale"},
        {"superlinear:span_align=0", "span_align"},
        {"superlinear:back=-1", "back"},
    };
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = line(ctx, 9);
    fv_named_tensor search = {"search_q", test_random(ctx, 1, FV_DIMS(1, 1, 8, 1))};
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
    assert_ok(fv_attention_new("superlinear", &attention));
    args.params = 1;
    args.param = &search;
    assert_fails(fv_attention_forward(ctx, attention, &args), FV_E_SHAPE, "[B, H, N, D] = [1,1,9,1]");
    args.params = 0;
    args.lse = test_random(ctx, 1, FV_DIMS(1, 1, 9));
    assert_fails(fv_attention_forward(ctx, attention, &args), FV_E_USAGE, "no log-sum-exp");
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

/* Powers near 0 and 1, and numbers that are none. */
static void odd_options_and_numbers_are_survived(void **state)
{
    static const char *const specs[] = {"superlinear:search_power=0.001",
                                        "superlinear:search_power=0.999,window_index=1",
                                        "superlinear:window_index=2147483647,search_power=0.01",
                                        "superlinear:window_index=1,back=1e9,forward=1e9,span_align=2147483647"};
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = line(ctx, N);
    (void)state;

    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        run(ctx, specs[i], &args);
        for (int64_t n = 0; n < N; n++)
            assert_true(isfinite(((const float *)args.o.data)[n]));
    }
    ((float *)args.q.data)[40] = NAN;
    ((float *)args.k.data)[30] = INFINITY;
    ((float *)args.v.data)[10] = -INFINITY;
    run(ctx, "superlinear:window_index=1", &args);
    run(ctx, "superlinear:window_index=0", &args);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_worked_value),
        cmocka_unit_test(the_worked_positions),
        cmocka_unit_test(no_key_is_out_of_reach),
        cmocka_unit_test(limits_are_other_mechanisms),
        cmocka_unit_test(one_anchor_teaches_nothing),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(odd_options_and_numbers_are_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
