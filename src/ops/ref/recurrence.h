/* One step of scan's recurrence, in doubles: what its forward and backward have in common. */
#ifndef FV_REF_RECURRENCE_H
#define FV_REF_RECURRENCE_H

#include "ops/backend.h"

/* The numbers of one token of one head. */
typedef struct fv_ref_token {
    double *q, *k, *v; /* [D], [D], [Dv] */
    double *decay;     /* [D] or [Dv], or one number: factors, not logarithms */
    double *e;         /* [Dv] what is written at the key: v, less what the state holds there with delta */
    double beta;
    float *row; /* [max(D, Dv)] */
} fv_ref_token;

fv_status fv_ref_token_new(fv_ctx *ctx, const fv_scan_args *args, fv_ref_token *token);
void fv_ref_token_load(const fv_scan_args *args, int64_t b, int64_t h, int64_t t, fv_ref_token *token);

/* Factor of state element (d, c). */
static inline double fv_ref_decay(const fv_scan_args *args, const fv_ref_token *token, int64_t d, int64_t c)
{
    return args->decay == FV_DECAY_PER_KEY ? token->decay[d] : token->decay[args->decay == FV_DECAY_PER_VALUE ? c : 0];
}

/* state [D,Dv] (and z [D] with normalise) from before the token to after it. */
void fv_ref_step(const fv_scan_args *args, fv_ref_token *token, double *state, double *z);

/* What the read-out of token q is divided by: 1 without normalise.  *floored: it was lifted to the floor. */
double fv_ref_denominator(const fv_scan_args *args, const fv_ref_token *token, const double *z, bool *floored);

/* state and z as they are before the first token. */
void fv_ref_begin(const fv_scan_args *args, int64_t b, int64_t h, double *state, double *z);

#endif
