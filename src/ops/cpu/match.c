/* The best matches of gathered rows.  An item is a stretch of one leading index' entries: the rows of x become panels
 * of columns, and rows of y are matched FV_MATCH_ROWS at a time where they lie, each asked for while those before it
 * are multiplied.  Bound by flops while the rows of y that a leading index has come from a near cache. */
#include <math.h>

#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum { MEMBERS = 512 /* of an item, about */ };

struct job {
    const struct fv_kernels *kernels;
    const fv_match_args *match;
    int64_t entries, pieces, panels; /* of an item; items of a leading index */
    int64_t row_bytes;               /* of y */
    float *columns, *staging;        /* [threads, ..] */
    int64_t column_floats, staging_floats;
};

/* Rows of y on their way: while one half fills up, the other waits to be multiplied. */
struct queue {
    const float *row[2][FV_MATCH_ROWS];
    int64_t entry[2][FV_MATCH_ROWS];
    int filling, count[2];
    float *out, *staging;
    const float *columns;
    int64_t step; /* from an entry's place in out to the next */
};

/* The last row once more where there are fewer columns than a panel has. */
static void lay_out(const struct job *job, const float *x, float *columns)
{
    const fv_tensor *t = &job->match->x;
    int width = job->kernels->width;
    int64_t row = t->strides[t->rank - 2], R = t->dims[t->rank - 2], C = t->dims[t->rank - 1];

    for (int64_t p = 0; p < job->panels; p++, columns += C * width) {
        const float *in[FV_MAX_TILE_COLUMNS];
        for (int r = 0; r < width; r++)
            in[r] = x + fv_min(p * width + r, R - 1) * row;
        job->kernels->transpose_rows(in, width, C, columns, width);
    }
}

static void multiply(const struct job *job, struct queue *q, int half)
{
    float best[FV_MATCH_ROWS];
    int count = q->count[half];

    if (count == 0) return;
    for (int n = count; n < FV_MATCH_ROWS; n++)
        q->row[half][n] = q->row[half][0];
    job->kernels->match(job->panels, job->match->x.dims[job->match->x.rank - 1], q->columns, q->row[half], best);
    for (int n = 0; n < count; n++) {
        float *out = q->out + q->entry[half][n] * q->step;
        *out = best[n] > *out ? best[n] : *out;
    }
    q->count[half] = 0;
}

static void push(const struct job *job, struct queue *q, const char *row, int64_t entry)
{
    const fv_tensor *y = &job->match->y;
    int64_t C = y->dims[y->rank - 1];
    int half = q->filling, n = q->count[half]++;

    q->entry[half][n] = entry;
    q->row[half][n] = (const float *)row;
    if (y->dtype == FV_F32) {
        for (int64_t c = 0; c < C; c += 16)
            __builtin_prefetch((const float *)row + c);
    } else {
        float *to = q->staging + (half * FV_MATCH_ROWS + n) * C;
        fv_kernels_load(job->kernels, y->dtype, row, 0, C, to);
        q->row[half][n] = to;
    }
    if (n + 1 < FV_MATCH_ROWS) return;
    q->filling = !half;
    multiply(job, q, !half);
}

static void match_item(void *user, int64_t item, int thread)
{
    const struct job *job = user;
    const fv_match_args *m = job->match;
    int lead = m->out.rank - 1;
    int64_t n = item / job->pieces, from = item % job->pieces * job->entries;
    int64_t end = fv_min(from + job->entries, m->out.dims[lead]), members = m->index.dims[lead + 1];
    int64_t entry_step = m->index.strides[lead], member_step = m->index.strides[lead + 1];
    float *columns = job->columns + thread * job->column_floats;
    const int32_t *at = (const int32_t *)m->index.data + fv_lead_offset(&m->index, lead, n) + from * entry_step;
    const char *y = (const char *)m->y.data;
    struct queue q = {.out = (float *)m->out.data + fv_lead_offset(&m->out, lead, n),
                      .staging = job->staging + thread * job->staging_floats,
                      .columns = columns,
                      .step = m->out.strides[lead]};

    y += fv_lead_offset(&m->y, lead, n) / fv_dtype_block(m->y.dtype) * (int64_t)fv_dtype_block_bytes(m->y.dtype);
    lay_out(job, (const float *)m->x.data + fv_lead_offset(&m->x, lead, n), columns);
    for (int64_t e = from; e < end; e++, at += entry_step) {
        q.out[e * q.step] = -INFINITY;
        for (int64_t member = 0; member < members; member++) {
            int64_t j = at[member * member_step];
            if (j >= 0) push(job, &q, y + j * job->row_bytes, e);
        }
    }
    multiply(job, &q, !q.filling);
    multiply(job, &q, q.filling);
}

fv_status fv_cpu_match(fv_ctx *ctx, const fv_match_args *args)
{
    struct job job = {.kernels = fv_kernels_of(ctx), .match = args};
    int lead = args->out.rank - 1;
    int64_t R = args->x.dims[lead], C = args->x.dims[lead + 1], G = args->index.dims[lead + 1];
    int64_t threads = fv_ctx_threads(ctx), leads = fv_lead_count(&args->out, lead);
    fv_mark mark = fv_scratch_mark(ctx);

    if (R == 0 || C == 0 || (C > 1 && (args->x.strides[lead + 1] != 1 || args->y.strides[lead + 1] != 1)))
        return fv_backend_ref.match(ctx, args);
    job.panels = fv_ceil_div(R, job.kernels->width);
    job.row_bytes =
        args->y.strides[lead] / fv_dtype_block(args->y.dtype) * (int64_t)fv_dtype_block_bytes(args->y.dtype);
    job.entries = fv_max(MEMBERS / fv_max(G, 1), 1);
    job.pieces = fv_ceil_div(args->out.dims[lead], job.entries);
    job.column_floats = job.panels * C * job.kernels->width + FV_MAX_TILE_COLUMNS;
    job.staging_floats = args->y.dtype == FV_F32 ? 0 : 2 * FV_MATCH_ROWS * C;
    FV_TRY(FV_SCRATCH(ctx, job.columns, threads * job.column_floats));
    FV_TRY(FV_SCRATCH(ctx, job.staging, threads * job.staging_floats));
    fv_cpu_run(ctx, leads * job.pieces, 2.0 * (double)(leads * args->out.dims[lead] * G * R) * (double)C, match_item,
               &job);
    fv_scratch_release(ctx, mark);
    return FV_OK;
}
