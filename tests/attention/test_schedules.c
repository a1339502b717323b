/* nsa's two schedules of the selected branch compute one function: outputs and gradients agree to rounding, however
 * many query heads share a key-value head. */
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "fovea/attention.h"
#include "support/tensors.h"

enum { HEADS = 16, N = 150, D = 16, DV = 24, BLOCK = 8, PARAMS = 3, GRADIENTS = 3 + PARAMS };

static const char spec[] = "nsa:compress_block=8,compress_stride=4,block=8,top=6,init=1,local=2,window=12,schedule=%s";

/* What a call gives: o, then gradients of q, k, v and the params. */
struct results {
    fv_tensor o, gradient[GRADIENTS];
};

static const char *const names[GRADIENTS] = {"d_q", "d_k", "d_v", "compress_k", "compress_v", "gate"};

static void run(fv_ctx *ctx, const char *schedule, const fv_tensor *in, const fv_tensor *d_o, struct results *r)
{
    fv_named_tensor param[PARAMS], d_param[PARAMS];
    fv_attention_args args = {.q = in[0], .k = in[1], .v = in[2], .params = PARAMS, .param = param};
    fv_attention_grads grads = {.d_o = *d_o, .params = PARAMS, .d_param = d_param};
    fv_attention *attention;
    char text[256];

    snprintf(text, sizeof text, spec, schedule);
    assert_ok(fv_attention_new(text, &attention));
    assert_ok(fv_tensor_new(ctx, &r->o, FV_F32, 4, d_o->dims));
    for (int n = 0; n < GRADIENTS; n++)
        assert_ok(fv_tensor_zeros(ctx, &r->gradient[n], FV_F32, in[n].rank, in[n].dims));
    for (int n = 0; n < PARAMS; n++) {
        param[n] = (fv_named_tensor){names[3 + n], in[3 + n]};
        d_param[n] = (fv_named_tensor){names[3 + n], r->gradient[3 + n]};
    }
    args.o = r->o;
    grads.d_q = r->gradient[0], grads.d_k = r->gradient[1], grads.d_v = r->gradient[2];
    assert_ok(fv_attention_backward(ctx, attention, &args, &grads));
    fv_attention_free(attention);
}

/* Differences are of the order of rounding where sums are: eps times the terms of the longest one, times their size. */
static void expect_same(const char *what, int64_t group, const fv_tensor *a, const fv_tensor *b, double terms)
{
    double largest = 0, most = 0;

    for (int64_t n = 0; n < fv_tensor_count(a); n++) {
        largest = fmax(largest, fabs(test_element(a, n)));
        most = fmax(most, fabs(test_element(a, n) - test_element(b, n)));
    }
    if (!(most <= FLT_EPSILON * terms * largest) || !(largest > 1e-3))
        fail_msg("%s with %d query heads a key-value head: expected a difference of at most %g, got %g of %g", what,
                 (int)group, FLT_EPSILON * terms * largest, most, largest);
}

static void check_group(fv_ctx *ctx, int64_t group)
{
    int64_t keys = HEADS / group;
    fv_mark mark = fv_scratch_mark(ctx);
    const fv_tensor in[GRADIENTS] = {
        test_random(ctx, 1, FV_DIMS(1, HEADS, N, D)),
        test_random(ctx, 1, FV_DIMS(1, keys, N, D)),
        test_random(ctx, 1, FV_DIMS(1, keys, N, DV)),
        test_random(ctx, 1 / sqrt(BLOCK * D), FV_DIMS(keys, BLOCK * D, D)),
        test_random(ctx, 1 / sqrt(BLOCK * DV), FV_DIMS(keys, BLOCK * DV, DV)),
        test_random(ctx, 1, FV_DIMS(1, HEADS, N, 3)),
    };
    fv_tensor d_o = test_random(ctx, 1, FV_DIMS(1, HEADS, N, DV));
    struct results by_query, by_block;

    run(ctx, "nsa", in, &d_o, &by_query);
    run(ctx, "fsa", in, &d_o, &by_block);
    expect_same("o", group, &by_query.o, &by_block.o, N);
    for (int n = 0; n < GRADIENTS; n++)
        expect_same(names[n], group, &by_query.gradient[n], &by_block.gradient[n], (double)(N * group));
    fv_scratch_release(ctx, mark);
}

static void check_groups(fv_ctx *ctx)
{
    for (int64_t group = 1; group <= HEADS; group *= 2)
        check_group(ctx, group);
}

static void schedules_agree(void **state)
{
    (void)state;
    test_each_device(check_groups);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(schedules_agree)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
