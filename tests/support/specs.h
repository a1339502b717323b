/* Mechanisms by SPEC on the same tensors. */
#ifndef FV_TEST_SPECS_H
#define FV_TEST_SPECS_H

#include "fovea/attention.h"
#include "support/support.h"

/* q [B,H,N,D], k and v [B,Hkv,M,D] of random numbers, o and lse. */
fv_attention_args test_specs_args(fv_ctx *ctx, int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t M, int64_t D);

/* Computes `spec` into args' o and lse (unless that is absent), or is refused with a sentence. */
void test_specs_run(fv_ctx *ctx, const char *spec, const fv_attention_args *args);
void test_specs_refused(fv_ctx *ctx, const char *spec, const fv_attention_args *args, fv_status expected,
                        const char *words);

/* What `spec` makes of args, without lse, in scratch memory. */
fv_tensor test_specs_forward(fv_ctx *ctx, const char *spec, const fv_attention_args *args);
/* Every number is within tolerance * max(1, |expected|), or the same. */
void test_specs_close(const char *what, const fv_tensor *got, const fv_tensor *expected, double tolerance);

/* Both SPECs give the same o, and lse if args have one; lse of the second is `shift` larger. */
void test_specs_equal(fv_ctx *ctx, const char *spec, const char *other, const fv_attention_args *args, double shift,
                      double tolerance);

#endif
