/* How attention of few rows (few*_tmpl.c) reads keys and values as they are stored, and the loops over them that f32
 * and pairs of bf16 share. */
#ifndef FV_FEW_READ_H
#define FV_FEW_READ_H

#include "ops/cpu/leaf.h"

enum {
    AHEAD = 8192,  /* bytes: rows are asked for that early; several at a time are no stream to the hardware */
    ADD_KEYS = 32, /* whose values stay in the first-level cache while columns are taken one part after the other */
};

/* Elements [index, index + vector) of a stored row, of which `count` are there; the others are 0. */
typedef vf read_fn(const char *row, int64_t index, int64_t count);

/* Elements [index, index + W) of a row; of pairs, beside those of the next. */
typedef vf read_two_fn(const char *row, const char *next, int64_t index, int64_t count);

/* A whole block of a row. */
typedef void read_block_fn(const char *row, int64_t index, vf x[32 / W]);
typedef vf multiply_fn(vf a, vf b, vf sum);

struct stored {
    int64_t line, bytes; /* elements after which a cache line is asked for, and their bytes */
    read_fn *read;
    read_two_fn *two;
    read_block_fn *block; /* NULL: vectors are read one by one */
    multiply_fn *multiply;
    int together; /* elements of a row, or keys, in a lane: 2 in pairs */
};

INLINE vf multiply(vf a, vf b, vf sum)
{
    return a * b + sum;
}

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

/* The same of 16 bytes: low nibbles, less 8, are the first half of a block, high ones the second. */
INLINE vf read_q4_0(const char *row, int64_t index, int64_t count)
{
    const char *block = row + index / 32 * 18;
    vi nibbles = load_u8((const uint8_t *)block + 2 + index % 16) >> (int)(index % 32 / 16 * 4);

    (void)count;
#if W == 16
    const vf steps = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return (vf)_mm512_permutexvar_ps((__m512i)nibbles, (__m512)(steps * splat_f16(block))); /* by the low four bits */
#else
    return to_float((nibbles & 15) - 8) * splat_f16(block);
#endif
}

INLINE void block_q4_0(const char *row, int64_t index, vf x[32 / W])
{
    const char *block = row + index / 32 * 18;
    vf scale = splat_f16(block);

    UNROLL
    for (int v = 0; v < 16 / W; v++) {
        vi nibbles = load_u8((const uint8_t *)block + 2 + v * W);
#if W == 16
        const vf steps = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
        __m512 table = (__m512)(steps * scale);
        x[0] = (vf)_mm512_permutexvar_ps((__m512i)nibbles, table); /* by the low four bits */
        x[1] = (vf)_mm512_permutexvar_ps((__m512i)(nibbles >> 4), table);
#else
        x[v] = to_float((nibbles & 15) - 8) * scale;
        x[v + 16 / W] = to_float((nibbles >> 4) - 8) * scale;
#endif
    }
}

/* Asks for the line of a row, `ahead` bytes on, that elements from `index` on are in, where they begin a line. */
INLINE void ask(const struct stored t, const char *row, int64_t index, int64_t ahead)
{
    if (index % t.line == 0) __builtin_prefetch(row + ahead + index / t.line * t.bytes);
}

/* The same for the lines of whole rows. */
INLINE void ask_rows(const char *row, int64_t row_bytes, int64_t rows, int64_t bytes, int64_t ahead)
{
    for (int64_t n = 0; n < rows; n++)
        for (int64_t i = 0; i < bytes; i += 64)
            __builtin_prefetch(row + n * row_bytes + ahead + i);
}

/* How many bytes ahead of a row lines are asked for: those of `rows` rows at least. */
INLINE int64_t bytes_ahead(const struct stored t, int64_t elements, int64_t rows, int64_t row_bytes)
{
    return fv_max(AHEAD / fv_max(elements / t.line * t.bytes, 64) + 1, rows) * row_bytes;
}

#define SUMS (W == 16 ? 16 : 8) /* registers that add up */

INLINE void dots_step(const struct stored t, int64_t ahead, const int M, const int K, int64_t p, int64_t count,
                      const float *q, int64_t q_row, const char *k, int64_t k_bytes, vf s[SUMS])
{
    vf x[SUMS];

    UNROLL
    for (int n = 0; n < K; n++) {
        for (int64_t i = 0; i < t.together * W; i += t.line)
            ask(t, k + n * k_bytes, p + i, ahead);
        x[n] = t.read(k + n * k_bytes, p, count);
    }
    UNROLL
    for (int m = 0; m < M; m++) {
        vf y = load(q + m * q_row + p / t.together);
        UNROLL
        for (int n = 0; n < K; n++)
            s[m * K + n] = t.multiply(x[n], y, s[m * K + n]);
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

/* Keys at a time: as many as registers for M rows allow. */
#define TOGETHER(M) (SUMS / (M) >= 16 ? 16 : SUMS / (M) >= 8 ? 8 : SUMS / (M) >= 4 ? 4 : SUMS / (M) >= 2 ? 2 : 1)

INLINE void dots_rows(const struct stored t, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                      int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    int64_t ahead = bytes_ahead(t, d, 1, k_bytes);

    for (; keys >= TOGETHER(M); keys -= TOGETHER(M), k += TOGETHER(M) * k_bytes, out += TOGETHER(M))
        dots_of(t, ahead, M, TOGETHER(M), d, q, q_row, k, k_bytes, out, out_row);
    for (; keys > 0; keys--, k += k_bytes, out++)
        dots_of(t, ahead, M, 1, d, q, q_row, k, k_bytes, out, out_row);
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
            if (!t.block || C * W % 32 != 0)
                x[c] = t.two(v, next, column + c * W, count);
            else if (c * W % 32 == 0) /* columns are whole blocks */
                t.block(v, column + c * W, x + c);
        }
        UNROLL
        for (int m = 0; m < M; m++) {
            vf weight = splat(p[m * p_row]);
            UNROLL
            for (int c = 0; c < C; c++)
                s[m * C + c] = t.multiply(x[c], weight, s[m * C + c]);
        }
    }
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int c = 0; c < C; c++)
            store(o + m * o_row + column + c * W, s[m * C + c]);
    }
}

/* Columns at a time. */
#define COLUMNS(M) (TOGETHER(M) > 8 ? 8 : TOGETHER(M))

INLINE void add_rows(const struct stored t, const int M, int64_t columns, const float *p, int64_t p_row, const char *v,
                     int64_t v_bytes, int64_t keys, float *o, int64_t o_row)
{
    int64_t ahead = bytes_ahead(t, columns, ADD_KEYS, v_bytes), count;

    for (; keys > 0; keys -= count, p += count / t.together, v += count * v_bytes) {
        int64_t c = 0;
        count = fv_min(keys, ADD_KEYS);
        for (; c + COLUMNS(M) * W <= columns; c += COLUMNS(M) * W)
            add_of(t, ahead, M, COLUMNS(M), c, W, p, p_row, v, v_bytes, count, o, o_row);
        if (COLUMNS(M) > 4 && c + 4 * W <= columns) {
            add_of(t, ahead, M, 4, c, W, p, p_row, v, v_bytes, count, o, o_row);
            c += 4 * W;
        }
        for (; c + W <= columns; c += W)
            add_of(t, ahead, M, 1, c, W, p, p_row, v, v_bytes, count, o, o_row);
        if (c < columns) add_of(t, ahead, M, 1, c, columns - c, p, p_row, v, v_bytes, count, o, o_row);
    }
}

/* function(t, rows, ...), for a constant number of rows */
#define EACH_FEW(function, t, rows, ...)                                                                               \
    switch (rows) {                                                                                                    \
    case 1: function(t, 1, __VA_ARGS__); break;                                                                        \
    case 2: function(t, 2, __VA_ARGS__); break;                                                                        \
    case 3: function(t, 3, __VA_ARGS__); break;                                                                        \
    case 4: function(t, 4, __VA_ARGS__); break;                                                                        \
    case 5: function(t, 5, __VA_ARGS__); break;                                                                        \
    case 6: function(t, 6, __VA_ARGS__); break;                                                                        \
    case 7: function(t, 7, __VA_ARGS__); break;                                                                        \
    default: function(t, 8, __VA_ARGS__); break;                                                                       \
    }
/* Functions of the table. */
#define FEW_DOTS(type, dots, ...)                                                                                      \
    static void dots_##type(int rows, int64_t d, const float *q, int64_t q_row, const void *k, int64_t k_bytes,        \
                            int64_t keys, float *out, int64_t out_row)                                                 \
    {                                                                                                                  \
        const struct stored t = {__VA_ARGS__};                                                                         \
        EACH_FEW(dots, t, rows, d, q, q_row, k, k_bytes, keys, out, out_row)                                           \
    }
#define FEW_ADD(type, ...)                                                                                             \
    static void add_##type(int rows, int64_t columns, const float *p, int64_t p_row, const void *v, int64_t v_bytes,   \
                           int64_t keys, float *o, int64_t o_row)                                                      \
    {                                                                                                                  \
        const struct stored t = {__VA_ARGS__};                                                                         \
        EACH_FEW(add_rows, t, rows, columns, p, p_row, v, v_bytes, keys, o, o_row)                                     \
    }

#endif
