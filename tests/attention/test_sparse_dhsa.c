/* dhsa: the worked numbers of its definition, its network against the twin, what it is equal to, and what it refuses.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/mechanism.h"
#include "attention/sparse/dhsa.h"
#include "sheets/sheets.h"
#include "support/specs.h"

enum { MOST = 12 };

struct sample {
    fv_ctx *ctx;
    fv_attention_args args;
    fv_named_tensor param[MOST];
};

static struct sample draw(const char *device, int64_t B, int64_t N)
{
    struct sample s = {.ctx = test_ctx(device, 2)};

    s.args = (fv_attention_args){.q = test_random(s.ctx, 1, FV_DIMS(B, 4, N, 16)),
                                 .k = test_random(s.ctx, 1, FV_DIMS(B, 2, N, 16)),
                                 .v = test_random(s.ctx, 1, FV_DIMS(B, 2, N, 16)),
                                 .causal = true};
    return s;
}

static void give(struct sample *s, const char *name, fv_tensor tensor)
{
    s->param[s->args.params++] = (fv_named_tensor){name, tensor};
    s->args.param = s->param;
}

static fv_tensor integers(struct sample *s, int count, const int32_t *items)
{
    fv_tensor t;

    assert_ok(fv_tensor_new(s->ctx, &t, FV_I32, FV_DIMS(count)));
    memcpy(t.data, items, (size_t)count * sizeof *items);
    return t;
}

static fv_tensor forward(struct sample *s, const char *spec)
{
    s->args.param = s->param; /* the sample may have been moved */
    return test_specs_forward(s->ctx, spec, &s->args);
}

/* The keys that query i sees, all heads alike: "0 1 3 ". */
static void expect_seen(struct sample *s, const char *spec, int64_t i, const char *expected)
{
    fv_attention *attention;
    fv_attention_args args = s->args;
    char seen[1024] = "";
    fv_tensor map;
    void *owned;

    args.param = s->param;
    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s->ctx, &args.o, FV_F32, 4, args.q.dims));
    assert_ok(fv_attention_map(s->ctx, attention, &args, &map, &owned));
    assert_int_equal(map.dims[1], 1);
    for (int64_t j = 0; j < args.k.dims[2]; j++)
        if (((uint8_t *)map.data)[i * args.k.dims[2] + j])
            snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%d ", (int)j);
    fv_release(owned);
    fv_attention_free(attention);
    if (strcmp(seen, expected) != 0) fail_msg("%s, query %d: expected keys %s, got %s", spec, (int)i, expected, seen);
}

/* 4 eps (M + D + Dv), as everywhere; M is up to 2048. */
static void expect_equal(const char *what, const fv_tensor *got, const fv_tensor *expected)
{
    test_specs_close(what, got, expected, 4 * FLT_EPSILON * 2080);
}

/* ---- boundaries -------------------------------------------------------------------------------------------------- */

static void suppression_leaves_the_boundaries(void **state)
{
    static const float logits[] = {-9, -9, .2f, 1.5f, 2, 1.9f, -1, 1.3f, 3, -2, 1.2f, -9};
    static const struct {
        fv_dhsa_suppression rule;
        int64_t chunks, start[6];
    } expected[] = {
        {{1.1, 1, 1, 0, 8}, 4, {0, 5, 9, 11, 12}},
        {{1.1, 1, 1, 0, 2}, 3, {0, 5, 9, 12}},       /* two at most */
        {{1.1, 1, 1, 8, 8}, 4, {0, 5, 8, 11, 12}},   /* 7 is accepted first, and 8 lies too near */
        {{1.1, 1, 1, 8, 1}, 2, {0, 8, 12}},          /* and counts */
        {{1.1, 0, 4, 0, 8}, 5, {0, 4, 5, 6, 8, 12}}, /* 3 4 5 7: 8 and 10 are among the last four */
        {{3.5, 1, 1, 0, 8}, 1, {0, 12}},
        {{1.1, 100, 1, 0, 8}, 2, {0, 9, 12}},
        {{-1e30, 1, 12, 0, 8}, 1, {0, 12}}, /* no gap has keys enough on both sides */
    };
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_tensor t;
    (void)state;

    assert_ok(fv_tensor_wrap(&t, (void *)logits, FV_F32, FV_DIMS(12)));
    for (size_t n = 0; n < sizeof expected / sizeof *expected; n++) {
        int64_t chunks;
        const int64_t *start;
        assert_ok(fv_dhsa_suppress(ctx, &expected[n].rule, &t, &chunks, &start));
        assert_int_equal(chunks, expected[n].chunks);
        for (int64_t c = 0; c <= chunks; c++)
            assert_int_equal(start[c], expected[n].start[c]);
    }
    fv_ctx_free(ctx);
}

static double *doubled(const fv_tensor *t)
{
    double *out = sheet_zeros(fv_tensor_count(t));

    for (int64_t i = 0; i < fv_tensor_count(t); i++)
        out[i] = ((const float *)t->data)[i];
    return out;
}

/* A random network over 32 channels, with all of its tensors or those it needs. */
static void give_network(struct sample *s, bool all, sheet_param *param)
{
    static const struct {
        const char *name;
        int rank;
        int64_t dims[2];
        bool needed;
    } tensors[] = {
        {"p.norm_weight", 1, {32}, false},     {"p.norm_bias", 1, {32}, false},     {"p.qkv_weight", 2, {96, 32}, true},
        {"p.qkv_bias", 1, {96}, false},        {"p.out_weight", 2, {32, 32}, true}, {"p.out_bias", 1, {32}, false},
        {"p.fc1_weight", 2, {256, 129}, true}, {"p.fc1_bias", 1, {256}, false},     {"p.fc2_weight", 2, {1, 256}, true},
        {"p.fc2_bias", 1, {1}, false},
    };

    for (size_t n = 0; n < sizeof tensors / sizeof *tensors; n++) {
        int rank = tensors[n].rank;
        fv_tensor t;
        if (!all && !tensors[n].needed) continue;
        t = test_random(s->ctx, 1 / sqrt((double)tensors[n].dims[rank - 1]), rank, tensors[n].dims);
        *param = (sheet_param){.name = tensors[n].name, .data = doubled(&t), .rank = rank};
        memcpy(param++->dims, tensors[n].dims, sizeof tensors[n].dims);
        give(s, tensors[n].name, t);
    }
}

/* Whether the twin chooses the same from keys that differ by more than floats round. */
static bool is_stable(sheet_call *call, double *k)
{
    int64_t count = 2 * 4 * 61, keys = 2 * 2 * 61 * 16;
    int64_t *chosen = (int64_t *)sheet_zeros(count), *again = (int64_t *)sheet_zeros(count);
    double *kept = sheet_zeros(keys);
    fv_random random = fv_random_new(test_seed(), 81);
    bool same = true;

    memcpy(kept, k, (size_t)keys * sizeof *k);
    call->selection = again;
    for (int round = 0; round < 4; round++) {
        for (int64_t i = 0; i < keys; i++)
            k[i] = kept[i] * (1 + (round < 3 ? 1e-5 * fv_random_normal(&random) : 0)); /* the last as they are */
        assert_true(sheet_find("dhsa")->forward(call));
        same = same && (round == 0 || memcmp(chosen, again, (size_t)count * sizeof *again) == 0);
        memcpy(chosen, again, (size_t)count * sizeof *again);
    }
    call->selection = NULL;
    free(chosen);
    free(again);
    free(kept);
    return same;
}

/* Windows lie within the keys and reach beyond them; chunks are what greedy suppression leaves. */
static bool judges_as_defined(const char *device, bool all)
{
    static const double reach = 3, threshold = 0.05, block = 20, budget = 12, local = 2, global = 1, instruction = 5,
                        half = 2;
    static const sheet_option option[] = {
        {"reach", 1, &reach}, {"threshold", 1, &threshold}, {"block", 1, &block},     {"budget", 1, &budget},
        {"local", 1, &local}, {"global", 1, &global},       {"half_width", 1, &half}, {"instruction", 1, &instruction}};
    struct sample s = draw(device, 2, 61);
    sheet_param param[MOST];
    double *q = doubled(&s.args.q), *k = doubled(&s.args.k), *v = doubled(&s.args.v);
    sheet_call call = {.B = 2, .H = 4, .Hkv = 2, .N = 61, .M = 61, .D = 16, .Dv = 16, .q = q, .k = k, .v = v};
    bool stable;

    give_network(&s, all, param);
    call.o = sheet_zeros(2 * 4 * 61 * 16);
    call.params = s.args.params;
    call.param = param;
    call.options = sizeof option / sizeof *option;
    call.option = option;
    stable = is_stable(&call, k);
    if (stable) {
        fv_tensor o = forward(&s, "dhsa:reach=3,threshold=0.05,block=20,budget=12,local=2,global=1,half_width=2,"
                                  "instruction=5");
        test_close("o", &o, call.o, 4 * FLT_EPSILON * (61 + 16 + 16));
    }
    for (int n = 0; n < call.params; n++)
        free((void *)(uintptr_t)param[n].data);
    free(q);
    free(k);
    free(v);
    free(call.o);
    fv_ctx_free(s.ctx);
    return stable;
}

static void the_network_judges_as_defined(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++)
        for (int all = 0; all < 2; all++)
            while (!judges_as_defined(test_devices[device], all)) {
            }
}

/* ---- choices ----------------------------------------------------------------------------------------------------- */

static void lengths_count_by_their_root(void **state)
{
    static const float keys[] = {1, 0, 1, 0, 1, 0, 1, 0, 0, 2};
    float ones[10];
    struct sample s = {.ctx = test_ctx("cpu", 1), .args.causal = true};
    (void)state;

    for (int i = 0; i < 10; i++)
        ones[i] = 1;
    assert_ok(fv_tensor_wrap(&s.args.q, ones, FV_F32, FV_DIMS(1, 1, 5, 2)));
    assert_ok(fv_tensor_wrap(&s.args.k, (void *)keys, FV_F32, FV_DIMS(1, 1, 5, 2)));
    assert_ok(fv_tensor_wrap(&s.args.v, ones, FV_F32, FV_DIMS(1, 1, 5, 2)));
    give(&s, "boundaries", integers(&s, 3, (const int32_t[]){0, 4, 5}));
    expect_seen(&s, "dhsa:block=5,budget=1,local=0,global=0,instruction=0", 4, "0 ");
    expect_seen(&s, "dhsa:block=5,budget=1,local=0,global=0,instruction=0,pool=avg", 4, "4 ");
    expect_seen(&s, "dhsa:block=5,budget=3,local=1,global=1,instruction=0", 4, "0 1 4 ");
    expect_seen(&s, "dhsa:block=5,budget=1,local=0,global=0,instruction=1", 4, "0 1 2 3 4 ");
    expect_seen(&s, "dhsa:block=5,budget=1,local=0,global=0,instruction=1", 3, "0 ");
    fv_ctx_free(s.ctx);
}

static void columns_and_diagonals(void **state)
{
    static const float zero[12], steep[] = {0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
    static const float late[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1};
    struct sample s = {.ctx = test_ctx("cpu", 1), .args.causal = true};
    (void)state;

    assert_ok(fv_tensor_wrap(&s.args.q, (void *)zero, FV_F32, FV_DIMS(1, 1, 12, 1)));
    assert_ok(fv_tensor_wrap(&s.args.k, (void *)zero, FV_F32, FV_DIMS(1, 1, 12, 1)));
    assert_ok(fv_tensor_wrap(&s.args.v, (void *)zero, FV_F32, FV_DIMS(1, 1, 12, 1)));
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,vertical=0,density=0.5", 7, "0 1 2 3 6 7 ");
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,vertical=0,density=0.5", 3, "0 1 2 3 ");
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,vertical=0,density=0.34", 7, "0 1 6 7 ");
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,vertical=0,density=0", 7, "0 1 6 7 ");
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,density=0.34", 9, "0 1 2 3 4 5 6 7 8 9 ");
    assert_ok(fv_tensor_wrap(&s.args.q, (void *)late, FV_F32, FV_DIMS(1, 1, 12, 1)));
    assert_ok(fv_tensor_wrap(&s.args.k, (void *)steep, FV_F32, FV_DIMS(1, 1, 12, 1)));
    expect_seen(&s, "dhsa:score=vs,block=4,chunk=2,instruction=0,vertical=1,density=0.5", 7, "0 1 4 5 6 7 ");
    fv_ctx_free(s.ctx);
}

static void what_it_is_equal_to(void **state)
{
    static const struct {
        const char *spec, *same;
    } equal[] = {
        {"dhsa:block=50,budget=700,chunk=7", "dense"},
        {"dhsa:block=50,budget=20,local=8,global=2,instruction=610", "dense"},
        {"dhsa:block=700,budget=20,local=8,global=2,instruction=0,strict=1", "dense"},
        {"dhsa:score=vs,block=50,chunk=7,density=1", "dense"},
        {"dhsa:score=vs,block=610", "dense"},
    };
    struct sample s = draw("cpu", 1, 610);
    fv_tensor boundaries;
    (void)state;

    for (size_t n = 0; n < sizeof equal / sizeof *equal; n++) {
        fv_tensor got = forward(&s, equal[n].spec), expected = forward(&s, equal[n].same);
        expect_equal(equal[n].spec, &got, &expected);
    }
    for (int pool = 0; pool < 3; pool++) { /* equal chunks, and the same given */
        static const char *const specs[] = {"dhsa:block=64,budget=100,local=20,global=5,chunk=10",
                                            "dhsa:block=64,budget=100,local=20,global=5,chunk=10,pool=avg",
                                            "dhsa:block=64,budget=100,local=20,global=5,chunk=10,pool=max"};
        fv_tensor by_length = forward(&s, specs[pool]), by_place;
        int32_t starts[62];
        for (int c = 0; c < 62; c++)
            starts[c] = 10 * c;
        boundaries = integers(&s, 62, starts);
        give(&s, "boundaries", boundaries);
        by_place = forward(&s, specs[pool]);
        s.args.params = 0;
        expect_equal(specs[pool], &by_place, &by_length);
    }
    fv_ctx_free(s.ctx);
}

/* Chunks of whole blocks choose what the whole does, with means kept from chunk to chunk and without. */
static void chunks_of_whole_blocks_are_the_whole(void **state)
{
    const char *spec = "dhsa:block=32,budget=100,local=20,global=5,chunk=12,instruction=0";
    struct sample s = draw("cpu", 2, 500);
    fv_tensor whole = forward(&s, spec), o;
    fv_attention *attention;
    (void)state;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s.ctx, &o, FV_F32, 4, s.args.q.dims));
    for (int with_state = 0; with_state < 2; with_state++) {
        fv_attention_state kept = {0};
        int64_t width, rows = fv_attention_kept(
                           attention, &(fv_call){.query_heads = 1, .key_heads = 1, .head_dim = 16, .value_dim = 16}, 0,
                           500, &width);
        assert_int_equal(rows, 500 / 12);
        assert_ok(fv_tensor_new(s.ctx, &kept.kept[0].rows, FV_F32, FV_DIMS(2, 2, rows, width)));
        memset(o.data, 0, (size_t)fv_tensor_count(&o) * sizeof(float));
        for (int64_t from = 0, count; from < 500; from += count) {
            fv_attention_args part = s.args;
            fv_call call;
            count = fv_min(from % 3 ? 32 : 96, 500 - from);
            part.q = fv_slice(&s.args.q, 2, from, count);
            part.o = fv_slice(&o, 2, from, count);
            part.k = fv_slice(&s.args.k, 2, 0, from + count);
            part.v = fv_slice(&s.args.v, 2, 0, from + count);
            assert_ok(fv_call_chunk(attention, &part, &call));
            assert_ok(fv_attention_chunk(s.ctx, attention, &call, with_state ? &kept : NULL, NULL));
        }
        expect_equal(with_state ? "chunks, kept" : "chunks", &o, &whole);
        if (with_state) assert_int_equal(kept.kept[0].count, rows);
    }
    fv_attention_free(attention);
    fv_ctx_free(s.ctx);
}

static void survives_what_is_not_finite(void **state)
{
    static const char *const specs[] = {"dhsa:block=8,budget=12,local=3,global=2,chunk=5,instruction=4",
                                        "dhsa:block=8,budget=12,local=0,global=0,chunk=5,instruction=0,pool=max",
                                        "dhsa:score=vs,block=8,chunk=5,density=0.4,instruction=0"};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int n = 0; n < 9; n++) {
            struct sample s = draw(test_devices[d], 1, 70);
            fv_tensor logits = test_random(s.ctx, 1, FV_DIMS(1, 70));
            for (int64_t i = 20 * 16; i < 70 * 16; i++)
                ((float *)s.args.k.data)[i] = bad[n % 3];
            ((float *)s.args.q.data)[69 * 16] = ((float *)logits.data)[30] = bad[n % 3];
            forward(&s, specs[n / 3]);
            if (n >= 6) {
                fv_ctx_free(s.ctx);
                continue;
            }
            give(&s, "boundary_logits", logits);
            forward(&s, specs[n / 3]);
            fv_ctx_free(s.ctx);
        }
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void options_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"dhsa:budget=255", "at least local + global = 256, got 255"},
        {"dhsa:pool=sum", "avg_norm or avg or max"},
        {"dhsa:score=slash", "chunk or vs"},
        {"dhsa:vertical=1.5", "expected 0 to 1"},
        {"dhsa:threshold=inf", "finite"},
        {"dhsa:block=0", "expected 1 to"},
        {"dhsa:chunks=3", "did you mean 'chunk'"},
    };
    struct sample s = draw("cpu", 1, 40);
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
    assert_ok(fv_attention_new("dhsa", &attention));
    assert_ok(fv_tensor_new(s.ctx, &s.args.o, FV_F32, 4, s.args.q.dims));
    assert_fails(fv_attention_decode(s.ctx, attention, &s.args), FV_E_USAGE, "decoding");
    s.args.k = fv_slice(&s.args.k, 2, 0, 30);
    s.args.v = fv_slice(&s.args.v, 2, 0, 30);
    assert_fails(fv_attention_forward(s.ctx, attention, &s.args), FV_E_SHAPE, "as many queries as keys");
    fv_attention_free(attention);
    fv_ctx_free(s.ctx);
}

/* The status and sentence that a call with the tensors given so far ends with. */
static void refuse(struct sample *s, const char *spec, fv_status status, const char *words)
{
    fv_attention *attention;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_tensor_new(s->ctx, &s->args.o, FV_F32, 4, s->args.q.dims));
    assert_fails(fv_attention_forward(s->ctx, attention, &s->args), status, words);
    fv_attention_free(attention);
    s->args.params = 0;
}

static void tensors_are_refused(void **state)
{
    static const int32_t late[] = {1, 20, 40}, early[] = {0, 20, 39}, equal[] = {0, 20, 20, 40}, one[] = {0};
    struct sample s = draw("cpu", 1, 40);
    (void)state;

    give(&s, "boundaries", integers(&s, 3, late));
    refuse(&s, "dhsa", FV_E_SHAPE, "expected 0 first and 40 last, got 1 and 40");
    give(&s, "boundaries", integers(&s, 3, early));
    refuse(&s, "dhsa", FV_E_SHAPE, "got 0 and 39");
    give(&s, "boundaries", integers(&s, 1, one));
    refuse(&s, "dhsa", FV_E_SHAPE, "expected 0 first");
    give(&s, "boundaries", integers(&s, 4, equal));
    refuse(&s, "dhsa", FV_E_SHAPE, "expected ascending ones, got 20 behind 20");
    give(&s, "boundaries", test_random(s.ctx, 1, FV_DIMS(3)));
    refuse(&s, "dhsa", FV_E_DTYPE, "boundaries");
    give(&s, "boundary_logits", test_random(s.ctx, 1, FV_DIMS(1, 41)));
    refuse(&s, "dhsa", FV_E_SHAPE, "[B, M]");
    give(&s, "boundary_logits", test_random(s.ctx, 1, FV_DIMS(1, 40)));
    give(&s, "boundaries", integers(&s, 2, (const int32_t[]){0, 40}));
    refuse(&s, "dhsa", FV_E_USAGE, "one of them");
    give(&s, "boundary_logits", test_random(s.ctx, 1, FV_DIMS(1, 40)));
    refuse(&s, "dhsa:score=vs", FV_E_USAGE, "none of them with score=vs");
    give(&s, "p.qkv_weight", test_random(s.ctx, 1, FV_DIMS(96, 32)));
    give(&s, "p.out_weight", test_random(s.ctx, 1, FV_DIMS(32, 32)));
    give(&s, "p.fc2_weight", test_random(s.ctx, 1, FV_DIMS(1, 256)));
    refuse(&s, "dhsa", FV_E_USAGE, "'p.fc1_weight' is missing");
    give(&s, "p.fc1_weight", test_random(s.ctx, 1, FV_DIMS(256, 128)));
    refuse(&s, "dhsa", FV_E_SHAPE, "[256,129]");
    fv_ctx_free(s.ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(suppression_leaves_the_boundaries),
        cmocka_unit_test(the_network_judges_as_defined),
        cmocka_unit_test(lengths_count_by_their_root),
        cmocka_unit_test(columns_and_diagonals),
        cmocka_unit_test(what_it_is_equal_to),
        cmocka_unit_test(chunks_of_whole_blocks_are_the_whole),
        cmocka_unit_test(survives_what_is_not_finite),
        cmocka_unit_test(options_are_refused),
        cmocka_unit_test(tensors_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
