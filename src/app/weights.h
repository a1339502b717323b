/* The attention weights of one query, head by head: what pictures and probes look at.  A materialised row, for single
 * queries only. */
#ifndef APP_WEIGHTS_H
#define APP_WEIGHTS_H

#include "models/session.h"

typedef struct app_weights {
    int64_t heads, keys;
    float *weight;           /* [heads, keys], by place of the key; 0 where it is not seen */
    const int32_t *position; /* [keys] of the keys; NULL: their places */
    const int32_t *text;     /* where those stand in the text; NULL: there */
} app_weights;

/* Of a call of one query.  FV_E_USAGE where the mechanism has no pairs.  Scratch memory. */
fv_status app_weights_of(fv_ctx *ctx, const fv_look *look, app_weights *weights);

static inline int64_t app_weights_position(const app_weights *weights, int64_t key)
{
    int64_t place = weights->position ? weights->position[key] : key;

    return weights->text ? weights->text[place] : place;
}

#endif
