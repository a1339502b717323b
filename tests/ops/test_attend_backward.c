/* Gradients of attend against central differences of its definition, called directly and over the tape. */
#include "support/problem.h"
#include "support/tensors.h"

#include <math.h>

#include "base/context.h"
#include "ops/tape.h"

struct gradient {
    const char *name;
    fv_tensor *value, d;
};

enum { GRADIENTS = 9 };

/* *size: of the sum's terms. */
static double loss(fv_ctx *ctx, const struct problem *p, const fv_attend_grads *g, uint64_t *negative, double *size)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct naive naive;
    double sum = 0;

    test_problem_define(ctx, p, &naive);
    *size = 0;
    for (int64_t n = 0; n < p->B * p->H * p->S * p->Dv; n++) {
        double term = naive.o[n] * ((const float *)g->d_o.data)[n];
        sum += term;
        *size += fabs(term);
    }
    for (int64_t n = 0; n < p->B * p->H * p->S && g->d_lse.data; n++)
        if (naive.lse[n] > -INFINITY) sum += naive.lse[n] * ((const float *)g->d_lse.data)[n];
    *negative = naive.negative;
    fv_scratch_release(ctx, mark);
    return sum;
}

/* Samples elements of each gradient.  Truncation of the difference is about step^2 / 6 times a third derivative, 1e-6
 * here; the difference's own rounding is up to 2^-53 of the sum's size for each of its terms, much where given
 * normalisers make weights large; the rest is what the forward tolerance allows for each of several factors. */
static void check(fv_ctx *ctx, fv_random *random, struct problem *p, const fv_attend_grads *g,
                  const struct gradient *each)
{
    double bound = 8 * test_problem_tolerance(p) + 1e-5;

    for (int n = 0; n < GRADIENTS; n++) {
        if (!each[n].d.data) continue;
        for (int sample = 0; sample < 4; sample++) {
            int64_t element = fv_random_below(random, fv_tensor_count(each[n].value));
            float *x = (float *)each[n].value->data + element, kept = *x, low = kept - 0x1p-10f, high = kept + 0x1p-10f;
            uint64_t negative[2];
            double size, allowed, difference, got = ((const float *)each[n].d.data)[element];
            if (isinf(kept)) continue;
            *x = high;
            difference = loss(ctx, p, g, &negative[0], &size);
            *x = low;
            difference = (difference - loss(ctx, p, g, &negative[1], &size)) / ((double)high - low);
            *x = kept;
            if (p->args.logits.gain != 0 && negative[0] != negative[1]) continue; /* across a kink */
            allowed = bound * fmax(1, fabs(difference));
            allowed += 0x1p-52 * (double)(p->B * p->H * p->S * p->Dv) * size / ((double)high - low);
            if (!(fabs(got - difference) <= allowed))
                fail_msg("%s, element %lld of %s: expected %.9g, got %.9g (tolerance %.3g)", each[n].name,
                         (long long)element, fv_shape_text(each[n].value), difference, got, allowed);
        }
    }
}

static void list(struct problem *p, struct gradient *each)
{
    fv_attend_args *a = &p->args;
    struct gradient all[GRADIENTS] = {{.name = "d_q", .value = &a->q},
                                      {.name = "d_k", .value = &a->k},
                                      {.name = "d_v", .value = &a->v},
                                      {.name = "d_bias", .value = &a->logits.bias},
                                      {.name = "d_sinks", .value = &a->sinks},
                                      {.name = "d_temperature", .value = &a->logits.temperature},
                                      {.name = "d_offset_bias", .value = &a->logits.offset_bias},
                                      {.name = "d_row_bias", .value = &a->logits.row_bias},
                                      {.name = "d_column_bias", .value = &a->logits.column_bias}};

    memcpy(each, all, sizeof all);
}

static void limited_problem(fv_ctx *ctx, fv_random *random, int round, int64_t limit, struct problem *p)
{
    unsigned kinds = round < PLAN_KINDS ? 1u << round : test_plan_kinds(random);

    do {
        test_problem(ctx, random, kinds, p);
    } while (p->B * p->H * p->S * p->M * (p->D + p->Dv) > limit);
    if (round % 2) test_problem_logits(ctx, random, p);
    if (round % 7 == 3) p->args.lse_in = test_random(ctx, 0.3, FV_DIMS(p->B, p->H, p->S));
    if (round % 7 == 5) p->args.lse_in_key = test_random(ctx, 0.3, FV_DIMS(p->B, p->H, p->M));
    for (int64_t n = 0; p->args.lse_in.data && n < fv_tensor_count(&p->args.lse_in); n++)
        ((float *)p->args.lse_in.data)[n] += 5;
    for (int64_t n = 0; p->args.lse_in_key.data && n < fv_tensor_count(&p->args.lse_in_key); n++)
        ((float *)p->args.lse_in_key.data)[n] += 5;
}

static void small_problem(fv_ctx *ctx, fv_random *random, int round, struct problem *p)
{
    limited_problem(ctx, random, round, 200000, p); /* differences need few numbers */
}

/* Gradients of zeros, wherever the call has a tensor. */
static void zero_gradients(fv_ctx *ctx, fv_attend_grads *g, struct gradient *each)
{
    fv_tensor *slots[GRADIENTS] = {&g->d_q,           &g->d_k,           &g->d_v,        &g->d_bias,       &g->d_sinks,
                                   &g->d_temperature, &g->d_offset_bias, &g->d_row_bias, &g->d_column_bias};

    for (int n = 0; n < GRADIENTS; n++) {
        if (!each[n].value->data) continue;
        assert_ok(fv_tensor_zeros(ctx, &each[n].d, FV_F32, each[n].value->rank, each[n].value->dims));
        *slots[n] = each[n].d;
    }
}

static void gradients_are_slopes(void **state)
{
    fv_random random = fv_random_new(test_seed(), 20);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 60; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct gradient each[GRADIENTS];
            small_problem(ctx, &random, round, &p);
            bool given = p.args.lse_in.data || p.args.lse_in_key.data;
            fv_attend_grads g = {.d_o = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S, p.Dv))};
            if (round % 3 && !given) g.d_lse = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S));
            list(&p, each);
            zero_gradients(ctx, &g, each);
            assert_ok(fv_attend(ctx, &p.args));
            assert_ok(fv_attend_backward(ctx, &p.args, &g));
            check(ctx, &random, &p, &g, each);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* The plan and the head map are gone when the tape walks: it must have kept them. */
static void attend_on_tape(fv_ctx *ctx, struct problem *p)
{
    fv_plan plan = p->plan;
    fv_attend_args args = p->args;

    args.plan = &plan;
    args.lse.data = NULL; /* the tape makes its own */
    assert_ok(fv_attend(ctx, &args));
    memset(&plan, 0xff, sizeof plan);
}

static void the_tape_walks_attend(void **state)
{
    fv_random random = fv_random_new(test_seed(), 21);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 20; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct gradient each[GRADIENTS];
            small_problem(ctx, &random, round, &p);
            fv_attend_grads g = {.d_o = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S, p.Dv))};
            list(&p, each);
            assert_ok(fv_tape_begin(ctx));
            for (int n = 0; n < GRADIENTS; n++)
                if (each[n].value->data) assert_ok(fv_tape_watch(ctx, each[n].value));
            attend_on_tape(ctx, &p);
            assert_ok(fv_tape_seed(ctx, &p.args.o, &g.d_o));
            assert_ok(fv_tape_backward(ctx));
            for (int n = 0; n < GRADIENTS; n++)
                if (each[n].value->data) assert_true(fv_tape_gradient(ctx, each[n].value, &each[n].d));
            check(ctx, &random, &p, &g, each);
            fv_tape_end(ctx);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* ---- products in bf16 ------------------------------------------------------------------------------------------ */

/* A call in the order of `list`, with what its gradients may be off. */
struct rounded {
    const struct problem *p;
    const struct naive *naive;
    const fv_attend_grads *g;
    const struct gradient *each;
    double *bound[GRADIENTS];
};

static void allow(const struct rounded *r, int n, int64_t a, int64_t b, int64_t c, int64_t d, double error)
{
    const fv_tensor *t = r->each[n].value;
    int64_t index[] = {a, b, c, d}, at = 0;

    if (!t->data) return;
    for (int k = 0; k < t->rank; k++)
        at = at * t->dims[k] + (t->dims[k] == 1 ? 0 : index[k]);
    r->bound[n][at] += error;
}

/* What a pair of query and key adds.  Eight significant bits round by up to u = 2^-8; sums in f32 add less than 2^-16
 * of their terms' sizes here, a coarse exponential 2^-13.  q (scaled) and k move a logit, which moves its weight by the
 * exponential of that and its slope by at most 0.77 / softcap times as much (the most that 1 - tanh^2 bends), or 2 gain
 * across the kink; d_o and v move d_o.v; and weight and d_x are rounded themselves, as are what they are multiplied
 * with. */
static void allow_pair(const struct rounded *r, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const double u = 0x1p-8, f32 = 0x1p-16, both = 2 * u + u * u + f32, coarse = 0x1p-13;
    const struct problem *p = r->p;
    const fv_attend_args *a = &p->args;
    const fv_logits *l = &a->logits;
    int64_t kv = a->key_head ? a->key_head[h] : h / (p->H / p->Hkv), cell = (b * p->H + h) * p->S + i;
    int64_t query = test_plan_query(&p->plan, p->H, b, h, i);
    double gain = fabs((double)l->gain), temperature = 1, scale, P = r->naive->probability[cell * p->M + j];
    double x = 0, x_size = 0, d_p = 0, d_p_size = 0, delta = 0, delta_size = 0;

    if (P == 0) return;
    scale = l->zero_scale ? 0 : l->scale != 0 ? (double)l->scale : 1 / sqrt((double)p->D);
    if (l->temperature.data) temperature = test_at(&l->temperature, b, h, query, 0);
    for (int64_t d = 0; d < p->D; d++) {
        double term = scale * temperature * test_at(&a->q, b, h, query, d) * test_at(&a->k, b, kv, j, d);
        x += term;
        x_size += fabs(term);
    }
    for (int64_t d = 0; d < p->Dv; d++) {
        double d_o = test_at(&r->g->d_o, b, h, i, d), term = d_o * test_at(&a->v, b, kv, j, d);
        d_p += term;
        d_p_size += fabs(term);
        if (a->lse_in.data || a->lse_in_key.data) continue;
        delta += d_o * r->naive->o[cell * p->Dv + d];
        delta_size += fabs(d_o * r->naive->o[cell * p->Dv + d]);
    }
    if (r->g->d_lse.data) delta -= test_at(&r->g->d_lse, b, h, i, 0);

    double moved = both * x_size, slope = 1 + gain, bent = fabs(x) <= moved ? 2 * gain : 0;
    if (l->softcap > 0) bent += 0.77 / (double)l->softcap * slope * slope * moved;
    double weight = P * (exp(slope * moved) - 1 + coarse), d_s = P * fabs(d_p - delta);
    double d_s_moved = (P + weight) * (both * d_p_size + f32 * delta_size) + weight * fabs(d_p - delta);
    double d_x = (d_s + d_s_moved) * (slope + bent), d_x_moved = d_s_moved * slope + (d_s + d_s_moved) * bent;

    weight += both * (P + weight);
    d_x_moved += both * d_x;
    for (int64_t d = 0; d < p->D; d++) {
        double q = test_at(&a->q, b, h, query, d), k = test_at(&a->k, b, kv, j, d);
        allow(r, 0, b, h, query, d, d_x_moved * fabs(scale * temperature * k));
        allow(r, 1, b, kv, j, d, d_x_moved * fabs(scale * temperature * q));
        allow(r, 5, b, h, query, 0, d_x_moved * fabs(scale * q * k));
    }
    for (int64_t d = 0; d < p->Dv; d++)
        allow(r, 2, b, kv, j, d, weight * fabs(test_at(&r->g->d_o, b, h, i, d)));
    allow(r, 3, b, h, query, j, d_s_moved);
    if (a->sinks.data) allow(r, 4, h, 0, 0, 0, f32 * P * delta_size);
    if (l->offset_bias.data) allow(r, 6, h, test_offset_at(p, query, j), 0, 0, d_s_moved);
    if (l->row_bias.data) allow(r, 7, b, h, query, test_row_at(p, query, j), d_s_moved);
    if (l->row_bias.data) allow(r, 8, b, h, query, test_column_at(p, query, j), d_s_moved);
}

static void check_rounded(fv_ctx *ctx, const struct problem *p, const fv_attend_grads *g, const struct gradient *got,
                          const struct gradient *expected)
{
    struct naive naive;
    struct rounded r = {p, &naive, g, got, {NULL}};

    test_problem_define(ctx, p, &naive);
    for (int n = 0; n < GRADIENTS; n++) {
        int64_t count = got[n].value->data ? fv_tensor_count(got[n].value) : 0;
        assert_ok(FV_SCRATCH(ctx, r.bound[n], count));
        for (int64_t element = 0; element < count; element++)
            r.bound[n][element] = 0;
    }
    for (int64_t pair = 0; pair < p->B * p->H * p->S * p->M; pair++)
        allow_pair(&r, pair / p->M / p->S / p->H, pair / p->M / p->S % p->H, pair / p->M % p->S, pair % p->M);
    for (int n = 0; n < GRADIENTS; n++)
        for (int64_t element = 0; got[n].value->data && element < fv_tensor_count(got[n].value); element++) {
            double is = ((const float *)got[n].d.data)[element], was = ((const float *)expected[n].d.data)[element];
            double bound = r.bound[n][element] + 1e-6 * fmax(1, fabs(was)); /* its own rounding to f32 */
            if (!(fabs(is - was) <= bound))
                fail_msg("%s, element %lld of %s: expected %.9g, got %.9g (tolerance %.3g)", got[n].name,
                         (long long)element, fv_shape_text(got[n].value), was, is, bound);
        }
}

/* Keys and values of 16 bits, and the precision on request, against the reference over the same numbers. */
static void bf16_products_err_as_their_operands_do(void **state)
{
    static const fv_dtype types[] = {FV_F32, FV_BF16, FV_F16};
    fv_random random = fv_random_new(test_seed(), 23);
    fv_ctx *ctx = test_ctx("cpu", 2), *reference = test_ctx("ref", 2);
    (void)state;

    for (int round = 0; round < 90; round++) {
        fv_mark mark = fv_scratch_mark(ctx), reference_mark = fv_scratch_mark(reference);
        struct gradient got[GRADIENTS], expected[GRADIENTS];
        fv_attend_grads g = {0}, exact;
        struct problem p;
        limited_problem(ctx, &random, round / 2, 4000000, &p);
        if (round % 4 == 1) test_problem_logits(ctx, &random, &p);
        p.args.k = test_cast(ctx, &p.args.k, types[round % 3]);
        p.args.v = test_cast(ctx, &p.args.v, types[round % 3]);
        ctx->precision = round % 3 ? FV_PRECISION_AUTO : FV_PRECISION_BF16;
        g.d_o = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S, p.Dv));
        if (round % 2 && !p.args.lse_in.data && !p.args.lse_in_key.data)
            g.d_lse = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S));
        exact = g;
        list(&p, got);
        list(&p, expected);
        zero_gradients(ctx, &g, got);
        zero_gradients(ctx, &exact, expected);
        assert_ok(fv_attend(reference, &p.args));
        assert_ok(fv_attend_backward(reference, &p.args, &exact));
        assert_ok(fv_attend_backward(ctx, &p.args, &g));
        check_rounded(ctx, &p, &g, got, expected);
        fv_scratch_release(ctx, mark);
        fv_scratch_release(reference, reference_mark);
    }
    fv_ctx_free(ctx);
    fv_ctx_free(reference);
}

/* ---------------------------------------------------------------------------------------------------------------- */

/* A key-value head and a bias that all heads and batches read: their gradients are the sums. */
static void broadcast_gradients_sum(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        int64_t B = 2, H = 3, N = 7, M = 9, D = 8;
        fv_tensor k = test_random(ctx, 1, FV_DIMS(1, 1, M, D)), d_k, d_k_all;
        fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                            .v = test_random(ctx, 1, FV_DIMS(B, H, M, D)),
                            .o = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                            .lse = test_random(ctx, 1, FV_DIMS(B, H, N))};
        fv_attend_grads g = {.d_o = test_random(ctx, 1, FV_DIMS(B, H, N, D))};
        double expected[9 * 8] = {0};
        a.k = fv_broadcast(&k, FV_DIMS(B, H, M, D));
        assert_ok(fv_attend(ctx, &a));
        assert_ok(fv_tensor_zeros(ctx, &d_k_all, FV_F32, FV_DIMS(B, H, M, D)));
        assert_ok(fv_tensor_zeros(ctx, &d_k, FV_F32, FV_DIMS(1, 1, M, D)));
        g.d_k = d_k_all;
        assert_ok(fv_attend_backward(ctx, &a, &g));
        g.d_k = fv_broadcast(&d_k, FV_DIMS(B, H, M, D));
        assert_ok(fv_attend_backward(ctx, &a, &g));
        for (int64_t n = 0; n < B * H * M * D; n++)
            expected[n % (M * D)] += ((const float *)d_k_all.data)[n];
        test_close("d_k", &d_k, expected, 0x1p-22 * (double)(B * H)); /* sums of six */
        g.d_k = d_k;                                                  /* added once more, to what is there */
        assert_ok(fv_attend_backward(ctx, &a, &g));
        for (int64_t n = 0; n < M * D; n++)
            expected[n] *= 2;
        test_close("d_k", &d_k, expected, 0x1p-22 * (double)(2 * B * H));
        fv_ctx_free(ctx);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    fv_random random = fv_random_new(test_seed(), 22);
    (void)state;

    for (int device = 0; test_devices[device]; device++)
        for (int round = 0; round < 2 * PLAN_KINDS; round++) {
            fv_tensor d[2][3];
            fv_ctx *ctxs[2] = {test_ctx(test_devices[device], 1), test_ctx(test_devices[device], 2)};
            struct problem p;
            limited_problem(ctxs[0], &random, round / 2, 1000000, &p);
            assert_ok(fv_attend(ctxs[0], &p.args));
            fv_tensor d_o = test_random(ctxs[0], 1, p.args.o.rank, p.args.o.dims);
            for (int n = 0; n < 2; n++) {
                if (round % 2) ctxs[n]->precision = FV_PRECISION_BF16;
                assert_ok(fv_tensor_zeros(ctxs[n], &d[n][0], FV_F32, 4, p.args.q.dims));
                assert_ok(fv_tensor_zeros(ctxs[n], &d[n][1], FV_F32, 4, p.args.k.dims));
                assert_ok(fv_tensor_zeros(ctxs[n], &d[n][2], FV_F32, 4, p.args.v.dims));
                fv_attend_grads g = {.d_o = d_o, .d_q = d[n][0], .d_k = d[n][1], .d_v = d[n][2]};
                assert_ok(fv_attend_backward(ctxs[n], &p.args, &g));
            }
            for (int n = 0; n < 3; n++)
                assert_memory_equal(d[0][n].data, d[1][n].data, (size_t)fv_tensor_count(&d[0][n]) * sizeof(float));
            fv_ctx_free(ctxs[0]);
            fv_ctx_free(ctxs[1]);
        }
}

static void check_same(const char *what, const fv_tensor *got, const fv_tensor *expected, int64_t rows)
{
    for (int64_t h = 0; h < got->dims[1]; h++)
        for (int64_t n = 0; n < rows; n++)
            for (int64_t d = 0; d < got->dims[3]; d++) {
                float x = *(float *)fv_at(got, 0, h, n, d), y = *(float *)fv_at(expected, 0, h, n, d);
                /* the same sums, if in another order where a key was spoiled */
                if (!(fabsf(x - y) <= 1e-5f * fmaxf(1, fabsf(y))))
                    fail_msg("%s, head %d, row %d, channel %d: expected %g, got %g", what, (int)h, (int)n, (int)d,
                             (double)y, (double)x);
            }
}

static void spoil(const fv_tensor *t, int64_t h, int64_t n, int64_t d, float value)
{
    int64_t at = h * t->strides[1] + n * t->strides[2] + d * t->strides[3];

    if (t->dtype == FV_F32)
        ((float *)t->data)[at] = value;
    else
        ((uint16_t *)t->data)[at] = fv_f32_to_bf16(value);
}

/* Gradients of a call with NaN and infinities in keys and values that nobody sees are those of a call without; and rows
 * that do not see such a key keep their d_q. */
static void what_is_hidden_cannot_spoil(void **state)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY};
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 24; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            int64_t N = round % 12 < 6 ? 9 : 150, M = N + 7, H = 4, Hkv = 2, D = round % 2 ? 16 : 32, Dv = 24;
            int64_t at = round % 4 < 2 ? N : N * 2 / 3; /* the first spoiled key: seen by nobody, or by late rows */
            fv_plan plan = {.causal = true};
            fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(1, H, N, D)),
                                .k = test_random(ctx, 1, FV_DIMS(1, Hkv, M, D)),
                                .v = test_random(ctx, 1, FV_DIMS(1, Hkv, M, Dv)),
                                .o = test_random(ctx, 1, FV_DIMS(1, H, N, Dv)),
                                .lse = test_random(ctx, 1, FV_DIMS(1, H, N)),
                                .plan = &plan};
            fv_attend_grads g[2] = {{.d_o = test_random(ctx, 1, FV_DIMS(1, H, N, Dv))}};
            if (round % 3 == 1) a.logits.softcap = 5;
            if (round >= 12) { /* products in bf16, of keys and values that lose nothing by it */
                a.k = test_cast(ctx, &a.k, FV_BF16);
                a.v = test_cast(ctx, &a.v, FV_BF16);
            }
            g[1].d_o = g[0].d_o;
            for (int n = 0; n < 2; n++) {
                assert_ok(fv_tensor_zeros(ctx, &g[n].d_q, FV_F32, 4, a.q.dims));
                assert_ok(fv_tensor_zeros(ctx, &g[n].d_k, FV_F32, 4, a.k.dims));
                assert_ok(fv_tensor_zeros(ctx, &g[n].d_v, FV_F32, 4, a.v.dims));
                for (int64_t h = 0; n == 1 && h < Hkv; h++) {
                    spoil(&a.k, h, at, 3, poison[round % 3]);
                    spoil(&a.v, h, at, 5, poison[round % 3]);
                    spoil(&a.v, h, M - 1, 7, poison[(round + 1) % 3]);
                }
                /* o in other bits could round a gradient the other way, 2^-8 of it */
                if (n == 0 || round < 12) assert_ok(fv_attend(ctx, &a));
                assert_ok(fv_attend_backward(ctx, &a, &g[n]));
            }
            check_same("d_q", &g[1].d_q, &g[0].d_q, at);
            if (at == N) check_same("d_k", &g[1].d_k, &g[0].d_k, M);
            if (at == N) check_same("d_v", &g[1].d_v, &g[0].d_v, M);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4)),
                        .k = test_random(ctx, 1, FV_DIMS(1, 2, 5, 4)),
                        .v = test_random(ctx, 1, FV_DIMS(1, 2, 5, 4)),
                        .o = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4))};
    fv_attend_grads g = {.d_o = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4))};
    (void)state;

    assert_fails(fv_attend_backward(ctx, &a, &g), FV_E_ARGUMENT, "lse of the forward call is needed");
    a.lse = test_random(ctx, 1, FV_DIMS(1, 2, 3));
    assert_ok(fv_attend_backward(ctx, &a, &g));
    g.d_sinks = test_random(ctx, 1, FV_DIMS(2));
    assert_fails(fv_attend_backward(ctx, &a, &g), FV_E_ARGUMENT, "d_sinks: the call has no such tensor");
    g.d_sinks.data = NULL;
    g.d_k = test_random(ctx, 1, FV_DIMS(1, 3, 5, 4));
    assert_fails(fv_attend_backward(ctx, &a, &g), FV_E_SHAPE, "d_k");
    g.d_k.data = NULL;
    g.d_o.data = NULL;
    assert_fails(fv_attend_backward(ctx, &a, &g), FV_E_ARGUMENT, "d_o");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_slopes),
        cmocka_unit_test(the_tape_walks_attend),
        cmocka_unit_test(bf16_products_err_as_their_operands_do),
        cmocka_unit_test(broadcast_gradients_sum),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(what_is_hidden_cannot_spoil),
        cmocka_unit_test(bad_calls_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
