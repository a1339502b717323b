/* Vectors of W floats, by the compilers' vector types: what every instruction set's own vector.h begins with. */
#ifndef FV_VECTOR_H
#define FV_VECTOR_H

#include <math.h>
#include <stdint.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE vf splat(float x)
{
    return (vf)SPLAT(x);
}

INLINE vi splat_i(int32_t x)
{
    return (vi)SPLAT(x);
}

INLINE vf load(const float *p)
{
    return *(const vf_unaligned *)p;
}

INLINE void store(float *p, vf x)
{
    *(vf_unaligned *)p = x;
}

INLINE vi load_i(const int32_t *p)
{
    return *(const vi_unaligned *)p;
}

INLINE void store_i(int32_t *p, vi x)
{
    *(vi_unaligned *)p = x;
}

/* mask ? a : b, mask lanes all ones or all zeros */
INLINE vf choose(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* The levels of iq4_nl. */
#define FV_IQ4_LEVELS -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

#endif
