/* A part of an attention call that somebody listens to: some heads, rows and keys, and what is made of them. */
#ifndef FV_PICKED_H
#define FV_PICKED_H

#include "hooks/hooks.h"

typedef struct fv_picked {
    fv_tensor q, k, v, lse; /* [1,heads,rows,D], [1,Hkv,M,D|Dv] as they are read, [1,heads,rows] */
    int64_t heads, rows, position;
    const int32_t *head;     /* [heads]: query heads of the model */
    const int32_t *key_head; /* [heads] of k; NULL: in groups */
    int64_t key_from, keys;  /* of the M that are held, those that the selector has: they lie together */
    fv_plan plan;            /* of these rows; keys that are held and not picked are in it */
    fv_logits logits;
} fv_picked;

/* What a selector has of a call at FV_POINT_ATTEND or FV_POINT_BACKWARD; views, and scratch memory.  FV_E_UNSUPPORTED
 * where the pairs are a mechanism's own, or a policy's lists. */
fv_status fv_pick(fv_ctx *ctx, const fv_look *look, const fv_selector *select, fv_picked *picked);
/* Some of its rows. */
fv_picked fv_picked_rows(const fv_picked *picked, int64_t from, int64_t rows);
/* Where the key at a place of k stands. */
static inline int64_t fv_picked_key(const fv_picked *picked, int64_t place)
{
    return picked->plan.key_position ? picked->plan.key_position[place] : place;
}

/* The slow, explicit way: maps [1,heads,rows,keys] in f32, whatever the model computes in; scratch memory.  Weights are
 * those among all keys held; a logit that goes into no weight is -inf. */
fv_status fv_picked_weights(fv_ctx *ctx, const fv_picked *picked, fv_tensor *weights);
fv_status fv_picked_logits(fv_ctx *ctx, const fv_picked *picked, fv_tensor *logits);
/* The largest magnitude of a logit, before any soft-cap, that each row sees among all keys held: [1,heads,rows] f32, in
 * memory that does not grow with pairs; scratch memory. */
fv_status fv_picked_largest(fv_ctx *ctx, const fv_picked *picked, fv_tensor *most);

#endif
