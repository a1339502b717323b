#include "app/noise.h"

#include <math.h>

/* SplitMix64 (Steele, Lea, Flood 2014): one multiply-xor chain a draw. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static float unit(uint64_t bits)
{
    return (float)(int32_t)(uint32_t)bits * 0x1p-31f;
}

/* Where the half-precision scales of a block stand (-1: none), and the largest factor of a scale. */
static const struct layout {
    int scale, minimum;
    float most;
} layouts[FV_DTYPE_COUNT] = {
    [FV_Q4_0] = {0, -1, 8},          [FV_Q4_1] = {0, 2, 15},      [FV_Q5_0] = {0, -1, 16},
    [FV_Q5_1] = {0, 2, 31},          [FV_Q8_0] = {0, -1, 128},    [FV_Q2_K] = {80, 82, 15 * 3},
    [FV_Q3_K] = {108, -1, 32 * 4},   [FV_Q4_K] = {0, 2, 63 * 15}, [FV_Q5_K] = {0, 2, 63 * 31},
    [FV_Q6_K] = {208, -1, 128 * 32}, [FV_Q8_K] = {-1, -1, 127},   [FV_IQ4_NL] = {0, -1, 127},
};

static void put_half(unsigned char *block, int at, float value)
{
    uint16_t bits = fv_f32_to_f16(value);

    if (at >= 0) memcpy(block + at, &bits, sizeof bits);
}

/* The first bytes are an f32 scale; behind 256 quants their sums by sixteens. */
static void finish_q8_k(unsigned char *block, float scale)
{
    memcpy(block, &scale, sizeof scale);
    for (int group = 0; group < 16; group++) {
        int16_t sum = 0;
        for (int i = 0; i < 16; i++)
            sum = (int16_t)(sum + (int8_t)block[4 + group * 16 + i]);
        memcpy(block + 260 + 2 * group, &sum, sizeof sum);
    }
}

static void random_blocks(fv_dtype dtype, unsigned char *block, int64_t count, uint64_t *state)
{
    size_t bytes = fv_dtype_block_bytes(dtype);
    const struct layout *layout = &layouts[dtype];

    for (int64_t n = 0; n < count; n++, block += bytes) {
        for (size_t at = 0; at < bytes; at += 8) {
            uint64_t bits = draw(state);
            memcpy(block + at, &bits, bytes - at < 8 ? bytes - at : 8);
        }
        float scale = (1.5f + 0.5f * unit(draw(state))) / layout->most;
        if (dtype == FV_Q8_K) finish_q8_k(block, scale);
        put_half(block, layout->scale, scale);
        put_half(block, layout->minimum, scale * 0.5f);
    }
}

/* Drawing costs more than reading: past a prime number of draws they repeat, which meets no row at the same place. */
enum { PERIOD = 1048573, BLOCK_PERIOD = 65521 };

void app_noise(const fv_tensor *tensor, uint64_t seed)
{
    size_t bytes = fv_dtype_block_bytes(tensor->dtype), filled;
    int64_t block = fv_dtype_block(tensor->dtype), count = fv_tensor_count(tensor) / block;
    int64_t drawn = fv_min(count, block > 1 ? BLOCK_PERIOD : PERIOD);
    uint64_t state = seed * 0x2545f4914f6cdd1d + 1;
    unsigned char *data = tensor->data;

    if (block > 1) random_blocks(tensor->dtype, data, drawn, &state);
    for (int64_t i = 0; block == 1 && i < drawn; i++)
        fv_store(tensor->dtype, data, i, (double)unit(draw(&state)));
    filled = (size_t)drawn * bytes;
    for (size_t all = (size_t)count * bytes, at = filled; at < all; at += filled)
        memcpy(data + at, data, all - at < filled ? all - at : filled);
}

struct pack_job {
    const fv_tensor *weight;
    fv_packed packed;
};

static void pack_item(void *user, int64_t group, int thread)
{
    const struct pack_job *job = user;

    (void)thread;
    fv_pack_group(job->weight, &job->packed, group);
}

fv_status app_pack(fv_ctx *ctx, const fv_tensor *weight, fv_packed *packed)
{
    size_t bytes = fv_packed_bytes(weight);
    uint8_t *data;

    *packed = (fv_packed){0};
    if (bytes == 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, data, (int64_t)bytes));
    *packed = fv_packed_at(weight, data);
    struct pack_job job = {weight, *packed};
    fv_run(ctx, fv_packed_groups(packed), pack_item, &job);
    return FV_OK;
}

int app_block_types(const fv_dtype **types)
{
    static const fv_dtype all[] = {FV_Q4_0, FV_Q4_1, FV_Q5_0, FV_Q5_1, FV_Q8_0, FV_Q2_K,
                                   FV_Q3_K, FV_Q4_K, FV_Q5_K, FV_Q6_K, FV_Q8_K, FV_IQ4_NL};

    *types = all;
    return (int)(sizeof all / sizeof *all);
}

fv_status app_random_lists(fv_ctx *ctx, fv_random *random, const app_lists *shape, fv_lists *lists)
{
    enum { QUERY_BLOCK = 64 };
    int64_t groups = fv_ceil_div(shape->queries, QUERY_BLOCK), blocks = fv_ceil_div(shape->keys, shape->key_block);
    int64_t wanted = (int64_t)fmax(1, round(shape->density * (double)blocks)), count = 0, *start;
    int64_t words = fv_ceil_div(QUERY_BLOCK * shape->key_block, 64), all = shape->tiles * words;
    int32_t *entry, *tile;
    uint64_t *tiles;

    FV_TRY(FV_SCRATCH(ctx, start, groups + 1));
    FV_TRY(FV_SCRATCH(ctx, entry, groups * wanted));
    FV_TRY(FV_SCRATCH(ctx, tile, groups * wanted));
    FV_TRY(FV_SCRATCH(ctx, tiles, all));
    for (int64_t g = 0; g < groups; g++) {
        int64_t left = wanted;
        start[g] = count;
        for (int64_t n = 0; n < blocks; n++) {
            if (fv_random_below(random, blocks - n) >= left) continue;
            left--;
            tile[count] = (int32_t)(shape->first + fv_random_below(random, shape->tiles + 1 - shape->first));
            entry[count++] = (int32_t)n;
        }
    }
    start[groups] = count;
    for (int64_t w = 0; w < all; w++)
        tiles[w] = (uint64_t)fv_random_u32(random) << 32 | fv_random_u32(random);
    *lists = (fv_lists){.query_block = QUERY_BLOCK,
                        .key_block = shape->key_block,
                        .groups = groups,
                        .key_blocks = blocks,
                        .heads = 1,
                        .row_start = start,
                        .entry = entry,
                        .tile = shape->tiles ? tile : NULL,
                        .tiles = shape->tiles ? tiles : NULL,
                        .tile_words = words};
    return FV_OK;
}
