/* scan against its recurrence written out, its gradients against central differences, and pieces against the whole. */
#include "support/problem.h"

#include <math.h>

#include "ops/tape.h"

struct sizes {
    int64_t B, H, Hkv, N, D, Dv;
};

static void random_scan(fv_ctx *ctx, fv_random *random, int round, int64_t longest, struct sizes *s, fv_scan_args *a)
{
    static const int64_t widths[] = {16, 64, 80, 128};
    bool large = longest > 20 && test_chance(random, 6);

    *s = (struct sizes){.B = test_between(random, 1, 2), .Hkv = test_between(random, 1, 2)};
    s->H = s->Hkv * test_between(random, 1, 2);
    s->N = test_chance(random, 6) ? 1 : test_between(random, 1, longest);
    s->D = large ? widths[test_between(random, 0, 3)] : test_between(random, 1, 9);
    s->Dv = large ? widths[test_between(random, 0, 3)] : test_between(random, 1, 9);
    *a = (fv_scan_args){.decay = (fv_decay)(round % 5), .delta = round / 5 % 3 == 1};
    a->normalise = round / 5 % 3 == 2 && a->decay != FV_DECAY_PER_VALUE;
    double width = 1 / sqrt((double)s->D); /* keys of length one keep the delta rule bounded */
    a->q = test_random(ctx, 1, FV_DIMS(s->B, s->H, s->N, s->D));
    a->k = test_random(ctx, width, FV_DIMS(s->B, s->Hkv, s->N, s->D));
    a->v = test_random(ctx, 1, FV_DIMS(s->B, s->Hkv, s->N, s->Dv));
    if (a->decay == FV_DECAY_PER_HEAD) a->log_decay = test_random(ctx, 0.3, FV_DIMS(s->H));
    if (a->decay == FV_DECAY_PER_TOKEN) a->log_decay = test_random(ctx, 0.3, FV_DIMS(s->B, s->H, s->N));
    if (a->decay == FV_DECAY_PER_KEY) a->log_decay = test_random(ctx, 0.3, FV_DIMS(s->B, s->H, s->N, s->D));
    if (a->decay == FV_DECAY_PER_VALUE) a->log_decay = test_random(ctx, 0.3, FV_DIMS(s->B, s->H, s->N, s->Dv));
    for (int64_t n = 0; a->log_decay.data && n < fv_tensor_count(&a->log_decay); n++)
        ((float *)a->log_decay.data)[n] = -fabsf(((float *)a->log_decay.data)[n]);
    if (a->delta || test_chance(random, 2)) a->beta = test_random(ctx, 0.3, FV_DIMS(s->B, s->H, s->N));
    for (int64_t n = 0; a->beta.data && n < fv_tensor_count(&a->beta); n++)
        ((float *)a->beta.data)[n] = fminf(1, fabsf(((float *)a->beta.data)[n]));
    if (test_chance(random, 2)) a->state_in = test_random(ctx, 1, FV_DIMS(s->B, s->H, s->D, s->Dv));
    assert_ok(fv_tensor_new(ctx, &a->o, FV_F32, FV_DIMS(s->B, s->H, s->N, s->Dv)));
    assert_ok(fv_tensor_new(ctx, &a->state_out, FV_F32, FV_DIMS(s->B, s->H, s->D, s->Dv)));
    a->chunk = test_chance(random, 2) ? 0 : test_between(random, 1, 70);
    if (!a->normalise) return;
    for (int64_t n = 0; n < fv_tensor_count(&a->q); n++) /* features are positive */
        ((float *)a->q.data)[n] = 0.1f + fabsf(((float *)a->q.data)[n]);
    for (int64_t n = 0; n < fv_tensor_count(&a->k); n++)
        ((float *)a->k.data)[n] = 0.1f + fabsf(((float *)a->k.data)[n]);
    a->epsilon = 0.25f;
    a->floor = test_chance(random, 2) ? 0 : 1.5f;
    if (test_chance(random, 2)) a->z_in = test_random(ctx, 0.1, FV_DIMS(s->B, s->H, s->D));
    for (int64_t n = 0; a->z_in.data && n < fv_tensor_count(&a->z_in); n++)
        ((float *)a->z_in.data)[n] = fabsf(((float *)a->z_in.data)[n]);
    assert_ok(fv_tensor_new(ctx, &a->z_out, FV_F32, FV_DIMS(s->B, s->H, s->D)));
    assert_ok(fv_tensor_new(ctx, &a->denominator, FV_F32, FV_DIMS(s->B, s->H, s->N)));
}

struct naive_scan {
    double *o, *state, *z, *denominator;
    int64_t floored;
};

static double factor(const fv_scan_args *a, int64_t b, int64_t h, int64_t t, int64_t d, int64_t c)
{
    switch (a->decay) {
    case FV_DECAY_PER_HEAD: return exp(test_at(&a->log_decay, h, 0, 0, 0));
    case FV_DECAY_PER_TOKEN: return exp(test_at(&a->log_decay, b, h, t, 0));
    case FV_DECAY_PER_KEY: return exp(((const float *)fv_at(&a->log_decay, b, h, t, d))[0]);
    case FV_DECAY_PER_VALUE: return exp(((const float *)fv_at(&a->log_decay, b, h, t, c))[0]);
    default: return 1;
    }
}

static void define(fv_ctx *ctx, const struct sizes *s, const fv_scan_args *a, struct naive_scan *out)
{
    double *S, *z, *held;
    int64_t D = s->D, Dv = s->Dv;

    out->floored = 0;
    assert_ok(FV_SCRATCH(ctx, out->o, s->B * s->H * s->N * Dv));
    assert_ok(FV_SCRATCH(ctx, out->state, s->B * s->H * D * Dv));
    assert_ok(FV_SCRATCH(ctx, out->z, s->B * s->H * D));
    assert_ok(FV_SCRATCH(ctx, out->denominator, s->B * s->H * s->N));
    assert_ok(FV_SCRATCH(ctx, held, Dv));
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t h = 0; h < s->H; h++) {
            int64_t kv = h * s->Hkv / s->H;
            S = out->state + (b * s->H + h) * D * Dv;
            z = out->z + (b * s->H + h) * D;
            for (int64_t d = 0; d < D; d++) {
                z[d] = a->z_in.data ? test_at(&a->z_in, b, h, d, 0) : 0;
                for (int64_t c = 0; c < Dv; c++)
                    S[d * Dv + c] = a->state_in.data ? *(const float *)fv_at(&a->state_in, b, h, d, c) : 0;
            }
            for (int64_t t = 0; t < s->N; t++) {
                double beta = a->beta.data ? test_at(&a->beta, b, h, t, 0) : 1, denominator = a->epsilon;
                for (int64_t c = 0; c < Dv; c++) {
                    held[c] = 0;
                    for (int64_t d = 0; d < D; d++) {
                        S[d * Dv + c] *= factor(a, b, h, t, d, c);
                        held[c] += S[d * Dv + c] * *(const float *)fv_at(&a->k, b, kv, t, d);
                    }
                }
                for (int64_t d = 0; d < D; d++) {
                    double k = *(const float *)fv_at(&a->k, b, kv, t, d);
                    for (int64_t c = 0; c < Dv; c++)
                        S[d * Dv + c] +=
                            beta * k * (*(const float *)fv_at(&a->v, b, kv, t, c) - (a->delta ? held[c] : 0));
                    z[d] = factor(a, b, h, t, d, 0) * z[d] + beta * k;
                    denominator += z[d] * *(const float *)fv_at(&a->q, b, h, t, d);
                }
                if (a->floor > 0 && denominator < a->floor) {
                    denominator = a->floor;
                    out->floored += 1 + ((b * s->H + h) * s->N + t) * 1000;
                }
                out->denominator[(b * s->H + h) * s->N + t] = denominator;
                for (int64_t c = 0; c < Dv; c++) {
                    double o = 0;
                    for (int64_t d = 0; d < D; d++)
                        o += S[d * Dv + c] * *(const float *)fv_at(&a->q, b, h, t, d);
                    out->o[((b * s->H + h) * s->N + t) * Dv + c] = a->normalise ? o / denominator : o;
                }
            }
        }
}

/* Sums of N D terms in f32, of magnitude up to about 10 each way; the delta rule may carry an error on N times. */
static double tolerance(const struct sizes *s)
{
    return 0x1p-24 * 16 * (double)(s->N + s->D + 8);
}

static void output_follows_the_recurrence(void **state)
{
    fv_random random = fv_random_new(test_seed(), 30);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 60; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct sizes s;
            fv_scan_args a;
            struct naive_scan naive;
            random_scan(ctx, &random, round, 200, &s, &a);
            define(ctx, &s, &a, &naive);
            assert_ok(fv_scan(ctx, &a));
            test_close("o", &a.o, naive.o, tolerance(&s));
            test_close("state", &a.state_out, naive.state, tolerance(&s));
            if (a.normalise) test_close("z", &a.z_out, naive.z, tolerance(&s));
            if (a.normalise) test_close("denominator", &a.denominator, naive.denominator, tolerance(&s));
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* Two calls, the second from the first one's state in place, against one call; and chunk lengths against each other. */
static void pieces_give_what_the_whole_gives(void **state)
{
    fv_random random = fv_random_new(test_seed(), 31);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 45; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct sizes s;
            fv_scan_args a, part;
            struct naive_scan naive;
            fv_tensor o;
            random_scan(ctx, &random, round, 150, &s, &a);
            if (s.N < 2) {
                fv_scratch_release(ctx, mark);
                continue;
            }
            define(ctx, &s, &a, &naive);
            assert_ok(fv_tensor_new(ctx, &o, FV_F32, a.o.rank, a.o.dims));
            for (int64_t from = 0, count; from < s.N; from += count) {
                count = test_chance(&random, 3) ? 1 : test_between(&random, 1, s.N - from);
                part = a;
                part.q = fv_slice(&a.q, 2, from, count);
                part.k = fv_slice(&a.k, 2, from, count);
                part.v = fv_slice(&a.v, 2, from, count);
                part.o = fv_slice(&o, 2, from, count);
                if (a.decay > FV_DECAY_PER_HEAD) part.log_decay = fv_slice(&a.log_decay, 2, from, count);
                if (a.beta.data) part.beta = fv_slice(&a.beta, 2, from, count);
                if (a.denominator.data) part.denominator = fv_slice(&a.denominator, 2, from, count);
                part.chunk = test_between(&random, 0, 9);
                if (from > 0) {
                    part.state_in = a.state_out;
                    part.z_in = a.z_out;
                }
                assert_ok(fv_scan(ctx, &part));
            }
            test_close("o", &o, naive.o, 2 * tolerance(&s)); /* states are rounded between the parts */
            test_close("state", &a.state_out, naive.state, 2 * tolerance(&s));
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

static double loss(fv_ctx *ctx, const struct sizes *s, const fv_scan_args *a, const fv_scan_grads *g, int64_t *floored)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct naive_scan naive;
    double sum = 0;

    define(ctx, s, a, &naive);
    for (int64_t n = 0; n < s->B * s->H * s->N * s->Dv; n++)
        sum += naive.o[n] * ((const float *)g->d_o.data)[n];
    for (int64_t n = 0; n < s->B * s->H * s->D * s->Dv && g->d_state_out.data; n++)
        sum += naive.state[n] * ((const float *)g->d_state_out.data)[n];
    for (int64_t n = 0; n < s->B * s->H * s->D && g->d_z_out.data; n++)
        sum += naive.z[n] * ((const float *)g->d_z_out.data)[n];
    *floored = naive.floored;
    fv_scratch_release(ctx, mark);
    return sum;
}

/* The loss's slope along *x by central differences of two steps, extrapolated to none: a decay of a whole head acts on
 * every token, so its third derivative grows with the cube of their number.  false: the floor's kink lies between. */
static bool slope(fv_ctx *ctx, const struct sizes *s, const fv_scan_args *a, const fv_scan_grads *g, float *x,
                  double *result)
{
    double difference[2];
    float kept = *x;

    for (int n = 0; n < 2; n++) {
        float low = kept - 0x1p-10f / (float)(n + 1), high = kept + 0x1p-10f / (float)(n + 1);
        int64_t floored[2];
        *x = high;
        difference[n] = loss(ctx, s, a, g, &floored[0]);
        *x = low;
        difference[n] = (difference[n] - loss(ctx, s, a, g, &floored[1])) / ((double)high - low);
        *x = kept;
        if (floored[0] != floored[1]) return false;
    }
    *result = (4 * difference[1] - difference[0]) / 3;
    return true;
}

static void check_slopes(fv_ctx *ctx, fv_random *random, const struct sizes *s, const fv_scan_args *a,
                         const fv_scan_grads *g)
{
    const struct {
        const char *name;
        const fv_tensor *value, *d;
    } each[] = {{"d_q", &a->q, &g->d_q},
                {"d_k", &a->k, &g->d_k},
                {"d_v", &a->v, &g->d_v},
                {"d_beta", &a->beta, &g->d_beta},
                {"d_log_decay", &a->log_decay, &g->d_log_decay},
                {"d_state_in", &a->state_in, &g->d_state_in},
                {"d_z_in", &a->z_in, &g->d_z_in}};

    for (size_t n = 0; n < sizeof each / sizeof each[0]; n++)
        for (int sample = 0; sample < 5 && each[n].d->data; sample++) {
            int64_t element = fv_random_below(random, fv_tensor_count(each[n].value));
            double difference, got = ((const float *)each[n].d->data)[element];
            if (!slope(ctx, s, a, g, (float *)each[n].value->data + element, &difference)) continue;
            /* what the extrapolation leaves: fifth derivatives of a few hundred terms, times step^4 */
            double bound = (8 * tolerance(s) + 5e-5) * fmax(1, fabs(difference));
            if (!(fabs(got - difference) <= bound))
                fail_msg("%s (decay %d, delta %d, normalise %d), element %lld of %s: expected %.9g, got %.9g (%.3g)",
                         each[n].name, a->decay, a->delta, a->normalise, (long long)element,
                         fv_shape_text(each[n].value), difference, got, bound);
        }
}

static void gradients_are_slopes(void **state)
{
    fv_random random = fv_random_new(test_seed(), 32);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 60; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct sizes s;
            fv_scan_args a;
            random_scan(ctx, &random, round, round % 10 == 9 ? 150 : 20, &s, &a);
            fv_scan_grads g = {.d_o = test_random(ctx, 1, a.o.rank, a.o.dims)};
            if (round % 2) g.d_state_out = test_random(ctx, 1, a.state_out.rank, a.state_out.dims);
            if (round % 2 && a.normalise) g.d_z_out = test_random(ctx, 1, a.z_out.rank, a.z_out.dims);
            fv_tensor *d[] = {&g.d_q, &g.d_k, &g.d_v, &g.d_beta, &g.d_log_decay, &g.d_state_in, &g.d_z_in};
            const fv_tensor *of[] = {&a.q, &a.k, &a.v, &a.beta, &a.log_decay, &a.state_in, &a.z_in};
            bool on_tape = round % 4 == 3 && !g.d_state_out.data;
            if (on_tape || round % 4 == 2) {
                g.d_state_out.data = g.d_z_out.data = NULL;
                assert_ok(fv_tape_begin(ctx));
                for (int n = 0; n < 7; n++)
                    if (of[n]->data) assert_ok(fv_tape_watch(ctx, of[n]));
                assert_ok(fv_scan(ctx, &a));
                assert_ok(fv_tape_seed(ctx, &a.o, &g.d_o));
                assert_ok(fv_tape_backward(ctx));
                for (int n = 0; n < 7; n++)
                    if (of[n]->data) assert_true(fv_tape_gradient(ctx, of[n], d[n]));
                check_slopes(ctx, &random, &s, &a, &g);
                fv_tape_end(ctx);
            } else {
                for (int n = 0; n < 7; n++)
                    if (of[n]->data) assert_ok(fv_tensor_zeros(ctx, d[n], FV_F32, of[n]->rank, of[n]->dims));
                assert_ok(fv_scan(ctx, &a));
                assert_ok(fv_scan_backward(ctx, &a, &g));
                check_slopes(ctx, &random, &s, &a, &g);
            }
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *one = test_ctx(test_devices[device], 1), *two = test_ctx(test_devices[device], 2);
        fv_random random = fv_random_new(test_seed(), 33);
        for (int round = 0; round < 15; round++) {
            struct sizes s;
            fv_scan_args a;
            random_scan(one, &random, round, 150, &s, &a);
            assert_ok(fv_scan(one, &a));
            fv_tensor o = a.o;
            assert_ok(fv_tensor_new(two, &a.o, FV_F32, o.rank, o.dims));
            assert_ok(fv_scan(two, &a));
            assert_memory_equal(o.data, a.o.data, (size_t)fv_tensor_count(&o) * sizeof(float));
        }
        fv_ctx_free(one);
        fv_ctx_free(two);
    }
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_scan_args good = {.q = test_random(ctx, 1, FV_DIMS(1, 4, 3, 5)),
                         .k = test_random(ctx, 1, FV_DIMS(1, 2, 3, 5)),
                         .v = test_random(ctx, 1, FV_DIMS(1, 2, 3, 7)),
                         .o = test_random(ctx, 1, FV_DIMS(1, 4, 3, 7))};
    fv_scan_args a = good;
    (void)state;

    assert_ok(fv_scan(ctx, &a));
    a.k = test_random(ctx, 1, FV_DIMS(1, 3, 3, 5));
    assert_fails(fv_scan(ctx, &a), FV_E_SHAPE, "3 key-value heads do not divide 4 query heads");
    a = good;
    a.decay = FV_DECAY_PER_KEY;
    a.log_decay = test_random(ctx, 1, FV_DIMS(1, 4, 3, 7));
    assert_fails(fv_scan(ctx, &a), FV_E_SHAPE, "log_decay: expected shape [1,4,3,5], got [1,4,3,7]");
    a.decay = FV_DECAY_NONE;
    assert_fails(fv_scan(ctx, &a), FV_E_ARGUMENT, "decay is none");
    a = good;
    a.delta = a.normalise = true;
    assert_fails(fv_scan(ctx, &a), FV_E_UNSUPPORTED, "delta rule");
    a.delta = false;
    a.epsilon = -1;
    assert_fails(fv_scan(ctx, &a), FV_E_ARGUMENT, "epsilon");
    a = good;
    a.z_out = test_random(ctx, 1, FV_DIMS(1, 4, 5));
    assert_fails(fv_scan(ctx, &a), FV_E_ARGUMENT, "normalise, which is off");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_follows_the_recurrence),  cmocka_unit_test(pieces_give_what_the_whole_gives),
        cmocka_unit_test(gradients_are_slopes),           cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(bad_calls_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
