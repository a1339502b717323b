/* Dynamic mask attention: what must hold of the library, beside what every mechanism promises. */
#include <math.h>
#include <stdlib.h>

#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 2e-5

static fv_attention_args with_importance(fv_attention_args args, fv_named_tensor *param, const fv_tensor *importance)
{
    *param = (fv_named_tensor){"importance", *importance};
    args.params = 1;
    args.param = param;
    return args;
}

static void limits_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 150, 150, 16), biased, dense;
    fv_tensor importance = test_random(ctx, 1, FV_DIMS(2, 2, 150)), bias, shifted;
    fv_named_tensor param, dense_param;

    test_specs_equal(ctx, "dma:keep=7", "sinkwin:sink=0,window=7", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:keep=70,keep_self=1", "sinkwin:sink=0,window=70", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:keep=70", "dma:keep=70,evict=0", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "dma", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:delta=exp,bias=0", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:delta=exp", "dense", &args, -1, TOLERANCE); /* all have an importance of 1 */
    biased = with_importance(args, &param, &importance);
    test_specs_equal(ctx, "dma:bias=0", "dma:bias=0,keep=150", &biased, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:keep=20", "dma:keep=20,evict=0", &biased, 0, TOLERANCE);
    test_specs_equal(ctx, "dma:keep=64,block_smooth=1", "dma:keep=64", &biased, 0, TOLERANCE);
    /* room for all: dense with a bias by key and head */
    assert_ok(fv_tensor_new(ctx, &bias, FV_F32, FV_DIMS(2, 4, 150, 150)));
    for (int64_t n = 0; n < 2 * 4 * 150 * 150; n++)
        ((float *)bias.data)[n] = ((float *)importance.data)[n / (2 * 150 * 150) * 150 + n % 150];
    dense = args;
    dense_param = (fv_named_tensor){"bias", bias};
    dense.params = 1;
    dense.param = &dense_param;
    test_specs_run(ctx, "dma", &biased);
    dense.o = test_random(ctx, 1, FV_DIMS(2, 4, 150, 16));
    test_specs_run(ctx, "dense", &dense);
    for (int64_t n = 0; n < 2 * 4 * 150 * 16; n++)
        assert_float_equal(((float *)biased.o.data)[n], ((float *)dense.o.data)[n], TOLERANCE);
    /* the same added to all importances changes nothing */
    shifted = test_cast(ctx, &importance, FV_F32);
    for (int64_t n = 0; n < 600; n++)
        ((float *)shifted.data)[n] += 3;
    test_specs_run(ctx, "dma:keep=20", &biased);
    param.tensor = shifted;
    dense = biased;
    dense.o = test_random(ctx, 1, FV_DIMS(2, 4, 150, 16));
    test_specs_run(ctx, "dma:keep=20", &dense);
    for (int64_t n = 0; n < 2 * 4 * 150 * 16; n++)
        assert_float_equal(((float *)biased.o.data)[n], ((float *)dense.o.data)[n], TOLERANCE);
}

static void has_the_limits_of_its_definition(void **state)
{
    (void)state;
    test_each_device(limits_on);
}

/* Each query reads min(p + 1, keep) keys, and none that a query before it has left out after its coming. */
static void keys_leave_for_good(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_tensor importance = test_random(ctx, 1, FV_DIMS(1, 2, 200)), map;
    fv_attention_args args = test_specs_args(ctx, 1, 4, 2, 200, 200, 16);
    fv_named_tensor param;
    fv_attention *attention;
    void *owned;
    (void)state;

    for (int64_t n = 0; n < 400; n += 3)
        ((float *)importance.data)[n] = 0.25f; /* many ties */
    args = with_importance(args, &param, &importance);
    assert_ok(fv_attention_new("dma:keep=11", &attention));
    assert_ok(fv_attention_map(ctx, attention, &args, &map, &owned));
    for (int64_t h = 0; h < 4; h++)
        for (int64_t i = 0; i < 200; i++) {
            const uint8_t *row = (const uint8_t *)fv_at(&map, 0, h, i, 0), *before = row - 200;
            int64_t seen = 0;
            for (int64_t j = 0; j < 200; j++) {
                seen += row[j];
                assert_true(i == 0 || j == i || !row[j] || before[j]);
            }
            assert_int_equal(seen, fv_min(i + 1, 11));
        }
    fv_release(owned);
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

/* NaN comes last, infinities first; nothing is read that is not there. */
static void takes_any_importance(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0, -0.0f, 1e-40f};
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_tensor importance = test_random(ctx, 1, FV_DIMS(1, 1, 100));
    fv_attention_args args = test_specs_args(ctx, 1, 1, 1, 100, 100, 16);
    fv_named_tensor param;
    (void)state;

    for (int64_t n = 0; n < 100; n++)
        ((float *)importance.data)[n] = odd[n % 6];
    args = with_importance(args, &param, &importance);
    test_specs_run(ctx, "dma:keep=40", &args);
    test_specs_run(ctx, "dma:keep=90,bias=0", &args); /* 17 keys are NaN, 10 of them are left out */
    for (int64_t n = 0; n < 100 * 16; n++)
        assert_true(isfinite(((float *)args.o.data)[n]));
    test_specs_run(ctx, "dma:mask=relu,block_smooth=7,keep_self=1", &args);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 2, 2, 9, 9, 16), wrong = args;
    fv_named_tensor both[] = {{"importance", test_random(ctx, 1, FV_DIMS(1, 2, 9))},
                              {"a", test_random(ctx, 1, FV_DIMS(2))}};
    fv_named_tensor weight = {"dt_weight", test_random(ctx, 1, FV_DIMS(2, 16))};
    (void)state;

    test_specs_refused(ctx, "dma:keep=0", &args, FV_E_USAGE, "keep");
    test_specs_refused(ctx, "dma:mask=top", &args, FV_E_USAGE, "mask");
    test_specs_refused(ctx, "dma:delta=log", &args, FV_E_USAGE, "delta");
    wrong.params = 2;
    wrong.param = both;
    test_specs_refused(ctx, "dma", &wrong, FV_E_USAGE, "'importance' and 'a' exclude each other");
    wrong.params = 1;
    wrong.param = &weight;
    test_specs_refused(ctx, "dma", &wrong, FV_E_SHAPE, "dt_weight");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_the_limits_of_its_definition),
        cmocka_unit_test(keys_leave_for_good),
        cmocka_unit_test(takes_any_importance),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
