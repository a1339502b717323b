/* The leaves of scan.  Chunks of tokens are matrices of rows in memory; rows go `rows` (of the table) at a time and
 * columns tile_columns at a time, so that counts are whole multiples and what pads a matrix is zero. */
#ifndef FV_SCAN_KERNELS_H
#define FV_SCAN_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/* Rows of memory that will soon be wanted, from several tensors: each tile of a product asks for a few of each, so
 * that they come while it multiplies (there are too few in a piece for the machine to see them coming). */
struct fv_scan_ahead {
    const float *at[4];
    int64_t row[4], width[4];
    int64_t left; /* rows */
    int each;     /* rows a tile asks for */
};

/* c [rows, columns] = a b, with a(i, p) = a[i * a_row + p * a_step], one of the two strides 1, and b(p, j) = b[p *
 * b_row
 * + j]. */
struct fv_scan_product {
    int64_t rows, columns, k;
    const float *a;
    int64_t a_row, a_step;
    const float *b;
    int64_t b_row;
    float *c;
    int64_t c_row;
    const float *times; /* the product is multiplied by these, elementwise; NULL: by 1 */
    int64_t times_row;
    bool triangle; /* only columns j >= i are wanted; others may stay */
    /* c stays and the product is added: c(i, j) is first multiplied by keep[i * keep_step] and keep_columns[j] */
    const float *keep;
    int64_t keep_step;
    const float *keep_columns;
    struct fv_scan_ahead *ahead; /* may be NULL */
};

/* A triangular product, or the solution of a triangular system.  Row i begins as scale_i (a b + base)_i; for
 * j = 0..i (j < i to solve) it is multiplied by decay_j and takes in g(i, j) u_j, with g(i, j) = g[i * g_row + j *
 * g_step].  Strides may be negative, `step` (1 or -1) is that of scale and beta: then rows run from the last token.
 * To solve, x_i = base_i - row i with base left out of the beginning, and u_i = beta_i x_i. */
struct fv_scan_rows {
    int64_t rows, columns;
    int64_t k;
    const float *a; /* NULL: no product */
    int64_t a_row, a_step;
    const float *b;
    int64_t b_row;
    const float *base; /* NULL: 0 */
    int64_t base_row;
    const float *scale; /* NULL: 1 */
    const float *decay; /* NULL: 1 */
    int64_t decay_row;
    const float *g;
    int64_t g_row, g_step;
    float *u;
    int64_t u_row;
    float *c; /* the rows; x to solve */
    int64_t c_row;
    bool add, solve;
    const float *beta;
    int64_t step;
    struct fv_scan_ahead *ahead; /* may be NULL */
};

/* With decays of their own for channels d: out[j * lanes + t] = sum_d x_t[d] k_j[d] prod_{j < i <= t} decay_i[d] for
 * j <= t (j < t if `strict`), 0 for other t < tokens; x [depth, lanes] then becomes x_t prod_{i <= t} decay_i.  Factors
 * are multiplied one by one, so nothing overflows whatever the decays are. */
struct fv_scan_pairs {
    int64_t tokens, depth, lanes;
    float *x;
    const float *k, *decay;
    int64_t row; /* of k and decay */
    float *out;
    bool strict;
};

/* One token of a recurrence over a state [keys, columns]: it decays by decay[d * decay_step] (NULL: 1) and
 * value_decay[c] (NULL: 1), takes in beta k (v - [delta] state^T k)^T, and is read: o = state^T q. */
struct fv_scan_step {
    int64_t keys, columns;
    const float *from; /* the state before; NULL: 0 */
    int64_t from_row;
    float *to; /* and after; may be the same */
    int64_t to_row;
    const float *q, *k, *v;
    float *o;
    const float *decay;
    int64_t decay_step;
    const float *value_decay;
    float beta;
    bool delta;
};

struct fv_scan_kernels {
    int rows;
    int step_columns; /* a step goes by so many columns; calls cut at their multiples give the bits of the whole */
    void (*product)(const struct fv_scan_product *p);
    void (*triangle)(const struct fv_scan_rows *p);
    void (*pairs)(const struct fv_scan_pairs *p);
    void (*step)(const struct fv_scan_step *s);
    /* out [rows, columns] = scale_r (NULL: 1) in [count, width], zeros beyond */
    void (*gather)(int64_t count, int64_t width, const float *in, int64_t in_row, const float *scale, int64_t rows,
                   int64_t columns, float *out, int64_t out_row);
    /* x_r *= scale_r (if given), then by the product of the decays of all later rows, or of the rows up to its own;
     * `total` [columns] (if given) receives the product of all.  decay NULL: 1. */
    void (*fade)(int64_t rows, int64_t columns, float *x, int64_t x_row, const float *scale, const float *decay,
                 int64_t decay_row, bool upto, float *total);
    /* out[j * lanes + t] = product of decays j+1..t for j <= t, 0 for other t < lanes */
    void (*between)(int64_t rows, int64_t lanes, const float *decay, float *out);
    /* to[c] += x[c] y[c] - z[c] w[c]; z may be NULL */
    void (*add_products)(int64_t columns, const float *x, const float *y, const float *z, const float *w, float *to);
};

#endif
