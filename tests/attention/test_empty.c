/* Calls of no queries or no keys: served or refused in words, by every mechanism under every set of options. */
#include <math.h>

#include "attention/mechanism.h"
#include "support/cases.h"
#include "support/support.h"
#include "support/tensors.h"

static fv_attention_args draw(fv_ctx *ctx, const conformance_case *c, int64_t N, int64_t M)
{
    return (fv_attention_args){.q = test_random(ctx, 1, FV_DIMS(c->B, c->H, N, c->D)),
                               .k = test_random(ctx, 1, FV_DIMS(c->B, c->Hkv, M, c->D)),
                               .v = test_random(ctx, 1, FV_DIMS(c->B, c->Hkv, M, c->Dv)),
                               .o = test_random(ctx, 1, FV_DIMS(c->B, c->H, N, c->Dv)),
                               .causal = c->causal};
}

/* Whether it was served; otherwise it said why. */
static bool served(const char *what, const char *spec, fv_status status)
{
    if (status == FV_OK) return true;
    if ((status != FV_E_USAGE && status != FV_E_SHAPE) || strlen(fv_error()) < 10)
        fail_msg("%s: %s: status %d, '%s'", spec, what, (int)status, fv_error());
    return false;
}

/* Nothing is read: rows of zeros, whose log-sum-exp is -inf. */
static void expect_nothing(const char *spec, const fv_tensor *o, const fv_tensor *lse)
{
    for (int64_t n = 0; n < fv_tensor_count(o); n++)
        if (((float *)o->data)[n] != 0) fail_msg("%s: without keys: o is %g", spec, (double)((float *)o->data)[n]);
    for (int64_t n = 0; fv_present(lse) && n < fv_tensor_count(lse); n++)
        if (((float *)lse->data)[n] != -INFINITY)
            fail_msg("%s: without keys: lse is %g", spec, (double)((float *)lse->data)[n]);
}

static void check(fv_ctx *ctx, const conformance_case *c, int64_t N, int64_t M)
{
    fv_attention_args args = draw(ctx, c, N, M);
    fv_attention *attention;
    fv_attention_grads grads;
    fv_tensor map;
    fv_work work;
    void *owned;

    assert_ok(fv_attention_new(c->spec, &attention));
    if (!(fv_attention_mechanism(attention)->traits & FV_NO_LSE))
        args.lse = test_random(ctx, 1, FV_DIMS(c->B, c->H, N));
    if (served("forward", c->spec, fv_attention_forward(ctx, attention, &args)))
        expect_nothing(c->spec, &args.o, &args.lse);
    if (served("pairs", c->spec, fv_attention_map(ctx, attention, &args, &map, &owned)))
        assert_int_equal(fv_tensor_count(&map), 0);
    fv_release(owned);
    if (served("work", c->spec, fv_attention_work(ctx, attention, &args, &work))) assert_int_equal(work.pairs, 0);
    served("decode", c->spec, fv_attention_decode(ctx, attention, &args));
    grads = (fv_attention_grads){.d_o = test_random(ctx, 1, 4, args.o.dims),
                                 .d_q = test_random(ctx, 1, 4, args.q.dims),
                                 .d_k = test_random(ctx, 1, 4, args.k.dims),
                                 .d_v = test_random(ctx, 1, 4, args.v.dims)};
    args.lse = (fv_tensor){0};
    if (served("backward", c->spec, fv_attention_backward(ctx, attention, &args, &grads))) {
        const fv_tensor *zeros[] = {&grads.d_q, &grads.d_k, &grads.d_v};
        for (int i = 0; i < 3; i++)
            expect_nothing(c->spec, zeros[i], &args.lse);
    }
    fv_attention_free(attention);
}

static void on_device(fv_ctx *ctx)
{
    for (const conformance_case *c = conformance_cases; c->spec; c++) {
        fv_mark mark = fv_scratch_mark(ctx);
        if (c->params) continue;
        check(ctx, c, 0, 0);
        check(ctx, c, 0, 5);
        check(ctx, c, 5, 0);
        fv_scratch_release(ctx, mark);
    }
}

static void calls_without_tokens_are_served_or_refused(void **state)
{
    (void)state;
    test_each_device(on_device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(calls_without_tokens_are_served_or_refused)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
