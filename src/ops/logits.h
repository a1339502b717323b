/* What the front ends of attend and attend_stats share. */
#ifndef FV_LOGITS_H
#define FV_LOGITS_H

#include "ops/plan.h"

/* The tensors a call's logits come from, as the caller gave them. */
typedef struct fv_logits_call {
    const char *op;
    const fv_tensor *q, *k;
    const fv_plan *plan;
    const int32_t *key_head;
    int64_t rows; /* of o: N, or slots where lists gather queries */
} fv_logits_call;

/* Checks q, k, head map, plan and logits; then makes the logits uniform for backends: scale resolved (zero_scale is
 * still meaningful; a scale of 0 means 0), temperature [B,H,N], bias [B,H,N,M], offset_bias [H,R], row and column bias
 * [B,H,N,G], by strides of 0. */
fv_status fv_logits_prepare(const fv_logits_call *call, const fv_logits *given, fv_logits *logits);

/* A copy of a plan and its small tables in scratch memory, for the tape; NULL stays NULL. */
fv_status fv_plan_keep(fv_ctx *ctx, const fv_plan *plan, const fv_plan **kept);
/* The same for a head map. */
fv_status fv_heads_keep(fv_ctx *ctx, const int32_t *key_head, int64_t heads, const int32_t **kept);

#endif
