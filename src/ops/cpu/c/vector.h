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

#endif
