/* The way back: f32 values to the blocks that keys and values are stored in.  Nearest steps, ties away from zero, as
 * the formats' own tools round. */
#include <assert.h>
#include <math.h>

#include "ops/blocks.h"

enum { BLOCK = 32 };

static void put_scale(uint8_t *block, float scale)
{
    uint16_t half = fv_f32_to_f16(scale);

    memcpy(block, &half, sizeof half);
}

/* A block with a value that is not finite: its scale is not a number either. */
static bool spoiled(const float *in, uint8_t *block, size_t bytes)
{
    for (int i = 0; i < BLOCK; i++) {
        if (isfinite(in[i])) continue;
        memset(block, 0, bytes);
        put_scale(block, NAN);
        return true;
    }
    return false;
}

/* What values are multiplied with to become steps: 0 where steps are too small to say. */
static float inverse_of(float scale)
{
    float inverse = scale != 0 ? 1 / scale : 0;

    return isfinite(inverse) ? inverse : 0;
}

/* scale = largest magnitude / 127 */
static void store_q8_0(const float *in, uint8_t *block)
{
    float most = 0;

    for (int i = 0; i < BLOCK; i++)
        most = fmaxf(most, fabsf(in[i]));
    float scale = most / 127, inverse = inverse_of(scale);
    put_scale(block, scale);
    for (int i = 0; i < BLOCK; i++)
        block[2 + i] = (uint8_t)(int8_t)roundf(in[i] * inverse);
}

/* The value of the largest magnitude becomes -8 steps. */
static void store_q4_0(const float *in, uint8_t *block)
{
    float most = 0;

    for (int i = 0; i < BLOCK; i++)
        if (fabsf(in[i]) > fabsf(most)) most = in[i];
    float scale = most / -8, inverse = inverse_of(scale);
    put_scale(block, scale);
    for (int i = 0; i < BLOCK / 2; i++) {
        int low = (int)(in[i] * inverse + 8.5F), high = (int)(in[i + BLOCK / 2] * inverse + 8.5F);
        block[2 + i] = (uint8_t)((low < 15 ? low : 15) | (high < 15 ? high : 15) << 4);
    }
}

bool fv_blocks_storable(fv_dtype dtype)
{
    return dtype == FV_F32 || dtype == FV_F16 || dtype == FV_BF16 || dtype == FV_Q8_0 || dtype == FV_Q4_0;
}

void fv_blocks_store(fv_dtype dtype, const float *in, int64_t count, void *row)
{
    int64_t bytes = (int64_t)fv_dtype_block_bytes(dtype);

    assert(fv_blocks_storable(dtype) && count % fv_dtype_block(dtype) == 0);
    if (fv_dtype_block(dtype) == 1) {
        fv_store_row(dtype, row, 0, 1, in, count);
        return;
    }
    for (int64_t b = 0; b < count / BLOCK; b++) {
        uint8_t *block = (uint8_t *)row + b * bytes;
        if (spoiled(in + b * BLOCK, block, (size_t)bytes)) continue;
        if (dtype == FV_Q8_0)
            store_q8_0(in + b * BLOCK, block);
        else
            store_q4_0(in + b * BLOCK, block);
    }
}
