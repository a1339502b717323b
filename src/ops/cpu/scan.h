/* What scan and its gradients have in common: chunks of a linear recurrence.  With S the state before a chunk, a_i the
 * decay of token i (of a head, a token, a key channel or a value channel), and tokens j <= t of the chunk:
 *   u_j = beta_j x_j,   x_j = v_j - [delta] (S^T k_j decayed to j + sum_{l<j} KK[j,l] u_l),
 *   sums_t = S^T q_t decayed to t + sum_{j<=t} QK[t,j] u_j,   S behind = S decayed + sum_j (k_j decayed on) u_j^T,
 * where QK[t,j] = q_t . k_j prod_{j<i<=t} a_i, channel by channel if those decay apart, and KK with k in the place of
 * q. The system for u is unit lower triangular; it is solved row by row in registers. */
#ifndef FV_CPU_SCAN_H
#define FV_CPU_SCAN_H

#include <math.h>

#include "ops/cpu/kernels.h"
#include "ops/cpu/scan_kernels.h"

enum { FV_CHUNK_FROM = 8, FV_LONGEST_CHUNK = 128 }; /* tokens from which chunks pay */

/* Of one thread.  A chunk's rows are padded with zeros to whole micro-tiles; [tokens] means so many rows. */
struct fv_scan_memory {
    float *state;                 /* [depth, state_row] */
    float *q_columns, *k_columns; /* [depth, chunk]; with decays per key decayed from the chunk's first token on */
    float *k;                     /* [tokens, depth] */
    float *v, *x, *u, *o;         /* [tokens, width]; v and x: with delta */
    float *keys, *values;         /* k and u, or the caller's rows */
    int64_t keys_row, values_row;
    float *qk, *kk;              /* [chunk, chunk]: element (j, t) */
    float *decay;                /* [tokens + 1, channels], the last ones; or [tokens] */
    float *between;              /* [chunk, chunk]: element (j, t) = product of decays of a token in j+1..t, 0 above;
                                  * with `powers` element chunk-1 + n is a factor's n-th power, 0 for n < 0 */
    float *within, *left, *beta; /* [tokens]: decay from the chunk's first token on, and to its last */
    float *total;                /* [channels] of the whole chunk, or one number */
    struct fv_scan_ahead ahead;  /* what the next chunk needs */
    int64_t head;                /* `between` is that of this head, -1: of none */
};

struct fv_scan {
    const fv_scan_args *args;
    const struct fv_kernels *kernels;
    const struct fv_scan_kernels *leaves;
    struct fv_scan_memory *memory; /* per thread */
    int64_t D, Dv;
    int64_t depth, width; /* D, and Dv with one column for the normaliser, in whole micro-tiles */
    int64_t state_row, chunk;
    bool by_key, by_value, scalar; /* decays */
    bool powers;                   /* no tokens of a head differ in a decay of their own */
    bool lend_keys, lend_values;   /* the caller's rows of k, and of v as u, may be read where they lie */
};

/* Fills in a call's scan and takes its memory. */
fv_status fv_scan_begin(fv_ctx *ctx, const fv_scan_args *args, int64_t chunk, struct fv_scan *s);

/* Tokens taken at once: what is cheapest, at most args->chunk (in whole micro-tiles). */
int64_t fv_scan_chunk_length(const fv_ctx *ctx, const fv_scan_args *args);

/* The state before the first token of a head. */
void fv_scan_load_state(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h);

/* Brings tokens from..from + count - 1 into memory with their decays, and fills in kk, and qk if sums are wanted.
 * Returns the number of rows. */
int64_t fv_scan_load(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t from,
                     int64_t count, bool sums);

/* Columns n..n + columns - 1: u (with delta); the sums over the state before any division; the state behind (which
 * spoils u where values decay). */
void fv_scan_solve(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns);
void fv_scan_sums(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns, float *o,
                  int64_t o_row);
void fv_scan_advance(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns);
/* Before the last: k decays to the end of the chunk, unless values do. */
void fv_scan_fade_keys(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows);

/* (j, t) of `out` = x_t . k_j prod_{j<i<=t} a_i for j <= t (j < t if `strict`): x in `columns` [channels, chunk], k
 * [rows, row] of `channels` numbers.  `apart`: these decay one by one (by m->decay), and then so does x. */
void fv_scan_weights(const struct fv_scan *s, const struct fv_scan_memory *m, int64_t rows, int64_t channels,
                     float *columns, const float *k, int64_t row, bool apart, bool strict, float *out);

/* in [count, width] transposed: out[c * out_row + r] */
void fv_scan_transpose(const struct fv_scan *s, const float *in, int64_t in_row, int64_t count, int64_t width,
                       float *out, int64_t out_row);

/* What a token's sums are divided by. */
static inline float fv_scan_divisor(const struct fv_scan *s, const float *sums, bool *floored)
{
    const fv_scan_args *a = s->args;
    float divisor = a->normalise ? sums[s->Dv] + a->epsilon : 1;

    *floored = a->normalise && a->floor > 0 && divisor < a->floor;
    return *floored ? a->floor : divisor;
}

static inline float *fv_scan_row(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    return fv_at(t, b, h, n, 0);
}

static inline float fv_scan_beta(const fv_scan_args *a, int64_t b, int64_t h, int64_t t)
{
    return fv_present(&a->beta) ? *fv_scan_row(&a->beta, b, h, t) : 1;
}

/* What scales rows of sums over the state before the chunk: NULL for nothing. */
static inline const float *fv_scan_within(const struct fv_scan *s, const struct fv_scan_memory *m)
{
    return s->scalar ? m->within : NULL;
}

#endif
