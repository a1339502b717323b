/* What GUI-KV knows of screenshots (frames) in a prompt: how loud the newest one's tokens are, and how much of an older
 * one's keys the newest one's do not say again (arXiv 2510.00536). */
#ifndef FV_FRAME_SCORES_H
#define FV_FRAME_SCORES_H

#include "ops/ops.h"

/* bonus[j] = alpha softmax_j(z / tau), z = (norm - mean) / (standard deviation + 1e-8), the unbiased one; a single
 * token's z is 0. */
void fv_frame_bonus(const float *norm, int64_t count, double alpha, double tau, float *bonus);

/* An orthonormal basis [directions, D] of keys [count, D] f32: of the span of the first `rank` of them (an unpivoted QR
 * cut off), or with `svd` of the `rank` directions that hold most of all.  A key that lies in the span of those before
 * it brings no direction of its own.  basis has room for min(rank, count, D) rows.  FV_E_MEMORY. */
fv_status fv_frame_basis(fv_ctx *ctx, const float *keys, int64_t count, int64_t dim, int64_t rank, bool svd,
                         float *basis, int64_t *directions);

/* residual[t] = |k - P P^T k| of keys [count, D] f32. FV_E_MEMORY. */
fv_status fv_frame_residuals(fv_ctx *ctx, const float *keys, int64_t count, int64_t dim, const float *basis,
                             int64_t directions, float *residual);

#endif
