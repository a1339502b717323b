/* The largest scores of a row.  One walk compares whole vectors with the k-th best so far, which few scores pass; those
 * are collected, and cut down to the k best whenever the room for them is full.  Bound by reading the scores where k is
 * small against the row (2 to 13 of 8192: the rate of a copy), else by the cuts, each of up to 32 counts over what was
 * collected: 13 of 512 at a third of that rate, 13 of 64 in 0.1 us a row. */
#include "ops/cpu/leaf.h"

/* Integers in the order of the scores; -0 equals 0. */
INLINE vi key_of(vf score)
{
    vi bits = (vi)(score + splat(0));

    return bits ^ (vi)((bits >> 31) & 0x7fffffff);
}

static float score_of(int32_t key)
{
    int32_t bits = key ^ (int32_t)((key >> 31) & 0x7fffffff);
    float score;

    memcpy(&score, &bits, sizeof score);
    return score;
}

static int64_t count_from(const int32_t *keys, int64_t count, int32_t least)
{
    vi from = splat_i(least), found[2] = {splat_i(0), splat_i(0)};
    int64_t sum = 0, i = 0;

    for (; i + W < count; i += 2 * W) {
        found[0] -= load_i(keys + i) >= from;
        found[1] -= load_i(keys + i + W) >= from;
    }
    if (i < count) found[0] -= load_i(keys + i) >= from;
    found[0] += found[1];
    for (int lane = 0; lane < W; lane++)
        sum += found[0][lane];
    return sum;
}

/* The largest t that at least k of the keys reach, bit by bit from the highest; or an earlier t that k reach exactly.
 */
static int32_t kth_largest(const int32_t *keys, int64_t count, int64_t k)
{
    uint32_t t = 0;

    for (int bit = 31; bit >= 0; bit--) {
        uint32_t next = t | 1u << bit;
        int64_t found = count_from(keys, count, (int32_t)(next ^ 0x80000000u));
        if (found >= k) t = next;
        if (found == k) break;
    }
    return (int32_t)(t ^ 0x80000000u);
}

/* Leaves the k best of count > k > 0 keys, in the order they have; of equal ones the first.  Returns a key that each of
 * them reaches and no other exceeds. */
static int32_t keep_best(int32_t *keys, int32_t *index, int64_t count, int64_t k)
{
    store_i(keys + count, splat_i(INT32_MIN));
    int32_t least = kth_largest(keys, count, k);
    int equal = (int)(k - count_from(keys, count, least + 1)), kept = 0;

    for (int64_t i = 0; i < count; i += W) {
        vi key = load_i(keys + i), place = load_i(index + i);
        unsigned above = lanes(key > splat_i(least)), same = lanes(key == splat_i(least));
        if (equal == 0) same = 0;
        while (__builtin_popcount(same) > equal)
            same ^= 1u << (31 - __builtin_clz(same));
        equal -= __builtin_popcount(same);
        pack(keys + kept, key, above | same);
        pack(index + kept, place, above | same);
        kept += __builtin_popcount(above | same);
    }
    return least;
}

static int64_t select_row(int64_t n, const float *x, int64_t k, float above, int32_t *keys, int32_t *index)
{
    int64_t room = FV_SELECT_ROOM(k) - 5 * W, count = 0;
    vi places;

    for (int i = 0; i < W; i++)
        places[i] = i;
    if (k == 0) return 0;
    for (int64_t i = 0; i < n; i += 4 * W) {
        vf v[4], floor = splat(above);
        vi passes = splat_i(0);
        UNROLL
        for (int u = 0; u < 4; u++) {
            int64_t at = i + u * W;
            v[u] = at + W <= n ? load(x + at) : at < n ? load_part(x + at, n - at, -INFINITY) : splat(-INFINITY);
            passes |= v[u] > floor;
        }
        if (!lanes(passes)) continue;
        UNROLL
        for (int u = 0; u < 4; u++) {
            unsigned chosen = lanes(v[u] > floor);
            pack(keys + count, key_of(v[u]), chosen);
            pack(index + count, places + (int32_t)(i + u * W), chosen);
            count += __builtin_popcount(chosen);
        }
        if (count > room) {
            above = score_of(keep_best(keys, index, count, k));
            count = k;
        }
    }
    if (count > k) {
        keep_best(keys, index, count, k);
        count = k;
    }
    return count;
}

void LEAF(fill_select)(struct fv_kernels *kernels)
{
    kernels->select = select_row;
}
