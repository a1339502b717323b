/* Products of rows with a few others each: the others are brought together as they are stored, and multiplied by what
 * attention of few rows has.  Bound by the bytes of these rows, mostly from the second-level cache. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/panels.h"

/* Rows of y, and of x, that are multiplied together; queries of an item, and between asking for rows and reading them.
 */
enum { ROWS = 64, HEADS = 8, PIECE = 64, AHEAD = 2 };

struct memory {
    char *rows;  /* [ROWS] of y */
    float *x;    /* [HEADS, x_row] */
    float *dots; /* [HEADS, ROWS] */
};

struct job {
    const struct fv_kernels *kernels;
    const fv_sampled_dots_args *args;
    int64_t row_bytes, x_row, heads, pieces; /* heads of x that share an index and y */
    struct memory *memory;                   /* per thread */
};

/* Asks for rows that a later query needs: they lie in as many places as there are. */
static void ask(const struct job *job, int64_t b, int64_t h, int64_t i, int64_t from, int64_t count)
{
    const fv_sampled_dots_args *a = job->args;
    const int32_t *index = fv_at(&a->index, b, h, i, from);

    for (int64_t r = 0; r < count; r++) {
        int32_t row = index[r * a->index.strides[3]];
        const char *at = fv_panels_row(&a->y, b, h / (a->x.dims[1] / a->y.dims[1]), fv_max(row, 0));
        for (int64_t byte = 0; byte < job->row_bytes; byte += 64)
            __builtin_prefetch(at + byte);
    }
}

/* Entries from..from+count-1 of the index of heads h.. and query i. */
static void multiply(const struct job *job, const struct memory *m, int64_t b, int64_t h, int heads, int64_t i,
                     int64_t from, int64_t count)
{
    const fv_sampled_dots_args *a = job->args;
    int64_t key_head = h / (a->x.dims[1] / a->y.dims[1]), kept = 0;
    const int32_t *index = fv_at(&a->index, b, h, i, from);

    for (int64_t r = 0; r < count; r++) {
        int32_t row = index[r * a->index.strides[3]];
        if (row < 0) continue;
        memcpy(m->rows + kept++ * job->row_bytes, fv_panels_row(&a->y, b, key_head, row), (size_t)job->row_bytes);
    }
    job->kernels->few[a->y.dtype].dots(heads, a->x.dims[3], m->x, job->x_row, m->rows, job->row_bytes, kept, m->dots,
                                       ROWS);
    for (int n = 0; n < heads; n++) {
        const float *dot = m->dots + n * ROWS;
        float *out = fv_at(&a->out, b, h + n, i, from);
        for (int64_t r = 0; r < count; r++)
            out[r * a->out.strides[3]] = index[r * a->index.strides[3]] < 0 ? -INFINITY : *dot++;
    }
}

static void multiply_item(void *user, int64_t item, int thread)
{
    const struct job *job = user;
    const fv_sampled_dots_args *a = job->args;
    const struct memory *m = &job->memory[thread];
    int64_t sets = a->x.dims[1] / job->heads, set = item / job->pieces % sets, b = item / job->pieces / sets;
    int64_t first = item % job->pieces * PIECE, D = a->x.dims[3], R = a->out.dims[3];

    for (int64_t i = first; i < fv_min(first + PIECE, a->x.dims[2]); i++)
        for (int64_t h = set * job->heads; h < (set + 1) * job->heads; h += HEADS) {
            int heads = (int)fv_min(HEADS, (set + 1) * job->heads - h);
            for (int n = 0; n < heads; n++)
                job->kernels->map(FV_MAP_COPY, D, fv_at(&a->x, b, h + n, i, 0), NULL, 0, a->scale, 0,
                                  m->x + n * job->x_row);
            for (int64_t r = 0; r < R; r += ROWS) {
                if (i + AHEAD < a->x.dims[2]) ask(job, b, h, i + AHEAD, r, fv_min(ROWS, R - r));
                multiply(job, m, b, h, heads, i, r, fv_min(ROWS, R - r));
            }
        }
}

static fv_status run(fv_ctx *ctx, struct job *job)
{
    const fv_sampled_dots_args *a = job->args;
    int64_t threads = fv_ctx_threads(ctx), sets = a->x.dims[1] / job->heads;

    FV_TRY(FV_SCRATCH(ctx, job->memory, threads));
    for (int64_t t = 0; t < threads; t++) {
        FV_TRY(FV_SCRATCH(ctx, job->memory[t].rows, ROWS * job->row_bytes));
        FV_TRY(FV_SCRATCH(ctx, job->memory[t].x, HEADS * job->x_row));
        FV_TRY(FV_SCRATCH(ctx, job->memory[t].dots, HEADS * ROWS));
        memset(job->memory[t].x, 0, (size_t)(HEADS * job->x_row) * sizeof(float));
    }
    fv_cpu_run(ctx, a->x.dims[0] * sets * job->pieces, 2.0 * (double)(fv_tensor_count(&a->out) * a->x.dims[3]),
               multiply_item, job);
    return fv_ctx_check(ctx);
}

fv_status fv_cpu_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args)
{
    const fv_tensor *x = &args->x, *y = &args->y;
    struct job job = {.kernels = fv_kernels_of(ctx), .args = args, .heads = 1};
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_status status;

    if (!fv_cpu_rows_together(x) || !fv_cpu_rows_together(y)) return fv_backend_ref.sampled_dots(ctx, args);
    if (args->index.strides[1] == 0) job.heads = x->dims[1] / y->dims[1];
    job.row_bytes = fv_ceil_div(y->dims[3], fv_dtype_block(y->dtype)) * (int64_t)fv_dtype_block_bytes(y->dtype);
    job.x_row = fv_round_up(x->dims[3], 2 * job.kernels->width);
    job.pieces = fv_ceil_div(x->dims[2], PIECE);
    status = run(ctx, &job);
    fv_arena_release(ctx->arena, mark);
    return status;
}
