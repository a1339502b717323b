/* Contents for timing and checking: random, fast, of any type, the same for the same seed; and weights as models hold
 * them. */
#ifndef APP_NOISE_H
#define APP_NOISE_H

#include "base/tensor.h"
#include "ops/packed.h"

/* Fills a contiguous tensor.  Floating types: even between -1 and 1.  Block types: random quants under scales that keep
 * values below about 2, and sums of quants as their format says.  Not for integers. */
void app_noise(const fv_tensor *tensor, uint64_t seed);

/* The packed form of a weight [n,k] in scratch memory, as models make it when they are loaded; without data if the type
 * has none. */
fv_status app_pack(fv_ctx *ctx, const fv_tensor *weight, fv_packed *packed);

/* Block types that products take; returns how many. */
int app_block_types(const fv_dtype **types);

#endif
