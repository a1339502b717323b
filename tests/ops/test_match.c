/* The best matches of gathered rows against their definition, on every instruction set; what is refused. */
#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "support/stored.h"
#include "support/tensors.h"

enum { HEADS = 4, BLOCKS = 3, ENTRIES = 37, MEMBERS = 3, KEYS = 50 };

/* y as doubles, in what it is stored as; heads of it. */
static fv_tensor draw_keys(fv_ctx *ctx, fv_dtype dtype, int64_t heads, int64_t C, double *values)
{
    fv_tensor y = test_random(ctx, 1, FV_DIMS(heads * KEYS, C)), stored = y, back;

    if (dtype == FV_Q8_0) {
        assert_ok(fv_tensor_new(ctx, &stored, FV_Q8_0, 2, y.dims));
        assert_ok(fv_quantize_rows(ctx, &(fv_quantize_args){.x = y, .out = stored}));
    } else if (dtype != FV_F32) {
        stored = test_cast(ctx, &y, dtype);
    }
    assert_ok(fv_tensor_new(ctx, &back, FV_F32, 2, y.dims));
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = stored, .out = back}));
    for (int64_t n = 0; n < heads * KEYS * C; n++)
        values[n] = ((float *)back.data)[n];
    return fv_reshaped(&stored, FV_DIMS(heads, 1, KEYS, C));
}

/* x [heads, blocks, R, C], keys of every second head's own, entries of each block and head, or (once) the same for all
 * heads; some without members. */
static void check_shape(fv_ctx *ctx, fv_dtype dtype, int64_t R, int64_t C, bool shared)
{
    int64_t lists = shared ? 1 : HEADS, groups = HEADS / 2;
    fv_random random = fv_random_new(test_seed(), 81);
    double *y = test_doubles(groups * KEYS * C), *expected = test_doubles(HEADS * BLOCKS * ENTRIES);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(HEADS, BLOCKS, R, C)), out, index, keys;

    keys = draw_keys(ctx, dtype, groups, C, y);
    keys = fv_view(&keys, FV_DIMS(groups, 2, 1, KEYS, C), (const int64_t[]){KEYS * C, 0, 0, C, 1}, 0);
    x = fv_reshaped(&x, FV_DIMS(groups, 2, BLOCKS, R, C));
    assert_ok(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(lists * BLOCKS * ENTRIES * MEMBERS)));
    assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(groups, 2, BLOCKS, ENTRIES)));
    for (int64_t n = 0; n < lists * BLOCKS * ENTRIES * MEMBERS; n++)
        ((int32_t *)index.data)[n] = (int32_t)fv_random_below(&random, KEYS + 20) - 20;
    for (int64_t n = 0; n < lists * BLOCKS * ENTRIES * MEMBERS; n++)
        ((int32_t *)index.data)[n] = (int32_t)fv_max(((int32_t *)index.data)[n], -1);
    for (int64_t n = 0; n < HEADS * BLOCKS * ENTRIES; n++) {
        int64_t head = n / ENTRIES / BLOCKS, list = (shared ? 0 : head) * BLOCKS + n / ENTRIES % BLOCKS;
        const int32_t *member = (int32_t *)index.data + (list * ENTRIES + n % ENTRIES) * MEMBERS;
        expected[n] = -INFINITY;
        for (int64_t m = 0; m < MEMBERS; m++)
            for (int64_t r = 0; r < R && member[m] >= 0; r++) {
                const float *row = (float *)x.data + (n / ENTRIES * R + r) * C;
                double sum = 0;
                for (int64_t c = 0; c < C; c++)
                    sum += row[c] * y[(head / 2 * KEYS + member[m]) * C + c];
                expected[n] = fmax(expected[n], sum);
            }
    }
    index = shared ? fv_reshaped(&index, FV_DIMS(BLOCKS, ENTRIES, MEMBERS))
                   : fv_reshaped(&index, FV_DIMS(groups, 2, BLOCKS, ENTRIES, MEMBERS));
    assert_ok(fv_match(ctx, &(fv_match_args){.x = x, .y = keys, .index = index, .out = out}));
    test_close(fv_dtype_name(dtype), &out, expected, 0x1p-22 * (double)C);
    free(y);
    free(expected);
}

static void check(fv_ctx *ctx)
{
    static const fv_dtype dtypes[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0};

    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (int shared = 0; shared < 2; shared++) {
            check_shape(ctx, dtypes[d], 1, 32, shared);
            check_shape(ctx, dtypes[d], 16, 64, shared);
            check_shape(ctx, dtypes[d], 37, 96, shared);
            if (fv_dtype_block(dtypes[d]) == 1) check_shape(ctx, dtypes[d], 5, 21, shared);
        }
}

static void best_matches_are_the_definition(void **state)
{
    (void)state;
    test_each_device(check);
    test_each_isa(check);
}

static void views_of_any_strides_are_read(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, 3, 8)), y = test_strided(ctx, 1, FV_DIMS(2, 9, 8)), index, out;
        double expected[2];
        assert_ok(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(2, 1, 2)));
        assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(2, 1)));
        for (int64_t n = 0; n < 4; n++)
            ((int32_t *)index.data)[n] = (int32_t)(2 * n + 1);
        for (int64_t b = 0; b < 2; b++) {
            expected[b] = -INFINITY;
            for (int64_t r = 0; r < 6; r++) {
                double sum = 0;
                for (int64_t c = 0; c < 8; c++)
                    sum += test_element(&x, (b * 3 + r % 3) * 8 + c) *
                           test_element(&y, (b * 9 + ((int32_t *)index.data)[b * 2 + r / 3]) * 8 + c);
                expected[b] = fmax(expected[b], sum);
            }
        }
        assert_ok(fv_match(ctx, &(fv_match_args){.x = x, .y = y, .index = index, .out = out}));
        test_close("strided", &out, expected, 1e-5);
        fv_ctx_free(ctx);
    }
}

/* NaN is no match, whatever stands beside it. */
static void nan_matches_nothing(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 1);
        float x[] = {1, NAN}, y[] = {NAN, 3, -2, INFINITY}, got[4];
        int32_t list[] = {0, 1, 2, 0, 0, -1, 3, 2};
        double expected[] = {3, -2, -INFINITY, INFINITY};
        fv_match_args m;
        assert_ok(fv_tensor_wrap(&m.x, x, FV_F32, FV_DIMS(2, 1)));
        assert_ok(fv_tensor_wrap(&m.y, y, FV_F32, FV_DIMS(4, 1)));
        assert_ok(fv_tensor_wrap(&m.index, list, FV_I32, FV_DIMS(4, 2)));
        assert_ok(fv_tensor_wrap(&m.out, got, FV_F32, FV_DIMS(4)));
        assert_ok(fv_match(ctx, &m));
        test_close("NaN", &m.out, expected, 0);
        fv_ctx_free(ctx);
    }
}

static void bad_arguments_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    int32_t list[] = {0, 6, -1, 1};
    fv_match_args m = {.x = test_random(ctx, 1, FV_DIMS(2, 4)),
                       .y = test_random(ctx, 1, FV_DIMS(6, 4)),
                       .out = test_random(ctx, 1, FV_DIMS(2))};
    (void)state;

    assert_ok(fv_tensor_wrap(&m.index, list, FV_I32, FV_DIMS(2, 2)));
    assert_fails(fv_match(ctx, &m), FV_E_ARGUMENT, "expected -1 to 5, got 6");
    list[1] = 5;
    list[2] = -2;
    assert_fails(fv_match(ctx, &m), FV_E_ARGUMENT, "got -2");
    list[2] = -1;
    assert_ok(fv_match(ctx, &m));
    m.y = test_random(ctx, 1, FV_DIMS(6, 5));
    assert_fails(fv_match(ctx, &m), FV_E_SHAPE, "match: y");
    m.y = test_random(ctx, 1, FV_DIMS(6, 4));
    m.out = test_random(ctx, 1, FV_DIMS(3));
    assert_fails(fv_match(ctx, &m), FV_E_SHAPE, "match: index");
    m.index.dtype = FV_F32;
    assert_fails(fv_match(ctx, &m), FV_E_DTYPE, "i32, got f32");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(best_matches_are_the_definition),
        cmocka_unit_test(views_of_any_strides_are_read),
        cmocka_unit_test(nan_matches_nothing),
        cmocka_unit_test(bad_arguments_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
