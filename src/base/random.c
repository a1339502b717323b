#include "base/random.h"

#include <math.h>

static void philox(const uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)stream,
             c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

fv_random fv_random_new(uint64_t seed, uint64_t stream)
{
    return (fv_random){.seed = seed, .stream = stream};
}

uint32_t fv_random_u32(fv_random *random)
{
    if (random->left == 0) {
        philox(random->seed, random->stream, random->counter++, random->block);
        random->left = 4;
    }
    return random->block[4 - random->left--];
}

double fv_random_uniform(fv_random *random)
{
    uint64_t high = fv_random_u32(random) >> 5, low = fv_random_u32(random) >> 6;

    return (double)(high << 26 | low) * 0x1p-53;
}

double fv_random_normal(fv_random *random)
{
    double radius = sqrt(-2 * log(1 - fv_random_uniform(random)));

    return radius * cos(6.283185307179586 * fv_random_uniform(random));
}

int64_t fv_random_below(fv_random *random, int64_t bound)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % (uint64_t)bound, draw;

    do
        draw = (uint64_t)fv_random_u32(random) << 32 | fv_random_u32(random);
    while (draw >= limit);
    return (int64_t)(draw % (uint64_t)bound);
}
