/* One function per block type: bytes of a block in, its values out.  Loops have no branches, so that the compiler
 * turns them into vectors. */
#include "ops/blocks.h"

#include <assert.h>

enum { SMALL = 32, SUPER = 256 };

typedef unsigned char byte;

static float half_at(const byte *p)
{
    uint16_t bits;

    memcpy(&bits, p, sizeof bits);
    return fv_f16_to_f32(bits);
}

/* ---- blocks of 32 ----------------------------------------------------------------------------------------------- *
 * Byte j of the nibbles holds value j (low) and value j + 16 (high). */

static void load_q4_0(const byte *block, float *out)
{
    float scale = half_at(block);
    const byte *nibbles = block + 2;

    for (int j = 0; j < SMALL / 2; j++) {
        out[j] = (float)((nibbles[j] & 15) - 8) * scale;
        out[j + SMALL / 2] = (float)((nibbles[j] >> 4) - 8) * scale;
    }
}

static void load_q4_1(const byte *block, float *out)
{
    float scale = half_at(block), least = half_at(block + 2);
    const byte *nibbles = block + 4;

    for (int j = 0; j < SMALL / 2; j++) {
        out[j] = (float)(nibbles[j] & 15) * scale + least;
        out[j + SMALL / 2] = (float)(nibbles[j] >> 4) * scale + least;
    }
}

/* The fifth bits of 32 values stand in four bytes, value j in bit j. */
static void load_q5(const byte *high, const byte *nibbles, int shift, float scale, float least, float *out)
{
    uint32_t bits;

    memcpy(&bits, high, sizeof bits);
    for (int j = 0; j < SMALL / 2; j++) {
        int low = (nibbles[j] & 15) | (int)(bits >> j & 1) << 4;
        int upper = nibbles[j] >> 4 | (int)(bits >> (j + SMALL / 2) & 1) << 4;
        out[j] = (float)(low - shift) * scale + least;
        out[j + SMALL / 2] = (float)(upper - shift) * scale + least;
    }
}

static void load_q5_0(const byte *block, float *out)
{
    load_q5(block + 2, block + 6, 16, half_at(block), 0, out);
}

static void load_q5_1(const byte *block, float *out)
{
    load_q5(block + 4, block + 8, 0, half_at(block), half_at(block + 2), out);
}

static void load_q8_0(const byte *block, float *out)
{
    float scale = half_at(block);

    for (int j = 0; j < SMALL; j++)
        out[j] = (float)(int8_t)block[2 + j] * scale;
}

/* Nibbles choose among 16 levels that lie closer together near zero. */
static void load_iq4_nl(const byte *block, float *out)
{
    static const float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    float scale = half_at(block);
    const byte *nibbles = block + 2;

    for (int j = 0; j < SMALL / 2; j++) {
        out[j] = scale * levels[nibbles[j] & 15];
        out[j + SMALL / 2] = scale * levels[nibbles[j] >> 4];
    }
}

/* ---- blocks of 256 ---------------------------------------------------------------------------------------------- */

/* scales[16] (4 bits of scale, 4 of minimum, for 16 values each), 2-bit values[64], scale, scale of minima.  The four
 * 2-bit fields of 32 bytes hold 128 values, 32 after 32. */
static void load_q2_k(const byte *block, float *out)
{
    const byte *scales = block, *values = block + 16;
    float scale = half_at(block + 80), scale_of_minima = half_at(block + 82);

    for (int group = 0; group < 16; group++) { /* 16 values each */
        const byte *from = values + group / 8 * 32 + group % 2 * 16;
        int shift = group % 8 / 2 * 2;
        float step = scale * (float)(scales[group] & 15), least = scale_of_minima * (float)(scales[group] >> 4);
        for (int j = 0; j < 16; j++)
            out[group * 16 + j] = step * (float)(from[j] >> shift & 3) - least;
    }
}

/* high[32] (third bits: bit b of byte j belongs to value 32 b + j; not set means - 4), 2-bit values[64] as in q2_k,
 * 6-bit scales[12] (four low bits in the nibbles of the first eight, two high bits in the last four), scale. */
static void load_q3_k(const byte *block, float *out)
{
    const byte *high = block, *values = block + 32, *scales = block + 96;
    float scale = half_at(block + 108);

    for (int group = 0; group < 16; group++) {
        const byte *from = values + group / 8 * 32 + group % 2 * 16, *third = high + group % 2 * 16;
        int shift = group % 8 / 2 * 2, bit = group / 2;
        int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
        int upper = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        float step = scale * (float)((low | upper << 4) - 32);
        for (int j = 0; j < 16; j++)
            out[group * 16 + j] = step * (float)((from[j] >> shift & 3) + ((third[j] >> bit & 1) << 2) - 4);
    }
}

/* The 6-bit scale and minimum of group j of eight, packed into 12 bytes. */
static void scale_and_minimum(const byte *packed, int j, float *scale, float *minimum)
{
    if (j < 4) {
        *scale = (float)(packed[j] & 63);
        *minimum = (float)(packed[j + 4] & 63);
    } else {
        *scale = (float)((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4);
        *minimum = (float)(packed[j + 4] >> 4 | packed[j] >> 6 << 4);
    }
}

/* scale, scale of minima, packed scales[12], nibbles[128]: 32 bytes hold 32 values (low) and the next 32 (high). */
static void load_q4_k(const byte *block, float *out)
{
    float scale = half_at(block), scale_of_minima = half_at(block + 2), step, least;

    for (int group = 0; group < 8; group++) {
        const byte *from = block + 16 + group / 2 * 32;
        int shift = group % 2 * 4;
        scale_and_minimum(block + 4, group, &step, &least);
        step *= scale;
        least *= scale_of_minima;
        for (int j = 0; j < 32; j++)
            out[group * 32 + j] = step * (float)(from[j] >> shift & 15) - least;
    }
}

/* As q4_k with high[32] before the nibbles: bit g of byte j is the fifth bit of value j of group g. */
static void load_q5_k(const byte *block, float *out)
{
    float scale = half_at(block), scale_of_minima = half_at(block + 2), step, least;
    const byte *high = block + 16;

    for (int group = 0; group < 8; group++) {
        const byte *from = block + 48 + group / 2 * 32;
        int shift = group % 2 * 4;
        scale_and_minimum(block + 4, group, &step, &least);
        step *= scale;
        least *= scale_of_minima;
        for (int j = 0; j < 32; j++)
            out[group * 32 + j] = step * (float)((from[j] >> shift & 15) + ((high[j] >> group & 1) << 4)) - least;
    }
}

/* low[128], high[64], int8 scales[16], scale.  A half of 128 values is four runs of 32: runs 0, 1 are the low nibbles
 * of its first and second 32 bytes, runs 2, 3 the high ones; two more bits of run r in bits 2r of `high`. */
static void load_q6_k(const byte *block, float *out)
{
    float scale = half_at(block + 208);

    for (int group = 0; group < 16; group++) {
        int half = group / 8, run = group % 8 / 2, at = group % 2 * 16;
        const byte *low = block + half * 64 + run % 2 * 32 + at, *high = block + 128 + half * 32 + at;
        int shift = run / 2 * 4, high_shift = run * 2;
        float step = scale * (float)(int8_t)block[192 + group];
        for (int j = 0; j < 16; j++)
            out[group * 16 + j] = step * (float)(((low[j] >> shift & 15) | (high[j] >> high_shift & 3) << 4) - 32);
    }
}

/* f32 scale, int8 values[256], sums[16] which only serve dot products. */
static void load_q8_k(const byte *block, float *out)
{
    float scale;

    memcpy(&scale, block, sizeof scale);
    for (int j = 0; j < SUPER; j++)
        out[j] = scale * (float)(int8_t)block[4 + j];
}

/* ---- any type --------------------------------------------------------------------------------------------------- */

typedef void load_fn(const byte *block, float *out);

static load_fn *const loaders[FV_DTYPE_COUNT] = {
    [FV_Q4_0] = load_q4_0, [FV_Q4_1] = load_q4_1, [FV_Q5_0] = load_q5_0, [FV_Q5_1] = load_q5_1,
    [FV_Q8_0] = load_q8_0, [FV_Q2_K] = load_q2_k, [FV_Q3_K] = load_q3_k, [FV_Q4_K] = load_q4_k,
    [FV_Q5_K] = load_q5_k, [FV_Q6_K] = load_q6_k, [FV_Q8_K] = load_q8_k, [FV_IQ4_NL] = load_iq4_nl,
};

bool fv_blocks_supported(fv_dtype dtype)
{
    return dtype == FV_F32 || dtype == FV_F16 || dtype == FV_BF16 || loaders[dtype];
}

void fv_blocks_load(fv_dtype dtype, const void *row, int64_t from_block, int64_t blocks, float *out)
{
    size_t bytes = fv_dtype_block_bytes(dtype);
    int64_t block = fv_dtype_block(dtype);
    const byte *data = (const byte *)row + (size_t)from_block * bytes;

    assert(fv_blocks_supported(dtype));
    if (dtype == FV_F32) {
        memcpy(out, data, (size_t)blocks * sizeof *out);
        return;
    }
    for (int64_t b = 0; b < blocks; b++, data += bytes) {
        uint16_t bits;
        if (loaders[dtype]) {
            loaders[dtype](data, out + b * block);
            continue;
        }
        memcpy(&bits, data, sizeof bits);
        out[b] = dtype == FV_F16 ? fv_f16_to_f32(bits) : fv_bf16_to_f32(bits);
    }
}
