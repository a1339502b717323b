/* Selection: rows in items, each through the walk of select_tmpl.c. */
#include <math.h>

#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"
#include "ops/ranks.h"

enum { PIECE = 16384 }; /* scores an item walks */

struct job {
    const struct fv_kernels *kernels;
    const fv_select_args *select;
    float above;
    int64_t rows, rows_per_item, room;
    int32_t *keys, *index; /* [threads, room] */
    uint64_t *ranks;       /* [threads, room] */
    float *scores;         /* [threads, n], where they do not lie side by side */
};

static void by_score(const int32_t *keys, int32_t *index, int64_t count, uint64_t *ranks)
{
    for (int64_t i = 0; i < count; i++)
        ranks[i] = fv_rank((uint32_t)keys[i] ^ 0x80000000u, index[i]);
    fv_ranks_sort(ranks, count);
    for (int64_t i = 0; i < count; i++)
        index[i] = fv_rank_index(ranks[i]);
}

static void select_row(const struct job *job, int64_t row, int thread)
{
    const fv_select_args *s = job->select;
    int last = s->scores.rank - 1;
    int64_t n = s->scores.dims[last], k = s->index.dims[last], step = s->index.strides[last], count;
    const float *scores = (const float *)s->scores.data + fv_lead_offset(&s->scores, last, row);
    int32_t *out = (int32_t *)s->index.data + fv_lead_offset(&s->index, last, row);
    int32_t *keys = job->keys + thread * job->room, *index = job->index + thread * job->room;

    if (s->valid) n = fv_clamp(s->valid[row], 0, n);
    if (job->scores) {
        float *own = job->scores + thread * s->scores.dims[last];
        for (int64_t i = 0; i < n; i++)
            own[i] = scores[i * s->scores.strides[last]];
        scores = own;
    }
    count = job->kernels->select(n, scores, fv_min(k, n), job->above, keys, index);
    if (s->by_score) by_score(keys, index, count, job->ranks + thread * job->room);
    for (int64_t i = 0; i < count; i++)
        out[i * step] = index[i];
    for (int64_t i = count; i < k; i++)
        out[i * step] = -1;
    if (fv_present(&s->count)) ((int32_t *)s->count.data)[fv_lead_offset(&s->count, last, row)] = (int32_t)count;
}

static void select_item(void *user, int64_t item, int thread)
{
    const struct job *job = user;
    int64_t end = fv_min((item + 1) * job->rows_per_item, job->rows);

    for (int64_t row = item * job->rows_per_item; row < end; row++)
        select_row(job, row, thread);
}

static fv_status run(fv_ctx *ctx, struct job *job)
{
    const fv_select_args *s = job->select;
    int last = s->scores.rank - 1;
    int64_t n = s->scores.dims[last], threads = fv_ctx_threads(ctx);

    job->room = FV_SELECT_ROOM(fv_min(n, s->index.dims[last]));
    FV_TRY(FV_SCRATCH(ctx, job->keys, threads * job->room));
    FV_TRY(FV_SCRATCH(ctx, job->index, threads * job->room));
    if (s->by_score) FV_TRY(FV_SCRATCH(ctx, job->ranks, threads * job->room));
    if (s->scores.strides[last] != 1 && n > 1) FV_TRY(FV_SCRATCH(ctx, job->scores, threads * n));
    fv_cpu_run(ctx, fv_ceil_div(job->rows, job->rows_per_item), 4.0 * (double)(job->rows * n), select_item, job);
    return FV_OK;
}

fv_status fv_cpu_select(fv_ctx *ctx, const fv_select_args *args)
{
    int last = args->scores.rank - 1;
    struct job job = {.kernels = fv_kernels_of(ctx), .select = args, .above = -INFINITY};
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status;

    if (args->use_threshold) job.above = nextafterf(args->threshold, -INFINITY); /* what exceeds it reaches threshold */
    job.rows = fv_lead_count(&args->scores, last);
    job.rows_per_item = fv_max(PIECE / fv_max(args->scores.dims[last], 1), 1);
    status = run(ctx, &job);
    fv_scratch_release(ctx, mark);
    return status;
}
