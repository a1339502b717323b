/* Adding into gradients, whatever view of a shadow they are. */
#ifndef FV_ACCUMULATE_H
#define FV_ACCUMULATE_H

#include "base/tensor.h"

/* Whether no two indices of t name the same element, so that its elements may be written independently. */
bool fv_tensor_apart(const fv_tensor *t);

/* to += alpha * from, both f32; `to` repeats to from's shape (missing dims, dims of 1 and strides of 0 sum), and its
 * elements may overlap in any way. */
void fv_add_into(fv_ctx *ctx, const fv_tensor *to, const fv_tensor *from, float alpha);

#endif
