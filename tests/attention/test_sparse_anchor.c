/* anchor: the worked numbers of its definition, what it is equal to, and what it refuses. */
#include <math.h>
#include <string.h>

#include "attention/mechanism.h"
#include "support/specs.h"

/* A call of tensors of its own: four query heads, one key head. */
struct sample {
    fv_ctx *ctx;
    fv_attention_args args;
};

static struct sample draw(const char *device, int64_t N, int64_t D)
{
    struct sample s = {.ctx = test_ctx(device, 2)};

    s.args = (fv_attention_args){.q = test_random(s.ctx, 1, FV_DIMS(1, 4, N, D)),
                                 .k = test_random(s.ctx, 1, FV_DIMS(1, 1, N, D)),
                                 .v = test_random(s.ctx, 1, FV_DIMS(1, 1, N, D)),
                                 .causal = true};
    return s;
}

static fv_tensor forward(struct sample *s, const char *spec)
{
    return test_specs_forward(s->ctx, spec, &s->args);
}

/* Visible pairs [1,H,N,N]; fv_release them. */
static uint8_t *pairs_of(struct sample *s, const char *spec)
{
    fv_attention *attention;
    fv_attention_args args = s->args;
    fv_tensor map;
    void *owned;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s->ctx, &args.o, FV_F32, 4, args.q.dims));
    assert_ok(fv_attention_map(s->ctx, attention, &args, &map, &owned));
    assert_int_equal(map.dims[1], args.q.dims[1]);
    fv_attention_free(attention);
    return owned;
}

/* The same sums in another order: of up to 2500 weights, each with an error of 16 products, 4 eps (2500 + 16 + 16). */
static void expect_equal(const char *what, const fv_tensor *got, const fv_tensor *expected)
{
    test_specs_close(what, got, expected, 1.3e-3);
}

#define PRINTED 5.1e-5 /* four decimals */

static void outputs_for_four_thresholds(void **state)
{
    static const double near[] = {0,      .2689,  .6358,  2.5503, 2.7510, 2.9367,
                                  3.1705, 3.8282, 3.5339, 4.2689, 4.9483, 5.5896};
    static const struct {
        const char *spec;
        double o[8]; /* from row 4 on */
    } expected[] = {
        {"anchor:block=2,step=2,init=2,theta=-inf", {2.7510, 2.9367, 3.1705, 3.8282, 3.5339, 4.2689, 4.9483, 5.5896}},
        {"anchor:block=2,step=2,init=2,theta=0", {2.9113, 2.9762, 3.0673, 3.3650, 3.5924, 3.7361, 3.8982, 4.0775}},
        {"anchor:block=2,step=2,init=2,theta=1", {2.9113, 2.9762, 3.0673, 3.3650, 3.6485, 3.7802, 3.9296, 4.0955}},
        {"anchor:block=2,step=2,init=2,theta=inf", {2.8830, 2.9468, 3.0361, 3.3280, 3.6485, 3.7802, 3.9296, 4.0955}},
        {"anchor:block=2,step=2,init=4,theta=inf,count_bug=1",
         {2.8830, 2.9468, 3.0361, 3.3280, 3.1899, 3.2901, 3.4038, 3.5305}},
    };
    static const float one[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, keys[] = {1, 0, 0, 3, 2, 0, 0, 1, 1, 0, 0, 0};
    static const float index[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (size_t n = 0; n < sizeof expected / sizeof *expected; n++) {
            struct sample s = {.ctx = test_ctx(test_devices[d], 2), .args.causal = true};
            double o[12];
            fv_tensor got;
            assert_ok(fv_tensor_wrap(&s.args.q, (void *)one, FV_F32, FV_DIMS(1, 1, 12, 1)));
            assert_ok(fv_tensor_wrap(&s.args.k, (void *)keys, FV_F32, FV_DIMS(1, 1, 12, 1)));
            assert_ok(fv_tensor_wrap(&s.args.v, (void *)index, FV_F32, FV_DIMS(1, 1, 12, 1)));
            memcpy(o, near, 4 * sizeof *o);
            memcpy(o + 4, expected[n].o, 8 * sizeof *o);
            got = forward(&s, expected[n].spec);
            test_close(expected[n].spec, &got, o, PRINTED);
            fv_ctx_free(s.ctx);
        }
}

/* N of several stretches of groups, odd. */
static void limits_are_dense_and_windows(void **state)
{
    static const struct {
        const char *spec, *same;
    } equal[] = {
        {"anchor:block=64,step=2,theta=inf", "dense"},
        {"anchor:block=128,step=20,theta=-3", "dense"}, /* all is one group */
        {"anchor:block=8,step=3,theta=-inf,init=24", "sinkwin:sink=1,window=1,block=24"},
        {"anchor:block=16,step=4,theta=1e30,init=0,use_anchor=0", "dense"},
    };
    struct sample s = draw("cpu", 2437, 16);
    (void)state;

    for (size_t n = 0; n < sizeof equal / sizeof *equal; n++) {
        fv_tensor got = forward(&s, equal[n].spec), expected = forward(&s, equal[n].same);
        expect_equal(equal[n].spec, &got, &expected);
    }
    fv_ctx_free(s.ctx);
}

static void larger_thresholds_add_keys(void **state)
{
    static const char *const specs[] = {"anchor:block=8,step=2,init=4,theta=0", "anchor:block=8,step=2,init=4,theta=2",
                                        "anchor:block=8,step=2,init=4,theta=2.5",
                                        "anchor:block=8,step=2,init=4,theta=inf"};
    struct sample s = draw("cpu", 150, 16);
    uint8_t *before = pairs_of(&s, specs[0]);
    int added = 0;
    (void)state;

    for (int n = 1; n < 4; n++) {
        uint8_t *pairs = pairs_of(&s, specs[n]);
        for (int64_t i = 0; i < 4 * 150 * 150; i++) {
            assert_true(pairs[i] >= before[i]);
            added += pairs[i] - before[i];
        }
        fv_release(before);
        before = pairs;
    }
    assert_true(added > 0); /* of the last one all keys */
    fv_release(before);
    fv_ctx_free(s.ctx);
}

/* Anchors are averaged as queries are: a constant vector added to all keys moves both sides of the comparison alike. */
static void a_constant_in_all_keys_changes_nothing(void **state)
{
    static const char *const specs[] = {"anchor:block=8,step=2,init=4,theta=2.2",
                                        "anchor:block=8,step=2,init=4,theta=-0.2,use_anchor=0"};
    struct sample s = draw("cpu", 150, 16);
    uint8_t *before[2], *after;
    (void)state;

    for (int n = 0; n < 2; n++)
        before[n] = pairs_of(&s, specs[n]);
    for (int64_t i = 0; i < 150 * 16; i++)
        ((float *)s.args.k.data)[i] += i % 16 == 3 ? 2 : i % 16 == 7 ? -1 : 0;
    for (int n = 0; n < 2; n++) {
        int64_t differ = 0;
        after = pairs_of(&s, specs[n]);
        for (int64_t i = 0; i < 4 * 150 * 150; i++)
            differ += after[i] != before[n][i];
        /* a key within rounding of the threshold, for the 16 rows of a group, may fall either way */
        if (n == 0 ? differ > 16 : differ < 1000) fail_msg("%s: %d pairs differ", specs[n], (int)differ);
        fv_release(after);
        fv_release(before[n]);
    }
    fv_ctx_free(s.ctx);
}

/* Chunks that end with groups choose what the whole chooses, and count the pairs that the map shows. */
static void chunks_of_whole_groups_are_the_whole(void **state)
{
    const char *spec = "anchor:block=8,step=3,init=10,theta=1.2";
    struct sample s = draw("cpu", 2111, 16);
    fv_tensor whole = forward(&s, spec), o;
    fv_attention *attention;
    fv_work work;
    double pairs = 0;
    (void)state;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s.ctx, &o, FV_F32, 4, s.args.q.dims));
    s.args.o = o;
    assert_ok(fv_attention_work(s.ctx, attention, &s.args, &work));
    for (int64_t from = 0, count; from < 2111; from += count) {
        fv_attention_args part = s.args;
        fv_call call;
        count = fv_min(from % 2 ? 24 * 7 : 24 * 21, 2111 - from);
        part.q = fv_slice(&s.args.q, 2, from, count);
        part.o = fv_slice(&o, 2, from, count);
        part.k = fv_slice(&s.args.k, 2, 0, from + count);
        part.v = fv_slice(&s.args.v, 2, 0, from + count);
        assert_ok(fv_call_chunk(attention, &part, &call));
        call.pairs = &pairs;
        assert_ok(fv_attention_chunk(s.ctx, attention, &call, NULL, NULL));
    }
    expect_equal("chunks", &o, &whole);
    assert_true(work.density > 0.05 && work.density < 0.95);
    assert_int_equal((int64_t)pairs, work.pairs);
    fv_attention_free(attention);
    fv_ctx_free(s.ctx);
}

/* Groups of one token: nothing ahead is seen, and decoding is what it is. */
static void groups_of_one_token_decode(void **state)
{
    struct sample s = draw("cpu", 60, 16);
    const char *spec = "anchor:block=1,step=1,init=1,theta=1";
    fv_tensor whole = forward(&s, spec);
    fv_attention *attention;
    (void)state;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s.ctx, &s.args.o, FV_F32, 4, s.args.q.dims));
    assert_ok(fv_attention_decode(s.ctx, attention, &s.args));
    expect_equal(spec, &s.args.o, &whole);
    fv_attention_free(attention);
    fv_ctx_free(s.ctx);
}

/* A cap of the model bends mean logits as it does those of rows: keys alike, all come as near as the anchor itself. */
static void caps_bend_both_sides(void **state)
{
    struct sample s = draw("cpu", 90, 16);
    const fv_attend_args extra = {.logits = {.softcap = 0.5f}};
    fv_attention *attention;
    fv_call call;
    (void)state;

    for (int64_t i = 0; i < 4 * 90 * 16; i++)
        ((float *)s.args.q.data)[i] = ((float *)s.args.k.data)[i % (90 * 16)] = i % 16 == 0 ? 8 : 0;
    assert_ok(fv_tensor_new(s.ctx, &s.args.o, FV_F32, 4, s.args.q.dims));
    for (int more = 0; more < 2; more++) {
        double pairs = 0;
        assert_ok(fv_attention_new(
            more ? "anchor:block=8,step=2,init=4,theta=0.01" : "anchor:block=8,step=2,init=4,theta=-0.01", &attention));
        assert_ok(fv_call_chunk(attention, &s.args, &call));
        call.pairs = &pairs;
        assert_ok(fv_attention_chunk(s.ctx, attention, &call, NULL, &extra));
        if (more)
            assert_int_equal((int64_t)pairs, 4 * 90 * 91 / 2);
        else
            assert_true(pairs < 4 * 90 * 91 / 4);
        fv_attention_free(attention);
    }
    fv_ctx_free(s.ctx);
}

/* What is not a number reaches nobody who does not read it, and no index comes of it. */
static void survives_what_is_not_finite(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int n = 0; n < 3; n++) {
            struct sample s = draw(test_devices[d], 70, 16);
            fv_tensor o;
            for (int64_t i = 20 * 16; i < 33 * 16; i++)
                ((float *)s.args.k.data)[i] = bad[n];
            ((float *)s.args.q.data)[30 * 16] = bad[n];
            o = forward(&s, "anchor:block=4,step=2,init=3,theta=1");
            for (int64_t i = 0; i < 16 * 16; i++)
                assert_true(isfinite(((float *)o.data)[i]));
            fv_ctx_free(s.ctx);
        }
}

static void refusals(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"anchor:block=8,step=2,init=17", "at most block * step = 16, got 17"},
        {"anchor:theta=nan", "expected a number"},
        {"anchor:step=0", "expected 1 to"},
        {"anchor:stepp=1", "did you mean 'step'"},
        {"anchor:use_anchor=2", "0 or 1"},
    };
    struct sample s = draw("cpu", 40, 16);
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
    assert_ok(fv_attention_new("anchor:block=8,step=2,init=4", &attention));
    assert_ok(fv_tensor_new(s.ctx, &s.args.o, FV_F32, 4, s.args.q.dims));
    assert_fails(fv_attention_decode(s.ctx, attention, &s.args), FV_E_USAGE, "decoding");
    s.args.k = fv_slice(&s.args.k, 2, 0, 30);
    s.args.v = fv_slice(&s.args.v, 2, 0, 30);
    assert_fails(fv_attention_forward(s.ctx, attention, &s.args), FV_E_SHAPE, "as many queries as keys");
    fv_attention_free(attention);
    fv_ctx_free(s.ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_for_four_thresholds),
        cmocka_unit_test(limits_are_dense_and_windows),
        cmocka_unit_test(larger_thresholds_add_keys),
        cmocka_unit_test(a_constant_in_all_keys_changes_nothing),
        cmocka_unit_test(chunks_of_whole_groups_are_the_whole),
        cmocka_unit_test(groups_of_one_token_decode),
        cmocka_unit_test(caps_bend_both_sides),
        cmocka_unit_test(survives_what_is_not_finite),
        cmocka_unit_test(refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
