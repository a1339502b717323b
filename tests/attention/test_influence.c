/* Attention influence: against its definition, and against what the loss does when a weight is really taken away. */
#include "attention/influence.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "support/support.h"

enum { B = 2, H = 4, HKV = 2, N = 150, D = 24, DV = 16 };

struct problem {
    fv_ctx *ctx;
    fv_influence_args args;
    double scale; /* what the arguments' comes to */
    int64_t blocks;
    double *out;
};

static void begin(struct problem *p, int64_t block, bool absolute, fv_logits logits)
{
    p->ctx = test_ctx("cpu", 2);
    p->ctx->precision = FV_PRECISION_F32;
    p->blocks = (N + block - 1) / block;
    p->out = calloc((size_t)(H * p->blocks * p->blocks), sizeof *p->out);
    assert_non_null(p->out);
    p->args = (fv_influence_args){.q = test_random(p->ctx, 1, FV_DIMS(B, H, N, D)),
                                  .k = test_random(p->ctx, 1, FV_DIMS(B, HKV, N, D)),
                                  .v = test_random(p->ctx, 1, FV_DIMS(B, HKV, N, DV)),
                                  .d_o = test_random(p->ctx, 1, FV_DIMS(B, H, N, DV)),
                                  .logits = logits,
                                  .block = block,
                                  .absolute = absolute,
                                  .out = p->out};
    p->scale = logits.zero_scale ? 0 : logits.scale == 0 ? 1 / sqrt(D) : (double)logits.scale;
    assert_ok(fv_influence(p->ctx, &p->args));
}

static void end(struct problem *p)
{
    free(p->out);
    fv_ctx_free(p->ctx);
}

static double at(const fv_tensor *t, int64_t b, int64_t h, int64_t i, int64_t d)
{
    return *(float *)fv_at(t, b, h, i, d);
}

static double dot(const fv_tensor *x, const fv_tensor *y, int64_t b, int64_t h, int64_t i, int64_t j)
{
    double sum = 0;

    for (int64_t d = 0; d < x->dims[3]; d++)
        sum += at(x, b, h, i, d) * at(y, b, h / (H / HKV), j, d);
    return sum;
}

/* Weights of row i, without that of key `gone` (-1: with all). */
static void weights(const struct problem *p, int64_t b, int64_t h, int64_t i, int64_t gone, double *a)
{
    double sum = 0;

    for (int64_t j = 0; j <= i; j++) {
        double s = dot(&p->args.q, &p->args.k, b, h, i, j) * p->scale;
        if (p->args.logits.softcap > 0) s = p->args.logits.softcap * tanh(s / p->args.logits.softcap);
        a[j] = j == gone ? 0 : exp(s);
        sum += a[j];
    }
    for (int64_t j = 0; j <= i; j++)
        a[j] = sum > 0 ? a[j] / sum : 0;
}

/* sum_j a_j (d_o_i . v_j): the part of a loss linear in o that row i gives. */
static double loss_of(const struct problem *p, int64_t b, int64_t h, int64_t i, const double *a)
{
    double loss = 0;

    for (int64_t j = 0; j <= i; j++)
        loss += a[j] * dot(&p->args.d_o, &p->args.v, b, h, i, j);
    return loss;
}

/* A loss that is linear in o changes by E exactly. */
static double change(const struct problem *p, int64_t b, int64_t h, int64_t i, int64_t j)
{
    double a[N], with, without;

    weights(p, b, h, i, -1, a);
    with = loss_of(p, b, h, i, a);
    weights(p, b, h, i, j, a);
    without = loss_of(p, b, h, i, a);
    return without - with;
}

static void each_weight_counts_what_its_loss_costs(void **state)
{
    static const fv_logits logits[] = {
        {.scale = 0.3f}, {.scale = 0.3f, .softcap = 1.5f}, {.scale = 0}, {.zero_scale = true}};
    (void)state;
    for (size_t n = 0; n < sizeof logits / sizeof *logits; n++) {
        struct problem p;
        begin(&p, 1, false, logits[n]);
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < N; i += 1 + i % 17)
                for (int64_t j = 0; j < N; j++) {
                    double expected = 0, got = p.out[(h * N + i) * N + j];
                    for (int64_t b = 0; b < B && j <= i; b++)
                        expected += change(&p, b, h, i, j) / B;
                    if (!(fabs(got - expected) <= 1e-4 * (1 + fabs(expected))))
                        fail_msg("head %lld, row %lld, key %lld: expected %.9g, got %.9g", (long long)h, (long long)i,
                                 (long long)j, expected, got);
                }
        end(&p);
    }
}

static void blocks_are_sums_of_pairs(void **state)
{
    struct problem p;

    (void)state;
    begin(&p, 64, true, (fv_logits){.scale = 0.3f});
    for (int64_t h = 0; h < H; h++)
        for (int64_t r = 0; r < p.blocks; r++)
            for (int64_t c = 0; c < p.blocks; c++) {
                double expected = 0, got = p.out[(h * p.blocks + r) * p.blocks + c];
                for (int64_t b = 0; b < B; b++)
                    for (int64_t i = r * 64; i < N && i < (r + 1) * 64; i++)
                        for (int64_t j = c * 64; j <= i && j < (c + 1) * 64; j++)
                            expected += fabs(change(&p, b, h, i, j)) / B;
                if (!(fabs(got - expected) <= 1e-4 * (1 + expected)))
                    fail_msg("head %lld, block %lld, %lld: expected %.9g, got %.9g", (long long)h, (long long)r,
                             (long long)c, expected, got);
            }
    end(&p);
}

static void bad_shapes_are_refused(void **state)
{
    struct problem p;

    (void)state;
    begin(&p, 64, true, (fv_logits){.scale = 0.3f});
    fv_influence_args a = p.args;
    a.block = 0;
    assert_int_equal(fv_influence(p.ctx, &a), FV_E_ARGUMENT);
    a = p.args;
    a.d_o = fv_slice(&a.d_o, 2, 0, N - 1);
    assert_int_equal(fv_influence(p.ctx, &a), FV_E_SHAPE);
    end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_weight_counts_what_its_loss_costs),
        cmocka_unit_test(blocks_are_sums_of_pairs),
        cmocka_unit_test(bad_shapes_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
