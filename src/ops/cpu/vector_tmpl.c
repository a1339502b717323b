/* Vectors of W floats, by the compilers' vector types; intrinsics where those fall short. */
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <math.h>

#if defined(__AVX512F__)
#define W 16
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x                                                                 \
    }
#elif defined(__AVX2__)
#define W 8
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x, x, x, x, x                                                                                         \
    }
#else
#define W 4
#define SPLAT(x)                                                                                                       \
    {                                                                                                                  \
        x, x, x, x                                                                                                     \
    }
#endif

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

/* mask ? a : b, mask lanes all ones or all zeros */
INLINE vf choose(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

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

#if defined(__AVX512F__)
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
#elif defined(__AVX2__)
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
#else
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

INLINE float sum(vf x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}

INLINE float largest(vf x)
{
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}
#endif

INLINE vf load_bf16(const uint16_t *p)
{
    return (vf)(load_u16(p) << 16);
}

INLINE float half(const void *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return fv_f16_to_f32(bits);
#endif
}

INLINE vf to_float(vi x)
{
    return __builtin_convertvector(x, vf);
}

/* exp(x): at most exp(88), below exp(-87.3) it is 0; NaN stays.  Degree-6 polynomial on |r| <= ln2 / 2 after Cody-Waite
 * reduction: within 2 ulp (measured 1.2). */
INLINE vf vexp(vf x)
{
    const vf magic = splat(12582912.0f);
    vi small = x<splat(-87.3f), large = x> splat(88.0f);
    vf clamped = choose(large, splat(88.0f), choose(small, splat(-87.0f), x));
    vf shifted = clamped * splat(1.44269504f) + magic, n = shifted - magic;
    vf r = clamped - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vf p = splat(1.3981999e-3f);
    p = p * r + splat(8.3334519e-3f);
    p = p * r + splat(4.1665796e-2f);
    p = p * r + splat(1.6666666e-1f);
    p = p * r + splat(0.5f);
    p = (p * r) * r + r + splat(1.0f);
    vi exponent = ((vi)shifted - (vi)magic + 127) << 23;
    return (vf)(~small & (vi)(p * (vf)exponent));
}
