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

/* The first `count` < W floats, then `rest`. */
INLINE vf load_part(const float *p, int64_t count, float rest)
{
    return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), (__mmask16)((1u << count) - 1), p);
}

INLINE void store_part(float *p, vf x, int64_t count)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)x);
}

INLINE vf vsqrt(vf x)
{
    return (vf)_mm512_sqrt_ps((__m512)x);
}

/* A bit for each lane of a mask. */
INLINE unsigned lanes(vi mask)
{
    return (unsigned)_mm512_movepi32_mask((__m512i)mask);
}

/* Lanes whose bit is set, side by side; may write W of them. */
INLINE void pack(int32_t *to, vi x, unsigned chosen)
{
    store_i(to, (vi)_mm512_maskz_compress_epi32((__mmask16)chosen, (__m512i)x));
}

/* Each pair of lanes swapped; p[0], p[0], p[1], p[1], ... */
INLINE vf swap_pairs(vf x)
{
    return (vf)_mm512_permute_ps((__m512)x, 0xb1);
}

INLINE vf twice(const float *p)
{
    __m512 x = _mm512_castps256_ps512(_mm256_loadu_ps(p));
    return (vf)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), x);
}

INLINE vf vmax(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

INLINE vf vmin(vf a, vf b)
{
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
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

INLINE vf splat_f16(const void *p)
{
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return (vf)_mm512_cvtph_ps(_mm256_set1_epi16(bits));
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

/* count < W floats */
INLINE void copy_part(float *to, const float *from, int count)
{
    __mmask16 there = (__mmask16)((1u << count) - 1);
    _mm512_mask_storeu_ps(to, there, _mm512_maskz_loadu_ps(there, from));
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

/* Bytes 0 and 2, or 1 and 3, of each dword as signed 16-bit numbers. */
INLINE vi low_bytes(vi x)
{
    return (vi)_mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8);
}

INLINE vi high_bytes(vi x)
{
    return (vi)_mm512_srai_epi16((__m512i)x, 8);
}

/* sum + a.low b.low + a.high b.high of the 16-bit halves of dwords */
INLINE vi multiply_add_words(vi sum, vi a, vi b)
{
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
}

/* Byte n of x as level n & 15 of iq4_nl. */
INLINE vi levels(vi x)
{
    const __m512i list = _mm512_broadcast_i32x4(_mm_setr_epi8(FV_IQ4_LEVELS));

    return (vi)_mm512_shuffle_epi8(list, (__m512i)x);
}

INLINE void store_i16(int16_t *p, vi x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x));
}

INLINE int32_t sum_i(vi x)
{
    return _mm512_reduce_add_epi32((__m512i)x);
}

#endif
