/* The reference backend's functions: plain loops over f32 storage with double sums. */
#ifndef FV_REF_H
#define FV_REF_H

#include "ops/backend.h"

fv_status fv_ref_gemm(fv_ctx *ctx, const fv_gemm_args *args);
fv_status fv_ref_map(fv_ctx *ctx, const fv_map_args *args);
fv_status fv_ref_norm(fv_ctx *ctx, const fv_norm_args *args);
fv_status fv_ref_rope(fv_ctx *ctx, const fv_rope_args *args);
fv_status fv_ref_softmax(fv_ctx *ctx, const fv_softmax_args *args);
fv_status fv_ref_pool(fv_ctx *ctx, const fv_pool_args *args);
fv_status fv_ref_conv2d(fv_ctx *ctx, const fv_conv2d_args *args);
fv_status fv_ref_select(fv_ctx *ctx, const fv_select_args *args);
fv_status fv_ref_match(fv_ctx *ctx, const fv_match_args *args);
fv_status fv_ref_gather(fv_ctx *ctx, const fv_gather_args *args);
fv_status fv_ref_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args);
fv_status fv_ref_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args);
fv_status fv_ref_sampled_spread(fv_ctx *ctx, const fv_sampled_sums_args *args);
fv_status fv_ref_cumsum(fv_ctx *ctx, const fv_cumsum_args *args);
fv_status fv_ref_taylor(fv_ctx *ctx, const fv_taylor_args *args);
fv_status fv_ref_dequantize(fv_ctx *ctx, const fv_dequantize_args *args);
fv_status fv_ref_quantize(fv_ctx *ctx, const fv_quantize_args *args);
fv_status fv_ref_attend(fv_ctx *ctx, const fv_attend_args *args);
fv_status fv_ref_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads);
fv_status fv_ref_attend_stats(fv_ctx *ctx, const fv_stats_args *args);
fv_status fv_ref_scan(fv_ctx *ctx, const fv_scan_args *args);
fv_status fv_ref_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads);
fv_status fv_ref_merge(fv_ctx *ctx, const fv_merge_args *args);
fv_status fv_ref_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads);

#endif
