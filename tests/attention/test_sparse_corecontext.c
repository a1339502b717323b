/* Core context aware attention: what must hold of the library, beside what every mechanism promises. */
#include <stdio.h>

#include "attention/mechanism.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 2e-5

static void dense_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 33, 33, 32);

    test_specs_equal(ctx, "corecontext:group=1,window=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "corecontext:group=1,window=7,pool=kv_head,log_bias=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "corecontext:group=4,window=30", "dense", &args, 0, TOLERANCE); /* 33 = window + group - 1 */
    for (int64_t row = 0; row < 2 * 2 * 33; row++)                                        /* tokens of a group alike */
        for (int64_t d = 0; d < 32; d++) {
            int64_t first = (row - row % 33 + row % 33 / 5 * 5) * 32;
            ((float *)args.k.data)[row * 32 + d] = ((float *)args.k.data)[first + d];
            ((float *)args.v.data)[row * 32 + d] = ((float *)args.v.data)[first + d];
        }
    test_specs_equal(ctx, "corecontext:group=5,window=3,pool=all_heads,log_bias=1", "dense", &args, 0, TOLERANCE);
}

static void is_dense_where_pooling_changes_nothing(void **state)
{
    (void)state;
    test_each_device(dense_on);
}

/* With equal queries within a group all ways to average are one; a scale of 0 weighs equally. */
static void pools_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 1, 4, 2, 29, 29, 16);
    const float zero = 0;

    for (int64_t h = 1; h < 4; h++)
        for (int64_t n = 0; n < 29 * 16; n++) {
            ((float *)args.q.data)[h * 29 * 16 + n] = ((float *)args.q.data)[n];
            if (h == 1) ((float *)args.k.data)[29 * 16 + n] = ((float *)args.k.data)[n];
        }
    for (int pool = 0; pool < 2; pool++) {
        char other[64];
        snprintf(other, sizeof other, "corecontext:group=4,window=3,pool=%s", pool ? "kv_head" : "all_heads");
        test_specs_equal(ctx, "corecontext:group=4,window=3", other, &args, 0, TOLERANCE);
    }
    args.scale = &zero;
    test_specs_equal(ctx, "corecontext:group=4,window=3", "corecontext:group=4,window=3,pool=mean", &args, 0,
                     TOLERANCE);
}

static void averages_weights_of_heads(void **state)
{
    (void)state;
    test_each_device(pools_on);
}

/* Queries go in stretches: so many heads of such width need two of them here. */
static void stretches_on(fv_ctx *ctx)
{
    fv_attention_args all = test_specs_args(ctx, 1, 32, 32, 270, 270, 128), one = all;

    test_specs_run(ctx, "corecontext:group=4,window=9", &all);
    one.q = fv_slice(&all.q, 1, 7, 1);
    one.k = fv_slice(&all.k, 1, 7, 1);
    one.v = fv_slice(&all.v, 1, 7, 1);
    one.o = test_random(ctx, 1, FV_DIMS(1, 1, 270, 128));
    one.lse = test_random(ctx, 1, FV_DIMS(1, 1, 270));
    test_specs_run(ctx, "corecontext:group=4,window=9", &one);
    for (int64_t i = 0; i < 270; i++) {
        assert_float_equal(*(float *)fv_at(&all.lse, 0, 7, i, 0), *(float *)fv_at(&one.lse, 0, 0, i, 0), TOLERANCE);
        for (int64_t d = 0; d < 128; d++)
            assert_float_equal(*(float *)fv_at(&all.o, 0, 7, i, d), *(float *)fv_at(&one.o, 0, 0, i, d), TOLERANCE);
    }
}

static void does_not_depend_on_the_stretch(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    stretches_on(ctx);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 2, 1, 9, 9, 16), unlike = test_specs_args(ctx, 1, 2, 1, 4, 9, 16);
    fv_attention *attention;
    fv_call call;
    (void)state;

    test_specs_refused(ctx, "corecontext:group=0", &args, FV_E_USAGE, "group");
    test_specs_refused(ctx, "corecontext:window=0", &args, FV_E_USAGE, "window");
    test_specs_refused(ctx, "corecontext:pool=max", &args, FV_E_USAGE, "pool");
    test_specs_refused(ctx, "corecontext:core_pos=last", &args, FV_E_USAGE, "core_pos");
    test_specs_refused(ctx, "corecontext", &unlike, FV_E_SHAPE, "as many queries as keys");
    /* a chunk whose tokens before were not seen */
    assert_ok(fv_attention_new("corecontext:group=4,window=2", &attention));
    unlike.lse.data = NULL;
    assert_ok(fv_call_chunk(attention, &unlike, &call));
    assert_fails(fv_attention_chunk(ctx, attention, &call, NULL, NULL), FV_E_UNSUPPORTED, "came before this chunk");
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_dense_where_pooling_changes_nothing),
        cmocka_unit_test(averages_weights_of_heads),
        cmocka_unit_test(does_not_depend_on_the_stretch),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
