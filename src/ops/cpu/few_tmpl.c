/* Attention of a few rows (decode): keys and values are read once, as they are stored, and each is used for all rows
 * while it is in registers.  Bound by the bytes of keys and values. */
#include "ops/cpu/leaf.h"

#define SUMS (W == 16 ? 16 : 8) /* registers that add up */

/* Elements [index, index + W) of a stored row; with `count` < W only so many are there, the others are 0. */
typedef vf read_fn(const char *row, int64_t index, int64_t count);

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
    return to_float(load_i8((const int8_t *)block + 2 + index % 32)) * splat(half(block));
}

INLINE void dots_step(read_fn *read, const int M, const int K, int64_t p, int64_t count, const float *q, int64_t q_row,
                      const char *k, int64_t k_bytes, vf s[SUMS])
{
    vf x[SUMS];

    UNROLL
    for (int n = 0; n < K; n++)
        x[n] = read(k + n * k_bytes, p, count);
    UNROLL
    for (int m = 0; m < M; m++) {
        vf y = load(q + m * q_row + p);
        UNROLL
        for (int n = 0; n < K; n++)
            s[m * K + n] = x[n] * y + s[m * K + n];
    }
}

/* M rows of q against K keys: out[m * out_row + n] = q_m . k_n. */
INLINE void dots_of(read_fn *read, const int M, const int K, int64_t d, const float *q, int64_t q_row, const char *k,
                    int64_t k_bytes, float *out, int64_t out_row)
{
    vf s[SUMS];
    float all[SUMS];
    int64_t p = 0;

    UNROLL
    for (int n = 0; n < SUMS; n++)
        s[n] = splat(0);
    for (; p + W <= d; p += W)
        dots_step(read, M, K, p, W, q, q_row, k, k_bytes, s);
    if (p < d) dots_step(read, M, K, p, d - p, q, q_row, k, k_bytes, s);
    UNROLL
    for (int n = 0; n < SUMS; n += W)
        store(all + n, sums(s + n));
    UNROLL
    for (int m = 0; m < M; m++)
        memcpy(out + m * out_row, all + m * K, K * sizeof(float));
}

/* o[m * o_row + c] += sum over n of p[m * p_row + n] v_n[c] for C vectors of columns from `column` on, of which `count`
 * are there. */
INLINE void add_of(read_fn *read, const int M, const int C, int64_t column, int64_t count, const float *p,
                   int64_t p_row, const char *v, int64_t v_bytes, int64_t keys, float *o, int64_t o_row)
{
    vf s[SUMS];

    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int c = 0; c < C; c++)
            s[m * C + c] = load(o + m * o_row + column + c * W);
    }
    for (int64_t n = 0; n < keys; n++, v += v_bytes, p++) {
        vf x[SUMS];
        UNROLL
        for (int c = 0; c < C; c++)
            x[c] = read(v, column + c * W, count);
        UNROLL
        for (int m = 0; m < M; m++) {
            vf weight = splat(p[m * p_row]);
            UNROLL
            for (int c = 0; c < C; c++)
                s[m * C + c] = x[c] * weight + s[m * C + c];
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

INLINE void dots_rows(read_fn *read, const int M, int64_t d, const float *q, int64_t q_row, const char *k,
                      int64_t k_bytes, int64_t keys, float *out, int64_t out_row)
{
    for (; keys >= TOGETHER(M); keys -= TOGETHER(M), k += TOGETHER(M) * k_bytes, out += TOGETHER(M))
        dots_of(read, M, TOGETHER(M), d, q, q_row, k, k_bytes, out, out_row);
    for (; keys > 0; keys--, k += k_bytes, out++)
        dots_of(read, M, 1, d, q, q_row, k, k_bytes, out, out_row);
}

INLINE void add_rows(read_fn *read, const int M, int64_t columns, const float *p, int64_t p_row, const char *v,
                     int64_t v_bytes, int64_t keys, float *o, int64_t o_row)
{
    int64_t c = 0;

    for (; c + COLUMNS(M) * W <= columns; c += COLUMNS(M) * W)
        add_of(read, M, COLUMNS(M), c, W, p, p_row, v, v_bytes, keys, o, o_row);
    for (; c + W <= columns; c += W)
        add_of(read, M, 1, c, W, p, p_row, v, v_bytes, keys, o, o_row);
    if (c < columns) add_of(read, M, 1, c, columns - c, p, p_row, v, v_bytes, keys, o, o_row);
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
#define DOTS(M) dots_rows(read, M, d, q, q_row, k, k_bytes, keys, out, out_row)
#define ADD(M) add_rows(read, M, columns, p, p_row, v, v_bytes, keys, o, o_row)
#define STORED_TYPE(type)                                                                                              \
    static void dots_##type(int rows, int64_t d, const float *q, int64_t q_row, const void *k, int64_t k_bytes,        \
                            int64_t keys, float *out, int64_t out_row)                                                 \
    {                                                                                                                  \
        read_fn *const read = read_##type;                                                                             \
        EACH(DOTS)                                                                                                     \
    }                                                                                                                  \
    static void add_##type(int rows, int64_t columns, const float *p, int64_t p_row, const void *v, int64_t v_bytes,   \
                           int64_t keys, float *o, int64_t o_row)                                                      \
    {                                                                                                                  \
        read_fn *const read = read_##type;                                                                             \
        EACH(ADD)                                                                                                      \
    }

STORED_TYPE(f32)
STORED_TYPE(f16)
STORED_TYPE(bf16)
STORED_TYPE(q8_0)

static const struct fv_few_kernels few_table[FV_DTYPE_COUNT] = {
    [FV_F32] = {dots_f32, add_f32},
    [FV_F16] = {dots_f16, add_f16},
    [FV_BF16] = {dots_bf16, add_bf16},
    [FV_Q8_0] = {dots_q8_0, add_q8_0},
};

void LEAF(fill_few)(struct fv_kernels *kernels)
{
    kernels->few = few_table;
}
