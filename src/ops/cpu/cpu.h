/* The CPU backend's functions.  Each hands what it has no fast way for to the reference backend. */
#ifndef FV_CPU_OPS_H
#define FV_CPU_OPS_H

#include "ops/backend.h"

fv_status fv_cpu_gemm(fv_ctx *ctx, const fv_gemm_args *args);

#endif
