/* The tape records primitive calls and walks them backward.
 *
 * Gradients live in shadows: each watched buffer, and each output of a recorded call, has an f32 shadow of the same
 * extent, so the gradient of any view is the same view of the shadow, and views cost nothing.  Everything on a tape is
 * f32.  A call none of whose inputs is watched or an output of the tape is not recorded.  Selection indices and plans
 * are constants.  While a tape records, scratch memory is kept (fv_scratch_release does nothing). */
#ifndef FV_TAPE_H
#define FV_TAPE_H

#include "ops/ops.h"

typedef struct fv_tape fv_tape;

/* Starts recording on ctx.  One tape at a time. */
fv_status fv_tape_begin(fv_ctx *ctx);
/* Makes a leaf: gradients with respect to it are wanted. */
fv_status fv_tape_watch(fv_ctx *ctx, const fv_tensor *leaf);
/* Seeds the gradient of an output (added). */
fv_status fv_tape_seed(fv_ctx *ctx, const fv_tensor *output, const fv_tensor *gradient);
/* Walks backward. */
fv_status fv_tape_backward(fv_ctx *ctx);
/* The gradient of a tensor as a view of its shadow (valid until fv_tape_end); false: it has none. */
bool fv_tape_gradient(fv_ctx *ctx, const fv_tensor *tensor, fv_tensor *gradient);
/* Stops recording and frees the tape and the scratch memory taken since it began. */
void fv_tape_end(fv_ctx *ctx);

/* For the front ends of primitives: records a call with a copy of its arguments. */
typedef fv_status fv_backward_fn(fv_ctx *ctx, const void *args);
fv_status fv_tape_record(fv_ctx *ctx, fv_backward_fn *backward, const void *args, size_t size, int inputs,
                         const fv_tensor *const *input, int outputs, const fv_tensor *const *output);

#endif
