/* Gradients through a model: of a loss on the last tokens of a text, with respect to what its layers compute. */
#ifndef FV_GRADIENT_H
#define FV_GRADIENT_H

#include "models/session.h"

/* A layer on the way back: what its attention read and gave, and d loss / d o.  q, k, v, o, d_o [1,H|Hkv,N,D|Dv] f32.
 */
typedef struct fv_gradient_look {
    int64_t layer, window; /* window: of its own, 0: none */
    fv_tensor q, k, v, o, d_o;
    fv_logits logits;
} fv_gradient_look;
typedef fv_status fv_gradient_fn(void *user, const fv_gradient_look *look);

/* Runs `count` tokens through the model as it is (an empty session's, in its precision) and back: the loss is the mean
 * cross-entropy of the last `answer` tokens (1 .. count - 1) given those before.  `look` sees each layer, the last one
 * first; *loss (or NULL) receives the loss.  Layers are computed twice, so that what is kept is one [count,width] a
 * layer.  FV_E_SHAPE, FV_E_ARGUMENT for ids, FV_E_MEMORY, and what `look` returns. */
fv_status fv_gradient(fv_session *session, const int32_t *ids, int64_t count, int64_t answer, fv_gradient_fn *look,
                      void *user, double *loss);

#endif
