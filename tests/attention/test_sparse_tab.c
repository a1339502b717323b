/* Token aggregation: the worked numbers of its definition, and what must hold beside what every mechanism promises. */
#include <math.h>

#include "attention/mechanism.h"
#include "support/seen.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 1e-5

static fv_attention_args args_of(fv_ctx *ctx, int64_t B, int64_t H, int64_t N, int64_t D)
{
    fv_attention_args args = test_specs_args(ctx, B, H, H, N, N, D);

    args.causal = false;
    args.lse.data = NULL;
    return args;
}

static fv_named_tensor floats(fv_ctx *ctx, const char *name, const float *data, int rank, const int64_t *dims)
{
    fv_named_tensor param = {.name = name};

    assert_ok(fv_tensor_new(ctx, &param.tensor, FV_F32, rank, dims));
    memcpy(param.tensor.data, data, (size_t)fv_tensor_count(&param.tensor) * sizeof *data);
    return param;
}

static fv_named_tensor clusters(fv_ctx *ctx, int64_t B, int64_t N, int of)
{
    fv_named_tensor param = {.name = "assign"};

    assert_ok(fv_tensor_new(ctx, &param.tensor, FV_I32, FV_DIMS(B, N)));
    for (int64_t i = 0; i < B * N; i++)
        ((int32_t *)param.tensor.data)[i] = (int32_t)(i % of);
    return param;
}

/* Order 0 2 4 6 1 3 5, and the array goes on 5 3 1 6 ...; a centre that is 0 is nearest to nothing. */
static void groups_on(fv_ctx *ctx)
{
    static const float features[] = {1, 0, 0, 1, .9f, .1f, .2f, .9f, .8f, .3f, .1f, 1, .95f, .05f};
    static const float centres[] = {3, 0, 0, .5f, 0, 0};
    fv_attention_args args = args_of(ctx, 1, 2, 7, 4);
    fv_named_tensor param[2] = {floats(ctx, "features", features, FV_DIMS(1, 7, 2)),
                                floats(ctx, "centres", centres, FV_DIMS(3, 2))};

    args.params = 2;
    args.param = param;
    test_seen(ctx, "tab:group=3", &args, 0, 0, 0, "0 1 2 3 4 6");
    test_seen(ctx, "tab:group=3", &args, 0, 0, 3, "1 3 5 6");
    test_seen(ctx, "tab:group=3", &args, 0, 0, 5, "1 3 4 5 6");
    test_seen(ctx, "tab:group=3,mask_pad=1", &args, 0, 0, 5, "5");
    test_seen(ctx, "tab:group=3,windows=1", &args, 0, 0, 5, "3 5");
    test_seen(ctx, "tab:group=3,windows=3", &args, 0, 0, 5, "0 1 2 3 4 5 6");
}

static void groups_read_themselves_and_the_next(void **state)
{
    (void)state;
    test_each_device(groups_on);
}

/* With q = 0 every place weighs the same: 5 5 3 1 6 4 of the last group, and centres are added beside. */
static void mirror_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 1, 1, 7, 4);
    fv_named_tensor param[3] = {clusters(ctx, 1, 7, 2),
                                {"centre_k", test_random(ctx, 1, FV_DIMS(1, 2, 4))},
                                {"centre_v", test_random(ctx, 1, FV_DIMS(1, 2, 4))}};
    const float *o = args.o.data, *value = param[2].tensor.data;

    memset(args.q.data, 0, 28 * sizeof(float));
    for (int n = 0; n < 28; n++)
        ((float *)args.v.data)[n] = (float)(n / 4);
    args.params = 1;
    args.param = param;
    test_specs_run(ctx, "tab:group=3", &args);
    assert_float_equal(o[5 * 4], 4, TOLERANCE);
    args.params = 3;
    test_specs_run(ctx, "tab:group=3", &args);
    assert_float_equal(o[5 * 4 + 1], 4 + (value[1] + value[5]) / 2, TOLERANCE);
    test_specs_run(ctx, "tab:group=3,inter=0", &args);
    assert_float_equal(o[5 * 4 + 1], 4, TOLERANCE);
}

static void mirrored_keys_weigh_again(void **state)
{
    (void)state;
    test_each_device(mirror_on);
}

static void dense_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 2, 3, 100, 9);
    fv_named_tensor param = clusters(ctx, 2, 100, 7);

    test_specs_equal(ctx, "tab", "dense", &args, 0, TOLERANCE);
    args.params = 1;
    args.param = &param;
    test_specs_run(ctx, "tab:group=100,windows=1", &args);
    args.params = 0;
    test_specs_equal(ctx, "tab:group=100,windows=1", "dense", &args, 0, TOLERANCE);
}

static void is_dense_in_one_group(void **state)
{
    (void)state;
    test_each_device(dense_on);
}

/* Pairs that are computed twice count twice. */
static void counts_what_it_computes(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = args_of(ctx, 1, 2, 10, 4);
    fv_named_tensor param[2] = {{"centre_k", test_random(ctx, 1, FV_DIMS(2, 3, 4))},
                                {"centre_v", test_random(ctx, 1, FV_DIMS(2, 3, 4))}};
    fv_attention *attention;
    fv_work work;
    (void)state;

    args.params = 2;
    args.param = param;
    assert_ok(fv_attention_new("tab:group=4", &attention));
    assert_ok(fv_attention_work(ctx, attention, &args, &work));
    assert_int_equal(work.pairs, 2 * 10 * (8 + 3));
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = args_of(ctx, 1, 2, 9, 4), grouped = test_specs_args(ctx, 1, 2, 1, 9, 9, 4), with_lse;
    fv_named_tensor features = {"features", test_random(ctx, 1, FV_DIMS(1, 9, 5))};
    fv_named_tensor centres = {"centres", test_random(ctx, 1, FV_DIMS(3, 5))};
    fv_named_tensor param[3] = {clusters(ctx, 1, 9, 4)};
    (void)state;

    test_specs_refused(ctx, "tab:windows=4", &args, FV_E_USAGE, "windows");
    test_specs_refused(ctx, "tab:group=0", &args, FV_E_USAGE, "group");
    with_lse = args;
    with_lse.lse = grouped.lse;
    test_specs_refused(ctx, "tab", &with_lse, FV_E_USAGE, "log-sum-exp");
    grouped.causal = false;
    grouped.lse.data = NULL;
    test_specs_refused(ctx, "tab", &grouped, FV_E_SHAPE, "as many key-value heads");
    grouped.causal = true;
    test_specs_refused(ctx, "tab", &grouped, FV_E_USAGE, "cannot be causal");
    args.params = 1;
    args.param = param;
    ((int32_t *)param[0].tensor.data)[4] = -1;
    test_specs_refused(ctx, "tab", &args, FV_E_SHAPE, "token 4: expected 0 to");
    ((int32_t *)param[0].tensor.data)[4] = 3;
    args.params = 3;
    param[1] = (fv_named_tensor){"centre_k", test_random(ctx, 1, FV_DIMS(2, 3, 4))};
    param[2] = (fv_named_tensor){"centre_v", test_random(ctx, 1, FV_DIMS(2, 3, 4))};
    test_specs_refused(ctx, "tab", &args, FV_E_SHAPE, "expected 0 to 2, got 3"); /* of three centres */
    args.params = 2;
    test_specs_refused(ctx, "tab", &args, FV_E_USAGE, "'centre_k' and 'centre_v' need one another");
    param[1] = features;
    test_specs_refused(ctx, "tab", &args, FV_E_USAGE, "'features' and 'centres' need one another");
    param[2] = centres;
    args.params = 3;
    test_specs_refused(ctx, "tab", &args, FV_E_USAGE, "exclude each other");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_read_themselves_and_the_next),
        cmocka_unit_test(mirrored_keys_weigh_again),
        cmocka_unit_test(is_dense_in_one_group),
        cmocka_unit_test(counts_what_it_computes),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
