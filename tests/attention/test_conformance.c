/* Every mechanism keeps every promise of its traits, on every device: tests/support/cases.c has the calls, tests/sheets
 * the definitions.  No mechanism is named here. */
#include "support/trial.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the promises ----------------------------------------------------------------------------------------------- */

static void check_definition(struct trial *t)
{
    char what[300];

    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &t->args));
    test_close(t->what, &t->args.o, t->sheet.o, t->tolerance);
    snprintf(what, sizeof what, "lse of %s", t->what);
    if (t->sheet.lse) test_close(what, &t->args.lse, t->sheet.lse, t->tolerance);
}

static void equals_its_definition(void **state)
{
    (void)state;
    trial_for_all(check_definition, 2);
}

static void check_map(struct trial *t)
{
    fv_tensor map;
    fv_work work;
    void *owned;
    int64_t pairs = 0, columns = t->c->N * t->c->M;
    double shares = 0; /* of pairs whose keys are read as one with others */

    if (trial_has(t, FV_NO_MAP)) {
        assert_fails(fv_attention_map(t->ctx, t->attention, &t->args, &map, &owned), FV_E_USAGE, t->mechanism->name);
        return;
    }
    CHECK_OK(t, fv_attention_map(t->ctx, t->attention, &t->args, &map, &owned));
    for (int64_t at = 0; at < t->c->B * t->c->H * columns; at++) {
        int64_t h = at / columns % t->c->H, b = at / columns / t->c->H;
        int64_t plane = (map.dims[0] == 1 ? 0 : b) * map.dims[1] + (map.dims[1] == 1 ? 0 : h);
        uint8_t got = ((uint8_t *)map.data)[plane * columns + at % columns];
        if (got != t->sheet.map[at])
            fail_msg("%s: map of batch %d head %d, query %d, key %d: expected %d, got %d", t->what, (int)b, (int)h,
                     (int)(at % columns / t->c->M), (int)(at % t->c->M), t->sheet.map[at], got);
        pairs += t->sheet.map[at] > 0;
        shares += t->sheet.map[at] ? 1.0 / t->sheet.map[at] : 0;
    }
    fv_release(owned);
    CHECK_OK(t, fv_attention_work(t->ctx, t->attention, &t->args, &work));
    if (!t->mechanism->work && !t->mechanism->apart && work.pairs != pairs)
        fail_msg("%s: %lld pairs shown, %lld counted", t->what, (long long)pairs, (long long)work.pairs);
    if (shares < (double)pairs) assert_true(work.pairs <= pairs);
    if (t->mechanism->apart) shares /= 2; /* what is together may be masked: a token from itself, say */
    if ((double)work.pairs < shares - 1e-6 || !(work.flops > 0 || pairs == 0) || !(work.bytes > 0))
        fail_msg("%s: %lld pairs shown, %g at least computed: got %lld, %g flops, %g bytes", t->what, (long long)pairs,
                 shares, (long long)work.pairs, work.flops, work.bytes);
}

static void shows_the_pairs_it_computes(void **state)
{
    (void)state;
    trial_for_all(check_map, 2);
}

/* The first row that a change at key `cut` may move. */
static int64_t moved_from(struct trial *t, int64_t cut)
{
    fv_call call;
    int64_t ahead = 1;

    assert_ok(fv_call_make(t->attention, &t->args, &call));
    if (trial_has(t, FV_BLOCK_CAUSAL)) ahead = t->mechanism->ahead(call.options);
    return ahead > 0 ? cut / ahead * ahead : 0;
}

/* The first `rows` rows of x are those of `from`. */
static void keep_rows(const fv_tensor *x, const fv_tensor *from, int64_t rows)
{
    int64_t all = x->dims[2], width = x->dims[3], kept = fv_clamp(rows, 0, all) * width;

    for (int64_t plane = 0; plane < x->dims[0] * x->dims[1]; plane++)
        memcpy((float *)x->data + plane * all * width, (float *)from->data + plane * all * width,
               (size_t)kept * sizeof(float));
}

/* What stands behind position p moves nothing at or before p, or before the block of p. */
static void check_causality(struct trial *t)
{
    const conformance_case *c = t->c;
    fv_attention_args other = t->args;
    fv_random random = fv_random_new(test_seed(), 77);
    int64_t cut;

    if (!trial_is_causal(t) || c->M < 2) return;
    cut = 1 + fv_random_below(&random, c->M - 1); /* keys cut.. change */
    cut = moved_from(t, cut);
    other.o = trial_like(t, &t->args.o);
    other.q = trial_like(t, &t->args.q);
    other.k = trial_like(t, &t->args.k);
    other.v = trial_like(t, &t->args.v);
    keep_rows(&other.k, &t->args.k, cut);
    keep_rows(&other.v, &t->args.v, cut);
    keep_rows(&other.q, &t->args.q, cut - (c->M - c->N));
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &t->args));
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &other));
    for (int64_t row = 0; row < c->B * c->H * c->N; row++)
        for (int64_t e = 0; e < c->Dv && row % c->N + c->M - c->N < cut; e++) {
            float before = ((float *)t->args.o.data)[row * c->Dv + e], after = ((float *)other.o.data)[row * c->Dv + e];
            if (!(fabs(before - after) <= t->tolerance * fmax(1, fabs(before))))
                fail_msg("%s: keys from %d on moved row %d: %.9g became %.9g", t->what, (int)cut, (int)row, before,
                         after);
        }
}

static void is_causal_to_the_token(void **state)
{
    (void)state;
    trial_for_all(check_causality, 1);
}

/* An empty state of a sequence. */
static fv_attention_state new_state(struct trial *t)
{
    const conformance_case *c = t->c;
    fv_attention_state state = {0};
    int64_t width = fv_attention_state_width(t->attention, c->D);
    const fv_call sizes = {.query_heads = c->H, .key_heads = c->Hkv, .head_dim = c->D, .value_dim = c->Dv};

    assert_ok(fv_tensor_zeros(t->ctx, &state.s, FV_F32, FV_DIMS(c->B, c->H, fv_max(width, 1), c->Dv)));
    assert_ok(fv_tensor_zeros(t->ctx, &state.z, FV_F32, FV_DIMS(c->B, c->H, fv_max(width, 1))));
    for (int kind = 0; kind < FV_KEPT; kind++) {
        int64_t rows = fv_attention_kept(t->attention, &sizes, kind, c->M, &width);
        assert_ok(fv_tensor_new(t->ctx, &state.kept[kind].rows, FV_F32, FV_DIMS(c->B, c->Hkv, rows, width)));
    }
    width = fv_attention_choice(t->attention, c->M);
    if (width > 0) assert_ok(fv_tensor_new(t->ctx, &state.choice.index, FV_I32, FV_DIMS(c->B, c->H, width)));
    return state;
}

/* x with other numbers from position `from` on. */
static fv_tensor with_noise(struct trial *t, const fv_tensor *x, int64_t from)
{
    fv_tensor noise = test_random(t->ctx, 1, 4, x->dims);

    for (int64_t p = 0; p < x->dims[0] * x->dims[1]; p++)
        for (int64_t e = 0; e < fv_max(from, 0) * x->dims[3]; e++)
            ((float *)noise.data)[p * x->dims[2] * x->dims[3] + e] =
                *(float *)fv_at(x, p / x->dims[1], p % x->dims[1], e / x->dims[3], e % x->dims[3]);
    return noise;
}

/* Runs the sequence in random cuts; with a state, unless it is recurrent, each of them once with other keys and values
 * before, as if that had failed. */
static void run_chunks(struct trial *t, fv_random *random, bool with_state)
{
    const conformance_case *c = t->c;
    bool recurrent = trial_has(t, FV_RECURRENT);
    fv_attention_state state = new_state(t);
    fv_call whole;

    assert_ok(fv_call_make(t->attention, &t->args, &whole));
    for (int64_t from = 0, count; from < c->N; from += count) {
        fv_attention_args part = t->args;
        fv_call call;
        int64_t keys, key_from = recurrent ? from : 0;
        count = 1 + fv_random_below(random, c->N - from);
        keys = fv_clamp(from + count + c->M - c->N, 0, c->M) - key_from;
        part.lse.data = NULL;
        part.q = fv_slice(&t->args.q, 2, from, count);
        part.o = fv_slice(&t->args.o, 2, from, count);
        for (int wrong = with_state && !recurrent ? 1 : 0; wrong >= 0; wrong--) {
            part.k = fv_slice(&t->args.k, 2, key_from, keys);
            part.v = fv_slice(&t->args.v, 2, key_from, keys);
            if (wrong) part.k = with_noise(t, &part.k, keys - count), part.v = with_noise(t, &part.v, keys - count);
            CHECK_OK(t, fv_call_chunk(t->attention, &part, &call));
            CHECK_OK(t, fv_attention_chunk(t->ctx, t->attention, &call, with_state ? &state : NULL, NULL));
        }
    }
}

/* Whether it is causal by block only, and has no way of its own to decode. */
static bool sees_ahead(struct trial *t)
{
    fv_call call;

    assert_ok(fv_call_make(t->attention, &t->args, &call));
    return trial_has(t, FV_BLOCK_CAUSAL) && !trial_has(t, FV_OWN_DECODE) && t->mechanism->ahead(call.options) != 1;
}

static void check_decode(struct trial *t)
{
    fv_random random = fv_random_new(test_seed(), 78);
    char what[300];

    if (!trial_is_causal(t) || t->c->no_decode || sees_ahead(t)) {
        assert_fails(fv_attention_decode(t->ctx, t->attention, &t->args), FV_E_USAGE, "decoding");
        return;
    }
    if (trial_has(t, FV_OWN_DECODE)) {
        t->decode = true;
        trial_draw(t);
    } else if (!trial_has(t, FV_DECODE_EXACT)) {
        return;
    }
    snprintf(what, sizeof what, "decode of %s", t->what);
    CHECK_OK(t, fv_attention_decode(t->ctx, t->attention, &t->args));
    test_close(what, &t->args.o, t->sheet.o, t->tolerance);
    if (t->sheet.lse) test_close(what, &t->args.lse, t->sheet.lse, t->tolerance);
    if (t->args.params || trial_has(t, FV_OWN_DECODE) || (trial_has(t, FV_RECURRENT) && t->c->N != t->c->M)) return;
    for (int with_state = trial_has(t, FV_RECURRENT | FV_NEEDS_KEPT); with_state < 2; with_state++) {
        snprintf(what, sizeof what, "chunks of %s, %s", t->what, with_state ? "with a state" : "without");
        memset(t->args.o.data, 0, (size_t)fv_tensor_count(&t->args.o) * sizeof(float));
        run_chunks(t, &random, with_state);
        test_close(what, &t->args.o, t->sheet.o, t->tolerance);
    }
}

static void decodes_and_prefills_in_chunks_alike(void **state)
{
    (void)state;
    trial_for_all(check_decode, 2);
}

/* A state that it writes is that of the definition, after prefill and after decoding. */
static void check_state(struct trial *t)
{
    const conformance_case *c = t->c;
    fv_tensor last = test_random(t->ctx, 1, FV_DIMS(c->B, c->H, c->D, c->Dv));
    fv_named_tensor out = {"state", last};
    const fv_param *param = t->mechanism->params;

    while (param && param->name && !param->output)
        param++;
    if (!param || !param->name) return;
    t->args.params_out = 1;
    t->args.param_out = &out;
    t->sheet.state = trial_zeros(fv_tensor_count(&last), sizeof(double));
    trial_define(t);
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &t->args));
    test_close(t->what, &last, t->sheet.state, t->tolerance);
    memset(last.data, 0, (size_t)fv_tensor_count(&last) * sizeof(float));
    CHECK_OK(t, fv_attention_decode(t->ctx, t->attention, &t->args));
    test_close(t->what, &last, t->sheet.state, t->tolerance);
}

static void writes_its_state(void **state)
{
    (void)state;
    trial_for_all(check_state, 2);
}

/* o(2 v1 - 3 v2) = 2 o(v1) - 3 o(v2) */
static void check_linearity(struct trial *t)
{
    fv_attention_args second = t->args, sum = t->args;
    int64_t count = fv_tensor_count(&t->args.v);
    double *expected;

    if (!trial_has(t, FV_LINEAR_IN_V) || t->args.params) return;
    second.v = trial_like(t, &t->args.v);
    sum.v = trial_like(t, &t->args.v);
    for (int64_t i = 0; i < count; i++)
        ((float *)sum.v.data)[i] = 2 * ((float *)t->args.v.data)[i] - 3 * ((float *)second.v.data)[i];
    second.o = trial_like(t, &t->args.o);
    sum.o = trial_like(t, &t->args.o);
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &t->args));
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &second));
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &sum));
    expected = trial_doubled(&t->args.o);
    for (int64_t i = 0; i < fv_tensor_count(&sum.o); i++)
        expected[i] = 2 * expected[i] - 3 * (double)((float *)second.o.data)[i];
    test_close(t->what, &sum.o, expected, 5 * t->tolerance); /* the sum of coefficients */
    free(expected);
}

static void is_linear_in_v(void **state)
{
    (void)state;
    trial_for_all(check_linearity, 1);
}

static void check_sums(struct trial *t)
{
    const conformance_case *c = t->c;
    double *expected;

    if (!trial_has(t, FV_ROWS_SUM_TO_ONE) || t->args.params) return;
    for (int64_t i = 0; i < fv_tensor_count(&t->args.v); i++)
        ((float *)t->args.v.data)[i] = 1;
    CHECK_OK(t, fv_attention_forward(t->ctx, t->attention, &t->args));
    expected = trial_zeros(fv_tensor_count(&t->args.o), sizeof *expected);
    for (int64_t i = 0; i < fv_tensor_count(&t->args.o); i++) { /* 0 where a row sees nothing */
        expected[i] = trial_is_causal(t) && i / c->Dv % c->N + c->M - c->N < 0 ? 0 : 1;
        if (t->sheet.lse && t->sheet.lse[i / c->Dv] == -INFINITY) expected[i] = 0;
    }
    test_close(t->what, &t->args.o, expected, t->tolerance);
    free(expected);
}

static void rows_sum_to_one(void **state)
{
    (void)state;
    trial_for_all(check_sums, 1);
}

/* ---- gradients -------------------------------------------------------------------------------------------------- */

/* d/de of sum d_o o(x + e u), by differences of the definition, behind x (0) and ahead of it (1).  They differ by a
 * curvature times the step, and where a kink of a feature map lies between: the gradient is then that of one side. */
static void slopes(struct trial *t, double *x, const double *u, int64_t count, const double *d_o, double slope[2])
{
    const double step = 1e-5;
    int64_t outputs = t->c->B * t->c->H * t->c->N * t->c->Dv;
    double *kept = trial_zeros(count, sizeof *kept), at[3];

    memcpy(kept, x, (size_t)count * sizeof *kept);
    t->sheet.frozen = true; /* what was chosen is constant */
    t->sheet.still_k = x == t->k ? kept : t->k;
    for (int side = 0; side < 3; side++) {
        for (int64_t i = 0; i < count; i++)
            x[i] = kept[i] + (side - 1) * step * u[i];
        trial_define(t);
        at[side] = sheet_dot(d_o, t->sheet.o, outputs);
    }
    memcpy(x, kept, (size_t)count * sizeof *kept);
    free(kept);
    t->sheet.frozen = false;
    for (int side = 0; side < 2; side++)
        slope[side] = (at[side + 1] - at[side]) / step;
}

static void check_gradient(struct trial *t, const char *name, double *x, const fv_tensor *gradient, const double *d_o)
{
    int64_t count = fv_tensor_count(gradient);
    fv_tensor direction = trial_like(t, gradient);
    double *u = trial_doubled(&direction), *g = trial_doubled(gradient), side[2], got, low, high, size = 0, tolerance;

    got = sheet_dot(g, u, count);
    slopes(t, x, u, count, d_o, side);
    low = fmin(side[0], side[1]);
    high = fmax(side[0], side[1]);
    for (int64_t i = 0; i < count; i++)
        size += g[i] * g[i] * u[i] * u[i]; /* of a sum with random signs */
    tolerance = 50 * t->tolerance * fmax(1, fmax(fabs(low + high) / 2, sqrt(size)));
    if (!(got >= low - tolerance && got <= high + tolerance))
        fail_msg("gradient of %s of %s: expected %.9g to %.9g along a random direction, got %.9g", name, t->what, low,
                 high, got);
    free(u);
    free(g);
}

static bool is_fixed(struct trial *t, const char *name)
{
    const fv_param *param = t->mechanism->params;

    while (strcmp(param->name, name) != 0)
        param++;
    return param->fixed;
}

static void check_gradients(struct trial *t)
{
    fv_attention_grads grads = {.d_o = trial_like(t, &t->args.o),
                                .d_q = trial_like(t, &t->args.q),
                                .d_k = trial_like(t, &t->args.k),
                                .d_v = trial_like(t, &t->args.v),
                                .params = 0};
    fv_named_tensor d_param[TRIAL_PARAMS];
    double *d_o = trial_doubled(&grads.d_o);

    if (trial_has(t, FV_DIFFERENTIABLE)) {
        for (int i = 0; i < t->args.params; i++)
            if (!is_fixed(t, t->names[i]))
                d_param[grads.params++] = (fv_named_tensor){t->names[i], trial_like(t, &t->param[i].tensor)};
        grads.d_param = d_param;
        CHECK_OK(t, fv_attention_backward(t->ctx, t->attention, &t->args, &grads));
        test_close(t->what, &t->args.o, t->sheet.o, t->tolerance); /* o is written too */
        check_gradient(t, "q", t->q, &grads.d_q, d_o);
        check_gradient(t, "k", t->k, &grads.d_k, d_o);
        check_gradient(t, "v", t->v, &grads.d_v, d_o);
        for (int i = 0, n = 0; i < t->args.params; i++)
            if (!is_fixed(t, t->names[i])) check_gradient(t, t->names[i], t->data[i], &d_param[n++].tensor, d_o);
        for (int i = 0; i < t->args.params; i++) {
            if (!is_fixed(t, t->names[i])) continue;
            d_param[0] = (fv_named_tensor){t->names[i], t->param[i].tensor};
            grads.params = 1;
            assert_fails(fv_attention_backward(t->ctx, t->attention, &t->args, &grads), FV_E_USAGE, "has no gradient");
        }
    } else {
        assert_fails(fv_attention_backward(t->ctx, t->attention, &t->args, &grads), FV_E_USAGE, "gradients");
    }
    free(d_o);
}

static void has_the_gradients_of_its_definition(void **state)
{
    (void)state;
    trial_for_all(check_gradients, 2);
}

/* ---- threads, failures ------------------------------------------------------------------------------------------ */

static void check_bits(struct trial *t)
{
    fv_attention_grads grads = {.d_o = trial_like(t, &t->args.o), .d_k = trial_like(t, &t->args.k)};
    fv_tensor first_o = trial_like(t, &t->args.o), first_k = trial_like(t, &t->args.k);
    const int threads[] = {1, 1, 2, 3};

    for (int run = 0; run < 4; run++) {
        fv_ctx *ctx = test_ctx(strcmp(fv_ctx_backend(t->ctx), "ref") == 0 ? "ref" : "cpu", threads[run]);
        CHECK_OK(t, fv_attention_forward(ctx, t->attention, &t->args));
        if (trial_has(t, FV_DIFFERENTIABLE)) CHECK_OK(t, fv_attention_backward(ctx, t->attention, &t->args, &grads));
        fv_ctx_free(ctx);
        size_t o_bytes = (size_t)fv_tensor_count(&first_o) * sizeof(float);
        size_t k_bytes = (size_t)fv_tensor_count(&first_k) * sizeof(float);
        if (run == 0) {
            memcpy(first_o.data, t->args.o.data, o_bytes);
            memcpy(first_k.data, grads.d_k.data, k_bytes);
        }
        if (memcmp(first_o.data, t->args.o.data, o_bytes) != 0 || memcmp(first_k.data, grads.d_k.data, k_bytes) != 0)
            fail_msg("%s: run %d with %d threads differs in bits from the first", t->what, run, threads[run]);
    }
}

static void gives_the_same_bits_with_any_threads(void **state)
{
    (void)state;
    trial_for_all(check_bits, 1);
}

static fv_status forward_once(fv_ctx *ctx, void *user)
{
    struct trial *t = user;

    return fv_attention_forward(ctx, t->attention, &t->args);
}

static void check_memory(struct trial *t)
{
    test_without_memory(t->what, strcmp(fv_ctx_backend(t->ctx), "ref") == 0 ? "ref" : "cpu", forward_once, t);
}

static void survives_want_of_memory(void **state)
{
    (void)state;
    trial_for_all(check_memory, 1);
}

static void every_mechanism_has_cases_and_a_definition(void **state)
{
    (void)state;
    for (int i = 0; fv_mechanisms[i]; i++) {
        const fv_mechanism *m = fv_mechanisms[i];
        bool found = false;
        for (const conformance_case *c = conformance_cases; c->spec; c++) {
            size_t length = strcspn(c->spec, ":");
            found |= strlen(m->name) == length && strncmp(c->spec, m->name, length) == 0;
        }
        if (!found || !sheet_find(m->name)) fail_msg("%s: no cases or no definition", m->name);
        assert_true(m->title && m->paper && m->formula && m->cost && m->options);
        assert_int_equal((m->plan != NULL) + (m->scan != NULL) + (m->forward != NULL), 1);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mechanism_has_cases_and_a_definition),
        cmocka_unit_test(equals_its_definition),
        cmocka_unit_test(shows_the_pairs_it_computes),
        cmocka_unit_test(is_causal_to_the_token),
        cmocka_unit_test(decodes_and_prefills_in_chunks_alike),
        cmocka_unit_test(writes_its_state),
        cmocka_unit_test(is_linear_in_v),
        cmocka_unit_test(rows_sum_to_one),
        cmocka_unit_test(has_the_gradients_of_its_definition),
        cmocka_unit_test(gives_the_same_bits_with_any_threads),
        cmocka_unit_test(survives_want_of_memory),
    };

    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) trial_only = argv[2]; /* over the cases whose SPEC begins so */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
