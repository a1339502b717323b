/* Plain C: four floats at a time, whatever the compiler makes of them. */
#ifndef FV_C_VECTOR_H
#define FV_C_VECTOR_H

#include "base/tensor.h"

#define W 4         /* floats in a vector */
#define TILE_ROWS 4 /* of the micro-kernel: at most W: a panel is packed by one transposition */
#define TILE_VECTORS 2
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x                                                                                                     \
    }

#include "ops/cpu/vector.h"

/* The first `count` < W floats, then `rest`. */
INLINE vf load_part(const float *p, int64_t count, float rest)
{
    float buffer[W];
    for (int i = 0; i < W; i++)
        buffer[i] = i < count ? p[i] : rest;
    return load(buffer);
}

INLINE void store_part(float *p, vf x, int64_t count)
{
    float buffer[W];
    store(buffer, x);
    for (int i = 0; i < count; i++)
        p[i] = buffer[i];
}

INLINE vf vsqrt(vf x)
{
    return (vf){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])};
}

/* A bit for each lane of a mask. */
INLINE unsigned lanes(vi mask)
{
    return (unsigned)((mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8));
}

/* Lanes whose bit is set, side by side; may write W of them. */
INLINE void pack(int32_t *to, vi x, unsigned chosen)
{
    for (; chosen; chosen &= chosen - 1)
        *to++ = x[__builtin_ctz(chosen)];
}

/* Each pair of lanes swapped; p[0], p[0], p[1], p[1], ... */
INLINE vf swap_pairs(vf x)
{
    return (vf){x[1], x[0], x[3], x[2]};
}

INLINE vf twice(const float *p)
{
    return (vf){p[0], p[0], p[1], p[1]};
}

INLINE vf vmax(vf a, vf b)
{
    return choose(a > b, a, b);
}

INLINE vi load_u8(const uint8_t *p)
{
    return (vi){p[0], p[1], p[2], p[3]};
}

INLINE vi load_i8(const int8_t *p)
{
    return (vi){p[0], p[1], p[2], p[3]};
}

INLINE vf load_f16(const uint16_t *p)
{
    return (vf){fv_f16_to_f32(p[0]), fv_f16_to_f32(p[1]), fv_f16_to_f32(p[2]), fv_f16_to_f32(p[3])};
}

INLINE vf splat_f16(const void *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return splat(fv_f16_to_f32(bits));
}

INLINE void store_f16(uint16_t *p, vf x)
{
    for (int i = 0; i < W; i++)
        p[i] = fv_f32_to_f16(x[i]);
}

INLINE vi load_u16(const uint16_t *p)
{
    return (vi){p[0], p[1], p[2], p[3]};
}

INLINE bool any_above(vf a, vf b)
{
    vi above = a > b;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

INLINE float sum(vf x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/* Lane l: the sum of x[l]. */
INLINE vf sums(const vf x[W])
{
    return (vf){sum(x[0]), sum(x[1]), sum(x[2]), sum(x[3])};
}

INLINE float largest(vf x)
{
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}

/* Bytes 0 and 2, or 1 and 3, of each dword as signed 16-bit numbers. */
INLINE vi low_bytes(vi x)
{
    return ((x << 24 >> 24) & 0xffff) | (x << 8 >> 24 << 16);
}

INLINE vi high_bytes(vi x)
{
    return ((x << 16 >> 24) & 0xffff) | (x >> 24 << 16);
}

/* sum + a.low b.low + a.high b.high of the 16-bit halves of dwords */
INLINE vi multiply_add_words(vi sum, vi a, vi b)
{
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}

/* Byte n of x as level n & 15 of iq4_nl. */
INLINE vi levels(vi x)
{
    static const int8_t list[16] = {FV_IQ4_LEVELS};

    for (int i = 0; i < W; i++) {
        uint32_t lane = (uint32_t)x[i], out = 0;
        for (int byte = 0; byte < 4; byte++)
            out |= (uint32_t)(uint8_t)list[lane >> (8 * byte) & 15] << (8 * byte);
        x[i] = (int32_t)out;
    }
    return x;
}

INLINE void store_i16(int16_t *p, vi x)
{
    for (int i = 0; i < W; i++)
        p[i] = (int16_t)x[i];
}

INLINE int32_t sum_i(vi x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

#endif
