/* The table of an instruction set. */
#include "ops/cpu/leaf.h"

void LEAF(fill)(struct fv_kernels *kernels)
{
    *kernels = (struct fv_kernels){.width = W};
    LEAF(fill_tile)(kernels);
    LEAF(fill_blocks)(kernels);
    LEAF(fill_packed)(kernels);
    LEAF(fill_pack)(kernels);
    LEAF(fill_math)(kernels);
    LEAF(fill_rows)(kernels);
    LEAF(fill_select)(kernels);
    LEAF(fill_match)(kernels);
    LEAF(fill_attend)(kernels);
    LEAF(fill_few)(kernels);
    LEAF(fill_few_short)(kernels);
    LEAF(fill_scan)(kernels);
    LEAF(fill_weights)(kernels);
}
