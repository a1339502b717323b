/* Logits piece by piece: what attend, its backward and attend_stats of the reference backend have in common. */
#ifndef FV_REF_PIECES_H
#define FV_REF_PIECES_H

#include "ops/plan.h"

/* Where logits come from; filled from the arguments of any of the three, with biases broadcast by the front end. */
typedef struct fv_ref_source {
    fv_tensor q, k;
    const fv_logits *logits;
    const int32_t *key_head;
    const fv_plan_view *view; /* opened with share 1 */
} fv_ref_source;

/* The rows of a tile against up to 64 keys.  Entry r * FV_TILE + n is row r and key + n. */
typedef struct fv_ref_piece {
    const fv_ref_source *source;
    fv_plan_tile tile;
    int64_t key_head;
    int64_t key;
    int count;
    uint64_t bits[FV_TILE]; /* visible, and the logit is not -inf */
    double logit[FV_TILE * FV_TILE];
    double slope[FV_TILE * FV_TILE]; /* d logit / d (scale temperature q.k) */
    double dot[FV_TILE * FV_TILE];   /* q.k */
    double *q, *k;                   /* [FV_TILE, D] rows of the tile and of the piece */
    double *transposed;              /* [D, FV_TILE] */
    float *row;                      /* [max(D, Dv)] */
    fv_plan_runs runs;
} fv_ref_piece;

/* `threads` pieces in scratch memory, for rows of up to `width` numbers. */
fv_status fv_ref_pieces_new(fv_ctx *ctx, const fv_ref_source *source, int64_t width, fv_ref_piece **pieces);

typedef void fv_ref_piece_fn(void *user, fv_ref_piece *piece);

/* Calls back for each piece of piece->tile that lies in keys from..to-1, in ascending order. */
void fv_ref_pieces_walk(fv_ref_piece *piece, int64_t from, int64_t to, fv_ref_piece_fn *call, void *user);

/* Tiles of head h of batch b: items *first..*first + count - 1 of a view opened with share 1. */
int64_t fv_ref_tiles(const fv_plan_view *view, int64_t b, int64_t h, int64_t *first);

static inline int64_t fv_ref_key_head(const fv_ref_source *source, int64_t h)
{
    return source->key_head ? source->key_head[h] : h / (source->q.dims[1] / source->k.dims[1]);
}

/* Row n of head h of batch b of a [B,H,N,C] tensor, any dtype but blocks along another dim, as doubles. */
void fv_ref_load(const fv_tensor *t, int64_t b, int64_t h, int64_t n, float *row, double *out);

/* Rows key..key+count-1 of v to out [FV_TILE, Dv]. */
void fv_ref_load_keys(const fv_tensor *v, const fv_ref_piece *piece, double *out);

/* Whether batches and heads (the first two dims) of a gradient have elements of their own. */
bool fv_ref_apart(const fv_tensor *t);

static inline float *fv_ref_f32(const fv_tensor *t, int64_t a, int64_t b, int64_t c)
{
    return (float *)t->data + a * t->strides[0] + b * t->strides[1] + c * t->strides[2];
}

#endif
