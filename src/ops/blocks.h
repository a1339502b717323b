/* Blocks of quantised weights, as GGUF files store them, to f32. */
#ifndef FV_BLOCKS_H
#define FV_BLOCKS_H

#include "base/tensor.h"

/* The f32 values of `blocks` blocks of a row, from block number from_block on, exactly as the format defines them.
 * `row` need not be aligned.  dtype: f32, f16, bf16 (blocks of one element) or a block type; see
 * fv_blocks_supported.  out holds blocks * fv_dtype_block(dtype) values. */
void fv_blocks_load(fv_dtype dtype, const void *row, int64_t from_block, int64_t blocks, float *out);
bool fv_blocks_supported(fv_dtype dtype);

#endif
