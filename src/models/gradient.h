/* Gradients through a model: of a loss on the last tokens of a text, with respect to what its layers compute. */
#ifndef FV_GRADIENT_H
#define FV_GRADIENT_H

#include "models/session.h"

/* Runs `count` tokens through the model as it is (an empty session's, in its precision) and back: the loss is the mean
 * cross-entropy of the last `answer` tokens (1 .. count - 1) given those before.  Those who listen to
 * the session at FV_POINT_BACKWARD are told of each layer, the last one first: q, k, v, o and d loss / d o, all f32.
 * *loss (or NULL) receives the loss.  Layers are computed twice, so that what is kept is one [count,width] a layer.
 * FV_E_SHAPE, FV_E_ARGUMENT for ids, FV_E_MEMORY, and what a listener returns. */
fv_status fv_gradient(fv_session *session, const int32_t *ids, int64_t count, int64_t answer, double *loss);

#endif
