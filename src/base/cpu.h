/* What this processor can do. */
#ifndef FV_CPU_H
#define FV_CPU_H

#include <stdbool.h>

typedef enum fv_isa { FV_ISA_C = 0, FV_ISA_AVX2, FV_ISA_AVX512F, FV_ISA_AVX512, FV_ISA_COUNT } fv_isa;

typedef struct fv_cpu {
    bool avx2;    /* with FMA and F16C */
    bool avx512f; /* AVX-512 F, BW, DQ, VL */
    bool avx512;  /* with BF16 and VNNI: dot products of bf16 pairs and of integers */
    char model[64];
} fv_cpu;

void fv_cpu_detect(fv_cpu *cpu);
const char *fv_isa_name(fv_isa isa);

#endif
