/* Attention of a few rows (decode): keys and values are read once, as they are stored, and each is used for all rows
 * while it is in registers; in f32, or in pairs of bf16 (half the multiplications) where there are enough rows for
 * those to matter.  Bound by the bytes of keys and values up to about four rows, by multiplications beyond. */
#include "ops/cpu/leaf.h"

#define SUMS (W == 16 ? 16 : 8) /* registers that add up */

enum {
    AHEAD = 8192,  /* bytes: rows are asked for that early; several at a time are no stream to the hardware */
    ADD_KEYS = 32, /* whose values stay in the first-level cache while columns are taken one part after the other */
};

/* Elements [index, index + vector) of a stored row, of which `count` are there; the others are 0. */
typedef vf read_fn(const char *row, int64_t index, int64_t count);
/* Elements [index, index + W) of a row; of pairs, beside those of the next. */
typedef vf read_two_fn(const char *row, const char *next, int64_t index, int64_t count);
typedef vf multiply_add_fn(vf a, vf b, vf c);

struct stored {
    int64_t line, bytes; /* elements after which a cache line is asked for, and their bytes */
    read_fn *read;
    read_two_fn *two;
    multiply_add_fn *step;
    int together; /* keys a step of sums takes: 1, 2 in pairs */
};

INLINE vf read_f32(const char *row, int64_t index, int64_t count)
{
    const float *x = (const float *)row + index;

    return count < W ? load_part(x, count, 0) : load(x);
}

INLINE vf read_f16(const char *row, int64_t index, int64_t count)
{
    uint16_t part[W] = {0};

    if (count >= W) return load_f16((const uint16_t *)row + index);
    memcpy(part, (const uint16_t *)row + index, (size_t)count * sizeof *part);
    return load_f16(part);
}

INLINE vf read_bf16(const char *row, int64_t index, int64_t count)
{
    uint16_t part[W] = {0};

    if (count >= W) return load_bf16((const uint16_t *)row + index);
    memcpy(part, (const uint16_t *)row + index, (size_t)count * sizeof *part);
    return load_bf16(part);
}

/* Rows are whole blocks of 32, so that there is always a vector. */
INLINE vf read_q8_0(const char *row, int64_t index, int64_t count)
{
    const char *block = row + index / 32 * 34;

    (void)count;
    return to_float(load_i8((const int8_t *)block + 2 + index % 32)) * splat_f16(block);
}

INLINE vf multiply_add(vf a, vf b, vf c)
{
    return a * b + c;
}

/* Asks for the line of a row, `ahead` bytes on, that elements from `index` on are in, where they begin a line. */
INLINE void ask(const struct stored t, const char *row, int64_t index, int64_t ahead)
{
    if (index % t.line == 0) __builtin_prefetch(row + ahead + index / t.line * t.bytes);
}

INLINE void dots_step(const struct stored t, int64_t ahead, const int M, const int K, int64_t p, int64_t count,
                      const float *q, int64_t q_row, const char *k, int64_t k_bytes, vf s[SUMS])
{
    vf x[SUMS];

    UNROLL
    for (int n = 0; n < K; n++) {
        ask(t, k + n * k_bytes, p, ahead);
        x[n] = t.read(k + n * k_bytes, p, count);
    }
    UNROLL
    for (int m = 0; m < M; m++) {
        vf y = load(q + m * q_row + p / t.together);
        UNROLL
        for (int n = 0; n < K; n++)
            s[m * K + n] = t.step(x[n], y, s[m * K + n]);
    }
}

/* M rows of q against K keys: out[m * out_row + n] = q_m . k_n. */
INLINE void dots_of(const struct stored t, int64_t ahead, const int M, const int K, int64_t d, const float *q,
                    int64_t q_row, const char *k, int64_t k_bytes, float *out, int64_t out_row)
{
    const int64_t vector = t.together * W;
    vf s[SUMS];
    float all[SUMS];
    int64_t p = 0;

    UNROLL
    for (int n = 0; n < SUMS; n++)
        s[n] = splat(0);
    for (; p + vector <= d; p += vector)
        dots_step(t, ahead, M, K, p, vector, q, q_row, k, k_bytes, s);
    if (p < d) dots_step(t, ahead, M, K, p, d - p, q, q_row, k, k_bytes, s);
    UNROLL
    for (int n = 0; n < SUMS; n += W)
        store(all + n, sums(s + n));
    UNROLL
    for (int m = 0; m < M; m++)
        memcpy(out + m * out_row, all + m * K, K * sizeof(float));
}

/* o[m * o_row + c] += sum over n of p[m * p_row + n] v_n[c] for C vectors of columns from `column` on, of which `count`
 * are there. */
INLINE void add_of(const struct stored t, int64_t ahead, const int M, const int C, int64_t column, int64_t count,
                   const float *p, int64_t p_row, const char *v, int64_t v_bytes, int64_t keys, float *o, int64_t o_row)
{
    vf s[SUMS];

    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int c = 0; c < C; c++)
            s[m * C + c] = load(o + m * o_row + column + c * W);
    }
    for (int64_t n = 0; n < keys; n += t.together, v += t.together * v_bytes, p++) {
        const char *next = n + 1 < keys ? v + v_bytes : v; /* the last one has weight 0 */
        vf x[SUMS];
        UNROLL
        for (int c = 0; c < C; c++) {
            ask(t, v, column + c * W, ahead);
            if (t.together > 1) ask(t, next, column + c * W, ahead);
            x[c] = t.two(v, next, column + c * W, count);
        }
        UNROLL
        for (int m = 0; m < M; m++) {
            vf weight = splat(p[m * p_row]);
            UNROLL
            for (int c = 0; c < C; c++)
                s[m * C + c] = t.step(x[c], weight, s[m * C + c]);
        }
    }
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int c = 0; c < C; c++)
            store(o + m * o_row + column + c * W, s[m * C + c]);
    }
}

/* Keys at a time, columns at a time: as many as registers for M rows allow. */
#define TOGETHER(M) (SUMS / (M) >= 16 ? 16 : SUMS / (M) >= 8 ? 8 : SUMS / (M) >= 4 ? 4 : SUMS / (M) >= 2 ? 2 : 1)
#define COLUMNS(M) (TOGETHER(M) > 8 ? 8 : TOGETHER(M))

INLINE void dots_rows(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                      int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    int64_t ahead = (AHEAD / fv_max(d / t.line * t.bytes, 64) + 1) * k_bytes;

    for (; keys >= TOGETHER(M); keys -= TOGETHER(M), k += TOGETHER(M) * k_bytes, out += TOGETHER(M))
        dots_of(t, ahead, M, TOGETHER(M), d, q, q_row, k, k_bytes, out, out_row);
    for (; keys > 0; keys--, k += k_bytes, out++)
        dots_of(t, ahead, M, 1, d, q, q_row, k, k_bytes, out, out_row);
}

INLINE void add_rows(const struct stored t, const int M, int64_t columns, const float *p, int64_t p_row, const char *v,
                     int64_t v_bytes, int64_t keys, float *o, int64_t o_row)
{
    int64_t ahead = fv_max(AHEAD / fv_max(columns / t.line * t.bytes, 64) + 1, ADD_KEYS) * v_bytes, count;

    for (; keys > 0; keys -= count, p += count / t.together, v += count * v_bytes) {
        int64_t c = 0;
        count = fv_min(keys, ADD_KEYS);
        for (; c + COLUMNS(M) * W <= columns; c += COLUMNS(M) * W)
            add_of(t, ahead, M, COLUMNS(M), c, W, p, p_row, v, v_bytes, count, o, o_row);
        for (; c + W <= columns; c += W)
            add_of(t, ahead, M, 1, c, W, p, p_row, v, v_bytes, count, o, o_row);
        if (c < columns) add_of(t, ahead, M, 1, c, columns - c, p, p_row, v, v_bytes, count, o, o_row);
    }
}

#define EACH(CALL)                                                                                                     \
    switch (rows) {                                                                                                    \
    case 1: CALL(1); break;                                                                                            \
    case 2: CALL(2); break;                                                                                            \
    case 3: CALL(3); break;                                                                                            \
    case 4: CALL(4); break;                                                                                            \
    case 5: CALL(5); break;                                                                                            \
    case 6: CALL(6); break;                                                                                            \
    case 7: CALL(7); break;                                                                                            \
    default: CALL(8); break;                                                                                           \
    }
#define EACH_OF_MANY(CALL)                                                                                             \
    switch (rows) {                                                                                                    \
    case 4: CALL(4); break;                                                                                            \
    case 5: CALL(5); break;                                                                                            \
    case 6: CALL(6); break;                                                                                            \
    case 7: CALL(7); break;                                                                                            \
    default: CALL(8); break;                                                                                           \
    }
#define DOTS(M) dots_rows(t, M, d, q, q_row, k, k_bytes, keys, out, out_row)
#define ADD(M) add_rows(t, M, columns, p, p_row, v, v_bytes, keys, o, o_row)
#define KERNELS(name, EACH, ...)                                                                                       \
    static void dots_##name(int rows, int64_t d, const float *q, int64_t q_row, const void *k, int64_t k_bytes,        \
                            int64_t keys, float *out, int64_t out_row)                                                 \
    {                                                                                                                  \
        const struct stored t = {__VA_ARGS__};                                                                         \
        EACH(DOTS)                                                                                                     \
    }                                                                                                                  \
    static void add_##name(int rows, int64_t columns, const float *p, int64_t p_row, const void *v, int64_t v_bytes,   \
                           int64_t keys, float *o, int64_t o_row)                                                      \
    {                                                                                                                  \
        const struct stored t = {__VA_ARGS__};                                                                         \
        EACH(ADD)                                                                                                      \
    }
#define STORED_TYPE(type, line, bytes)                                                                                 \
    INLINE vf one_##type(const char *row, const char *next, int64_t index, int64_t count)                              \
    {                                                                                                                  \
        (void)next;                                                                                                    \
        return read_##type(row, index, count);                                                                         \
    }                                                                                                                  \
    KERNELS(type, EACH, line, bytes, read_##type, one_##type, multiply_add, 1)

STORED_TYPE(f32, 16, 64)
STORED_TYPE(f16, 32, 64)
STORED_TYPE(bf16, 32, 64)
STORED_TYPE(q8_0, 32, 34)

#define FEW(type)                                                                                                      \
    {                                                                                                                  \
        dots_##type, add_##type                                                                                        \
    }
static const struct fv_few_kernels few_table[FV_DTYPE_COUNT] = {
    [FV_F32] = FEW(f32), [FV_F16] = FEW(f16), [FV_BF16] = FEW(bf16), [FV_Q8_0] = FEW(q8_0)};

/* ---- pairs of bf16 --------------------------------------------------------------------------------------------- */

#if defined(__AVX512BF16__)
INLINE vf multiply_add_pairs(vf a, vf b, vf c)
{
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

INLINE vf beside(vf a, vf b)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);

    return (vf)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
}

#define PAIRS_TYPE(type, line, bytes)                                                                                  \
    INLINE vf pairs_##type(const char *row, int64_t index, int64_t count)                                              \
    {                                                                                                                  \
        vf low = read_##type(row, index, count);                                                                       \
        vf high = count > W ? read_##type(row, index + W, count - W) : splat(0);                                       \
        return (vf)(__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);                                            \
    }                                                                                                                  \
    INLINE vf two_##type(const char *row, const char *next, int64_t index, int64_t count)                              \
    {                                                                                                                  \
        return beside(read_##type(row, index, count), read_##type(next, index, count));                                \
    }                                                                                                                  \
    KERNELS(type##_pairs, EACH_OF_MANY, line, bytes, pairs_##type, two_##type, multiply_add_pairs, 2)

PAIRS_TYPE(f32, 32, 64)
PAIRS_TYPE(f16, 32, 64)
PAIRS_TYPE(q8_0, 32, 34)

/* bf16 is pairs already. */
INLINE vf pairs_bf16(const char *row, int64_t index, int64_t count)
{
    uint16_t part[2 * W] = {0};

    if (count >= 2 * W) return load((const float *)((const uint16_t *)row + index));
    memcpy(part, (const uint16_t *)row + index, (size_t)count * sizeof *part);
    return load((const float *)part);
}

INLINE vf two_bf16(const char *row, const char *next, int64_t index, int64_t count)
{
    __m512i low = _mm512_srli_epi32((__m512i)read_bf16(row, index, count), 16);

    return (vf)_mm512_or_si512(low, (__m512i)read_bf16(next, index, count));
}

KERNELS(bf16_pairs, EACH_OF_MANY, 32, 64, pairs_bf16, two_bf16, multiply_add_pairs, 2)

static const struct fv_few_kernels few_pairs_table[FV_DTYPE_COUNT] = {
    [FV_F32] = FEW(f32_pairs), [FV_F16] = FEW(f16_pairs), [FV_BF16] = FEW(bf16_pairs), [FV_Q8_0] = FEW(q8_0_pairs)};
#endif

void LEAF(fill_few)(struct fv_kernels *kernels)
{
    kernels->few = few_table;
#if defined(__AVX512BF16__)
    kernels->few_pairs = few_pairs_table;
#endif
}
