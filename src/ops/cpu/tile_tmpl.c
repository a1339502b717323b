/* The micro-kernel, and what brings operands into its layout. */
#include "ops/cpu/leaf.h"

enum { AHEAD = 32 }; /* rows of b asked for early: a panel of it is larger than the first-level cache */

typedef vf multiply_add_fn(vf a, vf b, vf c);

INLINE vf multiply_add(vf a, vf b, vf c)
{
    return a * b + c;
}

/* Bound: 2 rows * TILE_COLUMNS * k flops; loads are half of what the ports could do. */
INLINE void tile_of(const int rows, multiply_add_fn *step, int64_t k, const float *a, int64_t a_row, int64_t a_step,
                    const float *b, int64_t b_row, float *c, int64_t c_row, bool add)
{
    vf s[TILE_ROWS][TILE_VECTORS];

    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++)
            s[i][v] = splat(0);
    }
    for (int64_t p = 0; p < k; p++, a += a_step, b += b_row) {
        vf column[TILE_VECTORS];
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            __builtin_prefetch(b + AHEAD * b_row + v * W);
            column[v] = load(b + v * W);
        }
        UNROLL
        for (int i = 0; i < rows; i++) {
            vf x = splat(a[i * a_row]);
            UNROLL
            for (int v = 0; v < TILE_VECTORS; v++)
                s[i][v] = step(x, column[v], s[i][v]);
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            float *to = c + i * c_row + v * W;
            store(to, add ? load(to) + s[i][v] : s[i][v]);
        }
    }
}

/* Strides between rows are constants to the compiler: 1 for packed rows, FV_KEY_TILE for attention's weights. */
#define PACKED_CASE(n, step)                                                                                           \
    case n:                                                                                                            \
        tile_of(n, step, k, a, 1, a_step, b, b_row, c, c_row, add);                                                    \
        break;
#define WEIGHTS_CASE(n, step)                                                                                          \
    case n:                                                                                                            \
        tile_of(n, step, k, a, FV_KEY_TILE, 1, b, b_row, c, c_row, add);                                               \
        break;
#define CASES_4(CASE, step) CASE(1, step) CASE(2, step) CASE(3, step) CASE(4, step)
#define CASES_6(CASE, step) CASES_4(CASE, step) CASE(5, step) CASE(6, step)
#define CASES_14(CASE, step)                                                                                           \
    CASES_6(CASE, step)                                                                                                \
    CASE(7, step) CASE(8, step) CASE(9, step) CASE(10, step) CASE(11, step) CASE(12, step) CASE(13, step) CASE(14, step)
#if TILE_ROWS == 14
#define CASES CASES_14
#elif TILE_ROWS == 6
#define CASES CASES_6
#else
#define CASES CASES_4
#endif
#define TILE(name, CASE, step)                                                                                         \
    static void name(int rows, int64_t k, const float *a, int64_t a_step, const float *b, int64_t b_row, float *c,     \
                     int64_t c_row, bool add)                                                                          \
    {                                                                                                                  \
        switch (rows) {                                                                                                \
            CASES(CASE, step)                                                                                          \
        }                                                                                                              \
    }

TILE(tile_packed, PACKED_CASE, multiply_add)

static void tile_weights(int rows, int64_t k, const float *a, const float *b, int64_t b_row, float *c, int64_t c_row,
                         bool add)
{
    switch (rows) {
        CASES(WEIGHTS_CASE, multiply_add)
    }
}

static void tile_f32(int rows, int64_t k, const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row,
                     float *c, int64_t c_row, bool add)
{
    if (a_row == 1)
        tile_packed(rows, k, a, a_step, b, b_row, c, c_row, add);
    else
        tile_weights(rows, k, a, b, b_row, c, c_row, add);
}

#if defined(__AVX512BF16__)
INLINE vf multiply_add_pairs(vf a, vf b, vf c)
{
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

TILE(tile_packed_pairs, PACKED_CASE, multiply_add_pairs)

static void tile_weights_pairs(int rows, int64_t k, const float *a, const float *b, int64_t b_row, float *c,
                               int64_t c_row, bool add)
{
    switch (rows) {
        CASES(WEIGHTS_CASE, multiply_add_pairs)
    }
}

static void tile_pairs(int rows, int64_t k, const float *a, int64_t a_row, int64_t a_step, const float *b,
                       int64_t b_row, float *c, int64_t c_row, bool add)
{
    if (a_row == 1)
        tile_packed_pairs(rows, k, a, a_step, b, b_row, c, c_row, add);
    else
        tile_weights_pairs(rows, k, a, b, b_row, c, c_row, add);
}
#endif

/* ---- transposing ----------------------------------------------------------------------------------------------- */

/* Exchanges the blocks of `d` lanes off the diagonal of rows i and i + d; log2 W such stages transpose. */
#define SWAP(i, d, low, high)                                                                                          \
    do {                                                                                                               \
        vf swap_a_ = x[i], swap_b_ = x[(i) + (d)];                                                                     \
        x[i] = __builtin_shufflevector(swap_a_, swap_b_, low);                                                         \
        x[(i) + (d)] = __builtin_shufflevector(swap_a_, swap_b_, high);                                                \
    } while (0)
#define LIST(...) __VA_ARGS__
#define STAGE(d, low, high)                                                                                            \
    UNROLL                                                                                                             \
    for (int i = 0; i < W; i++)                                                                                        \
        if (!(i & (d))) SWAP(i, d, LIST(low), LIST(high))

INLINE void transpose_square(vf x[W])
{
#if W == 16
#define S1L 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define S1H 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define S2L 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define S2H 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define S4L 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define S4H 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define S8L 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define S8H 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
    STAGE(8, LIST(S8L), LIST(S8H));
    STAGE(4, LIST(S4L), LIST(S4H));
    STAGE(2, LIST(S2L), LIST(S2H));
    STAGE(1, LIST(S1L), LIST(S1H));
#elif W == 8
#define S1L 0, 8, 2, 10, 4, 12, 6, 14
#define S1H 1, 9, 3, 11, 5, 13, 7, 15
#define S2L 0, 1, 8, 9, 4, 5, 12, 13
#define S2H 2, 3, 10, 11, 6, 7, 14, 15
#define S4L 0, 1, 2, 3, 8, 9, 10, 11
#define S4H 4, 5, 6, 7, 12, 13, 14, 15
    STAGE(4, LIST(S4L), LIST(S4H));
    STAGE(2, LIST(S2L), LIST(S2H));
    STAGE(1, LIST(S1L), LIST(S1H));
#else
#define S1L 0, 4, 2, 6
#define S1H 1, 5, 3, 7
#define S2L 0, 1, 4, 5
#define S2H 2, 3, 6, 7
    STAGE(2, LIST(S2L), LIST(S2H));
    STAGE(1, LIST(S1L), LIST(S1H));
#endif
}

static void transpose_rows(const float *const *in, int rows, int64_t count, float *out, int64_t out_row)
{
    vf x[W];

    for (int64_t p = 0; p < count; p += W) {
        int64_t part = count - p;
        if (part >= W) {
            UNROLL
            for (int r = 0; r < W; r++)
                x[r] = r < rows ? load(in[r] + p) : splat(0);
        } else {
            UNROLL
            for (int r = 0; r < W; r++)
                x[r] = r < rows ? load_part(in[r] + p, part, 0) : splat(0);
        }
        transpose_square(x);
        if (part >= W) {
            UNROLL
            for (int r = 0; r < W; r++)
                store(out + (p + r) * out_row, x[r]);
        } else {
            for (int r = 0; r < part; r++)
                store(out + (p + r) * out_row, x[r]);
        }
    }
}

static void transpose(const float *in, int64_t in_row, int rows, int64_t count, float *out, int64_t out_row)
{
    const float *row[W];

    for (int r = 0; r < W; r++)
        row[r] = in + (r < rows ? r : 0) * in_row;
    transpose_rows(row, rows, count, out, out_row);
}

void LEAF(fill_tile)(struct fv_kernels *kernels)
{
    kernels->tile_rows = TILE_ROWS;
    kernels->tile_columns = TILE_COLUMNS;
    kernels->tile = tile_f32;
#if defined(__AVX512BF16__)
    kernels->tile_bf16 = tile_pairs;
#endif
    kernels->transpose = transpose;
    kernels->transpose_rows = transpose_rows;
}
