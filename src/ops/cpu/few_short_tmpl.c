/* Attention of a few rows with q and weights in 16 bits: pairs of bf16 (half the multiplications of few_tmpl.c, and no
 * sum across a whole register), or integers where keys and values are stored as such.  Bound by the bytes of keys and
 * values: beyond the caches 80 % of the reading speed for f16 and bf16, with 4 or 8 rows; q8_0 by its instructions, 74
 * % with 4 rows and 44 % with 8, and so q4_0, in about the time a key that q8_0 takes. */
#include "ops/cpu/few_read.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

enum {
    PAIRS = 2 * W, /* bf16 in a register */
    QUARTERS = 4,  /* of a register, each of another key */
};

/* Word n of the first half before word n of the second. */
INLINE vf beside(__m512i words)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);

    return (vf)_mm512_permutexvar_epi16(order, words);
}

/* `count` <= 32 there are elements of a row as bf16, one behind the other. */
#define PAIRS_TYPE(type)                                                                                               \
    INLINE vf pairs_##type(const char *row, int64_t index, int64_t count)                                              \
    {                                                                                                                  \
        vf low = read_##type(row, index, count);                                                                       \
        vf high = count > W ? read_##type(row, index + W, count - W) : splat(0);                                       \
        return (vf)(__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);                                            \
    }                                                                                                                  \
    INLINE vf two_##type(const char *row, const char *next, int64_t index, int64_t count)                              \
    {                                                                                                                  \
        vf low = read_##type(row, index, count), high = read_##type(next, index, count);                               \
        return beside((__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));                                        \
    }

PAIRS_TYPE(f32)
PAIRS_TYPE(f16)
PAIRS_TYPE(q8_0)
PAIRS_TYPE(q4_0)

INLINE vf pairs_bf16(const char *row, int64_t index, int64_t count)
{
    uint16_t part[PAIRS] = {0};

    if (count >= PAIRS) return (vf)_mm512_loadu_si512((const uint16_t *)row + index);
    memcpy(part, (const uint16_t *)row + index, (size_t)count * sizeof *part);
    return (vf)_mm512_loadu_si512(part);
}

INLINE vf multiply_pairs(vf a, vf b, vf sum)
{
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

#define QUARTERS_OF(a, b, order) (vf) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), order)
#define HALVES_OF(a, b, order) (vf) _mm512_shuffle_ps((__m512)(a), (__m512)(b), order)

/* Quarter n of x[c] becomes quarter c of x[n]. */
INLINE void turn_quarters(vf x[QUARTERS])
{
    vf a = QUARTERS_OF(x[0], x[1], 0x44), b = QUARTERS_OF(x[2], x[3], 0x44);
    vf c = QUARTERS_OF(x[0], x[1], 0xee), d = QUARTERS_OF(x[2], x[3], 0xee);

    x[0] = QUARTERS_OF(a, b, 0x88);
    x[1] = QUARTERS_OF(a, b, 0xdd);
    x[2] = QUARTERS_OF(c, d, 0x88);
    x[3] = QUARTERS_OF(c, d, 0xdd);
}

/* Lane 4 t + g: the sum of quarter t of x[g]. */
INLINE vf sum_quarters(const vf x[QUARTERS])
{
    vf a = (vf)_mm512_add_ps(_mm512_unpacklo_ps((__m512)x[0], (__m512)x[1]),
                             _mm512_unpackhi_ps((__m512)x[0], (__m512)x[1]));
    vf b = (vf)_mm512_add_ps(_mm512_unpacklo_ps((__m512)x[2], (__m512)x[3]),
                             _mm512_unpackhi_ps((__m512)x[2], (__m512)x[3]));

    return HALVES_OF(a, b, 0x44) + HALVES_OF(a, b, 0xee);
}

/* Part sums of M rows of q with G times four keys: quarter t of s[m * step + g] is of key k[g * QUARTERS + t]. */
INLINE void dots_of_pairs(const struct stored t, int64_t ahead, const int M, const int G, int64_t d, const float *q,
                          int64_t q_row, const char *const *k, vf *s, const int step)
{
    vf sum[8 * 2];

    UNROLL
    for (int m = 0; m < M * G; m++)
        sum[m] = splat(0);
    for (int64_t p = 0; p < d; p += PAIRS) {
        vf x[2 * QUARTERS];
        UNROLL
        for (int n = 0; n < G * QUARTERS; n++) {
            for (int64_t i = 0; i < PAIRS; i += t.line)
                ask(t, k[n], p + i, ahead);
            x[n] = t.read(k[n], p, d - p);
        }
        UNROLL
        for (int g = 0; g < G; g++)
            turn_quarters(x + g * QUARTERS);
        UNROLL
        for (int c = 0; c < QUARTERS; c++) {
            UNROLL
            for (int m = 0; m < M; m++) {
                const float *quarter = q + m * q_row + p / 2 + c * QUARTERS;
                vf y = (vf)_mm512_broadcast_f32x4(_mm_loadu_ps(quarter));
                UNROLL
                for (int g = 0; g < G; g++)
                    sum[m * G + g] = multiply_pairs(x[g * QUARTERS + c], y, sum[m * G + g]);
            }
        }
    }
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int g = 0; g < G; g++)
            s[m * step + g] = sum[m * G + g];
    }
}

INLINE void dots_turned(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                        int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    const int G = M > 6 && t.read != pairs_bf16 ? 1 : 2; /* as many as registers allow */
    const char *row[W];
    vf s[8 * QUARTERS];

    int64_t ahead = bytes_ahead(t, d, 1, k_bytes);
    for (; keys >= W; keys -= W, k += W * k_bytes, out += W) {
        UNROLL
        for (int n = 0; n < W; n++) /* in the order of sum_quarters */
            row[n % QUARTERS * QUARTERS + n / QUARTERS] = k + n * k_bytes;
        for (int g = 0; g < QUARTERS; g += G)
            dots_of_pairs(t, ahead, M, G, d, q, q_row, row + g * QUARTERS, s + g, QUARTERS);
        UNROLL
        for (int m = 0; m < M; m++)
            store(out + m * out_row, sum_quarters(s + m * QUARTERS));
    }
    for (; keys > 0; keys -= QUARTERS, k += QUARTERS * k_bytes, out += QUARTERS) {
        int count = (int)fv_min(keys, QUARTERS);
        for (int n = 0; n < QUARTERS; n++)
            row[n] = k + fv_min(n, count - 1) * k_bytes;
        for (int m = 0; m < 8; m++)
            s[m] = splat(0);
        dots_of_pairs(t, ahead, M, 1, d, q, q_row, row, s, 1);
        for (int m = 0; m < M; m += QUARTERS) {
            float all[W];
            store(all, sum_quarters(s + m));
            for (int i = m; i < fv_min(m + QUARTERS, M); i++)
                for (int n = 0; n < count; n++)
                    out[i * out_row + n] = all[n * QUARTERS + i - m];
        }
    }
}

/* Keys are turned where that costs less than the sums across registers. */
INLINE void dots_pairs(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                       int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    if (d < 32 * M)
        dots_turned(t, M, d, q, q_row, k, k_bytes, keys, out, out_row);
    else
        dots_rows(t, M, d, q, q_row, k, k_bytes, keys, out, out_row);
}

INLINE vf two_bf16(const char *row, const char *next, int64_t index, int64_t count)
{
    uint16_t part[2][W] = {{0}};
    const uint16_t *low = (const uint16_t *)row + index, *high = (const uint16_t *)next + index;

    if (count < W) {
        memcpy(part[0], low, (size_t)count * sizeof *low);
        memcpy(part[1], high, (size_t)count * sizeof *high);
        low = part[0];
        high = part[1];
    }
    return beside(_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                                     _mm256_loadu_si256((const __m256i *)high), 1));
}

static void join_query(int64_t d, const float *q, float *out)
{
    for (int64_t n = 0; n < d; n += PAIRS)
        store(out + n / 2, pairs_f32((const char *)q, n, PAIRS));
}

/* ---- q8_0 and q4_0: blocks of 32 signed bytes, or nibbles with 8 added, behind their scale in f16 --------------- */

enum {
    BLOCK = 32,
    GROUP = 64, /* keys whose scales are collected at a time */
};

/* The scales that `keys` rows begin with; those behind the last row repeat it. */
INLINE void collect_scales(const char *row, int64_t row_bytes, int64_t keys, float scale[GROUP])
{
    uint16_t bits[GROUP];

    for (int n = 0; n < GROUP; n++) {
        memcpy(&bits[n], row, sizeof bits[n]);
        if (n + 1 < keys) row += row_bytes;
    }
    for (int n = 0; n < GROUP; n += W)
        store(scale + n, load_f16(bits + n));
}

/* A row of q as integers x = step (256 high + low): low [d] unsigned bytes, high [d] signed ones, step, and for each
 * block what makes up for what is added to k: -128 times the sum of its high ones, which meet bytes of k as unsigned
 * ones; or -8 times that of all, which meet nibbles. */
struct words {
    const uint8_t *low;
    const int8_t *high;
    const int32_t *correction;
    float step;
};

INLINE struct words words_of(const float *q, int64_t d)
{
    const uint8_t *bytes = (const uint8_t *)q;

    return (struct words){bytes, (const int8_t *)bytes + d, (const int32_t *)(bytes + 2 * d), q[d / 2 + d / BLOCK]};
}

/* NaN if one of n floats (a multiple of W) is NaN or infinite, which integers cannot say; the largest of their
 * magnitudes otherwise. */
INLINE float size_of(const float *x, int64_t n)
{
    vf high = splat(0), check = splat(0);

    for (int64_t i = 0; i < n; i += W) {
        high = vmax((vf)((vi)load(x + i) & INT32_MAX), high);
        check += load(x + i) * splat(0);
    }
    return largest(high) + sum(check);
}

/* What n floats of that size are multiplied with to become integers of `most` at most: 0 for nothing worth it. */
INLINE float inverse_of(float size, float most)
{
    return size > 1e-30f ? most / size : 0;
}

INLINE void join_integers(const bool nibbles, int64_t d, const float *q, float *out)
{
    float size = size_of(q, d), inverse = inverse_of(size, 32767);
    uint8_t *low = (uint8_t *)out;
    uint32_t *correction = (uint32_t *)(low + 2 * d), sum = 0; /* modulo 2^32: rows of NaN are the lowest integers */

    for (int64_t n = 0; n < d; n += W) {
        __m512i x = _mm512_cvtps_epi32((__m512)(load(q + n) * inverse)), high = _mm512_srai_epi32(x, 8);
        _mm_storeu_si128((__m128i *)(low + n), _mm512_cvtepi32_epi8(x));
        _mm_storeu_si128((__m128i *)(low + d + n), _mm512_cvtepi32_epi8(high));
        sum += (uint32_t)_mm512_reduce_add_epi32(nibbles ? x : high);
        if ((n + W) % BLOCK != 0) continue;
        *correction++ = -(nibbles ? 8u : 128u) * sum;
        sum = 0;
    }
    out[d / 2 + d / BLOCK] = size / 32767;
}

static void join_words(int64_t d, const float *q, float *out)
{
    join_integers(false, d, q, out);
}

static void join_nibbles(int64_t d, const float *q, float *out)
{
    join_integers(true, d, q, out);
}

INLINE void rows_of(const char *k, int64_t k_bytes, int64_t keys, const char *row[W])
{
    row[0] = k;
    UNROLL
    for (int n = 1; n < W; n++)
        row[n] = n < keys ? row[n - 1] + k_bytes : row[n - 1];
}

/* x[i], lane n: bytes [4 i, 4 i + 4) of key n; those behind the last key repeat it. */
INLINE void load_turned(const char *k, int64_t k_bytes, int64_t keys, vi x[8])
{
    __m512i dword[2][4];
    const char *row[W];

    rows_of(k, k_bytes, keys, row);
    UNROLL
    for (int g = 0; g < 2; g++) {
        __m512i y[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            __m256i a = _mm256_loadu_si256((const __m256i *)row[8 * g + i]);
            __m256i b = _mm256_loadu_si256((const __m256i *)row[8 * g + 4 + i]);
            y[i] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        }
        __m512i a = _mm512_unpacklo_epi32(y[0], y[1]), b = _mm512_unpacklo_epi32(y[2], y[3]);
        __m512i c = _mm512_unpackhi_epi32(y[0], y[1]), d = _mm512_unpackhi_epi32(y[2], y[3]);
        dword[g][0] = _mm512_unpacklo_epi64(a, b);
        dword[g][1] = _mm512_unpackhi_epi64(a, b);
        dword[g][2] = _mm512_unpacklo_epi64(c, d);
        dword[g][3] = _mm512_unpackhi_epi64(c, d);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        x[i] = (vi)_mm512_shuffle_i32x4(dword[0][i], dword[1][i], 0x88);
        x[4 + i] = (vi)_mm512_shuffle_i32x4(dword[0][i], dword[1][i], 0xdd);
    }
}

/* The same of nibbles, as bytes in the order of elements. */
INLINE void load_turned_nibbles(const char *k, int64_t k_bytes, int64_t keys, vi x[8])
{
    const vi low = splat_i(0x0f0f0f0f);
    const char *row[W];
    __m512i y[QUARTERS];

    rows_of(k, k_bytes, keys, row);
    UNROLL
    for (int i = 0; i < QUARTERS; i++) { /* quarter n: key 4 n + i */
        y[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)row[i]));
        y[i] = _mm512_inserti32x4(y[i], _mm_loadu_si128((const __m128i *)row[4 + i]), 1);
        y[i] = _mm512_inserti32x4(y[i], _mm_loadu_si128((const __m128i *)row[8 + i]), 2);
        y[i] = _mm512_inserti32x4(y[i], _mm_loadu_si128((const __m128i *)row[12 + i]), 3);
    }
    __m512i a = _mm512_unpacklo_epi32(y[0], y[1]), b = _mm512_unpacklo_epi32(y[2], y[3]);
    __m512i c = _mm512_unpackhi_epi32(y[0], y[1]), d = _mm512_unpackhi_epi32(y[2], y[3]);
    const vi dword[4] = {(vi)_mm512_unpacklo_epi64(a, b), (vi)_mm512_unpackhi_epi64(a, b),
                         (vi)_mm512_unpacklo_epi64(c, d), (vi)_mm512_unpackhi_epi64(c, d)};
    UNROLL
    for (int i = 0; i < 4; i++) {
        x[i] = dword[i] & low;
        x[4 + i] = dword[i] >> 4 & low;
    }
}

/* s[m * GROUP + n] += q_m . k_n over a block, for W keys. */
INLINE void dots_of_words(const bool nibbles, const int M, const struct words *q, int64_t block, const vi x[8],
                          vf scale, float *s)
{
    vi y[8]; /* unsigned: with 128 added to each byte */

    UNROLL
    for (int i = 0; i < 8; i++)
        y[i] = nibbles ? x[i] : x[i] ^ splat_i((int32_t)0x80808080u);
    UNROLL
    for (int m = 0; m < M; m++) {
        __m512i more = _mm512_set1_epi32(q[m].correction[block]), none = _mm512_setzero_si512();
        __m512i high = nibbles ? none : more, low = nibbles ? more : none;
        UNROLL
        for (int i = 0; i < 8; i++) {
            int32_t a, b;
            memcpy(&a, q[m].low + block * BLOCK + 4 * i, sizeof a);
            memcpy(&b, q[m].high + block * BLOCK + 4 * i, sizeof b);
            low = _mm512_dpbusd_epi32(low, _mm512_set1_epi32(a), (__m512i)x[i]);
            high = _mm512_dpbusd_epi32(high, (__m512i)y[i], _mm512_set1_epi32(b));
        }
        store(s + m * GROUP, load(s + m * GROUP) + to_float(((vi)high << 8) + (vi)low) * scale);
    }
}

INLINE void dots_integers(const bool nibbles, const struct stored t, const int M, int64_t d, const float *q,
                          int64_t q_row, const char *k, int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    struct words words[8];
    float s[8 * GROUP], scale[GROUP];

    int64_t ahead = bytes_ahead(t, d, GROUP, k_bytes);
    for (int m = 0; m < M; m++)
        words[m] = words_of(q + m * q_row, d);
    for (; keys > 0; keys -= GROUP, k += GROUP * k_bytes, out += GROUP) {
        int64_t count = fv_min(keys, GROUP);
        memset(s, 0, (size_t)M * GROUP * sizeof *s);
        ask_rows(k, k_bytes, count, d / BLOCK * t.bytes, ahead);
        for (int64_t block = 0; block < d / BLOCK; block++) {
            const char *row = k + block * t.bytes;
            if (count == GROUP)
                collect_scales(row, k_bytes, GROUP, scale);
            else
                collect_scales(row, k_bytes, count, scale);
            for (int64_t n = 0; n < count; n += W, row += W * k_bytes) {
                vi x[8];
                if (nibbles && count - n >= W)
                    load_turned_nibbles(row + 2, k_bytes, W, x);
                else if (nibbles)
                    load_turned_nibbles(row + 2, k_bytes, count - n, x);
                else if (count - n >= W)
                    load_turned(row + 2, k_bytes, W, x);
                else
                    load_turned(row + 2, k_bytes, count - n, x);
                dots_of_words(nibbles, M, words, block, x, load(scale + n), s + n);
            }
        }
        for (int m = 0; m < M; m++)
            for (int64_t n = 0; n < count; n += W) {
                vf x = load(s + m * GROUP + n) * words[m].step;
                if (count - n >= W)
                    store(out + m * out_row + n, x);
                else
                    store_part(out + m * out_row + n, x, count - n);
            }
    }
}

INLINE void dots_words(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                       int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    dots_integers(false, t, M, d, q, q_row, k, k_bytes, keys, out, out_row);
}

INLINE void dots_nibbles(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                         int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    dots_integers(true, t, M, d, q, q_row, k, k_bytes, keys, out, out_row);
}

#define PAIRS_OF(type, line, bytes) line, bytes, pairs_##type, two_##type, NULL, multiply_pairs, 2
#define PAIRS_KERNELS(type, ...)                                                                                       \
    FEW_DOTS(type, dots_pairs, __VA_ARGS__)                                                                            \
    FEW_ADD(type, __VA_ARGS__)

PAIRS_KERNELS(f32, PAIRS_OF(f32, 16, 64))
PAIRS_KERNELS(f16, PAIRS_OF(f16, 32, 64))
PAIRS_KERNELS(bf16, PAIRS_OF(bf16, 32, 64))
FEW_DOTS(q8_0, dots_words, PAIRS_OF(q8_0, 32, 34))
FEW_ADD(q8_0, PAIRS_OF(q8_0, 32, 34))
FEW_DOTS(q4_0, dots_nibbles, PAIRS_OF(q4_0, 32, 18))
FEW_ADD(q4_0, PAIRS_OF(q4_0, 32, 18))

static const struct fv_few_kernels few_short_table[FV_DTYPE_COUNT] = {
    [FV_F32] = {dots_f32, add_f32, join_query, true, 4, 4},
    [FV_F16] = {dots_f16, add_f16, join_query, true, 4, 4},
    [FV_BF16] = {dots_bf16, add_bf16, join_query, true, 1, 1},
    [FV_Q8_0] = {dots_q8_0, add_q8_0, join_words, true, 3, 5},
    [FV_Q4_0] = {dots_q4_0, add_q4_0, join_nibbles, true, 1, 8},
};
#endif

void LEAF(fill_few_short)(struct fv_kernels *kernels)
{
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    kernels->few_short = few_short_table;
#else
    (void)kernels;
#endif
}
