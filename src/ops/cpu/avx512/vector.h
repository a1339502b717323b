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

INLINE float sum(vf x)
{
    return _mm512_reduce_add_ps((__m512)x);
}

INLINE float largest(vf x)
{
    return _mm512_reduce_max_ps((__m512)x);
}

#endif
