/* Blocks of quantised values, as GGUF files store them, to f32 and back. */
#ifndef FV_BLOCKS_H
#define FV_BLOCKS_H

#include "base/tensor.h"

/* The f32 values of `blocks` blocks of a row, from block number from_block on, exactly as the format defines them.
 * `row` need not be aligned.  dtype: f32, f16, bf16 (blocks of one element) or a block type; see
 * fv_blocks_supported.  out holds blocks * fv_dtype_block(dtype) values. */
void fv_blocks_load(fv_dtype dtype, const void *row, int64_t from_block, int64_t blocks, float *out);
bool fv_blocks_supported(fv_dtype dtype);

/* `count` f32 values, in whole blocks, to a row of f32, f16, bf16, q8_0 or q4_0; a value that is not finite spoils its
 * own block of 32, no more. */
void fv_blocks_store(fv_dtype dtype, const float *in, int64_t count, void *row);
bool fv_blocks_storable(fv_dtype dtype);

#endif
