/* scan and its gradients on every instruction set against the reference backend: every kind of decay, with and without
 * the delta rule and the normaliser, at lengths around those of chunks; the same bits for any number of threads. */
#include "support/stored.h"

#include <math.h>
#include <stdio.h>

#include "ops/backend.h"

enum { GRADIENTS = 7, RESULTS = 4 + GRADIENTS };

static const char *const names[RESULTS] = {"o",   "state_out",   "z_out",  "denominator", "d_q",   "d_k",
                                           "d_v", "d_log_decay", "d_beta", "d_state_in",  "d_z_in"};

struct setting {
    int64_t B, H, Hkv, N, D, Dv;
    fv_decay decay;
    bool delta, normalise, beta, state;
};

/* Results of a call, in the order of `names`; absent ones have no data. */
struct results {
    fv_tensor t[RESULTS];
};

static void make(fv_ctx *ctx, double scale, bool positive, int rank, const int64_t *dims, fv_tensor *out)
{
    *out = test_random(ctx, scale, rank, dims);
    for (int64_t i = 0; positive && i < fv_tensor_count(out); i++)
        ((float *)out->data)[i] = fabsf(((float *)out->data)[i]);
}

/* Decays from hardly any to all within a token, -infinity among them where they differ by token. */
static void make_decay(fv_ctx *ctx, fv_random *random, const struct setting *c, fv_scan_args *a)
{
    static const double strengths[] = {0.02, 0.3, 3, 60};
    double strength = strengths[fv_random_below(random, 4)];
    fv_tensor *t = &a->log_decay;

    if (c->decay == FV_DECAY_PER_HEAD) make(ctx, strength, true, FV_DIMS(c->H), t);
    if (c->decay == FV_DECAY_PER_TOKEN) make(ctx, strength, true, FV_DIMS(c->B, c->H, c->N), t);
    if (c->decay == FV_DECAY_PER_KEY) make(ctx, strength, true, FV_DIMS(c->B, c->H, c->N, c->D), t);
    if (c->decay == FV_DECAY_PER_VALUE) make(ctx, strength, true, FV_DIMS(c->B, c->H, c->N, c->Dv), t);
    for (int64_t i = 0; fv_present(t) && i < fv_tensor_count(t); i++)
        ((float *)t->data)[i] = t->rank > 1 && fv_random_below(random, 40) == 0 ? -INFINITY : -((float *)t->data)[i];
}

static fv_scan_args make_call(fv_ctx *ctx, fv_random *random, const struct setting *c)
{
    fv_scan_args a = {.decay = c->decay, .delta = c->delta, .normalise = c->normalise};
    double width = 1 / sqrt((double)c->D); /* keys of length one keep the delta rule bounded */

    if (c->normalise) a.epsilon = 0.5f, a.floor = 0.25f;
    make(ctx, 1, c->normalise, FV_DIMS(c->B, c->H, c->N, c->D), &a.q); /* a normaliser needs positive features */
    make(ctx, width, c->normalise, FV_DIMS(c->B, c->Hkv, c->N, c->D), &a.k);
    make(ctx, 1, false, FV_DIMS(c->B, c->Hkv, c->N, c->Dv), &a.v);
    make_decay(ctx, random, c, &a);
    if (c->beta) make(ctx, 0.3, true, FV_DIMS(c->B, c->H, c->N), &a.beta);
    if (c->state) make(ctx, 1, false, FV_DIMS(c->B, c->H, c->D, c->Dv), &a.state_in);
    if (c->state && c->normalise) make(ctx, 0.1, true, FV_DIMS(c->B, c->H, c->D), &a.z_in);
    a.chunk = fv_random_below(random, 2) ? 0 : 1 + fv_random_below(random, 100);
    return a;
}

/* Forward and backward on ctx; results live in `memory`. */
static void run_call(fv_ctx *memory, fv_ctx *ctx, const struct setting *c, const fv_scan_args *call,
                     const fv_tensor *d_o, const fv_tensor *d_state, struct results *r)
{
    fv_scan_args a = *call;
    fv_scan_grads g = {.d_o = *d_o, .d_state_out = *d_state};
    fv_tensor *to[] = {&g.d_q, &g.d_k, &g.d_v, &g.d_log_decay, &g.d_beta, &g.d_state_in, &g.d_z_in};
    const fv_tensor *of[] = {&a.q, &a.k, &a.v, &a.log_decay, &a.beta, &a.state_in, &a.z_in};

    *r = (struct results){0};
    assert_ok(fv_tensor_new(memory, &r->t[0], FV_F32, FV_DIMS(c->B, c->H, c->N, c->Dv)));
    assert_ok(fv_tensor_new(memory, &r->t[1], FV_F32, FV_DIMS(c->B, c->H, c->D, c->Dv)));
    if (c->normalise) assert_ok(fv_tensor_new(memory, &r->t[2], FV_F32, FV_DIMS(c->B, c->H, c->D)));
    if (c->normalise) assert_ok(fv_tensor_new(memory, &r->t[3], FV_F32, FV_DIMS(c->B, c->H, c->N)));
    a.o = r->t[0];
    a.state_out = r->t[1];
    a.z_out = r->t[2];
    a.denominator = r->t[3];
    assert_ok(fv_scan(ctx, &a));
    for (int n = 0; n < GRADIENTS; n++) {
        if (!fv_present(of[n])) continue;
        assert_ok(fv_tensor_zeros(memory, &r->t[4 + n], FV_F32, of[n]->rank, of[n]->dims));
        *to[n] = r->t[4 + n];
    }
    assert_ok(fv_scan_backward(ctx, &a, &g));
}

/* A result in f32 errs by eps times the length of its sums (N tokens of D products, and gradients of those once more),
 * relative to the largest number of its kind, as terms cancel; a head's decay adds up all N Dv terms of every token. */
static void check_close(fv_ctx *memory, const struct setting *c, const char *isa, const struct results *got,
                        const struct results *expected)
{
    for (int n = 0; n < RESULTS; n++) {
        const fv_tensor *t = &expected->t[n];
        double largest = 1, *numbers, length = (double)(2 * c->N + c->D + c->Dv + 8);
        char what[160];
        if (!fv_present(t)) continue;
        assert_ok(FV_SCRATCH(memory, numbers, fv_tensor_count(t)));
        for (int64_t i = 0; i < fv_tensor_count(t); i++) {
            numbers[i] = ((const float *)t->data)[i];
            largest = fmax(largest, fabs(numbers[i]));
        }
        if (t->rank == 1) length *= (double)c->N / 4 + 1;
        snprintf(what, sizeof what, "%s of %s: N %lld, decay %d%s%s", names[n], isa, (long long)c->N, c->decay,
                 c->delta ? ", delta" : "", c->normalise ? ", normalised" : "");
        test_close(what, &got->t[n], numbers, 0x1p-24 * length * largest);
    }
}

static void check_setting(fv_ctx *memory, fv_random *random, const struct setting *c)
{
    fv_mark mark = fv_scratch_mark(memory);
    fv_scan_args a = make_call(memory, random, c);
    fv_tensor d_o = test_random(memory, 0.3, FV_DIMS(c->B, c->H, c->N, c->Dv));
    fv_tensor d_state = test_random(memory, 0.3, FV_DIMS(c->B, c->H, c->D, c->Dv));
    struct results expected, one, more;

    run_call(memory, memory, c, &a, &d_o, &d_state, &expected);
    for (int i = 0; test_isas[i]; i++)
        for (int threads = 1; threads <= 3; threads++) {
            fv_ctx *ctx = test_isa_ctx(test_isas[i], threads, FV_PRECISION_F32);
            if (!ctx) continue;
            run_call(memory, ctx, c, &a, &d_o, &d_state, threads == 1 ? &one : &more);
            if (threads == 1) check_close(memory, c, test_isas[i], &one, &expected);
            for (int n = 0; threads > 1 && n < RESULTS; n++)
                if (fv_present(&one.t[n]))
                    assert_memory_equal(one.t[n].data, more.t[n].data,
                                        (size_t)fv_tensor_count(&one.t[n]) * sizeof(float));
            fv_ctx_free(ctx);
        }
    fv_scratch_release(memory, mark);
}

static void every_kind_agrees_with_the_reference(void **state)
{
    static const int64_t lengths[] = {1, 7, 63, 64, 65, 130};
    fv_random random = fv_random_new(test_seed(), 60);
    fv_ctx *memory = test_ctx("ref", 2);
    (void)state;

    for (int n = 0; n < 6; n++)
        for (int decay = 0; decay < 5; decay++)
            for (int kind = 0; kind < 3; kind++) {
                struct setting c = {.B = 1 + fv_random_below(&random, 2),
                                    .Hkv = 1 + fv_random_below(&random, 2),
                                    .N = lengths[n],
                                    .D = 5 + fv_random_below(&random, 76),
                                    .Dv = 5 + fv_random_below(&random, 76),
                                    .decay = (fv_decay)decay,
                                    .normalise = kind == 1,
                                    .delta = kind == 2,
                                    .beta = kind == 2 || fv_random_below(&random, 2),
                                    .state = fv_random_below(&random, 3) != 0};
                c.H = c.Hkv * (1 + fv_random_below(&random, 2));
                if (c.normalise && decay == FV_DECAY_PER_VALUE) continue; /* no one normaliser there */
                check_setting(memory, &random, &c);
            }
    fv_ctx_free(memory);
}

/* One head of more value columns than a micro-tile: threads share it by columns. */
static void columns_of_a_head_may_be_shared_out(void **state)
{
    fv_random random = fv_random_new(test_seed(), 61);
    fv_ctx *memory = test_ctx("ref", 1);
    (void)state;

    for (int decay = 0; decay < 5; decay++)
        for (int64_t N = 3; N < 100; N += 80)
            check_setting(memory, &random,
                          &(struct setting){.B = 1,
                                            .H = 1,
                                            .Hkv = 1,
                                            .N = N,
                                            .D = 32,
                                            .Dv = 300,
                                            .decay = (fv_decay)decay,
                                            .delta = fv_random_below(&random, 2),
                                            .beta = true,
                                            .state = true});
    fv_ctx_free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_agrees_with_the_reference),
        cmocka_unit_test(columns_of_a_head_may_be_shared_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
