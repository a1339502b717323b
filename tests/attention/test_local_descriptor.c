/* Descriptor attention: the worked numbers of its definition, and what must hold. */
#include <string.h>

#include "support/beside.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 1e-5

static void descriptors_have_their_worked_numbers(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 16, 16, 4, 1), *g = twin_make(1, 1, 1, 16, 16, 4, 1);

    (void)unused;
    for (int n = 0; n < 16; n++)
        f->v[n] = n;
    twin_set(f, "grid", 3, 1, 4, 4);
    twin_set(f, "special", 1, 0);
    twin_set(f, "keyframes", 1, -1);
    beside_forward(f, "descriptor:grid=1x4x4,special=0,keyframes=-1");
    for (int n = 0; n < 16; n++) /* the mean of 5, 6, 9 and 10 */
        twin_close("o", &f->o[n], (double[]){7.5}, 1, TWIN_EXACT);
    for (int n = 0; n < 16; n++)
        g->v[n] = 3;
    twin_set(g, "grid", 3, 2, 1, 8);
    twin_set(g, "special", 1, 0);
    twin_set(g, "ratio", 1, 1);
    beside_forward(g, "descriptor:grid=2x1x8,special=0,ratio=1");
    for (int n = 0; n < 16; n++)
        twin_close("o", &g->o[n], (double[]){3}, 1, TWIN_EXACT);
    twin_drop(f);
    twin_drop(g);
}

static void limits_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 4 * 27, 4 * 27, 16), four;
    fv_tensor o, expected;

    args.causal = false;
    test_specs_equal(ctx, "descriptor:grid=4x5x5,special=2,keyframes=2,ratio=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "descriptor:grid=4x5x5,special=2,ratio=2,chunk=4", "descriptor:grid=4x5x5,special=2,ratio=2",
                     &args, 0, TOLERANCE);
    test_specs_equal(ctx, "descriptor:grid=4x5x5,special=2,ratio=2,keyframes=1+3+1,dedup=1",
                     "descriptor:grid=4x5x5,special=2,ratio=2,keyframes=1+3", &args, 0, 0);
    /* 8 x 8 patches to 2 x 2: each descriptor is the mean of the middle four of its quarter */
    args = test_specs_args(ctx, 1, 2, 2, 64, 64, 16);
    args.causal = false;
    test_specs_equal(ctx, "descriptor:grid=1x8x8,special=0,ratio=2",
                     "descriptor:grid=1x8x8,special=0,ratio=2,compress=mean", &args, 0, TOLERANCE);
    four = test_specs_args(ctx, 1, 2, 2, 64, 4, 16);
    four.causal = false;
    four.q = args.q;
    for (int64_t n = 0; n < 2 * 64 * 16; n++) {
        int64_t y = n / 16 % 64 / 8, x = n / 16 % 8, at = (n / 16 / 64 * 4 + y / 4 * 2 + x / 4) * 16 + n % 16;
        bool middle = (y % 4 == 1 || y % 4 == 2) && (x % 4 == 1 || x % 4 == 2);
        ((float *)args.k.data)[n] = middle ? ((float *)four.k.data)[at] : 100;
        ((float *)args.v.data)[n] = middle ? ((float *)four.v.data)[at] : 100;
    }
    o = test_specs_forward(ctx, "descriptor:grid=1x8x8,special=0,keyframes=-1", &args);
    expected = test_specs_forward(ctx, "dense", &four);
    test_specs_close("2 x 2", &o, &expected, TOLERANCE);
}

static void has_the_limits_of_its_definition(void **unused)
{
    (void)unused;
    test_each_device(limits_on);
}

/* What a chunk reads does not change when later ones do, and the last reads all. */
static void later_chunks_change_nothing_on(fv_ctx *ctx)
{
    static const char spec[] = "descriptor:grid=5x3x4,special=1,ratio=2,chunk=2,memory_drop=2,rope_base=100";
    fv_attention_args args = test_specs_args(ctx, 1, 2, 1, 65, 65, 16), other = args;
    fv_tensor before, after;
    int changed = 0;

    args.causal = other.causal = false;
    other.k = test_random(ctx, 1, 4, args.k.dims);
    other.v = test_random(ctx, 1, 4, args.v.dims);
    memcpy(other.k.data, args.k.data, 2 * 13 * 16 * sizeof(float));
    memcpy(other.v.data, args.v.data, 2 * 13 * 16 * sizeof(float));
    before = test_specs_forward(ctx, spec, &args);
    after = test_specs_forward(ctx, spec, &other);
    for (int64_t n = 0; n < 2 * 65 * 16; n++) {
        bool same = ((float *)before.data)[n] == ((float *)after.data)[n];
        if (n / 16 % 65 < 2 * 13) assert_true(same);
        changed += !same;
    }
    assert_true(changed > 2 * 3 * 13 * 15);
}

static void later_chunks_change_nothing(void **unused)
{
    (void)unused;
    test_each_device(later_chunks_change_nothing_on);
}

/* One descriptor of 4 x 4: its gradient goes to the four in the middle, a quarter each. */
static void gradients_are_shared_by_weight_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 1, 1, 1, 16, 16, 4);
    fv_attention_grads grads = {.d_o = test_random(ctx, 1, FV_DIMS(1, 1, 16, 4)),
                                .d_v = test_random(ctx, 1, FV_DIMS(1, 1, 16, 4))};
    fv_attention *attention;

    args.causal = false;
    args.lse.data = NULL;
    assert_ok(fv_attention_new("descriptor:grid=1x4x4,special=0,keyframes=-1", &attention));
    assert_ok(fv_attention_backward(ctx, attention, &args, &grads));
    for (int64_t n = 0; n < 16 * 4; n++) {
        int64_t y = n / 16, x = n / 4 % 4;
        bool middle = (y == 1 || y == 2) && (x == 1 || x == 2);
        double sum = 0;
        for (int64_t i = 0; i < 16; i++)
            sum += ((float *)grads.d_o.data)[i * 4 + n % 4];
        assert_float_equal(((float *)grads.d_v.data)[n], middle ? sum / 4 : 0, TOLERANCE);
    }
    fv_attention_free(attention);
}

static void gradients_are_shared_by_weight(void **unused)
{
    (void)unused;
    test_each_device(gradients_are_shared_by_weight_on);
}

static void what_does_not_fit_is_refused(void **unused)
{
    static const struct {
        const char *spec;
        fv_status status;
        const char *words;
    } spoilt[] = {
        {"descriptor", FV_E_USAGE, "grid"},
        {"descriptor:grid=4x5", FV_E_USAGE, "expected frames x rows x columns"},
        {"descriptor:grid=4x5x5,special=2,ratio=6", FV_E_USAGE, "expected at most the 5 patches of a side, got 6"},
        {"descriptor:grid=4x5x5,special=2,memory_drop=2", FV_E_USAGE, "needs 'chunk'"},
        {"descriptor:grid=4x5x5,special=2,chunk=2,keyframes=1", FV_E_USAGE, "with 'chunk' expected 0, got 1"},
        {"descriptor:grid=4x5x5,special=2,keyframes=0+-1", FV_E_USAGE, "stands with others"},
        {"descriptor:grid=4x5x5,special=2,keyframes=-2", FV_E_USAGE, "keyframes"},
        {"descriptor:grid=4x5x5,special=2,keyframes=4", FV_E_SHAPE, "expected at most 3, got 4"},
        {"descriptor:grid=4x5x5", FV_E_SHAPE, "expected 4 frames of 30 tokens, which are 120, got 108"},
        {"descriptor:grid=4x5x5,special=2,rope_base=100", FV_E_SHAPE, "a head dim that 4 divides, got 6"},
        {"descriptor:grid=1000000000x1000000000x1000000000", FV_E_USAGE, "more cells than can be counted"},
    };
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 2, 1, 108, 108, 6);

    (void)unused;
    test_specs_refused(ctx, "descriptor:grid=4x5x5,special=2", &args, FV_E_USAGE, "cannot be causal");
    args.causal = false;
    for (size_t n = 0; n < sizeof spoilt / sizeof *spoilt; n++)
        test_specs_refused(ctx, spoilt[n].spec, &args, spoilt[n].status, spoilt[n].words);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_have_their_worked_numbers), cmocka_unit_test(has_the_limits_of_its_definition),
        cmocka_unit_test(later_chunks_change_nothing),           cmocka_unit_test(gradients_are_shared_by_weight),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
