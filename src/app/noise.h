/* Contents for timing and checking: random, fast, of any type, the same for the same seed; and weights as models hold
 * them. */
#ifndef APP_NOISE_H
#define APP_NOISE_H

#include "base/random.h"
#include "base/tensor.h"
#include "fovea/ops.h"
#include "ops/packed.h"

/* Fills a contiguous tensor.  Floating types: even between -1 and 1.  Block types: random quants under scales that keep
 * values below about 2, and sums of quants as their format says.  Not for integers. */
void app_noise(const fv_tensor *tensor, uint64_t seed);

/* The packed form of a weight [n,k] in scratch memory, as models make it when they are loaded; without data if the type
 * has none. */
fv_status app_pack(fv_ctx *ctx, const fv_tensor *weight, fv_packed *packed);

/* Random lists for groups of 64 queries, in scratch memory: each shows `density` of the blocks of keys, at least one.
 * Every entry has one of the random bit tiles first..tiles of 64 x key_block pairs; number 0 is all pairs. */
typedef struct app_lists {
    int64_t queries, keys, key_block;
    double density;
    int first, tiles; /* tiles 0: all pairs */
} app_lists;
fv_status app_random_lists(fv_ctx *ctx, fv_random *random, const app_lists *shape, fv_lists *lists);

/* Block types that products take; returns how many. */
int app_block_types(const fv_dtype **types);

#endif
