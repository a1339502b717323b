/* merge: the softmax over the union of key sets, sums by weights, slots; and the gradients of each. */
#include "support/problem.h"

#include <math.h>

#include "ops/tape.h"

/* Attention over parts of the keys, merged, is attention over all of them: outputs and log-sum-exps. */
static void parts_of_the_keys_make_the_whole(void **state)
{
    fv_random random = fv_random_new(test_seed(), 40);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 20; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct naive naive;
            fv_merge_args m = {.parts = (int)test_between(&random, 1, FV_MERGE_PARTS)};
            int64_t from = 0;
            test_problem(ctx, &random, PLAN_CAUSAL | PLAN_OFFSET, &p); /* early rows see nothing of late parts */
            test_problem_define(ctx, &p, &naive);
            for (int part = 0; part < m.parts; part++) {
                fv_attend_args a = p.args;
                fv_plan plan = p.plan;
                int64_t count = part == m.parts - 1 ? p.M - from : test_between(&random, 0, p.M - from);
                plan.offset -= from;
                a.plan = &plan;
                a.k = fv_slice(&a.k, 2, from, count);
                a.v = fv_slice(&a.v, 2, from, count);
                assert_ok(fv_tensor_new(ctx, &a.o, FV_F32, p.args.o.rank, p.args.o.dims));
                assert_ok(fv_tensor_new(ctx, &a.lse, FV_F32, p.args.lse.rank, p.args.lse.dims));
                assert_ok(fv_attend(ctx, &a));
                m.o_part[part] = a.o;
                m.lse_part[part] = a.lse;
                from += count;
            }
            m.o = p.args.o;
            m.lse = p.args.lse;
            assert_ok(fv_merge(ctx, &m));
            test_close("o", &m.o, naive.o, 2 * test_problem_tolerance(&p)); /* rounded once more */
            test_close("lse", &m.lse, naive.lse, 2 * test_problem_tolerance(&p));
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

struct merge_case {
    int64_t B, H, N, S, Dv;
    fv_merge_args a;
};

enum { BY_LSE, BY_WEIGHT, BY_SLOT, BY_SLOT_WEIGHT, FORMS };

static bool has_slots(int form)
{
    return form >= BY_SLOT;
}

static bool has_weights(int form)
{
    return form == BY_WEIGHT || form == BY_SLOT_WEIGHT;
}

static void random_merge(fv_ctx *ctx, fv_random *random, int form, struct merge_case *c)
{
    *c = (struct merge_case){.B = test_between(random, 1, 2),
                             .H = test_between(random, 1, 3),
                             .N = test_between(random, 1, 9),
                             .Dv = test_between(random, 1, 20)};
    c->S = has_slots(form) ? test_between(random, 1, 20) : c->N;
    c->a.parts = has_slots(form) ? 1 : (int)test_between(random, 1, FV_MERGE_PARTS);
    for (int p = 0; p < c->a.parts; p++) {
        c->a.o_part[p] = test_random(ctx, 1, FV_DIMS(c->B, c->H, c->S, c->Dv));
        if (form == BY_SLOT_WEIGHT) {
            c->a.weight[p] = test_random(ctx, 1, FV_DIMS(c->B, c->H, c->S));
            continue;
        }
        if (form == BY_WEIGHT) {
            c->a.weight[p] = test_random(
                ctx, 1, FV_DIMS(test_chance(random, 2) ? 1 : c->B, test_chance(random, 2) ? 1 : c->H, c->N));
            continue;
        }
        c->a.lse_part[p] = test_random(ctx, 2, FV_DIMS(c->B, c->H, c->S));
        for (int64_t n = 0; n < fv_tensor_count(&c->a.lse_part[p]); n++)
            if (test_chance(random, 4)) ((float *)c->a.lse_part[p].data)[n] = -INFINITY;
    }
    if (has_slots(form)) {
        int64_t rows = c->B * c->H * c->N, *start;
        int32_t *slot;
        assert_ok(FV_SCRATCH(ctx, start, rows + 1));
        assert_ok(FV_SCRATCH(ctx, slot, rows * 4));
        start[0] = 0;
        for (int64_t r = 0; r < rows; r++) {
            start[r + 1] = start[r] + test_between(random, 0, 4);
            for (int64_t n = start[r]; n < start[r + 1]; n++)
                slot[n] = (int32_t)fv_random_below(random, c->S);
        }
        c->a.slot_start = start;
        c->a.slot = slot;
    }
    assert_ok(fv_tensor_new(ctx, &c->a.o, FV_F32, FV_DIMS(c->B, c->H, c->N, c->Dv)));
    if (!has_weights(form)) assert_ok(fv_tensor_new(ctx, &c->a.lse, FV_F32, FV_DIMS(c->B, c->H, c->N)));
}

static void define(const struct merge_case *c, int form, double *o, double *lse)
{
    for (int64_t r = 0; r < c->B * c->H * c->N; r++) {
        int64_t b = r / c->N / c->H, h = r / c->N % c->H, i = r % c->N;
        int64_t count = has_slots(form) ? c->a.slot_start[r + 1] - c->a.slot_start[r] : c->a.parts;
        double sum = 0;
        for (int64_t d = 0; d < c->Dv; d++)
            o[r * c->Dv + d] = 0;
        for (int64_t n = 0; n < count; n++) {
            int p = has_slots(form) ? 0 : (int)n;
            int64_t row = has_slots(form) ? c->a.slot[c->a.slot_start[r] + n] : i;
            double w = has_weights(form) ? test_at(&c->a.weight[p], b, h, row, 0)
                                         : exp(test_at(&c->a.lse_part[p], b, h, row, 0));
            sum += w;
            for (int64_t d = 0; d < c->Dv; d++)
                o[r * c->Dv + d] += w * *(const float *)fv_at(&c->a.o_part[p], b, h, row, d);
        }
        lse[r] = sum > 0 ? log(sum) : -INFINITY;
        for (int64_t d = 0; d < c->Dv && !has_weights(form) && sum > 0; d++)
            o[r * c->Dv + d] /= sum;
    }
}

static double *take(fv_ctx *ctx, int64_t count)
{
    double *memory;

    assert_ok(FV_SCRATCH(ctx, memory, count));
    return memory;
}

/* Eight terms of size up to about 5, with weights from differences of up to about 10: eps * (10 + 8) * 5. */
static const double tolerance = 0x1p-24 * 90;

static void every_form_follows_its_formula(void **state)
{
    fv_random random = fv_random_new(test_seed(), 41);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 120; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct merge_case c;
            random_merge(ctx, &random, round % FORMS, &c);
            double *o = take(ctx, c.B * c.H * c.N * c.Dv), *lse = take(ctx, c.B * c.H * c.N);
            define(&c, round % FORMS, o, lse);
            assert_ok(fv_merge(ctx, &c.a));
            test_close("o", &c.a.o, o, tolerance);
            if (!has_weights(round % FORMS)) test_close("lse", &c.a.lse, lse, tolerance);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static double loss(fv_ctx *ctx, const struct merge_case *c, int form, const fv_merge_grads *g)
{
    fv_mark mark = fv_scratch_mark(ctx);
    double *o = take(ctx, c->B * c->H * c->N * c->Dv), *lse = take(ctx, c->B * c->H * c->N), sum = 0;

    define(c, form, o, lse);
    for (int64_t n = 0; n < c->B * c->H * c->N * c->Dv; n++)
        sum += o[n] * ((const float *)g->d_o.data)[n];
    for (int64_t n = 0; n < c->B * c->H * c->N && g->d_lse.data; n++)
        if (lse[n] > -INFINITY) sum += lse[n] * ((const float *)g->d_lse.data)[n];
    fv_scratch_release(ctx, mark);
    return sum;
}

static void gradients_are_slopes(void **state)
{
    fv_random random = fv_random_new(test_seed(), 42);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 120; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            int form = round % FORMS, last;
            struct merge_case c;
            random_merge(ctx, &random, form, &c);
            bool on_tape = round / FORMS % 2;
            fv_merge_grads g = {.d_o = test_random(ctx, 1, c.a.o.rank, c.a.o.dims)};
            if (!has_weights(form) && !on_tape) g.d_lse = test_random(ctx, 1, c.a.lse.rank, c.a.lse.dims);
            last = c.a.parts - 1;
            fv_tensor *d[] = {&g.d_o_part[0], &g.d_o_part[last],
                              has_weights(form) ? &g.d_weight[last] : &g.d_lse_part[last]};
            fv_tensor *of[] = {&c.a.o_part[0], &c.a.o_part[last],
                               has_weights(form) ? &c.a.weight[last] : &c.a.lse_part[last]};
            if (on_tape) assert_ok(fv_tape_begin(ctx));
            for (int n = 0; n < 3; n++) {
                if (on_tape)
                    assert_ok(fv_tape_watch(ctx, of[n]));
                else
                    assert_ok(fv_tensor_zeros(ctx, d[n], FV_F32, of[n]->rank, of[n]->dims));
            }
            assert_ok(fv_merge(ctx, &c.a));
            if (on_tape) {
                assert_ok(fv_tape_seed(ctx, &c.a.o, &g.d_o));
                assert_ok(fv_tape_backward(ctx));
                for (int n = 0; n < 3; n++)
                    assert_true(fv_tape_gradient(ctx, of[n], d[n]));
            } else {
                assert_ok(fv_merge_backward(ctx, &c.a, &g));
            }
            for (int sample = 0; sample < 12; sample++) {
                int n = sample % 3;
                int64_t element = fv_random_below(&random, fv_tensor_count(of[n]));
                float *x = (float *)of[n]->data + element, kept = *x, low = kept - 0x1p-10f, high = kept + 0x1p-10f;
                double difference, got = ((const float *)d[n]->data)[element];
                if (isinf(kept)) {
                    assert_true(got == 0);
                    continue;
                }
                *x = high;
                difference = loss(ctx, &c, form, &g);
                *x = low;
                difference = (difference - loss(ctx, &c, form, &g)) / ((double)high - low);
                *x = kept;
                /* truncation step^2 / 6 of a few tens, and sums of twenty columns times all rows that share x */
                if (!(fabs(got - difference) <= 2e-5 * fmax(1, fabs(difference))))
                    fail_msg("form %d, gradient %d, element %lld: expected %.9g, got %.9g", form, n, (long long)element,
                             difference, got);
            }
            if (on_tape) fv_tape_end(ctx);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor o = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4)), lse = test_random(ctx, 1, FV_DIMS(1, 2, 3));
    fv_merge_args good = {.parts = 1, .o_part = {o}, .lse_part = {lse}, .o = o}, a = good;
    int64_t start[7] = {0, 1, 1, 1, 1, 1, 1};
    int32_t slot[1] = {3};
    (void)state;

    a.parts = 9;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "expected 1 to 8 parts, got 9");
    a = good;
    a.parts = 2;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "o_part[1]");
    a = good;
    a.slot_start = start;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "given together");
    a.slot = slot;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "slot[0]: expected 0 to 2, got 3");
    start[2] = 0;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "goes from 1 to 0");
    a = good;
    a.weight[0] = lse;
    a.lse = lse;
    assert_fails(fv_merge(ctx, &a), FV_E_ARGUMENT, "has no lse");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_of_the_keys_make_the_whole),
        cmocka_unit_test(every_form_follows_its_formula),
        cmocka_unit_test(gradients_are_slopes),
        cmocka_unit_test(bad_calls_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
