/* Row-wise primitives over f32 rows that lie contiguous: elementwise functions, norms, rotary positions, softmax,
 * pooling, rows of stored types.  All are bound by memory; anything else goes to the reference backend. */
#include <math.h>

#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum { PIECE = 16384 }; /* elements an item works on */

static bool rows_of_f32(const fv_tensor *t)
{
    return t->dtype == FV_F32 && t->rank > 0 && (t->strides[t->rank - 1] == 1 || t->dims[t->rank - 1] == 1);
}

static int64_t rows_per_item(int64_t columns)
{
    return fv_max(PIECE / fv_max(columns, 1), 1);
}

/* ---- elementwise ----------------------------------------------------------------------------------------------- */

struct map_job {
    const struct fv_kernels *kernels;
    const fv_map_args *map;
    int lead;
    int64_t columns, rows, rows_per_item, pieces, y_step;
};

static void map_rows(const struct map_job *job, int64_t row, int64_t from, int64_t count)
{
    const fv_map_args *m = job->map;
    const char *x =
        (const char *)m->x.data + (fv_lead_offset(&m->x, job->lead, row) + from) * (int64_t)fv_dtype_size(m->x.dtype);
    char *out =
        (char *)m->out.data + (fv_lead_offset(&m->out, job->lead, row) + from) * (int64_t)fv_dtype_size(m->out.dtype);
    const float *y = NULL;

    if (fv_present(&m->y)) y = (const float *)m->y.data + fv_lead_offset(&m->y, job->lead, row) + from * job->y_step;
    if (m->x.dtype != FV_F32)
        job->kernels->load[m->x.dtype](x, 0, count, (float *)out);
    else if (m->out.dtype == FV_F16)
        job->kernels->to_f16((const float *)x, count, (uint16_t *)out);
    else if (m->out.dtype == FV_BF16)
        job->kernels->to_bf16((const float *)x, count, (uint16_t *)out);
    else
        job->kernels->map(m->op, count, (const float *)x, y, job->y_step, m->alpha, m->beta, (float *)out);
}

static void map_item(void *user, int64_t index, int thread)
{
    const struct map_job *job = user;
    int64_t row = index / job->pieces * job->rows_per_item, from = index % job->pieces * PIECE;
    int64_t end = fv_min(row + job->rows_per_item, job->rows);
    int64_t count = job->pieces > 1 ? fv_min(PIECE, job->columns - from) : job->columns;

    (void)thread;
    for (; row < end; row++)
        map_rows(job, row, from, count);
}

/* Whether the kernels have this function for these types; x and out are rows, y rows or one number a row. */
static bool map_is_fast(const struct fv_kernels *kernels, const fv_map_args *m)
{
    int last = m->out.rank - 1;
    bool cast = m->op == FV_MAP_COPY && m->alpha == 1 && m->beta == 0;
    float none = 0;

    if (last < 0 || !kernels->map(m->op, 0, &none, NULL, 0, 0, 0, &none)) return false;
    if (m->out.strides[last] != 1 || m->x.strides[last] != 1) return false;
    if (fv_present(&m->y) && (m->y.dtype != FV_F32 || (m->y.strides[last] != 1 && m->y.strides[last] != 0)))
        return false;
    if (m->x.dtype == FV_F32 && m->out.dtype == FV_F32) return true;
    if (m->x.dtype == FV_F32) return cast && (m->out.dtype == FV_F16 || m->out.dtype == FV_BF16);
    return cast && (m->x.dtype == FV_F16 || m->x.dtype == FV_BF16) && m->out.dtype == FV_F32;
}

fv_status fv_cpu_map(fv_ctx *ctx, const fv_map_args *args)
{
    fv_map_args m = *args;
    struct map_job job = {.kernels = fv_kernels_of(ctx), .map = &m};
    fv_tensor *all[] = {&m.x, &m.out, &m.y};

    if (!map_is_fast(job.kernels, args)) return fv_backend_ref.map(ctx, args);
    for (int d = m.out.rank - 2; d >= 0; d--) { /* rows that go on evenly in every tensor are one row */
        bool even = true;
        for (int i = 0; i < 3; i++)
            even = even && (!fv_present(all[i]) || all[i]->strides[d] == all[i]->strides[d + 1] * all[i]->dims[d + 1]);
        if (!even) break;
        for (int i = 0; i < 3; i++) {
            all[i]->dims[d] *= all[i]->dims[d + 1];
            all[i]->strides[d] = all[i]->strides[d + 1];
            all[i]->rank = d + 1;
        }
    }
    job.lead = m.out.rank - 1;
    job.columns = m.out.dims[job.lead];
    job.y_step = fv_present(&m.y) ? m.y.strides[job.lead] : 0;
    job.rows = fv_lead_count(&m.out, job.lead);
    job.rows_per_item = rows_per_item(job.columns);
    job.pieces = fv_max(fv_ceil_div(job.columns, PIECE), 1);
    fv_cpu_run(ctx, fv_ceil_div(job.rows, job.rows_per_item) * job.pieces, 8.0 * (double)(job.rows * job.columns),
               map_item, &job);
    return FV_OK;
}

/* ---- norms and softmax ----------------------------------------------------------------------------------------- */

struct norm_job {
    const struct fv_kernels *kernels;
    const fv_norm_args *norm;
    const fv_softmax_args *softmax;
    int64_t columns, rows, rows_per_item;
};

static float *row_at(const fv_tensor *t, int lead, int64_t row)
{
    return (float *)t->data + fv_lead_offset(t, lead, row);
}

static float inverse_root(float square, int64_t count, float epsilon)
{
    return 1 / sqrtf(square / (float)count + epsilon);
}

/* A row is read from memory once: what follows finds it in the first-level cache. */
static void norm_row(const struct norm_job *job, int64_t row)
{
    const struct fv_kernels *kernels = job->kernels;
    const fv_norm_args *n = job->norm;
    int lead = n->x.rank - 1;
    int64_t C = job->columns;
    const float *x = row_at(&n->x, lead, row);
    float *out = row_at(&n->out, lead, row), mean = 0, square = 0;

    if (fv_present(&n->add)) {
        const float *add = row_at(&n->add, lead, row);
        float *sum = fv_present(&n->sum) ? row_at(&n->sum, lead, row) : out;
        float scale = fv_present(&n->add_weight) ? inverse_root(kernels->square(C, add, 0), C, n->epsilon) : 1;
        square = kernels->add(C, x, add, scale, n->add_weight.data, sum);
        x = sum;
    } else if (!n->layer) {
        square = kernels->square(C, x, 0);
    }
    if (n->layer) {
        mean = kernels->sum(C, x) / (float)C;
        square = kernels->square(C, x, mean);
    }
    kernels->affine(C, x, mean, inverse_root(square, C, n->epsilon), n->weight.data, n->bias.data, out);
}

static void norm_item(void *user, int64_t index, int thread)
{
    const struct norm_job *job = user;
    int64_t end = fv_min((index + 1) * job->rows_per_item, job->rows);

    (void)thread;
    for (int64_t row = index * job->rows_per_item; row < end; row++)
        norm_row(job, row);
}

static bool is_vector(const fv_tensor *t)
{
    return !fv_present(t) || (t->dtype == FV_F32 && (t->strides[0] == 1 || t->dims[0] == 1));
}

fv_status fv_cpu_norm(fv_ctx *ctx, const fv_norm_args *args)
{
    struct norm_job job = {.kernels = fv_kernels_of(ctx), .norm = args};

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out) || (fv_present(&args->add) && !rows_of_f32(&args->add)) ||
        (fv_present(&args->sum) && !rows_of_f32(&args->sum)) || !is_vector(&args->weight) || !is_vector(&args->bias) ||
        !is_vector(&args->add_weight))
        return fv_backend_ref.norm(ctx, args);
    job.columns = args->x.dims[args->x.rank - 1];
    job.rows = fv_lead_count(&args->x, args->x.rank - 1);
    job.rows_per_item = rows_per_item(job.columns);
    fv_cpu_run(ctx, fv_ceil_div(job.rows, job.rows_per_item), 4.0 * (double)(job.rows * job.columns), norm_item, &job);
    return FV_OK;
}

static void softmax_item(void *user, int64_t index, int thread)
{
    const struct norm_job *job = user;
    const fv_softmax_args *s = job->softmax;
    int lead = s->x.rank - 1;
    int64_t end = fv_min((index + 1) * job->rows_per_item, job->rows);

    (void)thread;
    for (int64_t row = index * job->rows_per_item; row < end; row++) {
        const float *x = (const float *)s->x.data + fv_lead_offset(&s->x, lead, row);
        float *out = (float *)s->out.data + fv_lead_offset(&s->out, lead, row);
        float highest = job->kernels->largest(job->columns, x) * s->scale, sum;
        if (highest == -INFINITY) highest = 0; /* exp of every element is 0 then */
        sum = job->kernels->exp(job->columns, x, s->scale, highest, out);
        job->kernels->map(FV_MAP_COPY, job->columns, out, NULL, 0, sum == 0 ? 0 : 1 / sum, 0, out);
    }
}

fv_status fv_cpu_softmax(fv_ctx *ctx, const fv_softmax_args *args)
{
    struct norm_job job = {.kernels = fv_kernels_of(ctx), .softmax = args};

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out) || !(args->scale > 0))
        return fv_backend_ref.softmax(ctx, args);
    job.columns = args->x.dims[args->x.rank - 1];
    job.rows = fv_lead_count(&args->x, args->x.rank - 1);
    job.rows_per_item = rows_per_item(job.columns);
    fv_cpu_run(ctx, fv_ceil_div(job.rows, job.rows_per_item), 30.0 * (double)(job.rows * job.columns), softmax_item,
               &job);
    return FV_OK;
}

/* ---- rotary positions ------------------------------------------------------------------------------------------ */

enum { ROPE_TOKENS = 32, ROPE_HALF = 256 };

struct rope_job {
    const struct fv_kernels *kernels;
    const fv_rope_args *rope;
    double frequency[ROPE_HALF];
};

/* Angles of a token once, for all heads.  They are computed in double, as positions times frequencies are large. */
static void rope_item(void *user, int64_t index, int thread)
{
    const struct rope_job *job = user;
    const fv_rope_args *r = job->rope;
    int64_t half = r->rotary / 2, end = fv_min((index + 1) * ROPE_TOKENS, r->x.dims[2]), d = r->x.dims[3];
    float cosine[ROPE_HALF], sine[ROPE_HALF];

    (void)thread;
    for (int64_t token = index * ROPE_TOKENS; token < end; token++) {
        double position = r->position ? r->position[token] : (double)(r->offset + token);
        for (int64_t c = 0; c < half; c++) {
            double angle = position * job->frequency[c];
            cosine[c] = (float)(r->magnitude * cos(angle));
            sine[c] = (float)(r->magnitude * (r->inverse ? -sin(angle) : sin(angle)));
        }
        for (int64_t b = 0; b < r->x.dims[0]; b++)
            for (int64_t h = 0; h < r->x.dims[1]; h++) {
                const float *x = fv_at(&r->x, b, h, token, 0);
                float *out = fv_at(&r->out, b, h, token, 0);
                (r->interleaved ? job->kernels->rotate_pairs : job->kernels->rotate)(half, x, cosine, sine, out);
                if (out != x && d > r->rotary)
                    memmove(out + r->rotary, x + r->rotary, (size_t)(d - r->rotary) * sizeof *out);
            }
    }
}

fv_status fv_cpu_rope(fv_ctx *ctx, const fv_rope_args *args)
{
    struct rope_job job = {.kernels = fv_kernels_of(ctx), .rope = args};
    int64_t half = args->rotary / 2;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out) || half > ROPE_HALF) return fv_backend_ref.rope(ctx, args);
    for (int64_t c = 0; c < half; c++)
        job.frequency[c] = fv_present(&args->frequency)
                               ? ((const float *)args->frequency.data)[c * args->frequency.strides[0]]
                               : pow(args->base, -2.0 * (double)c / (double)args->rotary);
    fv_cpu_run(ctx, fv_ceil_div(args->x.dims[2], ROPE_TOKENS), 20.0 * (double)fv_tensor_count(&args->x), rope_item,
               &job);
    return FV_OK;
}

/* ---- pooling --------------------------------------------------------------------------------------------------- */

struct pool_job {
    const struct fv_kernels *kernels;
    const fv_pool_args *pool;
};

static void pool_item(void *user, int64_t index, int thread)
{
    const struct pool_job *job = user;
    const fv_pool_args *p = job->pool;
    int lead = p->x.rank - 2;
    int64_t cells = p->out.dims[lead], n = p->x.dims[lead], c = p->x.dims[lead + 1], m = index % cells;
    int64_t step = p->stride ? p->stride : p->block;
    int64_t from = p->start ? p->start[m] : m * step, to = p->start ? p->start[m + 1] : fv_min(from + p->block, n);
    const float *x = (const float *)p->x.data + fv_lead_offset(&p->x, lead, index / cells);
    float *out = (float *)p->out.data + fv_lead_offset(&p->out, lead, index / cells) + m * p->out.strides[lead];

    (void)thread;
    memset(out, 0, (size_t)c * sizeof *out);
    for (int64_t row = from; row < to; row++) {
        const float *next = x + row * p->x.strides[lead];
        if (row == from)
            memcpy(out, next, (size_t)c * sizeof *out);
        else
            job->kernels->map(p->kind == FV_POOL_MAX ? FV_MAP_MAX : FV_MAP_ADD, c, out, next, 1, 1, 0, out);
    }
    if (p->kind == FV_POOL_MEAN && to > from)
        job->kernels->map(FV_MAP_COPY, c, out, NULL, 0, 1 / (float)(to - from), 0, out);
}

fv_status fv_cpu_pool(fv_ctx *ctx, const fv_pool_args *args)
{
    struct pool_job job = {fv_kernels_of(ctx), args};
    int lead = args->x.rank - 2;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out) || (!args->start && args->block == 0))
        return fv_backend_ref.pool(ctx, args);
    fv_cpu_run(ctx, fv_lead_count(&args->out, lead + 1), 2.0 * (double)fv_tensor_count(&args->x), pool_item, &job);
    return FV_OK;
}

/* ---- rows of stored types -------------------------------------------------------------------------------------- */

struct dequantize_job {
    const struct fv_kernels *kernels;
    const fv_dequantize_args *rows;
};

static void dequantize_item(void *user, int64_t index, int thread)
{
    const struct dequantize_job *job = user;
    const fv_tensor *x = &job->rows->x, *out = &job->rows->out;
    int64_t row = job->rows->index ? job->rows->index[index] : index, block = fv_dtype_block(x->dtype);
    const char *from = (const char *)x->data + row * x->strides[0] / block * (int64_t)fv_dtype_block_bytes(x->dtype);

    (void)thread;
    fv_kernels_load(job->kernels, x->dtype, from, 0, x->dims[1], (float *)out->data + index * out->strides[0]);
}

fv_status fv_cpu_dequantize(fv_ctx *ctx, const fv_dequantize_args *args)
{
    struct dequantize_job job = {fv_kernels_of(ctx), args};

    if (args->x.rank != 2 || args->x.strides[1] != 1 || !rows_of_f32(&args->out))
        return fv_backend_ref.dequantize(ctx, args);
    fv_cpu_run(ctx, args->out.dims[0], (double)fv_tensor_count(&args->out), dequantize_item, &job);
    return FV_OK;
}
