/* Scores and places as one number each, and their heap. */
#ifndef FV_RANKS_H
#define FV_RANKS_H

#include <stdint.h>
#include <string.h>

/* Orders as numbers do; -0 is 0. */
static inline uint32_t fv_rank_key(float score)
{
    uint32_t bits;

    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Orders by key, equal keys by falling index. */
static inline uint64_t fv_rank(uint32_t key, int64_t index)
{
    return (uint64_t)key << 32 | (UINT32_MAX - (uint32_t)index);
}

static inline int32_t fv_rank_index(uint64_t rank)
{
    return (int32_t)(UINT32_MAX - (uint32_t)rank);
}

/* Moves the rank `at` down to its place in a heap with the smallest on top. */
static inline void fv_ranks_sift(uint64_t *heap, int64_t at, int64_t count)
{
    uint64_t moved = heap[at];

    for (int64_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        child += child + 1 < count && heap[child + 1] < heap[child];
        if (heap[child] >= moved) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* Heap sort, largest first. */
static inline void fv_ranks_sort(uint64_t *ranks, int64_t count)
{
    for (int64_t i = count / 2 - 1; i >= 0; i--)
        fv_ranks_sift(ranks, i, count);
    for (int64_t left = count - 1; left > 0; left--) {
        uint64_t smallest = ranks[0];
        ranks[0] = ranks[left];
        ranks[left] = smallest;
        fv_ranks_sift(ranks, 0, left);
    }
}

#endif
