/* The CPU backend's functions.  Each hands what it has no fast way for to the reference backend. */
#ifndef FV_CPU_OPS_H
#define FV_CPU_OPS_H

#include "ops/backend.h"

fv_status fv_cpu_gemm(fv_ctx *ctx, const fv_gemm_args *args);
fv_status fv_cpu_linear(fv_ctx *ctx, const fv_linear_args *args);
void fv_cpu_pack(const fv_ctx *ctx, const fv_tensor *weight, const fv_packed *packed, int64_t group);

fv_status fv_cpu_attend(fv_ctx *ctx, const fv_attend_args *args);
fv_status fv_cpu_attend_stats(fv_ctx *ctx, const fv_stats_args *args);
fv_status fv_cpu_merge(fv_ctx *ctx, const fv_merge_args *args);
fv_status fv_cpu_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads);
fv_status fv_cpu_scan(fv_ctx *ctx, const fv_scan_args *args);
fv_status fv_cpu_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads);
fv_status fv_cpu_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads);
fv_status fv_cpu_map(fv_ctx *ctx, const fv_map_args *args);
fv_status fv_cpu_norm(fv_ctx *ctx, const fv_norm_args *args);
fv_status fv_cpu_rope(fv_ctx *ctx, const fv_rope_args *args);
fv_status fv_cpu_softmax(fv_ctx *ctx, const fv_softmax_args *args);
fv_status fv_cpu_pool(fv_ctx *ctx, const fv_pool_args *args);
fv_status fv_cpu_select(fv_ctx *ctx, const fv_select_args *args);
fv_status fv_cpu_match(fv_ctx *ctx, const fv_match_args *args);
fv_status fv_cpu_gather(fv_ctx *ctx, const fv_gather_args *args);
fv_status fv_cpu_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args);
fv_status fv_cpu_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args);
fv_status fv_cpu_sampled_spread(fv_ctx *ctx, const fv_sampled_sums_args *args);
fv_status fv_cpu_cumsum(fv_ctx *ctx, const fv_cumsum_args *args);
fv_status fv_cpu_taylor(fv_ctx *ctx, const fv_taylor_args *args);
fv_status fv_cpu_conv2d(fv_ctx *ctx, const fv_conv2d_args *args);
fv_status fv_cpu_dequantize(fv_ctx *ctx, const fv_dequantize_args *args);
fv_status fv_cpu_quantize(fv_ctx *ctx, const fv_quantize_args *args);

/* Absent, or the elements of a row lie side by side. */
static inline bool fv_cpu_rows_together(const fv_tensor *t)
{
    return !fv_present(t) || t->rank < 4 || t->strides[3] == 1 || t->dims[3] == 1;
}

#endif
