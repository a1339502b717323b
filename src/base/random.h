/* Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): number n of stream s is a function of
 * (seed, s, n), so results do not depend on order or threads. */
#ifndef FV_RANDOM_H
#define FV_RANDOM_H

#include <stdint.h>

typedef struct fv_random {
    uint64_t seed, stream, counter;
    uint32_t block[4];
    int left;
} fv_random;

fv_random fv_random_new(uint64_t seed, uint64_t stream);
uint32_t fv_random_u32(fv_random *random);
double fv_random_uniform(fv_random *random);               /* [0, 1) with 53 bits */
double fv_random_normal(fv_random *random);                /* mean 0, variance 1 */
int64_t fv_random_below(fv_random *random, int64_t bound); /* 0..bound-1, bound > 0, unbiased */

#endif
