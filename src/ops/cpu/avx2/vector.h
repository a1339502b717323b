/* AVX2 with FMA and F16C. */
#ifndef FV_AVX2_VECTOR_H
#define FV_AVX2_VECTOR_H

#include <immintrin.h>

#define W 8         /* floats in a vector */
#define TILE_ROWS 6 /* of the micro-kernel: 12 of 16 registers accumulate */
#define TILE_VECTORS 2
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x, x, x, x, x                                                                                         \
    }

#include "ops/cpu/vector.h"

INLINE __m256i first_lanes(int64_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The first `count` < W floats, then `rest`. */
INLINE vf load_part(const float *p, int64_t count, float rest)
{
    __m256i mask = first_lanes(count);
    return (vf)_mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}

INLINE void store_part(float *p, vf x, int64_t count)
{
    _mm256_maskstore_ps(p, first_lanes(count), (__m256)x);
}

INLINE vf vsqrt(vf x)
{
    return (vf)_mm256_sqrt_ps((__m256)x);
}

/* A bit for each lane of a mask. */
INLINE unsigned lanes(vi mask)
{
    return (unsigned)_mm256_movemask_ps((__m256)mask);
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
    return (vf)_mm256_permute_ps((__m256)x, 0xb1);
}

INLINE vf twice(const float *p)
{
    __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(p));
    return (vf)_mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

INLINE vf vmax(vf a, vf b)
{
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}

INLINE vi load_u8(const uint8_t *p)
{
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

INLINE vi load_i8(const int8_t *p)
{
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

INLINE vf load_f16(const uint16_t *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

INLINE vf splat_f16(const void *p)
{
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return (vf)_mm256_cvtph_ps(_mm_set1_epi16(bits));
}

INLINE void store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

INLINE vi load_u16(const uint16_t *p)
{
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}

INLINE bool any_above(vf a, vf b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
}

/* Lane l: the sum of x[l]. */
INLINE vf sums(const vf x[W])
{
    __m256 a = _mm256_hadd_ps((__m256)x[0], (__m256)x[1]), b = _mm256_hadd_ps((__m256)x[2], (__m256)x[3]);
    __m256 c = _mm256_hadd_ps((__m256)x[4], (__m256)x[5]), d = _mm256_hadd_ps((__m256)x[6], (__m256)x[7]);

    a = _mm256_hadd_ps(a, b);
    c = _mm256_hadd_ps(c, d);
    return (vf)_mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
}

INLINE float sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float largest(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Bytes 0 and 2, or 1 and 3, of each dword as signed 16-bit numbers. */
INLINE vi low_bytes(vi x)
{
    return (vi)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
}

INLINE vi high_bytes(vi x)
{
    return (vi)_mm256_srai_epi16((__m256i)x, 8);
}

/* sum + a.low b.low + a.high b.high of the 16-bit halves of dwords */
INLINE vi multiply_add_words(vi sum, vi a, vi b)
{
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

/* Byte n of x as level n & 15 of iq4_nl. */
INLINE vi levels(vi x)
{
    const __m256i list = _mm256_broadcastsi128_si256(_mm_setr_epi8(FV_IQ4_LEVELS));

    return (vi)_mm256_shuffle_epi8(list, (__m256i)x);
}

INLINE void store_i16(int16_t *p, vi x)
{
    __m256i packed = _mm256_packs_epi32((__m256i)x, (__m256i)x);

    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

INLINE int32_t sum_i(vi x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#endif
