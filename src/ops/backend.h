/* A backend is one table of function pointers.  The reference backend (plain loops, f32 storage, double sums) fills all
 * of it; the CPU backend starts as a copy and replaces what it does better.  Arguments were checked by the front end.
 */
#ifndef FV_BACKEND_H
#define FV_BACKEND_H

#include "ops/ops.h"

typedef struct fv_backend {
    const char *name;
    /* Rows at most that take the kernels of FV_BATCH_STEPS where nobody says what they are: of x in `linear`, of a in
     * `gemm`. */
    int64_t few_linear, few_gemm;
    fv_status (*gemm)(fv_ctx *, const fv_gemm_args *);
    fv_status (*linear)(fv_ctx *,
                        const fv_linear_args *); /* all weights packed, rows of x together; NULL: there is none */
    void (*pack)(const fv_ctx *, const fv_tensor *weight, const fv_packed *, int64_t group); /* for `linear` */
    fv_status (*map)(fv_ctx *, const fv_map_args *);
    fv_status (*norm)(fv_ctx *, const fv_norm_args *);
    fv_status (*rope)(fv_ctx *, const fv_rope_args *);
    fv_status (*softmax)(fv_ctx *, const fv_softmax_args *);
    fv_status (*pool)(fv_ctx *, const fv_pool_args *);
    fv_status (*conv2d)(fv_ctx *, const fv_conv2d_args *);
    fv_status (*select)(fv_ctx *, const fv_select_args *);
    fv_status (*match)(fv_ctx *, const fv_match_args *);
    fv_status (*gather)(fv_ctx *, const fv_gather_args *);
    fv_status (*sampled_dots)(fv_ctx *, const fv_sampled_dots_args *);
    fv_status (*sampled_sums)(fv_ctx *, const fv_sampled_sums_args *);
    /* the other way: rows of y, f32, receive weight * the rows of out */
    fv_status (*sampled_spread)(fv_ctx *, const fv_sampled_sums_args *);
    fv_status (*cumsum)(fv_ctx *, const fv_cumsum_args *);
    fv_status (*taylor)(fv_ctx *, const fv_taylor_args *);
    fv_status (*dequantize)(fv_ctx *, const fv_dequantize_args *);
    fv_status (*quantize)(fv_ctx *, const fv_quantize_args *);
    fv_status (*attend)(fv_ctx *, const fv_attend_args *);
    fv_status (*attend_backward)(fv_ctx *, const fv_attend_args *, const fv_attend_grads *);
    fv_status (*attend_stats)(fv_ctx *, const fv_stats_args *);
    fv_status (*scan)(fv_ctx *, const fv_scan_args *);
    fv_status (*scan_backward)(fv_ctx *, const fv_scan_args *, const fv_scan_grads *);
    fv_status (*merge)(fv_ctx *, const fv_merge_args *);
    fv_status (*merge_backward)(fv_ctx *, const fv_merge_args *, const fv_merge_grads *);
} fv_backend;

extern const fv_backend fv_backend_ref;

/* The CPU backend for an instruction set this machine has. */
const fv_backend *fv_backend_cpu(fv_isa isa);

#endif
