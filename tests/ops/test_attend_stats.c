/* attend_stats against sums over the probabilities of attend's definition. */
#include "support/problem.h"

#include <math.h>

struct expected {
    double *columns, *entropy, *distance, *mass;
};

static double *zeros(fv_ctx *ctx, int64_t count)
{
    double *memory;

    assert_ok(FV_SCRATCH(ctx, memory, count));
    for (int64_t n = 0; n < count; n++)
        memory[n] = 0;
    return memory;
}

static void sum_up(fv_ctx *ctx, const struct problem *p, const struct naive *naive, const fv_stats_args *a,
                   struct expected *e)
{
    int64_t cells = p->B * p->H * p->S;

    *e = (struct expected){zeros(ctx, p->B * p->H * p->M), zeros(ctx, cells), zeros(ctx, cells), zeros(ctx, cells)};
    for (int64_t cell = 0; cell < cells; cell++) {
        int64_t b = cell / p->S / p->H, h = cell / p->S % p->H, i = cell % p->S;
        double position = (double)(test_plan_query(&p->plan, p->H, b, h, i) + p->plan.offset);
        for (int64_t j = 0; j < p->M; j++) {
            double w = naive->probability[cell * p->M + j];
            double far = fabs(position - (double)(p->plan.key_position ? p->plan.key_position[j] : j));
            if (a->distance_clip > 0 && far > (double)a->distance_clip) far = (double)a->distance_clip;
            e->columns[cell / p->S * p->M + j] += w;
            if (w > 0) e->entropy[cell] -= w * log(w);
            e->distance[cell] += w * far;
            if (a->key_set[j]) e->mass[cell] += w;
        }
    }
}

/* The k-th entry must be the k-th largest probability, and the key named must have it; equal ones in rising order. */
static void check_top(const struct problem *p, const struct naive *naive, const fv_stats_args *a, double tolerance)
{
    int64_t K = a->top_key.dims[3];

    for (int64_t cell = 0; cell < p->B * p->H * p->S; cell++) {
        const double *w = naive->probability + cell * p->M;
        const int32_t *key = (const int32_t *)a->top_key.data + cell * K;
        const float *weight = (const float *)a->top_weight.data + cell * K;
        int64_t seen = 0;
        for (int64_t j = 0; j < p->M; j++)
            seen += w[j] > 0;
        for (int64_t n = 0; n < K; n++) {
            int64_t larger = 0;
            if (n >= seen) {
                if (key[n] != -1 || weight[n] != 0) fail_msg("place %lld of %lld", (long long)n, (long long)seen);
                continue;
            }
            assert_in_range(key[n], 0, p->M - 1);
            if (!(fabs(weight[n] - w[key[n]]) <= tolerance))
                fail_msg("key %d: expected %g, got %g", key[n], w[key[n]], (double)weight[n]);
            if (n > 0 && weight[n] > weight[n - 1]) fail_msg("not descending");
            if (n > 0 && weight[n] == weight[n - 1] && w[key[n]] == w[key[n - 1]] && key[n] < key[n - 1])
                fail_msg("ties must go to the lower key: %d before %d", key[n - 1], key[n]);
            for (int64_t j = 0; j < p->M; j++)
                larger += w[j] > w[key[n]] + 2 * tolerance;
            if (larger > n) fail_msg("place %lld: %lld keys are larger", (long long)n, (long long)larger);
        }
    }
}

static void reductions_follow_the_probabilities(void **state)
{
    fv_random random = fv_random_new(test_seed(), 50);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 80; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct naive naive;
            struct expected e;
            uint8_t *set;
            test_problem(ctx, &random, round < PLAN_KINDS ? 1u << round : test_plan_kinds(&random), &p);
            if (round % 2) test_problem_logits(ctx, &random, &p);
            if (round % 5 == 4) { /* equal weights everywhere: ties */
                p.args.logits = (fv_logits){.zero_scale = true};
                p.plan.lists.entry_bias = NULL;
            }
            assert_ok(fv_attend(ctx, &p.args));
            assert_ok(FV_SCRATCH(ctx, set, p.M));
            for (int64_t j = 0; j < p.M; j++)
                set[j] = (uint8_t)test_between(&random, 0, 1);
            fv_stats_args a = {.q = p.args.q,
                               .k = p.args.k,
                               .lse = p.args.lse,
                               .plan = p.args.plan,
                               .logits = p.args.logits,
                               .key_head = p.args.key_head,
                               .key_set = set,
                               .distance_clip = round % 3 ? 0 : test_between(&random, 1, 30)};
            int64_t K = test_between(&random, 1, test_chance(&random, 3) ? 90 : 9);
            assert_ok(fv_tensor_new(ctx, &a.column_sum, FV_F32, FV_DIMS(p.B, p.H, p.M)));
            assert_ok(fv_tensor_new(ctx, &a.entropy, FV_F32, FV_DIMS(p.B, p.H, p.S)));
            assert_ok(fv_tensor_new(ctx, &a.distance, FV_F32, FV_DIMS(p.B, p.H, p.S)));
            assert_ok(fv_tensor_new(ctx, &a.mass, FV_F32, FV_DIMS(p.B, p.H, p.S)));
            assert_ok(fv_tensor_new(ctx, &a.top_key, FV_I32, FV_DIMS(p.B, p.H, p.S, K)));
            assert_ok(fv_tensor_new(ctx, &a.top_weight, FV_F32, FV_DIMS(p.B, p.H, p.S, K)));
            assert_ok(fv_attend_stats(ctx, &a));
            test_problem_define(ctx, &p, &naive);
            sum_up(ctx, &p, &naive, &a, &e);
            double tolerance = test_problem_tolerance(&p);
            test_close("column_sum", &a.column_sum, e.columns, tolerance);
            test_close("entropy", &a.entropy, e.entropy, tolerance * 6); /* |ln p| is up to about 6 where p counts */
            test_close("distance", &a.distance, e.distance, tolerance);
            test_close("mass", &a.mass, e.mass, tolerance);
            check_top(&p, &naive, &a, tolerance);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctxs[2] = {test_ctx(test_devices[device], 1), test_ctx(test_devices[device], 2)};
        fv_random random = fv_random_new(test_seed(), 51);
        struct problem p;
        fv_tensor sums[2];
        test_problem(ctxs[0], &random, PLAN_CAUSAL, &p);
        assert_ok(fv_attend(ctxs[0], &p.args));
        for (int n = 0; n < 2; n++) {
            assert_ok(fv_tensor_new(ctxs[n], &sums[n], FV_F32, FV_DIMS(p.B, p.H, p.M)));
            assert_ok(fv_attend_stats(
                ctxs[n],
                &(fv_stats_args){
                    .q = p.args.q, .k = p.args.k, .lse = p.args.lse, .plan = p.args.plan, .column_sum = sums[n]}));
        }
        assert_memory_equal(sums[0].data, sums[1].data, (size_t)fv_tensor_count(&sums[0]) * sizeof(float));
        fv_ctx_free(ctxs[0]);
        fv_ctx_free(ctxs[1]);
    }
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_stats_args good = {.q = test_random(ctx, 1, FV_DIMS(1, 2, 3, 4)),
                          .k = test_random(ctx, 1, FV_DIMS(1, 1, 5, 4)),
                          .lse = test_random(ctx, 1, FV_DIMS(1, 2, 3))};
    fv_stats_args a = good;
    (void)state;

    assert_ok(fv_attend_stats(ctx, &a));
    a.lse.data = NULL;
    assert_fails(fv_attend_stats(ctx, &a), FV_E_ARGUMENT, "attend_stats: lse");
    a = good;
    a.mass = test_random(ctx, 1, FV_DIMS(1, 2, 3));
    assert_fails(fv_attend_stats(ctx, &a), FV_E_ARGUMENT, "mass needs key_set");
    a = good;
    a.top_weight = test_random(ctx, 1, FV_DIMS(1, 2, 3, 2));
    assert_fails(fv_attend_stats(ctx, &a), FV_E_ARGUMENT, "given together");
    a = good;
    a.column_sum = test_random(ctx, 1, FV_DIMS(1, 2, 3));
    assert_fails(fv_attend_stats(ctx, &a), FV_E_SHAPE, "column_sum: expected shape [1,2,5]");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reductions_follow_the_probabilities),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(bad_calls_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
