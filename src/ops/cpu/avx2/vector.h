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

#endif
