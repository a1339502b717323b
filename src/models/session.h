/* A session: what one stream of tokens has left in the layers. */
#ifndef FV_SESSION_H
#define FV_SESSION_H

#include "attention/mechanism.h"
#include "models/cache.h"
#include "models/model.h"

typedef struct fv_session_layer {
    fv_attention *attention;
    bool no_scale;  /* the mechanism has none */
    fv_cache cache; /* of keys and values, unless the mechanism is recurrent */
    fv_attention_state state;
    void *memory, *kept[FV_KEPT]; /* of the state: recurrent, or kept rows */
    size_t state_bytes;
} fv_session_layer;

/* Sees every attention call of a session before it runs; `extra` holds the layer's own soft-cap. */
typedef fv_status fv_watch_fn(void *user, int64_t layer, const fv_attention *attention, const fv_call *call,
                              const fv_logits *extra);

struct fv_session {
    fv_ctx *ctx;
    const fv_model *model;
    fv_precision precision;
    int64_t context, chunk, length;
    bool recurrent; /* some layer keeps a state */
    bool broken;    /* a state was left half way */
    double pairs, dense_pairs;
    size_t peak_bytes;
    fv_session_layer *layers;
    fv_watch_fn *watch; /* NULL: nobody looks */
    void *watch_user;
};

/* Runs `count` tokens, at positions length.., through all layers; x [count, width] receives the hidden rows (before the
 * last norm).  Does not move session->length.  Scratch memory. */
fv_status fv_forward_chunk(fv_session *session, const int32_t *ids, int64_t count, fv_tensor *x);

/* logits [rows, vocabulary] of hidden rows x [rows, width]. */
fv_status fv_forward_logits(fv_session *session, const fv_tensor *x, float *logits);

#endif
