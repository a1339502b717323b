/* The leaves of the CPU backend: what is written once as templates over the vector width (*_tmpl.c) and compiled once
 * per instruction set (leaf.h).  Drivers (gemm.c, attend.c, ...) are compiled once and call through this table. */
#ifndef FV_KERNELS_H
#define FV_KERNELS_H

#include "ops/ops.h"
#include "ops/packed.h"

enum {
    FV_KEY_TILE = 64,      /* keys of an attention tile: one visibility word */
    FV_FEW_LINEAR = 7,     /* rows of x up to which integers are faster than unpacking packed weights */
    FV_DOT_ROWS = 4,       /* activation rows a weight is applied to while it is in registers */
    FV_MAX_TILE_ROWS = 16, /* bounds for tile_rows and tile_columns of any instruction set */
    FV_MAX_TILE_COLUMNS = 64,
    FV_MATCH_ROWS = 8, /* rows matched at once */
};

/* Entries of the buffers that the selection of k works in. */
#define FV_SELECT_ROOM(k) (2 * (k) + 192)

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

/* `count` floats, in whole blocks, to a row of blocks, bit for bit as fv_blocks_store does. */
typedef void fv_store_fn(const float *in, int64_t count, void *row);

/* Rows of activations as integers: x = scale q, a scale for every 32 columns, and the sums of q over every 16. */
struct fv_activations {
    int64_t columns;
    int16_t *q;   /* [m, columns] */
    float *scale; /* [m, columns / 32] */
    int32_t *sum; /* [m, columns / 16] */
};

/* out[i * out_row + r] = x_(row + i) . w_r for 1 <= rows <= FV_DOT_ROWS rows of x and `groups` groups of weights. */
typedef void fv_packed_dot_fn(const struct fv_activations *x, int64_t row, int rows, const fv_packed *w, int64_t group,
                              int64_t groups, float *out, int64_t out_row);

/* FV_PACK_ROWS rows of blocks as a packed group, all of its bytes but those that round it up. */
typedef void fv_pack_fn(const uint8_t *rows, int64_t row_bytes, int64_t columns, uint8_t *to);

/* All columns of a group as panels of b (pairs: of bf16); a panel has tile_columns columns and `panel` floats. */
typedef void fv_unpack_fn(bool pairs, const fv_packed *w, int64_t group, float *out, int64_t panel);

/* Coefficients of a soft-cap as softmax_tile takes it: log2 e cap tanh(x / cap) by the squares of x (attend_tmpl.c). */
struct fv_cap {
    float near[6], above[4], below[3], far_above[5], far_below[5], near_end, middle_end, end;
};

/* The softmax of a key tile: logits s [rows, FV_KEY_TILE] of keys [from, to) (multiples of half a tile) become weights
 * exp(s - maximum), 0 where bits[(token + r) % tokens] hides a key; with `pairs` pairs of bf16, a row's in its first
 * half. maximum [rows], total [rows, width] and o [rows, o_row] (o_row a multiple of width) are brought up to date.
 * Before that s += gain |s|; s is capped; s += bias[r * bias_row + n] + shift[r * shift_row].  With `steps` weights end
 * as whole numbers of them, and maxima are those of the logits so far (else they may be a little lower). */
struct fv_softmax_step {
    int rows, token, tokens, from, to;
    const uint64_t *bits;
    float *s, *maximum, *total, *o;
    int64_t o_row;
    bool pairs;
    float gain;
    const struct fv_cap *cap;  /* NULL: none */
    const float *bias, *shift; /* NULL: none */
    int64_t bias_row, shift_row;
    int64_t ask; /* floats from a row's bias to what will be needed soon; 0: nothing */
    float steps; /* 0: none */
};

/* Attention of up to 8 rows with rows of k and v as they are stored:
 * out[m * out_row + n] = q_m . k_n, q padded with 0 to two whole vectors; and
 * o[m * o_row + c] += sum over n of p[m * p_row + n] v_n[c], rows of o padded to two whole vectors. */
struct fv_few_kernels {
    void (*dots)(int rows, int64_t d, const float *q, int64_t q_row, const void *k, int64_t k_bytes, int64_t keys,
                 float *out, int64_t out_row);
    void (*add)(int rows, int64_t columns, const float *p, int64_t p_row, const void *v, int64_t v_bytes, int64_t keys,
                float *o, int64_t o_row);
    void (*query)(int64_t d, const float *q, float *out); /* a row of q as dots takes it; NULL: as it is */
    bool pairs;                                           /* p are pairs of bf16, those of odd keys in high halves */
    int dots_rows, add_rows;                              /* from how many rows on they pay */
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
    void (*transpose_rows)(const float *const *in, int rows, int64_t count, float *out, int64_t out_row); /* in[r][p] */
    void (*to_bf16)(const float *in, int64_t count, uint16_t *out); /* to nearest even */
    void (*to_f16)(const float *in, int64_t count, uint16_t *out);
    fv_load_fn *const *load;   /* [FV_DTYPE_COUNT], NULL where there is none */
    fv_store_fn *const *store; /* [FV_DTYPE_COUNT], NULL where there is none */
    fv_dot_fn *const *dot;     /* [FV_DTYPE_COUNT] */
    void (*to_words)(const float *x, int64_t columns, int16_t *q, float *scale, int32_t *sums); /* one row */
    fv_pack_fn *const *pack;             /* [FV_DTYPE_COUNT], NULL where there is none */
    fv_packed_dot_fn *const *dot_packed; /* [FV_DTYPE_COUNT] */
    fv_unpack_fn *const *unpack;         /* [FV_DTYPE_COUNT] */
    /* Rows of n floats.  y_step 0 repeats y[0]; y NULL stands for alpha.  false: no fast way for this op. */
    bool (*map)(fv_map op, int64_t n, const float *x, const float *y, int64_t y_step, float alpha, float beta,
                float *out);
    float (*sum)(int64_t n, const float *x);
    float (*square)(int64_t n, const float *x, float mean); /* sum of (x - mean)^2 */
    /* out = x + scale y [* weight]; returns the sum of out^2 */
    float (*add)(int64_t n, const float *x, const float *y, float scale, const float *weight, float *out);
    /* out = (x - mean) * scale * weight + bias; weight and bias may be NULL */
    void (*affine)(int64_t n, const float *x, float mean, float scale, const float *weight, const float *bias,
                   float *out);
    float (*largest)(int64_t n, const float *x);
    float (*exp)(int64_t n, const float *x, float scale, float shift, float *out); /* exp(scale x - shift), its sum */
    /* magnitude times cosine and sine of position * frequency; all three have room for half rounded up to width */
    void (*angles)(int64_t half, double position, const double *frequency, float magnitude, float *cosine, float *sine);
    /* turns pairs (x[c], x[half + c]) */
    void (*rotate)(int64_t half, const float *x, const float *cosine, const float *sine, float *out);
    void (*rotate_pairs)(int64_t half, const float *x, const float *cosine, const float *sine, float *out);
    /* out [n] = factor * the sum, or the largest, of `rows` rows, and of out itself with `add` */
    void (*reduce)(fv_pool_kind kind, int64_t rows, int64_t n, const float *x, int64_t x_row, bool add, float factor,
                   float *out);
    /* out [n] (+)= sum of weights[r] * rows[r] */
    void (*combine)(int64_t terms, const float *const *rows, const float *weights, int64_t n, bool add, float *out);
    /* out row r [n] = totals and the sums of rows 0..r of x (0..r-1 if `exclusive`), added up as doubles; rows may go
     * backwards.  totals, with room for whole vectors, takes in all rows. */
    void (*add_up)(int64_t rows, int64_t n, const float *x, int64_t x_row, bool exclusive, float *out, int64_t out_row,
                   double *totals);
    /* out [n] += sum over taps t < count of taps[t] * in[offset[t] + i]; may read whole vectors behind the last */
    void (*convolve)(int64_t n, int64_t count, const int64_t *offset, const float *in, const float *taps, float *out);
    /* out [n] = bias + sum over a kernel of taps[y * tap_row + x * n + i] * in[y * in_row + x * in_step + i] */
    void (*convolve_channels)(int64_t n, int64_t kh, int64_t kw, const float *in, int64_t in_row, int64_t in_step,
                              const float *taps, int64_t tap_row, const float *bias, float *out);
    void (*softmax_tile)(const struct fv_softmax_step *step);
    bool (*scale_cap)(bool pairs, float softcap, struct fv_cap *cap); /* false: it is too large or too small */
    void (*curve)(int64_t n, float *s, float gain, float cap);        /* s += gain |s|; cap tanh(s / cap) if cap > 0 */
    const struct fv_few_kernels *few;                                 /* [FV_DTYPE_COUNT], of what rows are stored as */
    /* The same where q and p may be rounded to 16 bits; NULL if there is none. */
    const struct fv_few_kernels *few_short;
    /* s[r * FV_KEY_TILE + n] += bias[r * bias_row + n], n < count <= FV_KEY_TILE */
    void (*add_rows)(int rows, int count, float *s, const float *bias, int64_t bias_row);
    /* to[r * FV_KEY_TILE + n] = bias[r * bias_row + n] + shift[r * shift_row], n < count <= FV_KEY_TILE */
    void (*shift_rows)(int rows, int count, const float *bias, int64_t bias_row, const float *shift, int64_t shift_row,
                       float *to);
    /* The same with bias[r][n] + *shift[r], rows that lie anywhere; left out where bias[r] is NULL. */
    void (*place_rows)(int rows, int count, const float *const *bias, const float *const *shift, float *to);
    /* Pairs of bf16 (n a multiple of 2 width; NULL where tile_bf16 is): out[i] = (even[i], odd[i]); out[i] = (x[2i],
     * x[2i + 1]), out may be x. */
    void (*pack_pairs)(int64_t n, const float *even, const float *odd, float *out);
    void (*join_pairs)(int64_t n, const float *x, float *out);
    /* Rows of n floats, or of n bf16 (NULL where tile_bf16 is), in panels of tile_columns columns, `panel` floats
     * apart; two rows of bf16 become one of pairs, a last odd one with 0.  Whether none is NaN or infinite. */
    bool (*panel_rows)(int count, int64_t n, const void *const *row, int64_t panel, float *out);
    bool (*panel_pairs)(int count, int64_t n, const void *const *row, int64_t panel, float *out);
    /* The places of the k largest of the x that exceed `above`, ascending, of equal ones the first; their keys, which
     * order as the scores do.  Both have FV_SELECT_ROOM(k).  Returns how many there are. */
    int64_t (*select)(int64_t n, const float *x, int64_t k, float above, int32_t *keys, int32_t *index);
    /* out[n] = the largest product of row n < FV_MATCH_ROWS with a column of x, which lies in panels of `width` columns
     * [panels, length, width] */
    void (*match)(int64_t panels, int64_t length, const float *x, const float *const *row, float *out);
    const struct fv_scan_kernels *scan;       /* scan_kernels.h */
    const struct fv_weights_kernels *weights; /* weights_kernels.h */
};

/* The kernels for the context's instruction set. */
const struct fv_kernels *fv_kernels_of(const fv_ctx *ctx);

/* Row elements [from, from + count) of any dtype with stride 1, to f32. */
void fv_kernels_load(const struct fv_kernels *kernels, fv_dtype dtype, const void *row, int64_t from, int64_t count,
                     float *out);

/* Asks for part n of `parts` of the floats at p: the next panel while tiles of this one are computed. */
static inline void fv_kernels_ahead(const float *p, int64_t floats, int64_t n, int64_t parts)
{
    for (int64_t i = n * floats / parts; i < (n + 1) * floats / parts; i += 64 / (int64_t)sizeof *p)
        __builtin_prefetch(p + i, 0, 2); /* into the second level */
}

/* Runs items on the pool, or in place if `work` (about one per flop or byte) would not pay for waking threads. */
void fv_cpu_run(fv_ctx *ctx, int64_t count, double work, fv_item_fn *item, void *user);

#endif
