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

/* Where the biases of query i and key j are read. */
static inline int64_t fv_place(const fv_places *places, int64_t i, int64_t j, int64_t count)
{
    return fv_clamp((int64_t)places->key[j] - places->query[i], 0, count - 1);
}

static inline int64_t fv_offset_at(const fv_logits *l, const fv_plan *plan, int64_t i, int64_t j)
{
    int64_t R = l->offset_bias.dims[1];

    if (l->offset_place.key) return fv_place(&l->offset_place, i, j, R);
    return fv_clamp(fv_plan_key_position(plan, j) - (i + plan->offset) + R / 2, 0, R - 1);
}

static inline int64_t fv_row_at(const fv_logits *l, int64_t i, int64_t j)
{
    return l->row_place.key ? fv_place(&l->row_place, i, j, l->row_bias.dims[3]) : j / l->column_bias.dims[3];
}

static inline int64_t fv_column_at(const fv_logits *l, int64_t i, int64_t j)
{
    return l->column_place.key ? fv_place(&l->column_place, i, j, l->column_bias.dims[3]) : j % l->column_bias.dims[3];
}

/* A copy of a plan and its small tables in scratch memory, for the tape; NULL stays NULL. */
fv_status fv_plan_keep(fv_ctx *ctx, const fv_plan *plan, const fv_plan **kept);
/* The same for a head map. */
fv_status fv_heads_keep(fv_ctx *ctx, const int32_t *key_head, int64_t heads, const int32_t **kept);

#endif
