/* The k-th largest key is found with a heap of the k largest so far, or digit by digit if k is no small part of n; then
 * one walk in index order takes what is above it and the first of those that equal it. */
#include <math.h>

#include "ops/check.h"
#include "ops/ranks.h"
#include "ops/ref/ref.h"

struct job {
    const fv_select_args *select;
    uint32_t *keys;   /* [threads, n] */
    uint64_t *ranked; /* [threads, most]: key in the high half, so that equal ones rank by falling index in the low */
    int64_t most;     /* min(k, n) */
};

/* Unsigned integers in the order of the scores; 0: not to be selected. */
static uint32_t key_of(float score)
{
    return score > -INFINITY ? fv_rank_key(score) : 0;
}

/* The k-th largest of keys and, in *equal, how many that equal it belong to the k largest.  0 < k <= selectable. */
static uint32_t kth_largest(const uint32_t *keys, int64_t n, int64_t k, int64_t *equal)
{
    uint32_t prefix = 0, mask = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t histogram[256] = {0};
        int digit = 255;
        for (int64_t i = 0; i < n; i++)
            if ((keys[i] & mask) == prefix) histogram[keys[i] >> shift & 255]++;
        for (; histogram[digit] < k; digit--)
            k -= histogram[digit];
        prefix |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    *equal = k;
    return prefix;
}

/* As kth_largest, with a heap of k: most keys cost one comparison. */
static uint32_t kth_by_heap(const uint32_t *keys, int64_t n, int64_t k, uint64_t *heap, int64_t *equal)
{
    int64_t count = 0;

    for (int64_t i = 0; i < n; i++) {
        uint64_t ranked = fv_rank(keys[i], i);
        if (count == k) {
            if (ranked < heap[0]) continue;
            heap[0] = ranked;
            fv_ranks_sift(heap, 0, k);
        } else if (keys[i] != 0) {
            heap[count++] = ranked;
            for (int64_t at = k / 2 - 1; count == k && at >= 0; at--)
                fv_ranks_sift(heap, at, k);
        }
    }
    *equal = 0;
    for (int64_t i = 0; i < k; i++)
        *equal += heap[i] >> 32 == heap[0] >> 32;
    return (uint32_t)(heap[0] >> 32);
}

static void select_row(void *user, int64_t row, int thread)
{
    const struct job *job = user;
    const fv_select_args *s = job->select;
    int last = s->scores.rank - 1;
    int64_t n = s->scores.dims[last], stride = s->scores.strides[last], k = s->index.dims[last], able = 0, taken = 0;
    const float *scores = (const float *)s->scores.data + fv_lead_offset(&s->scores, last, row);
    int32_t *index = (int32_t *)s->index.data + fv_lead_offset(&s->index, last, row);
    uint32_t *keys = job->keys + thread * n, least = 1;
    uint64_t *ranked = job->ranked + thread * job->most;
    int64_t equal = 0, step = s->index.strides[last];

    if (s->valid) n = fv_clamp(s->valid[row], 0, n);
    for (int64_t i = 0; i < n; i++) {
        keys[i] = key_of(scores[i * stride]);
        if (s->use_threshold && !(scores[i * stride] >= s->threshold)) keys[i] = 0;
        able += keys[i] != 0;
    }
    if (able > k && k > 0) /* the walk below takes all from `least` on, and `equal` of those that equal it */
        least = k <= n / 8 ? kth_by_heap(keys, n, k, ranked, &equal) : kth_largest(keys, n, k, &equal);
    else if (k > 0)
        equal = able;
    for (int64_t i = 0; i < n && taken < fv_min(able, k); i++) {
        if (keys[i] < least || (keys[i] == least && equal-- <= 0)) continue;
        if (s->by_score)
            ranked[taken] = fv_rank(keys[i], i);
        else
            index[taken * step] = (int32_t)i;
        taken++;
    }
    if (s->by_score) {
        fv_ranks_sort(ranked, taken);
        for (int64_t i = 0; i < taken; i++)
            index[i * step] = fv_rank_index(ranked[i]);
    }
    for (int64_t i = taken; i < k; i++)
        index[i * step] = -1;
    if (fv_present(&s->count)) ((int32_t *)s->count.data)[fv_lead_offset(&s->count, last, row)] = (int32_t)taken;
}

fv_status fv_ref_select(fv_ctx *ctx, const fv_select_args *args)
{
    int last = args->scores.rank - 1;
    int64_t n = args->scores.dims[last], threads = fv_ctx_threads(ctx);
    struct job job = {.select = args, .most = fv_min(n, args->index.dims[last])};
    fv_mark mark = fv_scratch_mark(ctx);

    FV_TRY(FV_SCRATCH(ctx, job.keys, threads * n));
    FV_TRY(FV_SCRATCH(ctx, job.ranked, threads * job.most));
    fv_run(ctx, fv_lead_count(&args->scores, last), select_row, &job);
    fv_scratch_release(ctx, mark);
    return FV_OK;
}
