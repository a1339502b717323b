/* Attention mechanisms by name. */
#ifndef FOVEA_ATTENTION_H
#define FOVEA_ATTENTION_H

#include "fovea/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A mechanism with its options set, made from a SPEC such as "power:block=64". */
typedef struct fv_attention fv_attention;

/* FV_E_USAGE for an unknown name (with the nearest ones), option or value. */
FV_API fv_status fv_attention_new(const char *spec, fv_attention **attention);
FV_API void fv_attention_free(fv_attention *attention);
FV_API const char *fv_attention_name(const fv_attention *attention);

typedef struct fv_attention_args {
    fv_tensor q, k, v, o, lse; /* [B,H,N,D], [B,Hkv,M,D], [B,Hkv,M,Dv], [B,H,N,Dv], [B,H,N] (optional); f32 */
    bool causal;               /* query i sees key j only if j <= i + (M - N) */
    const float *scale;        /* NULL: D^-1/2 */
    int params;                /* learned or extra tensors by name, f32 */
    const fv_named_tensor *param;
    int params_out; /* tensors it writes, by name (lightning2: "state") */
    const fv_named_tensor *param_out;
} fv_attention_args;

/* o = mechanism(q, k, v).  FV_E_USAGE for what the mechanism refuses (causal, lse, scale), FV_E_SHAPE. */
FV_API fv_status fv_attention_forward(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args);

/* Feeds the tokens one at a time through the decode path from an empty state; same output as forward. */
FV_API fv_status fv_attention_decode(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args);

/* Forward, then gradients for d_o, written to d_q, d_k, d_v (each optional) and d_param (by name, same shapes). */
typedef struct fv_attention_grads {
    fv_tensor d_o, d_q, d_k, d_v;
    int params;
    const fv_named_tensor *d_param;
} fv_attention_grads;
FV_API fv_status fv_attention_backward(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                       const fv_attention_grads *grads);

/* The visible pairs as u8 [B|1, H|1, N, M]: *map is allocated with malloc's kin, release it with fv_release.
 * FV_E_USAGE where the mechanism has no such set; FV_E_SHAPE when N * M > 2^26. */
FV_API fv_status fv_attention_map(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                  fv_tensor *map, void **owned);
FV_API void fv_release(void *owned);

typedef struct fv_work {
    double flops, bytes;
    int64_t pairs;  /* query-key pairs computed, over all batches and query heads; linear mechanisms: 0 */
    double density; /* pairs / pairs of dense with the same causality */
} fv_work;
FV_API fv_status fv_attention_work(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                   fv_work *work);

#ifdef __cplusplus
}
#endif
#endif
