/* Gradients against central differences. */
#ifndef FV_TEST_GRADIENT_H
#define FV_TEST_GRADIENT_H

#include "support/support.h"

/* Runs primitives on ctx and leaves an f32 result in *out (scratch memory of ctx, or the caller's own memory). */
typedef fv_status test_forward_fn(fv_ctx *ctx, void *user, fv_tensor *out);

/* Checks the gradients that the tape of ctx gives for f32 `leaf` tensors, for a random gradient of the result, against
 * central differences of `forward` on the reference backend: steps h = 1/32 and h/2 extrapolated, so the error is
 * h^4 of the fifth derivative plus the rounding of the result, which is known from the result.  Up to 40 elements of a
 * leaf are tried, drawn at random if it has more.  Fails unless |got - expected| <= tolerance * max(1, |expected|) +
 * that rounding. */
void test_gradient(fv_ctx *ctx, const char *what, test_forward_fn *forward, void *user, int leaves,
                   const fv_tensor *const *leaf, double tolerance);

#endif
