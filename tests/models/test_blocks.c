/* Every block type gives the values its format defines: golden bytes and values from an independent reader. */
#include "support/support.h"

#include <math.h>
#include <stdio.h>

#include "models/gguf.h"
#include "ops/blocks.h"

static const struct {
    const char *name;
    fv_dtype dtype;
} types[] = {
    {"Q4_0", FV_Q4_0}, {"Q4_1", FV_Q4_1}, {"Q5_0", FV_Q5_0}, {"Q5_1", FV_Q5_1},
    {"Q8_0", FV_Q8_0}, {"Q2_K", FV_Q2_K}, {"Q3_K", FV_Q3_K}, {"Q4_K", FV_Q4_K},
    {"Q5_K", FV_Q5_K}, {"Q6_K", FV_Q6_K}, {"Q8_K", FV_Q8_K}, {"IQ4_NL", FV_IQ4_NL},
};

static void blocks_have_the_published_values(void **state)
{
    fv_gguf *file;
    (void)state;

    assert_ok(fv_gguf_open(FOVEA_SOURCE_DIR "/tests/golden/blocks.gguf", &file));
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const fv_gguf_tensor *blocks = fv_gguf_find(file, types[t].name);
        char name[32];
        snprintf(name, sizeof name, "%s.values", types[t].name);
        const fv_gguf_tensor *values = fv_gguf_find(file, name);
        assert_non_null(blocks);
        assert_non_null(values);
        assert_int_equal(blocks->tensor.dtype, types[t].dtype);
        assert_true(fv_tensor_same_shape(&blocks->tensor, &values->tensor));

        int64_t count = fv_tensor_count(&blocks->tensor), block = fv_dtype_block(types[t].dtype);
        const float *expected = values->tensor.data;
        float got[2 * 256];
        assert_true(count <= 2 * 256 && count == 2 * block);
        fv_blocks_load(types[t].dtype, blocks->tensor.data, 0, 1, got);
        fv_blocks_load(types[t].dtype, blocks->tensor.data, 1, 1, got + block); /* the second alone */
        for (int64_t i = 0; i < count; i++) {
            /* scale * value - minimum in f32: one rounding each, whatever is contracted */
            float tolerance = 2 * 1.2e-7f * (fabsf(expected[i]) + 4096);
            if (types[t].dtype == FV_Q8_K || types[t].dtype == FV_Q8_0 || types[t].dtype == FV_Q4_0) tolerance = 0;
            if (!(fabsf(got[i] - expected[i]) <= tolerance))
                fail_msg("%s value %lld: expected %.9g, got %.9g", types[t].name, (long long)i, expected[i], got[i]);
        }
    }
    fv_gguf_close(file);
}

static void plain_types_are_blocks_of_one(void **state)
{
    const uint16_t halves[3] = {0x3c00, 0xc000, 0x0001}, brains[3] = {0x3f80, 0xc000, 0x0001};
    const float floats[3] = {1, -2, 0.5f};
    float got[2];
    (void)state;

    fv_blocks_load(FV_F16, halves, 1, 2, got);
    assert_true(got[0] == -2 && got[1] == 0x1p-24f);
    fv_blocks_load(FV_BF16, brains, 0, 2, got);
    assert_true(got[0] == 1 && got[1] == -2);
    fv_blocks_load(FV_F32, floats, 1, 2, got);
    assert_true(got[0] == -2 && got[1] == 0.5f);
    assert_false(fv_blocks_supported(FV_I32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_have_the_published_values),
        cmocka_unit_test(plain_types_are_blocks_of_one),
    };
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
