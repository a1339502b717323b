/* Any processor: vectors of four floats. */
#define KERNELS fv_kernels_c
#define KERNELS_NAME "cpu-c"
#include "ops/cpu/kernels_tmpl.c"
