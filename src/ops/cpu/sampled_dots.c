/* Products of rows with a few others each: the others are brought together as they are stored, and multiplied by what
 * attention of few rows has.  Sums of a few rows, where they lie; and back, the rows that are to be added to one of y,
 * by the inverse of the index.  Bound by the bytes of these rows, mostly from the second-level cache. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/panels.h"

/* Rows of y, and of x, that are multiplied together; queries of an item, and between asking for rows and reading them;
 * and rows that follow each other from which on they are read where they lie. */
enum { ROWS = 64, HEADS = 8, PIECE = 64, AHEAD = 2, RUN = 3 };

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

/* Entries of the index of a query that are multiplied together, and the rows of y they name. */
struct entries {
    const int32_t *index;
    int64_t step, count;
    const char *y;
    int64_t y_bytes; /* from a row to the next */
};

static struct entries entries_of(const fv_sampled_dots_args *a, int64_t b, int64_t h, int64_t i, int64_t from)
{
    int64_t head = h / (a->x.dims[1] / a->y.dims[1]);
    const char *y = fv_panels_row(&a->y, b, head, 0);

    return (struct entries){.index = fv_at(&a->index, b, h, i, from),
                            .step = a->index.strides[3],
                            .count = fv_min(ROWS, a->out.dims[3] - from),
                            .y = y,
                            .y_bytes = fv_panels_row(&a->y, b, head, 1) - y};
}

/* Asks for rows that a later query needs: they lie in as many places as there are. */
static void ask(const struct job *job, const struct entries *e)
{
    for (int64_t r = 0; r < e->count; r++) {
        const char *at = e->y + fv_max(e->index[r * e->step], 0) * e->y_bytes;
        for (int64_t byte = 0; byte < job->row_bytes; byte += 64)
            __builtin_prefetch(at + byte);
    }
}

/* How many entries from r on name rows that follow each other. */
static int64_t run_from(const struct entries *e, int64_t r)
{
    int64_t end = r + 1;

    while (end < e->count && e->index[end * e->step] == e->index[r * e->step] + end - r)
        end++;
    return end - r;
}

/* The products of so many rows at k with those of x, from place `at` on. */
static void multiply_rows(const struct job *job, const struct memory *m, int heads, const char *k, int64_t k_bytes,
                          int64_t count, int64_t at)
{
    const fv_sampled_dots_args *a = job->args;

    if (count > 0)
        job->kernels->few[a->y.dtype].dots(heads, a->x.dims[3], m->x, job->x_row, k, k_bytes, count, m->dots + at,
                                           ROWS);
}

/* Entries of heads h.. and query i from `from` on: rows that follow each other where they lie, others brought together.
 */
static void multiply(const struct job *job, const struct memory *m, const struct entries *e, int64_t b, int64_t h,
                     int heads, int64_t i, int64_t from)
{
    const fv_sampled_dots_args *a = job->args;
    int64_t kept = 0, copied = 0; /* the last of those kept */

    for (int64_t r = 0, run; r < e->count; r += run) {
        int32_t row = e->index[r * e->step];
        run = row < 0 ? 1 : run_from(e, r);
        if (row < 0) continue;
        if (run < RUN) run = 1;
        if (run == 1) {
            memcpy(m->rows + copied++ * job->row_bytes, e->y + row * e->y_bytes, (size_t)job->row_bytes);
        } else {
            multiply_rows(job, m, heads, m->rows, job->row_bytes, copied, kept - copied);
            multiply_rows(job, m, heads, e->y + row * e->y_bytes, e->y_bytes, run, kept);
            copied = 0;
        }
        kept += run;
    }
    multiply_rows(job, m, heads, m->rows, job->row_bytes, copied, kept - copied);
    for (int n = 0; n < heads; n++) {
        const float *dot = m->dots + n * ROWS;
        float *out = fv_at(&a->out, b, h + n, i, from);
        for (int64_t r = 0; r < e->count; r++)
            out[r * a->out.strides[3]] = e->index[r * e->step] < 0 ? -INFINITY : *dot++;
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
                struct entries e = entries_of(a, b, h, i, r), later;
                if (i + AHEAD < a->x.dims[2]) {
                    later = entries_of(a, b, h, i + AHEAD, r);
                    ask(job, &later);
                }
                multiply(job, m, &e, b, h, heads, i, r);
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

/* ---- sums ------------------------------------------------------------------------------------------------------- */

enum { TERMS = 64 /* combined in one go */ };

/* A sum on its way: out [n] (+)= the terms. */
struct sum {
    const struct fv_kernels *kernels;
    int64_t n, count;
    bool add;
    float *out;
    const float *row[TERMS];
    float weight[TERMS];
};

static void close_sum(struct sum *sum)
{
    if (sum->count > 0 || !sum->add)
        sum->kernels->combine(sum->count, sum->row, sum->weight, sum->n, sum->add, sum->out);
    sum->count = 0;
    sum->add = true;
}

static void add_term(struct sum *sum, const float *row, float weight)
{
    if (weight == -INFINITY) return;
    sum->row[sum->count] = row;
    sum->weight[sum->count++] = weight;
    if (sum->count == TERMS) close_sum(sum);
}

struct sums {
    const struct fv_kernels *kernels;
    const fv_sampled_sums_args *args;
    int64_t pieces;       /* of the rows of a head */
    const int32_t *order; /* [lists, N * R] entries of the index, by the rows they name */
    const int64_t *start; /* [lists, M + 1] */
};

static void sum_item(void *user, int64_t item, int thread)
{
    const struct sums *job = user;
    const fv_sampled_sums_args *a = job->args;
    int64_t H = a->out.dims[1], N = a->out.dims[2], first = item % job->pieces * PIECE, h = item / job->pieces % H,
            b = item / job->pieces / H;
    struct sum sum = {.kernels = job->kernels, .n = a->out.dims[3]};
    const float *y = fv_at(&a->y, b, h / (H / a->y.dims[1]), 0, 0);

    (void)thread;
    for (int64_t i = first; i < fv_min(first + PIECE, N); i++) {
        const int32_t *index = fv_at(&a->index, b, h, i, 0);
        const float *weight = fv_at(&a->weight, b, h, i, 0);
        int64_t index_step = a->index.strides[3], weight_step = a->weight.strides[3];
        sum.out = fv_at(&a->out, b, h, i, 0);
        sum.add = false;
        for (int64_t r = 0; r < a->weight.dims[3]; r++) {
            int32_t row = index[r * index_step];
            if (row >= 0) add_term(&sum, y + row * a->y.strides[2], weight[r * weight_step]);
        }
        close_sum(&sum);
    }
}

static double flops_of(const fv_sampled_sums_args *args)
{
    return 2.0 * (double)(fv_tensor_count(&args->weight) * args->out.dims[3]);
}

fv_status fv_cpu_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args)
{
    struct sums job = {.kernels = fv_kernels_of(ctx), .args = args, .pieces = fv_ceil_div(args->out.dims[2], PIECE)};

    if (args->y.dtype != FV_F32 || !fv_cpu_rows_together(&args->y) || !fv_cpu_rows_together(&args->out))
        return fv_backend_ref.sampled_sums(ctx, args);
    fv_cpu_run(ctx, args->out.dims[0] * args->out.dims[1] * job.pieces, flops_of(args), sum_item, &job);
    return fv_ctx_check(ctx);
}

static void spread_item(void *user, int64_t item, int thread)
{
    const struct sums *job = user;
    const fv_sampled_sums_args *a = job->args;
    int64_t Hx = a->y.dims[1], M = a->y.dims[2], R = a->weight.dims[3], group = a->out.dims[1] / Hx,
            first = item % job->pieces * PIECE, hx = item / job->pieces % Hx, b = item / job->pieces / Hx;
    struct sum sum = {.kernels = job->kernels, .n = a->out.dims[3]};

    (void)thread;
    for (int64_t j = first; j < fv_min(first + PIECE, M); j++) {
        sum.out = fv_at(&a->y, b, hx, j, 0);
        sum.add = true;
        for (int64_t h = hx * group; h < (hx + 1) * group; h++) {
            int64_t heads = a->index.strides[1] == 0 ? 1 : a->out.dims[1];
            int64_t list = (a->index.strides[0] == 0 ? 0 : b * heads) + (heads == 1 ? 0 : h);
            const int32_t *order = job->order + list * a->out.dims[2] * R;
            const int64_t *start = job->start + list * (M + 1);
            for (int64_t n = start[j]; n < start[j + 1]; n++) {
                int64_t i = order[n] / R, r = order[n] % R;
                add_term(&sum, fv_at(&a->out, b, h, i, 0), *(float *)fv_at(&a->weight, b, h, i, r));
            }
        }
        close_sum(&sum);
    }
}

/* Lists are shared where the index is. */
static fv_status invert(fv_ctx *ctx, const fv_tensor *index, int64_t rows, struct sums *job)
{
    fv_tensor once = *index, keys;
    int64_t lists, entries = index->dims[2] * index->dims[3], *start;
    int32_t *order;

    for (int d = 0; d < 2; d++)
        if (index->strides[d] == 0) once.dims[d] = 1;
    lists = once.dims[0] * once.dims[1];
    FV_TRY(fv_tensor_new(ctx, &keys, FV_I32, 4, once.dims));
    FV_TRY(ctx->backend->map(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = once, .out = keys, .alpha = 1}));
    FV_TRY(FV_SCRATCH(ctx, order, lists * entries));
    FV_TRY(FV_SCRATCH(ctx, start, lists * (rows + 1)));
    FV_TRY(fv_sort_by_key(ctx, keys.data, lists, entries, rows, order, start));
    job->order = order;
    job->start = start;
    return FV_OK;
}

fv_status fv_cpu_sampled_spread(fv_ctx *ctx, const fv_sampled_sums_args *args)
{
    int64_t rows = args->y.dims[2];
    struct sums job = {.kernels = fv_kernels_of(ctx), .args = args, .pieces = fv_ceil_div(rows, PIECE)};
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_status status;

    if (!fv_cpu_rows_together(&args->out) || args->out.dims[2] * args->weight.dims[3] > INT32_MAX)
        return fv_backend_ref.sampled_spread(ctx, args);
    FV_TRY_DONE(invert(ctx, &args->index, rows, &job));
    fv_cpu_run(ctx, args->y.dims[0] * args->y.dims[1] * job.pieces, flops_of(args), spread_item, &job);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
