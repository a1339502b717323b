/* x86-64 with AVX-512 F, BW, DQ, VL; the bf16 kernels need one bit more and are asked for by name. */
#if defined(__x86_64__)
#define KERNELS fv_kernels_avx512
#define KERNELS_NAME "cpu-avx512"
#include "ops/cpu/kernels_tmpl.c"
#endif
