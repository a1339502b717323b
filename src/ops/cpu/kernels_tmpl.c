/* Every leaf of the CPU backend for one instruction set; the including file defines KERNELS (the table's name) and
 * KERNELS_NAME, and is compiled with the flags that choose the vector width. */
#include "ops/cpu/kernels.h"

#include "ops/cpu/vector_tmpl.c"
#include "ops/cpu/tile_tmpl.c"
#include "ops/cpu/blocks_tmpl.c"
#include "ops/cpu/math_tmpl.c"
#include "ops/cpu/attend_tmpl.c"
#include "ops/cpu/scan_tmpl.c"

const struct fv_kernels KERNELS = {
    .name = KERNELS_NAME,
    .width = W,
    .tile_rows = TILE_ROWS,
    .tile_columns = TILE_COLUMNS,
    .tile = tile_f32,
#if defined(__AVX512BF16__)
    .tile_bf16 = tile_pairs,
#endif
    .transpose = transpose,
    .to_bf16 = to_bf16,
    .to_f16 = to_f16,
    .load = load_table,
    .dot = dot_table,
    .map = map_row,
    .sum = sum_row,
    .square = square_row,
    .affine = affine_row,
    .largest = largest_row,
    .exp = exp_row,
    .rotate = rotate_row,
    .rotate_pairs = rotate_pairs_row,
    .online_softmax = online_softmax,
    .scan_step = scan_step,
};
