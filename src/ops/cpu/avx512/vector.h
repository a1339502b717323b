/* AVX-512 F, BW, DQ, VL; with BF16 and VNNI where the compiler is told to. */
#ifndef FV_AVX512_VECTOR_H
#define FV_AVX512_VECTOR_H

#include <immintrin.h>

#define W 16         /* floats in a vector */
#define TILE_ROWS 14 /* of the micro-kernel: 28 of 32 registers accumulate */
#define TILE_VECTORS 2
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x                                                                 \
    }

#include "ops/cpu/vector.h"

INLINE vf vmax(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

INLINE vi load_u8(const uint8_t *p)
{
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

INLINE vi load_i8(const int8_t *p)
{
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}

INLINE vf load_f16(const uint16_t *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE void store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

INLINE vi load_u16(const uint16_t *p)
{
    return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}

/* Lanes whose bit, from bit `from` on, is set; -inf elsewhere. */
INLINE vf keep_seen(vf x, uint64_t bits, int from)
{
    return (vf)_mm512_mask_blend_ps((__mmask16)(bits >> from), _mm512_set1_ps(-INFINITY), (__m512)x);
}

INLINE bool any_above(vf a, vf b)
{
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
}

#define EXP2_PARTS /* leaf.h needs none of its own */

INLINE vf exp2_fraction(vf t)
{
    return (vf)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

INLINE vf exp2_scale(vf p, vf t)
{
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)t);
}

/* Lane l: the sum of x[l]. */
INLINE vf sums(const vf x[W])
{
    __m512 a[8], b[4], c[2];

    UNROLL
    for (int i = 0; i < 8; i++) /* lane 2j: pairs of x[2i], lane 2j + 1: of x[2i + 1] */
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]),
                             _mm512_unpackhi_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]));
    UNROLL
    for (int i = 0; i < 4; i++) /* every four lanes: parts of four sums */
        b[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    UNROLL
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    return (vf)_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

INLINE float sum(vf x)
{
    return _mm512_reduce_add_ps((__m512)x);
}

INLINE float largest(vf x)
{
    return _mm512_reduce_max_ps((__m512)x);
}

#endif
