/* attend against double loops written from the formulas of fovea/ops.h: every plan kind, every term of the logits,
 * by-products, half precision, threads, refusals. */
#include "support/problem.h"

#include <math.h>

static fv_tensor cast(fv_ctx *ctx, const fv_tensor *t, fv_dtype dtype)
{
    fv_tensor out;

    assert_ok(fv_tensor_new(ctx, &out, dtype, t->rank, t->dims));
    for (int64_t n = 0; n < fv_tensor_count(t); n++)
        fv_store(dtype, out.data, n, fv_load(t->dtype, t->data, n));
    return out;
}

static void compare(fv_ctx *ctx, const char *what, struct problem *p)
{
    struct naive naive;
    double heaviest = 1; /* sum of a row's weights: more than 1 where the normaliser is given */

    test_problem_define(ctx, p, &naive);
    for (int64_t cell = 0; cell < p->B * p->H * p->S; cell++) {
        double sum = 0;
        for (int64_t j = 0; j < p->M; j++)
            sum += naive.probability[cell * p->M + j];
        heaviest = fmax(heaviest, sum);
    }
    assert_ok(fv_attend(ctx, &p->args));
    test_close(what, &p->args.o, naive.o, test_problem_tolerance(p) * heaviest);
    if (!p->args.lse_in.data && !p->args.lse_in_key.data)
        test_close(what, &p->args.lse, naive.lse, test_problem_tolerance(p));
}

static double largest(const fv_tensor *t)
{
    double most = 0;

    for (int64_t n = 0; n < fv_tensor_count(t); n++)
        most = fmax(most, fabs((double)fv_load(t->dtype, t->data, n)));
    return most;
}

/* ---- tests ----------------------------------------------------------------------------------------------------- */

static void output_follows_the_formula(void **state)
{
    fv_random random = fv_random_new(test_seed(), 10);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 150; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            unsigned kinds = round < 5 ? 0 : round < 5 + PLAN_KINDS ? 1u << (round - 5) : test_plan_kinds(&random);
            struct problem p;
            test_problem(ctx, &random, kinds, &p);
            if (round % 2) test_problem_logits(ctx, &random, &p);
            compare(ctx, test_devices[device], &p);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* Plans of enough rows for tiles that are laid out: grids whose queries are all cells (of one to three axes, dilated,
 * strided, causal, with key counts of any remainder), and lists of single keys; in f32 and, as k and v are then exact,
 * in bf16: rounding q changes a logit by at most 2^-8 of D |q| |k| / sqrt(D), rounding weights o by 2^-8 of |v|. */
static void large_plans_follow_the_formula(void **state)
{
    static const fv_grid grids[] = {
        {.rank = 1, .dims = {450}, .window = {40}, .dilation = {7}},
        {.rank = 1, .dims = {430}, .window = {50}, .stride = {9}, .causal = {true}},
        {.rank = 2, .dims = {21, 23}, .window = {7, 9}},
        {.rank = 2, .dims = {24, 19}, .window = {20, 19}},
        {.rank = 2, .dims = {20, 23}, .window = {9, 10}, .stride = {4, 5}},
        {.rank = 2, .dims = {23, 20}, .window = {5, 6}, .dilation = {2, 3}, .causal = {true, false}},
        {.rank = 2, .dims = {22, 21}, .window = {8, 3}, .stride = {3, 1}, .dilation = {1, 5}, .causal = {false, true}},
        {.rank = 2, .dims = {21, 23}, .window = {9, 8}, .truncated = {true, true}},
        {.rank = 3, .dims = {7, 8, 8}, .window = {3, 4, 5}},
        {.rank = 3, .dims = {8, 7, 8}, .window = {3, 3, 4}, .stride = {2, 3, 2}, .dilation = {2, 1, 2}},
    };
    enum { GRIDS = sizeof grids / sizeof grids[0], LISTS = 3 };
    fv_random random = fv_random_new(test_seed(), 17);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        for (int n = 0; n < 2 * (GRIDS + LISTS); n++) {
            fv_ctx *ctx = test_ctx(test_devices[device], 2);
            struct problem p = {.B = 1, .H = 4, .Hkv = 4, .N = 1, .D = 16, .Dv = 32};
            bool half = n % 2;
            struct naive naive;
            if (n / 2 < GRIDS) {
                p.plan.grid = grids[n / 2];
                for (int a = 0; a < p.plan.grid.rank; a++)
                    p.N *= p.plan.grid.dims[a];
            } else {
                p.N = 450 + fv_random_below(&random, 30);
            }
            p.M = p.S = p.N;
            if (n / 2 >= GRIDS) {
                int64_t *row_start, groups = fv_ceil_div(p.N, 64), one_in = 1 + 2 * (n / 2 - GRIDS);
                int32_t *entry;
                assert_ok(FV_SCRATCH(ctx, row_start, groups + 1));
                assert_ok(FV_SCRATCH(ctx, entry, groups * p.M));
                row_start[0] = 0;
                for (int64_t g = 0; g < groups; g++) {
                    row_start[g + 1] = row_start[g];
                    for (int32_t j = 0; j < p.M; j++)
                        if (fv_random_below(&random, one_in) == 0) entry[row_start[g + 1]++] = j;
                }
                p.plan.causal = test_chance(&random, 2);
                p.plan.lists = (fv_lists){.query_block = 64,
                                          .key_block = 1,
                                          .groups = groups,
                                          .key_blocks = p.M,
                                          .row_start = row_start,
                                          .entry = entry};
            }
            p.args.plan = &p.plan;
            p.args.q = test_random(ctx, 1, FV_DIMS(1, p.H, p.N, p.D));
            p.args.k = test_random(ctx, 1, FV_DIMS(1, p.Hkv, p.M, p.D));
            p.args.v = test_random(ctx, 1, FV_DIMS(1, p.Hkv, p.M, p.Dv));
            assert_ok(fv_tensor_new(ctx, &p.args.o, FV_F32, FV_DIMS(1, p.H, p.S, p.Dv)));
            assert_ok(fv_tensor_new(ctx, &p.args.lse, FV_F32, FV_DIMS(1, p.H, p.S)));
            if (test_chance(&random, 3)) p.args.logits.bias = test_random(ctx, 1, FV_DIMS(1, p.H, p.N, p.M));
            if (half) {
                p.args.k = cast(ctx, &p.args.k, FV_BF16);
                p.args.v = cast(ctx, &p.args.v, FV_BF16);
            }
            double shift = half ? ldexp(sqrt((double)p.D) * largest(&p.args.q) * largest(&p.args.k), -8) : 0;
            double tolerance = test_problem_tolerance(&p);
            test_problem_define(ctx, &p, &naive);
            assert_ok(fv_attend(ctx, &p.args));
            test_close(test_devices[device], &p.args.o, naive.o,
                       tolerance + (half ? (2 * shift + ldexp(1, -8)) * largest(&p.args.v) : 0));
            test_close(test_devices[device], &p.args.lse, naive.lse, tolerance + shift);
            fv_ctx_free(ctx);
        }
    }
}

static void half_precision_keys_and_values_are_read_as_they_are(void **state)
{
    static const fv_dtype types[] = {FV_F16, FV_BF16};
    fv_random random = fv_random_new(test_seed(), 11);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        ctx->precision = FV_PRECISION_F32;
        for (int round = 0; round < 20; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            test_problem(ctx, &random, PLAN_CAUSAL | PLAN_OFFSET, &p);
            p.args.k = cast(ctx, &p.args.k, types[round % 2]);
            p.args.v = cast(ctx, &p.args.v, types[round / 2 % 2]);
            compare(ctx, test_devices[device], &p);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* Rows of random blocks, and what they stand for by the definition of the type. */
static void draw_blocks(fv_ctx *ctx, fv_random *random, fv_dtype type, int rank, const int64_t *dims, fv_tensor *packed,
                        fv_tensor *plain)
{
    size_t bytes = fv_dtype_block_bytes(type);
    float *out;

    assert_ok(fv_tensor_new(ctx, plain, FV_F32, rank, dims));
    assert_ok(fv_tensor_new(ctx, packed, type, rank, dims));
    out = plain->data;
    for (int64_t block = 0; block < fv_tensor_count(plain) / 32; block++, out += 32) {
        uint8_t *at = (uint8_t *)packed->data + (size_t)block * bytes;
        uint16_t half = fv_f32_to_f16((type == FV_Q8_0 ? 0.01f : -0.15f) * (1 + (float)fv_random_uniform(random)));
        float scale = fv_f16_to_f32(half);
        memcpy(at, &half, 2);
        for (int n = 0; n < (type == FV_Q8_0 ? 32 : 16); n++) {
            int value = (int)fv_random_below(random, 256);
            at[2 + n] = (uint8_t)value;
            if (type == FV_Q8_0) {
                out[n] = scale * (float)(value < 128 ? value : value - 256);
            } else {
                out[n] = scale * (float)(value % 16 - 8);
                out[n + 16] = scale * (float)(value / 16 - 8);
            }
        }
    }
}

static void blocks_of_keys_and_values_are_read_as_they_are(void **state)
{
    static const fv_dtype types[][2] = {{FV_Q8_0, FV_Q8_0}, {FV_Q4_0, FV_Q4_0}, {FV_Q8_0, FV_Q4_0}, {FV_Q4_0, FV_Q8_0}};
    fv_random random = fv_random_new(test_seed(), 16);
    int64_t B = 1, H = 2, N = 5, M = 70, D = 64;
    (void)state;

    for (int device = 0; test_devices[device]; device++)
        for (size_t way = 0; way < sizeof types / sizeof *types; way++) {
            fv_ctx *ctx = test_ctx(test_devices[device], 1);
            ctx->precision = FV_PRECISION_F32;
            struct problem p = {.B = B, .H = H, .Hkv = 1, .N = N, .M = M, .D = D, .Dv = D, .S = N};
            fv_tensor plain[2], packed[2];
            for (int t = 0; t < 2; t++)
                draw_blocks(ctx, &random, types[way][t], FV_DIMS(B, 1, M, D), &packed[t], &plain[t]);
            p.args = (fv_attend_args){.q = test_random(ctx, 1, FV_DIMS(B, H, N, D)), .k = plain[0], .v = plain[1]};
            assert_ok(fv_tensor_new(ctx, &p.args.o, FV_F32, FV_DIMS(B, H, N, D)));
            struct naive naive;
            test_problem_define(ctx, &p, &naive);
            p.args.k = packed[0];
            p.args.v = packed[1];
            assert_ok(fv_attend(ctx, &p.args));
            test_close(test_devices[device], &p.args.o, naive.o, test_problem_tolerance(&p));
            fv_ctx_free(ctx);
        }
}

static void a_given_log_sum_exp_normalises(void **state)
{
    fv_random random = fv_random_new(test_seed(), 12);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 30; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            test_problem(ctx, &random, test_plan_kinds(&random), &p);
            if (round % 2) test_problem_logits(ctx, &random, &p);
            if (round % 3)
                p.args.lse_in = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.S));
            else
                p.args.lse_in_key = test_random(ctx, 1, FV_DIMS(p.B, p.H, p.M));
            for (int64_t n = 0; n < p.B * p.H; n++) /* weights of at most about one */
                for (int64_t i = 0; i < (round % 3 ? p.S : p.M); i++)
                    ((float *)(round % 3 ? p.args.lse_in.data
                                         : p.args.lse_in_key.data))[n * (round % 3 ? p.S : p.M) + i] += 6;
            compare(ctx, test_devices[device], &p);
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* Weights in steps are low by less than one of them, and the denominator is as it was. */
static void steps_take_less_than_one_from_a_weight(void **state)
{
    fv_random random = fv_random_new(test_seed(), 18);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 60; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct naive naive;
            double v;
            test_problem(ctx, &random, test_plan_kinds(&random), &p);
            if (round % 2) test_problem_logits(ctx, &random, &p);
            p.args.steps = 127;
            v = largest(&p.args.v);
            test_problem_define(ctx, &p, &naive);
            assert_ok(fv_attend(ctx, &p.args));
            test_close("lse of steps", &p.args.lse, naive.lse, test_problem_tolerance(&p));
            for (int64_t cell = 0; cell < p.B * p.H * p.S; cell++) {
                double sum = 0, most = 0;
                if (p.args.sinks.data) /* it is among the logits that weights are measured by */
                    most = exp(test_at(&p.args.sinks, cell / p.S % p.H, 0, 0, 0) - naive.lse[cell]);
                for (int64_t j = 0; j < p.M; j++) {
                    sum += naive.probability[cell * p.M + j] > 0;
                    most = fmax(most, naive.probability[cell * p.M + j]);
                }
                for (int64_t d = 0; d < p.Dv; d++) {
                    double got = ((const float *)p.args.o.data)[cell * p.Dv + d], exact = naive.o[cell * p.Dv + d];
                    double bound = sum * most / 127 * v + test_problem_tolerance(&p) * fmax(1, fabs(exact));
                    if (!(fabs(got - exact) <= bound))
                        fail_msg("%s: row %d, channel %d: expected %g within %g, got %g", test_devices[device],
                                 (int)cell, (int)d, exact, bound, got);
                }
            }
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

/* Logits whose weights lie well between steps, behind a first key whose own is 1: o is known to the rounding of sums.
 */
static void weights_are_whole_steps(void **state)
{
    static const int64_t rows[] = {1, 5, 70};
    enum { M = 150, D = 16 };
    fv_random random = fv_random_new(test_seed(), 19);
    (void)state;

    for (int device = 0; test_devices[device]; device++)
        for (int n = 0; n < 6; n++) {
            fv_ctx *ctx = test_ctx(test_devices[device], 2);
            int64_t N = rows[n / 2];
            fv_attend_args args = {.logits = {.scale = 1}, .steps = 127};
            float *k, *v;
            double total = 0, sum = 0;
            assert_ok(fv_tensor_zeros(ctx, &args.q, FV_F32, FV_DIMS(1, 1, N, D)));
            assert_ok(fv_tensor_zeros(ctx, &args.k, FV_F32, FV_DIMS(1, 1, M, D)));
            assert_ok(fv_tensor_zeros(ctx, &args.v, FV_F32, FV_DIMS(1, 1, M, D)));
            assert_ok(fv_tensor_new(ctx, &args.o, FV_F32, FV_DIMS(1, 1, N, D)));
            k = args.k.data;
            v = args.v.data;
            for (int64_t i = 0; i < N; i++)
                ((float *)args.q.data)[i * D] = 1;
            for (int64_t j = 0; j < M; j++) {
                double weight = 127; /* exact in bf16, as are values */
                while (j > 0 && !(weight - floor(weight) > 0.1 && weight - floor(weight) < 0.9)) {
                    k[j * D] = fv_bf16_to_f32(fv_f32_to_bf16((float)(-6 * fv_random_uniform(&random))));
                    weight = 127 * exp((double)k[j * D]);
                }
                v[j * D + 3] = (float)fv_random_below(&random, 9) - 4;
                total += weight / 127;
                sum += floor(weight) / 127 * (double)v[j * D + 3];
            }
            if (n % 2) {
                args.k = cast(ctx, &args.k, FV_BF16);
                args.v = cast(ctx, &args.v, FV_BF16);
            }
            assert_ok(fv_attend(ctx, &args));
            for (int64_t i = 0; i < N; i++)
                if (!(fabs(*(float *)fv_at(&args.o, 0, 0, i, 3) - sum / total) <= 1e-5))
                    fail_msg("%s, row %d of %d: expected %g, got %g", test_devices[device], (int)i, (int)N, sum / total,
                             (double)*(float *)fv_at(&args.o, 0, 0, i, 3));
            fv_ctx_free(ctx);
        }
}

static void by_products_describe_the_rows(void **state)
{
    fv_random random = fv_random_new(test_seed(), 13);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 60; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            struct problem p;
            struct naive naive;
            int32_t *rows;
            test_problem(ctx, &random, test_plan_kinds(&random), &p);
            if (round % 2) test_problem_logits(ctx, &random, &p);
            int64_t R = test_between(&random, 1, 80), from = test_between(&random, 0, p.M - 1),
                    K = test_between(&random, 1, p.M - from);
            if (round % 3 == 0) R = fv_min(R, p.S);
            assert_ok(FV_SCRATCH(ctx, rows, R));
            for (int64_t r = 0; r < R; r++)
                rows[r] = round % 3 ? (int32_t)fv_random_below(&random, p.S) : (int32_t)r;
            p.args.weight_rows = round % 3 ? rows : NULL;
            p.args.weight_from = from;
            if (round % 5 == 0) p.args.lse.data = NULL;
            assert_ok(fv_tensor_new(ctx, &p.args.row_max, FV_F32, FV_DIMS(p.B, p.H, p.S)));
            assert_ok(fv_tensor_new(ctx, &p.args.arg_max, FV_I32, FV_DIMS(p.B, p.H, p.S)));
            assert_ok(fv_tensor_new(ctx, &p.args.weights, FV_F32, FV_DIMS(p.B, p.H, R, K)));
            assert_ok(fv_attend(ctx, &p.args));
            test_problem_define(ctx, &p, &naive);
            test_close("row_max", &p.args.row_max, naive.max, test_problem_tolerance(&p));
            for (int64_t cell = 0; cell < p.B * p.H * p.S; cell++) {
                int32_t arg = ((const int32_t *)p.args.arg_max.data)[cell];
                int64_t b = cell / p.S / p.H, h = cell / p.S % p.H;
                if ((arg < 0) != (naive.arg[cell] < 0)) fail_msg("arg_max %d, %lld", arg, (long long)naive.arg[cell]);
                if (arg < 0 || arg == naive.arg[cell]) continue;
                double other = test_problem_logit(&p, b, h, cell % p.S, arg); /* only rounding may choose another key */
                if (!(fabs(other - naive.max[cell]) <= test_problem_tolerance(&p) * fmax(1, fabs(other))))
                    fail_msg("arg_max: key %d with %g, expected %lld with %g", arg, other, (long long)naive.arg[cell],
                             naive.max[cell]);
            }
            double *expected;
            assert_ok(FV_SCRATCH(ctx, expected, p.B * p.H * R * K));
            for (int64_t n = 0; n < p.B * p.H * R * K; n++)
                expected[n] = naive.probability[(n / K / R * p.S + rows[n / K % R]) * p.M + from + n % K];
            test_close("weights", &p.args.weights, expected, test_problem_tolerance(&p));
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

static void strides_may_be_any(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        struct problem p = {.B = 2,
                            .H = 4,
                            .Hkv = 2,
                            .N = 9,
                            .M = 70,
                            .D = 24,
                            .Dv = 24,
                            .S = 9,
                            .plan = {.causal = true, .offset = 61}};
        int order[] = {0, 2, 1, 3}, turned[] = {0, 1, 3, 2};
        fv_tensor q = test_random(ctx, 1, FV_DIMS(2, 9, 4, 24)), k = test_random(ctx, 1, FV_DIMS(1, 2, 24, 70));
        fv_tensor v = test_random(ctx, 1, FV_DIMS(2, 70, 2, 24)), o;
        assert_ok(fv_tensor_new(ctx, &o, FV_F32, FV_DIMS(2, 9, 4, 24)));
        p.args = (fv_attend_args){.q = fv_permuted(&q, order),
                                  .k = fv_permuted(&k, turned),
                                  .v = fv_permuted(&v, order),
                                  .o = fv_permuted(&o, order),
                                  .plan = &p.plan};
        p.args.k = fv_broadcast(&p.args.k, FV_DIMS(2, 2, 70, 24));
        assert_ok(fv_tensor_new(ctx, &p.args.lse, FV_F32, FV_DIMS(2, 4, 9)));
        compare(ctx, test_devices[device], &p);
        fv_ctx_free(ctx);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    fv_random random = fv_random_new(test_seed(), 14);
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *one = test_ctx(test_devices[device], 1), *two = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 20; round++) {
            fv_mark mark = fv_scratch_mark(one), mark_two = fv_scratch_mark(two);
            struct problem p;
            fv_tensor o;
            test_problem(one, &random, round ? test_plan_kinds(&random) : PLAN_CAUSAL, &p);
            assert_ok(fv_attend(one, &p.args));
            o = p.args.o;
            assert_ok(fv_tensor_new(two, &p.args.o, FV_F32, o.rank, o.dims));
            assert_ok(fv_attend(two, &p.args));
            assert_memory_equal(o.data, p.args.o.data, (size_t)fv_tensor_count(&o) * sizeof(float));
            fv_scratch_release(one, mark);
            fv_scratch_release(two, mark_two);
        }
        fv_ctx_free(one);
        fv_ctx_free(two);
    }
}

static void spare_slots_are_empty(void **state)
{
    int64_t row_start[] = {0, 1, 1}, query_start[] = {0, 2, 2};
    int32_t entry[] = {0}, index[] = {1, 0};
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 1);
        fv_plan plan = {.lists = {.query_block = 2,
                                  .key_block = 4,
                                  .groups = 2,
                                  .key_blocks = 1,
                                  .row_start = row_start,
                                  .entry = entry,
                                  .query_start = query_start,
                                  .query_index = index}};
        fv_attend_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 1, 2, 8)),
                               .k = test_random(ctx, 1, FV_DIMS(1, 1, 4, 8)),
                               .v = test_random(ctx, 1, FV_DIMS(1, 1, 4, 8)),
                               .o = test_random(ctx, 1, FV_DIMS(1, 1, 3, 8)),
                               .lse = test_random(ctx, 1, FV_DIMS(1, 1, 3)),
                               .plan = &plan};
        assert_ok(fv_attend(ctx, &args));
        assert_true(((float *)args.lse.data)[2] == -INFINITY);
        assert_true(((float *)args.lse.data)[1] > -INFINITY);
        for (int d = 0; d < 8; d++)
            assert_true(((float *)args.o.data)[16 + d] == 0);
        fv_ctx_free(ctx);
    }
}

static void bad_calls_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_attend_args good = {.q = test_random(ctx, 1, FV_DIMS(1, 4, 8, 16)),
                           .k = test_random(ctx, 1, FV_DIMS(1, 2, 5, 16)),
                           .v = test_random(ctx, 1, FV_DIMS(1, 2, 5, 8)),
                           .o = test_random(ctx, 1, FV_DIMS(1, 4, 8, 8))};
    fv_attend_args a = good;
    int32_t heads[] = {0, 1, 2, 0}, rows[] = {8};
    fv_plan plan = {.lists = {.query_block = 0}};
    (void)state;

    assert_ok(fv_attend(ctx, &a));
    a.k = test_random(ctx, 1, FV_DIMS(1, 3, 8, 16));
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE,
                 "3 key-value heads do not divide 4 query heads (shapes [1,4,8,16] and [1,3,8,16])");
    a = good;
    a.k = test_random(ctx, 1, FV_DIMS(1, 2, 5, 8));
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE, "attend: k: expected shape [1,*,*,16], got [1,2,5,8]");
    a = good;
    a.v = test_random(ctx, 1, FV_DIMS(1, 2, 6, 8));
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE, "attend: v: expected shape [1,2,5,*]");
    a = good;
    a.q.dtype = FV_BF16;
    assert_fails(fv_attend(ctx, &a), FV_E_DTYPE, "attend: q: expected f32, got bf16");
    a = good;
    a.o.data = NULL;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "attend: o");
    a = good;
    a.key_head = heads;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "key_head[2]: expected 0 to 1, got 2");
    a = good;
    a.logits.bias = test_random(ctx, 1, FV_DIMS(1, 3, 8, 5));
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE, "bias");
    a.logits.bias.data = NULL;
    a.logits.softcap = NAN;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "soft-cap");
    a = good;
    a.logits.offset_place.key = heads;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "places of queries and keys");
    a.logits.offset_place.query = heads;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "go together and with a bias");
    a = good;
    a.logits.row_bias = a.logits.column_bias = test_random(ctx, 1, FV_DIMS(1, 1, 1, 3));
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE, "do not make 5 keys");
    a = good;
    a.steps = 257;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "steps: expected 0 to 256, got 257");
    a.steps = 127;
    a.lse_in = test_random(ctx, 1, FV_DIMS(1, 4, 8));
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "steps and lse_in");
    a = good;
    a.weights = test_random(ctx, 1, FV_DIMS(1, 4, 1, 5));
    a.weight_rows = rows;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "weight_rows[0]: expected 0 to 7, got 8");
    a.weight_rows = NULL;
    a.weight_from = 1;
    assert_fails(fv_attend(ctx, &a), FV_E_SHAPE, "keys 1 to 6");
    a = good;
    int64_t row_start[] = {0};
    plan.lists.row_start = row_start;
    a.plan = &plan;
    assert_fails(fv_attend(ctx, &a), FV_E_ARGUMENT, "query_block 0");
    fv_ctx_free(ctx);
}

static void failing_memory_is_reported(void **state)
{
    (void)state;
    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 1);
        fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(1, 1, 70, 400)),
                            .k = test_random(ctx, 1, FV_DIMS(1, 1, 70, 400)),
                            .v = test_random(ctx, 1, FV_DIMS(1, 1, 70, 400)),
                            .o = test_random(ctx, 1, FV_DIMS(1, 1, 70, 400))};
        fv_status status = FV_E_MEMORY;
        for (int64_t nth = 1; status == FV_E_MEMORY; nth++) {
            assert_true(nth < 100);
            test_alloc_fail(nth);
            status = fv_attend(ctx, &a);
            test_alloc_fail(0);
        }
        assert_int_equal(status, FV_OK);
        fv_ctx_free(ctx);
    }
}

/* NaN and infinities in keys and values that a row does not see do not reach it. */
static void what_is_hidden_cannot_spoil(void **state)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY};
    (void)state;

    for (int device = 0; test_devices[device]; device++) {
        fv_ctx *ctx = test_ctx(test_devices[device], 2);
        for (int round = 0; round < 6; round++) {
            fv_mark mark = fv_scratch_mark(ctx);
            int64_t N = round < 3 ? 9 : 150, at = N * 2 / 3, B = 1, H = 4, Hkv = 2, D = 16, Dv = 24;
            fv_plan plan = {.causal = true};
            fv_attend_args a = {.q = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                                .k = test_random(ctx, 1, FV_DIMS(B, Hkv, N, D)),
                                .v = test_random(ctx, 1, FV_DIMS(B, Hkv, N, Dv)),
                                .o = test_random(ctx, 1, FV_DIMS(B, H, N, Dv)),
                                .plan = &plan};
            fv_tensor clean = a.o;
            assert_ok(fv_attend(ctx, &a));
            a.o = test_random(ctx, 1, FV_DIMS(B, H, N, Dv));
            for (int64_t h = 0; h < Hkv; h++) {
                *(float *)fv_at(&a.k, 0, h, at, 3) = poison[round % 3];
                *(float *)fv_at(&a.v, 0, h, at, 5) = poison[round % 3];
                *(float *)fv_at(&a.v, 0, h, N - 1, 7) = poison[(round + 1) % 3];
            }
            assert_ok(fv_attend(ctx, &a));
            for (int64_t h = 0; h < H; h++)
                for (int64_t i = 0; i < at; i++)
                    for (int64_t d = 0; d < Dv; d++) {
                        float got = *(float *)fv_at(&a.o, 0, h, i, d), expected = *(float *)fv_at(&clean, 0, h, i, d);
                        if (!(fabsf(got - expected) <= 1e-5f * fmaxf(1, fabsf(expected))))
                            fail_msg("%s: head %d, row %d of %d, channel %d: expected %g, got %g", test_devices[device],
                                     (int)h, (int)i, (int)N, (int)d, (double)expected, (double)got);
                    }
            fv_scratch_release(ctx, mark);
        }
        fv_ctx_free(ctx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_hidden_cannot_spoil),
        cmocka_unit_test(output_follows_the_formula),
        cmocka_unit_test(large_plans_follow_the_formula),
        cmocka_unit_test(half_precision_keys_and_values_are_read_as_they_are),
        cmocka_unit_test(blocks_of_keys_and_values_are_read_as_they_are),
        cmocka_unit_test(a_given_log_sum_exp_normalises),
        cmocka_unit_test(steps_take_less_than_one_from_a_weight),
        cmocka_unit_test(weights_are_whole_steps),
        cmocka_unit_test(by_products_describe_the_rows),
        cmocka_unit_test(strides_may_be_any),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(spare_slots_are_empty),
        cmocka_unit_test(bad_calls_are_refused_in_words),
        cmocka_unit_test(failing_memory_is_reported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
