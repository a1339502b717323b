#include "support/gradient.h"

#include <math.h>
#include <stdlib.h>

#include "ops/tape.h"
#include "support/tensors.h"

enum { ELEMENTS = 40 };

/* What the rounding of f32 results does to (4 narrow - wide) / 3, over the norm of result * weights: the four losses
 * stand in it with factors of 128/3 and 16/3, together 61, each term within 2^-24 of itself.  By Hoeffding's inequality
 * a sum passes six norms once in 10^8 if every error were the largest there is, and once in 10^12 if they are uniform
 * and twice rounded. */
#define ROUNDING (6 * 61 * 0x1p-24)

/* sum of result * weights */
static double loss(fv_ctx *ctx, test_forward_fn *forward, void *user, const double *weights)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor out;
    double sum = 0;

    assert_ok(forward(ctx, user, &out));
    for (int64_t n = 0; n < fv_tensor_count(&out); n++)
        sum += weights[n] * test_element(&out, n);
    fv_scratch_release(ctx, mark);
    return sum;
}

static double difference(fv_ctx *ctx, test_forward_fn *forward, void *user, const double *weights, float *at,
                         float step)
{
    volatile float before = *at, above = before + step, below = before - step;

    *at = above;
    double high = loss(ctx, forward, user, weights);
    *at = below;
    double low = loss(ctx, forward, user, weights);
    *at = before;
    return (high - low) / ((double)above - below);
}

static float *element(const fv_tensor *t, int64_t n)
{
    int64_t index[FV_MAX_RANK], offset = 0;

    test_index(t->rank, t->dims, n, index);
    for (int d = 0; d < t->rank; d++)
        offset += index[d] * t->strides[d];
    return (float *)t->data + offset;
}

void test_gradient(fv_ctx *ctx, const char *what, test_forward_fn *forward, void *user, int leaves,
                   const fv_tensor *const *leaf, double tolerance)
{
    static uint64_t stream = 1u << 20;
    fv_random random = fv_random_new(test_seed(), ++stream);
    fv_ctx *ref = test_ctx("ref", 1);
    fv_tensor out, seed;

    assert_ok(fv_tape_begin(ctx));
    for (int i = 0; i < leaves; i++)
        assert_ok(fv_tape_watch(ctx, leaf[i]));
    assert_ok(forward(ctx, user, &out));
    seed = test_random(ctx, 1, out.rank, out.dims);
    double *weights = test_doubles(fv_tensor_count(&out)), squares = 0;
    for (int64_t n = 0; n < fv_tensor_count(&out); n++) {
        weights[n] = test_element(&seed, n);
        squares += pow(weights[n] * test_element(&out, n), 2);
    }
    assert_ok(fv_tape_seed(ctx, &out, &seed));
    assert_ok(fv_tape_backward(ctx));

    for (int i = 0; i < leaves; i++) {
        int64_t count = fv_tensor_count(leaf[i]);
        fv_tensor gradient;
        assert_true(fv_tape_gradient(ctx, leaf[i], &gradient));
        for (int64_t e = 0; e < (count < ELEMENTS ? count : ELEMENTS); e++) {
            int64_t n = count <= ELEMENTS ? e : fv_random_below(&random, count);
            float *at = element(leaf[i], n);
            double wide = difference(ref, forward, user, weights, at, 0x1p-5f);
            double narrow = difference(ref, forward, user, weights, at, 0x1p-6f);
            double expected = (4 * narrow - wide) / 3, got = *element(&gradient, n);
            double bound = tolerance * fmax(1, fabs(expected)) + ROUNDING * sqrt(squares);
            if (!(fabs(got - expected) <= bound))
                fail_msg("%s: gradient of input %d of shape %s, element %lld: expected %.9g, got %.9g (tolerance %.3g)",
                         what, i, fv_shape_text(leaf[i]), (long long)n, expected, got, bound);
        }
    }
    free(weights);
    fv_tape_end(ctx);
    fv_ctx_free(ref);
}
