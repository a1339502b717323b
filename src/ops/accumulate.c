#include "ops/accumulate.h"

#include <assert.h>
#include <stdlib.h>

bool fv_tensor_apart(const fv_tensor *t)
{
    bool used[FV_MAX_RANK] = {false};
    int64_t reach = 0; /* the highest offset of the dims taken so far */

    for (int n = 0; n < t->rank; n++) {
        int next = -1;
        for (int d = 0; d < t->rank; d++) /* the smallest stride that is left */
            if (!used[d] && t->dims[d] != 1 && (next < 0 || llabs(t->strides[d]) < llabs(t->strides[next]))) next = d;
        if (next < 0) return true;
        used[next] = true;
        if (t->dims[next] == 0) return true;
        if (llabs(t->strides[next]) <= reach) return false;
        reach += (t->dims[next] - 1) * llabs(t->strides[next]);
    }
    return true;
}

struct job {
    const fv_tensor *to, *from;
    float alpha;
    int split; /* the dim that is shared out; -1: none */
};

static void add_row(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t count, float alpha)
{
    if (to_stride == 0) {
        double sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += from[i * from_stride];
        *to += (float)(alpha * sum);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        to[i * to_stride] += alpha * from[i * from_stride];
}

static void add(const struct job *job, int dim, int64_t to, int64_t from)
{
    const fv_tensor *t = job->to, *f = job->from;

    if (dim == job->split) {
        add(job, dim + 1, to, from);
    } else if (dim >= f->rank - 1) { /* the last dim, or none is left */
        bool row = dim == f->rank - 1;
        add_row((float *)t->data + to, row ? t->strides[dim] : 1, (const float *)f->data + from,
                row ? f->strides[dim] : 1, row ? f->dims[dim] : 1, job->alpha);
    } else {
        for (int64_t i = 0; i < f->dims[dim]; i++)
            add(job, dim + 1, to + i * t->strides[dim], from + i * f->strides[dim]);
    }
}

static void item(void *user, int64_t index, int thread)
{
    const struct job *job = user;

    (void)thread;
    add(job, 0, index * job->to->strides[job->split], index * job->from->strides[job->split]);
}

void fv_add_into(fv_ctx *ctx, const fv_tensor *to, const fv_tensor *from, float alpha)
{
    fv_tensor spread = fv_broadcast(to, from->rank, from->dims), kept = spread;
    struct job job = {.to = &spread, .from = from, .alpha = alpha, .split = -1};

    assert(to->dtype == FV_F32 && from->dtype == FV_F32);
    for (int d = 0; d < kept.rank; d++)
        if (kept.strides[d] == 0) kept.dims[d] = 1;
    /* share out the first long dim, if no two of its indices write the same element; rows stay whole */
    for (int d = 0; d < kept.rank - 1 && job.split < 0 && fv_tensor_apart(&kept); d++)
        if (kept.dims[d] > 1) job.split = d;
    if (fv_tensor_count(from) == 0) return;
    if (job.split < 0)
        add(&job, 0, 0, 0);
    else
        fv_run(ctx, from->dims[job.split], item, &job);
}
