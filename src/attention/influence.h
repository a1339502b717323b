/* Attention influence (arXiv 2406.14909): how much a loss would change, to first order, if a weight of attention were
 * taken out of its row and the others grew in its place. */
#ifndef FV_INFLUENCE_H
#define FV_INFLUENCE_H

#include "ops/ops.h"

/* q [B,H,N,D], k [B,Hkv,N,D], v [B,Hkv,N,Dv] f32 of causal attention, d_o [B,H,N,Dv] = d loss / d o.  With A the
 * weights, G_ij = d_o_i . v_j and eps = FLT_EPSILON:
 *   E_ij = -A_ij (G_ij - sum_k G_ik A_ik) / (1 - A_ij + eps), and E_00 = -A_00 G_00, as row 0 has nothing else.
 * out [H,ceil(N/block),ceil(N/block)], doubles: the sums over blocks of |E|, or of E without `absolute`, mean over B,
 * are added to it.  Of the logits their scale (0: D^-1/2) and soft-cap count, as in attend.  FV_E_SHAPE, FV_E_DTYPE,
 * FV_E_MEMORY. */
typedef struct fv_influence_args {
    fv_tensor q, k, v, d_o;
    fv_logits logits;
    int64_t block;
    bool absolute;
    double *out;
} fv_influence_args;
fv_status fv_influence(fv_ctx *ctx, const fv_influence_args *args);

#endif
