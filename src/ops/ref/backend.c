#include "ops/ref/ref.h"

const fv_backend fv_backend_ref = {
    .name = "ref",
    .gemm = fv_ref_gemm,
    .map = fv_ref_map,
    .norm = fv_ref_norm,
    .rope = fv_ref_rope,
    .softmax = fv_ref_softmax,
    .pool = fv_ref_pool,
    .conv2d = fv_ref_conv2d,
    .select = fv_ref_select,
    .gather = fv_ref_gather,
    .cumsum = fv_ref_cumsum,
    .dequantize = fv_ref_dequantize,
    .quantize = fv_ref_quantize,
    .attend = fv_ref_attend,
    .attend_backward = fv_ref_attend_backward,
    .attend_stats = fv_ref_attend_stats,
    .scan = fv_ref_scan,
    .scan_backward = fv_ref_scan_backward,
    .merge = fv_ref_merge,
    .merge_backward = fv_ref_merge_backward,
};
