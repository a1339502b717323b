#include "support/specs.h"

#include <math.h>
#include <stdio.h>

fv_attention_args test_specs_args(fv_ctx *ctx, int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t M, int64_t D)
{
    return (fv_attention_args){.q = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                               .k = test_random(ctx, 1, FV_DIMS(B, Hkv, M, D)),
                               .v = test_random(ctx, 1, FV_DIMS(B, Hkv, M, D)),
                               .o = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                               .lse = test_random(ctx, 1, FV_DIMS(B, H, N)),
                               .causal = true};
}

void test_specs_run(fv_ctx *ctx, const char *spec, const fv_attention_args *args)
{
    fv_attention *attention;

    assert_ok(fv_attention_new(spec, &attention));
    if (fv_attention_forward(ctx, attention, args) != FV_OK) fail_msg("%s: %s", spec, fv_error());
    fv_attention_free(attention);
}

void test_specs_refused(fv_ctx *ctx, const char *spec, const fv_attention_args *args, fv_status expected,
                        const char *words)
{
    fv_attention *attention = NULL;
    fv_status status = fv_attention_new(spec, &attention);

    if (status == FV_OK) status = fv_attention_forward(ctx, attention, args);
    fv_attention_free(attention);
    assert_fails(status, expected, words);
}

fv_tensor test_specs_forward(fv_ctx *ctx, const char *spec, const fv_attention_args *args)
{
    fv_attention_args own = *args;

    own.lse = (fv_tensor){0};
    assert_ok(fv_tensor_new(ctx, &own.o, FV_F32,
                            FV_DIMS(args->q.dims[0], args->q.dims[1], args->q.dims[2], args->v.dims[3])));
    test_specs_run(ctx, spec, &own);
    return own.o;
}

static void expect_equal(const char *what, const fv_tensor *got, const fv_tensor *expected, double shift,
                         double tolerance)
{
    for (int64_t i = 0; i < fv_tensor_count(got); i++) {
        double a = ((const float *)got->data)[i] + shift, b = ((const float *)expected->data)[i];
        if (!(fabs(a - b) <= tolerance * fmax(1, fabs(b))) && a != b)
            fail_msg("%s: number %d: expected %.9g, got %.9g", what, (int)i, b, a);
    }
}

void test_specs_close(const char *what, const fv_tensor *got, const fv_tensor *expected, double tolerance)
{
    expect_equal(what, got, expected, 0, tolerance);
}

void test_specs_equal(fv_ctx *ctx, const char *spec, const char *other, const fv_attention_args *args, double shift,
                      double tolerance)
{
    fv_attention_args second = *args;
    char what[256];

    second.o = test_random(ctx, 1, args->o.rank, args->o.dims);
    if (fv_present(&args->lse)) second.lse = test_random(ctx, 1, args->lse.rank, args->lse.dims);
    test_specs_run(ctx, spec, args);
    test_specs_run(ctx, other, &second);
    snprintf(what, sizeof what, "o of %s against %s on %s", spec, other, fv_ctx_backend(ctx));
    expect_equal(what, &args->o, &second.o, 0, tolerance);
    snprintf(what, sizeof what, "lse of %s against %s on %s", spec, other, fv_ctx_backend(ctx));
    if (fv_present(&args->lse)) expect_equal(what, &args->lse, &second.lse, shift, tolerance);
}
