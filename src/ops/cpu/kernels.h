/* The leaves of the CPU backend: what is written once as templates over the vector width (*_tmpl.c) and compiled once
 * per instruction set (leaf.h).  Drivers (gemm.c, attend.c, ...) are compiled once and call through this table. */
#ifndef FV_KERNELS_H
#define FV_KERNELS_H

#include "ops/ops.h"

enum {
    FV_KEY_TILE = 64,      /* keys of an attention tile: one visibility word */
    FV_DOT_ROWS = 4,       /* activation rows a weight is applied to while it is in registers */
    FV_MAX_TILE_ROWS = 16, /* bounds for tile_rows and tile_columns of any instruction set */
    FV_MAX_TILE_COLUMNS = 64,
};

/* c[rows x tile_columns] (+)= a b:  a(i, p) = a[i * a_row + p * a_step], b(p, j) = b[p * b_row + j]; 1 <= rows <=
 * tile_rows; either a_row is 1 (packed), or a_row is FV_KEY_TILE and a_step 1 (weights of attention).  The sum of an
 * element runs over p in ascending order, whatever `rows` is. */
typedef void fv_tile_fn(int rows, int64_t k, const float *a, int64_t a_row, int64_t a_step, const float *b,
                        int64_t b_row, float *c, int64_t c_row, bool add);

/* out[i * out_row + r] = x_i . w_r for `rows` rows of weights and m <= FV_DOT_ROWS rows of x.  For block types x_sums
 * [m, k/32] holds the sums of 32 elements of x. */
typedef void fv_dot_fn(int m, int64_t k, const float *x, int64_t x_row, const float *x_sums, const void *w,
                       int64_t w_row_bytes, int64_t rows, float *out, int64_t out_row);

/* out[i] = element `from` + i of a row; `from` and `count` are whole blocks. */
typedef void fv_load_fn(const void *row, int64_t from, int64_t count, float *out);

struct fv_kernels {
    int width; /* floats in a vector */
    int tile_rows, tile_columns;
    fv_tile_fn *tile;
    /* The same over pairs of bf16 in the place of floats (k counts pairs), packed only; NULL if there is none. */
    fv_tile_fn *tile_bf16;
    /* out[p * out_row + r] = in[r * in_row + p], r < rows <= width, p < count.  May write width - rows floats past a
     * row of out, so rows of out are written in ascending order and the buffer has FV_MAX_TILE_COLUMNS to spare. */
    void (*transpose)(const float *in, int64_t in_row, int rows, int64_t count, float *out, int64_t out_row);
    void (*to_bf16)(const float *in, int64_t count, uint16_t *out); /* to nearest even */
    void (*to_f16)(const float *in, int64_t count, uint16_t *out);
    fv_load_fn *const *load; /* [FV_DTYPE_COUNT], NULL where there is none */
    fv_dot_fn *const *dot;   /* [FV_DTYPE_COUNT] */
    /* Rows of n floats.  y_step 0 repeats y[0]; y NULL stands for alpha.  false: no fast way for this op. */
    bool (*map)(fv_map op, int64_t n, const float *x, const float *y, int64_t y_step, float alpha, float beta,
                float *out);
    float (*sum)(int64_t n, const float *x);
    float (*square)(int64_t n, const float *x, float mean); /* sum of (x - mean)^2 */
    /* out = (x - mean) * scale * weight + bias; weight and bias may be NULL */
    void (*affine)(int64_t n, const float *x, float mean, float scale, const float *weight, const float *bias,
                   float *out);
    float (*largest)(int64_t n, const float *x);
    float (*exp)(int64_t n, const float *x, float scale, float shift, float *out); /* exp(scale x - shift), its sum */
    /* turns pairs (x[c], x[half + c]) */
    void (*rotate)(int64_t half, const float *x, const float *cosine, const float *sine, float *out);
    void (*rotate_pairs)(int64_t half, const float *x, const float *cosine, const float *sine, float *out);
    /* s [rows, FV_KEY_TILE] becomes exp(s - maximum), 0 where bits[r % tokens] hides a key; maximum, total [rows] and o
     * [rows, o_row] (o_row a multiple of width) are brought up to date. */
    void (*online_softmax)(int rows, int tokens, const uint64_t *bits, float *s, float *maximum, float *total, float *o,
                           int64_t o_row);
    const struct fv_scan_kernels *scan;       /* scan_kernels.h */
    const struct fv_weights_kernels *weights; /* weights_kernels.h */
};

/* The kernels for the context's instruction set. */
const struct fv_kernels *fv_kernels_of(const fv_ctx *ctx);

/* Row elements [from, from + count) of any dtype with stride 1, to f32. */
void fv_kernels_load(const struct fv_kernels *kernels, fv_dtype dtype, const void *row, int64_t from, int64_t count,
                     float *out);

/* Runs items on the pool, or in place if `work` (about one per flop or byte) would not pay for waking threads. */
void fv_cpu_run(fv_ctx *ctx, int64_t count, double work, fv_item_fn *item, void *user);

#endif
