/* Landmark attention: what must hold of the library, beside what every mechanism promises. */
#include <math.h>

#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 2e-5

static void limits_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 45, 45, 16), given = args;
    fv_tensor flags, bias;
    fv_named_tensor landmarks, hidden;

    args.lse.data = given.lse.data = NULL;
    test_specs_equal(ctx, "landmark:period=46", "dense", &args, 0, TOLERANCE);
    assert_ok(fv_tensor_zeros(ctx, &flags, FV_U8, FV_DIMS(45)));
    for (int j = 6; j < 45; j += 7)
        ((uint8_t *)flags.data)[j] = 1;
    landmarks = (fv_named_tensor){"landmarks", flags};
    given.params = 1;
    given.param = &landmarks;
    given.o = test_random(ctx, 1, FV_DIMS(2, 4, 45, 16));
    test_specs_run(ctx, "landmark:period=7", &args);
    test_specs_run(ctx, "landmark:period=0", &given);
    for (int64_t n = 0; n < 2 * 4 * 45 * 16; n++)
        assert_float_equal(((float *)args.o.data)[n], ((float *)given.o.data)[n], 1e-6);
    /* queries of 1 and keys of one number: a landmark that sums up its section makes attention plain */
    for (int64_t n = 0; n < 2 * 4 * 45 * 16; n++)
        ((float *)args.q.data)[n] = n % 16 == 0 ? 4 : 0; /* D^-1/2 is 1/4 */
    for (int64_t row = 0; row < 2 * 2 * 45; row++) {
        float *k = (float *)args.k.data + row * 16;
        double sum = 0;
        for (int64_t j = 1; row % 45 % 7 == 6 && j < 7; j++)
            sum += exp((double)k[-16 * j]);
        if (row % 45 % 7 == 6) k[0] = (float)log(sum);
    }
    assert_ok(fv_tensor_zeros(ctx, &bias, FV_F32, FV_DIMS(1, 1, 45, 45)));
    for (int64_t n = 0; n < 45 * 45; n++)
        ((float *)bias.data)[n] = n % 45 % 7 == 6 ? -INFINITY : 0;
    hidden = (fv_named_tensor){"bias", bias};
    given.param = &hidden;
    test_specs_run(ctx, "landmark:period=7", &args);
    test_specs_run(ctx, "dense", &given);
    for (int64_t n = 0; n < 2 * 4 * 45 * 16; n++)
        assert_float_equal(((float *)args.o.data)[n], ((float *)given.o.data)[n], TOLERANCE);
}

static void has_the_limits_of_its_definition(void **state)
{
    (void)state;
    test_each_device(limits_on);
}

/* Queries go in stretches: with so many heads and gates in several. */
static void does_not_depend_on_the_stretch(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args all = test_specs_args(ctx, 1, 32, 32, 400, 400, 16), one = all;
    (void)state;

    all.lse.data = one.lse.data = NULL;
    test_specs_run(ctx, "landmark:period=3", &all);
    one.q = fv_slice(&all.q, 1, 7, 1);
    one.k = fv_slice(&all.k, 1, 7, 1);
    one.v = fv_slice(&all.v, 1, 7, 1);
    one.o = test_random(ctx, 1, FV_DIMS(1, 1, 400, 16));
    test_specs_run(ctx, "landmark:period=3", &one);
    for (int64_t n = 0; n < 400 * 16; n++)
        assert_float_equal(((float *)fv_at(&all.o, 0, 7, 0, 0))[n], ((float *)one.o.data)[n], TOLERANCE);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 2, 1, 9, 9, 16), lse = args;
    fv_tensor flags;
    fv_named_tensor landmarks;
    (void)state;

    args.lse.data = NULL;
    test_specs_refused(ctx, "landmark:period=1", &args, FV_E_USAGE, "expected at least 2");
    test_specs_refused(ctx, "landmark:period=0", &args, FV_E_USAGE, "needs param 'landmarks'");
    test_specs_refused(ctx, "landmark", &lse, FV_E_USAGE, "log-sum-exp");
    assert_ok(fv_tensor_zeros(ctx, &flags, FV_U8, FV_DIMS(9)));
    landmarks = (fv_named_tensor){"landmarks", flags};
    args.params = 1;
    args.param = &landmarks;
    test_specs_refused(ctx, "landmark:period=3", &args, FV_E_USAGE, "needs period=0");
    ((uint8_t *)flags.data)[4] = 2;
    test_specs_refused(ctx, "landmark:period=0", &args, FV_E_FORMAT, "'landmarks'[4]: expected 0 or 1, got 2");
    landmarks.tensor = fv_slice(&flags, 0, 0, 8);
    test_specs_refused(ctx, "landmark:period=0", &args, FV_E_SHAPE, "landmarks");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_the_limits_of_its_definition),
        cmocka_unit_test(does_not_depend_on_the_stretch),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
