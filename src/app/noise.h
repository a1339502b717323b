/* Random contents for timing and checking: fast, of any type, the same for the same seed. */
#ifndef APP_NOISE_H
#define APP_NOISE_H

#include "base/tensor.h"

/* Fills a contiguous tensor.  Floating types: even between -1 and 1.  Block types: random quants under scales that keep
 * values below about 2, and sums of quants as their format says.  Not for integers. */
void app_noise(const fv_tensor *tensor, uint64_t seed);

/* Block types that products take; returns how many. */
int app_block_types(const fv_dtype **types);

#endif
