/* x86-64 with AVX2, FMA and F16C. */
#if defined(__x86_64__)
#define KERNELS fv_kernels_avx2
#define KERNELS_NAME "cpu-avx2"
#include "ops/cpu/kernels_tmpl.c"
#endif
