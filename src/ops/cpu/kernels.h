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

/* One token of a recurrence over state [keys, width], width a multiple of tile_columns: the state decays by
 * decay[d * decay_step] (NULL: 1) and value_decay[c] (NULL: 1), takes in beta k (v - [delta] state^T k)^T, and is read:
 * o = state^T q. */
struct fv_scan_step {
    int64_t keys, width;
    float *state;
    const float *q, *k, *v; /* v, o: [width] */
    float *o;
    const float *decay;
    int64_t decay_step;
    const float *value_decay;
    float beta;
    bool delta;
};

/* The softmax of a key tile: logits s [rows, FV_KEY_TILE] of keys [from, to) (multiples of half a tile) become weights
 * exp(s - maximum), 0 where bits[r % tokens] hides a key; with `pairs` pairs of bf16, a row's in its first half.
 * maximum [rows], total [rows, width] and o [rows, o_row] (o_row a multiple of width) are brought up to date. */
struct fv_softmax_step {
    int rows, tokens, from, to;
    const uint64_t *bits;
    float *s, *maximum, *total, *o;
    int64_t o_row;
    bool pairs;
};

/* Attention of up to 8 rows with rows of k and v as they are stored:
 * out[m * out_row + n] = q_m . k_n, q padded with 0 to whole vectors; and
 * o[m * o_row + c] += sum over n of p[m * p_row + n] v_n[c], rows of o padded to whole vectors. */
struct fv_few_kernels {
    void (*dots)(int rows, int64_t d, const float *q, int64_t q_row, const void *k, int64_t k_bytes, int64_t keys,
                 float *out, int64_t out_row);
    void (*add)(int rows, int64_t columns, const float *p, int64_t p_row, const void *v, int64_t v_bytes, int64_t keys,
                float *o, int64_t o_row);
};

struct fv_kernels {
    int width; /* floats in a vector */
    int tile_rows, tile_columns;
    fv_tile_fn *tile;
    /* The same over pairs of bf16 in the place of floats (k counts pairs); NULL if there is none. */
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
    void (*softmax_tile)(const struct fv_softmax_step *step);
    void (*curve)(int64_t n, float *s, float gain, float cap); /* s += gain |s|; cap tanh(s / cap) if cap > 0 */
    const struct fv_few_kernels *few;                          /* [FV_DTYPE_COUNT]: f32, f16, bf16, q8_0 */
    /* The same where q and p are pairs of bf16, for 4 to 8 rows; NULL where tile_bf16 is. */
    const struct fv_few_kernels *few_pairs;
    bool (*finite)(int64_t n, const float *x);
    /* Pairs of bf16 (n a multiple of 2 width; NULL where tile_bf16 is): out[i] = (even[i], odd[i]); out[i] = (x[2i],
     * x[2i + 1]), out may be x. */
    void (*pack_pairs)(int64_t n, const float *even, const float *odd, float *out);
    void (*join_pairs)(int64_t n, const float *x, float *out);
    void (*scan_step)(const struct fv_scan_step *step);
};

/* The kernels for the context's instruction set. */
const struct fv_kernels *fv_kernels_of(const fv_ctx *ctx);

/* Row elements [from, from + count) of any dtype with stride 1, to f32. */
void fv_kernels_load(const struct fv_kernels *kernels, fv_dtype dtype, const void *row, int64_t from, int64_t count,
                     float *out);

/* Runs items on the pool, or in place if `work` (about one per flop or byte) would not pay for waking threads. */
void fv_cpu_run(fv_ctx *ctx, int64_t count, double work, fv_item_fn *item, void *user);

#endif
