/* The tape records primitive calls and walks them backward.
 *
 * Gradients live in shadows: each watched buffer, and each output of a recorded call, has an f32 shadow of the same
 * extent, so the gradient of any view is the same view of the shadow, and views cost nothing.  Everything on a tape is
 * f32.  A call none of whose inputs is watched or an output of the tape is not recorded.  Selection indices and plans
 * are constants.  While a tape records, scratch memory is kept (fv_scratch_release does nothing).
 *
 * What a recorded call has read or written must not be written again before the backward walk, except to add to it
 * (fv_gemm with beta, fv_gather with scatter), and what its arguments point to must stay until then. */
#ifndef FV_TAPE_H
#define FV_TAPE_H

#include "ops/ops.h"

typedef struct fv_tape fv_tape;

/* Starts recording on ctx.  One tape at a time: FV_E_ARGUMENT. */
fv_status fv_tape_begin(fv_ctx *ctx);
/* Makes a leaf: gradients with respect to it are wanted.  FV_E_DTYPE unless f32. */
fv_status fv_tape_watch(fv_ctx *ctx, const fv_tensor *leaf);
/* Makes a tensor a copy of itself that is a leaf, so that gradients of tensors that share memory stay apart. */
fv_status fv_tape_leaf(fv_ctx *ctx, fv_tensor *t);
/* Seeds the gradient of an output: `gradient`, f32 of its shape, is added.  FV_E_ARGUMENT if the output does not depend
 * on a leaf. */
fv_status fv_tape_seed(fv_ctx *ctx, const fv_tensor *output, const fv_tensor *gradient);
/* Walks backward and forgets the calls; the gradients stay. */
fv_status fv_tape_backward(fv_ctx *ctx);
/* The gradient of a tensor as a view of its shadow (valid until fv_tape_end); false: it has none. */
bool fv_tape_gradient(fv_ctx *ctx, const fv_tensor *tensor, fv_tensor *gradient);
/* Copies the gradient of a leaf to `out` (f32, or absent), zeros where it has none.  FV_E_SHAPE, in sentences "owner:
 * gradient of name". */
fv_status fv_tape_hand_out(fv_ctx *ctx, const char *owner, const char *name, const fv_tensor *leaf,
                           const fv_tensor *out);
/* Stops recording and frees the tape and the scratch memory taken since it began. */
void fv_tape_end(fv_ctx *ctx);

/* ---- for the front ends of primitives --------------------------------------------------------------------------- */

/* Adds a call's contribution to the gradients of its inputs, given those of its outputs (fv_tape_shadow). */
typedef fv_status fv_backward_fn(fv_ctx *ctx, const void *args);

/* Records a call with a copy of its arguments, if the context records and one of the inputs depends on a leaf.  Absent
 * tensors may be listed.  FV_E_DTYPE if an input that depends on a leaf, or an output, is not f32. */
fv_status fv_tape_record(fv_ctx *ctx, fv_backward_fn *backward, const void *args, size_t size, int inputs,
                         const fv_tensor *const *input, int outputs, const fv_tensor *const *output);

#define FV_TAPE_RECORD(ctx, backward, args, inputs, ...)                                                               \
    fv_tape_record((ctx), (backward), (args), sizeof *(args), (inputs), (const fv_tensor *const[]){__VA_ARGS__},       \
                   (int)(sizeof((const fv_tensor *const[]){__VA_ARGS__}) / sizeof(void *)) - (inputs),                 \
                   (const fv_tensor *const[]){__VA_ARGS__} + (inputs))

/* The gradient of a tensor as a view of its shadow, absent if it has none; a stride of 0 means that it sums. */
static inline fv_tensor fv_tape_shadow(fv_ctx *ctx, const fv_tensor *tensor)
{
    fv_tensor gradient = {0};

    fv_tape_gradient(ctx, tensor, &gradient);
    return gradient;
}

#endif
