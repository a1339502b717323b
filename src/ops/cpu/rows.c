/* Row-wise primitives over f32 rows that lie contiguous: elementwise functions, norms, rotary positions, softmax,
 * pooling, rows of stored types.  All are bound by memory, and reach the rate of a copy with two threads (norms, turns,
 * pools, sums, products, sigmoid, silu), but for functions bound by their arithmetic: of that rate softmax, tanh and
 * log reach 0.6, gelu by tanh 0.4 and by erfc 0.3, and copies that transpose 0.5.  Anything else goes to the reference
 * backend. */
#include <math.h>

#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"
#include "ops/pool.h"

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

/* ---- elementwise functions of a transposed x ------------------------------------------------------------------- */

enum { TILE = 64 };

/* The dim along which the elements of x (f32) lie side by side, if it is not the last. */
static bool transposed_dim(const fv_map_args *m, int *dim)
{
    int last = m->out.rank - 1;

    for (int d = 0; d < last; d++) {
        if (m->x.strides[d] != 1 || m->x.dims[d] < 8 || m->out.dims[last] < 8) continue;
        if (dim) *dim = d;
        return m->x.dtype == FV_F32 && m->out.dtype == FV_F32 && m->x.strides[last] != 0;
    }
    return false;
}

/* TILE x TILE elements, transposed a few rows at a time into a buffer of which the function then takes rows.  Dim
 * lead-1 is the one along which x lies. */
static void transposed_item(void *user, int64_t index, int thread)
{
    const struct map_job *job = user;
    const fv_map_args *m = job->map;
    int lead = job->lead, width = job->kernels->width;
    int64_t across = fv_ceil_div(job->columns, TILE), down = fv_ceil_div(m->out.dims[lead - 1], TILE);
    int64_t plane = index / across / down, row = index / across % down * TILE, column = index % across * TILE;
    int64_t rows = fv_min(TILE, m->out.dims[lead - 1] - row), count = fv_min(TILE, job->columns - column);
    float buffer[TILE * TILE + FV_MAX_TILE_COLUMNS];
    const float *x =
        (const float *)m->x.data + fv_lead_offset(&m->x, lead - 1, plane) + row + column * m->x.strides[lead];

    (void)thread;
    for (int64_t c = 0; c < count; c += width)
        job->kernels->transpose(x + c * m->x.strides[lead], m->x.strides[lead], (int)fv_min(width, count - c), rows,
                                buffer + c, TILE);
    for (int64_t r = 0; r < rows; r++) {
        float *out = (float *)m->out.data + fv_lead_offset(&m->out, lead - 1, plane) +
                     (row + r) * m->out.strides[lead - 1] + column;
        const float *y = NULL;
        if (fv_present(&m->y))
            y = (const float *)m->y.data + fv_lead_offset(&m->y, lead - 1, plane) + (row + r) * m->y.strides[lead - 1] +
                column * job->y_step;
        job->kernels->map(m->op, count, buffer + r * TILE, y, job->y_step, m->alpha, m->beta, out);
    }
}

static void swap_dims(fv_tensor *t, int a, int b)
{
    int64_t dim = t->dims[a], stride = t->strides[a];

    t->dims[a] = t->dims[b];
    t->dims[b] = dim;
    t->strides[a] = t->strides[b];
    t->strides[b] = stride;
}

static fv_status map_transposed(fv_ctx *ctx, struct map_job *job, fv_map_args *m)
{
    int dim = 0;

    transposed_dim(m, &dim);
    job->lead = m->out.rank - 1;
    job->columns = m->out.dims[job->lead];
    job->y_step = fv_present(&m->y) ? m->y.strides[job->lead] : 0;
    swap_dims(&m->x, dim, job->lead - 1);
    swap_dims(&m->out, dim, job->lead - 1);
    swap_dims(&m->y, dim, job->lead - 1);
    int64_t tiles = fv_ceil_div(m->out.dims[job->lead - 1], TILE) * fv_ceil_div(job->columns, TILE);
    fv_cpu_run(ctx, fv_lead_count(&m->out, job->lead - 1) * tiles, 8.0 * (double)fv_tensor_count(&m->out),
               transposed_item, job);
    return FV_OK;
}

/* Whether the kernels have this function for these types; x and out are rows, y rows or one number a row. */
static bool map_is_fast(const struct fv_kernels *kernels, const fv_map_args *m)
{
    int last = m->out.rank - 1;
    bool cast = m->op == FV_MAP_COPY && m->alpha == 1 && m->beta == 0;
    float none = 0;

    if (last < 0 || !kernels->map(m->op, 0, &none, NULL, 0, 0, 0, &none)) return false;
    if (m->out.strides[last] != 1 || (m->x.strides[last] != 1 && !transposed_dim(m, NULL))) return false;
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
    if (m.x.strides[m.out.rank - 1] != 1) return map_transposed(ctx, &job, &m);
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
        int64_t count = s->valid ? fv_clamp(s->valid[row], 0, job->columns) : job->columns;
        float highest = job->kernels->largest(count, x) * s->scale, sum;
        if (highest == -INFINITY) highest = 0; /* exp of every element is 0 then */
        sum = job->kernels->exp(count, x, s->scale, highest, out);
        job->kernels->map(FV_MAP_COPY, count, out, NULL, 0, sum == 0 ? 0 : 1 / sum, 0, out);
        memset(out + count, 0, (size_t)(job->columns - count) * sizeof *out);
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

enum { ROPE_TOKENS = 32, ROPE_HALF = 256, ROPE_TABLE = 4096 };

struct rope_job {
    const struct fv_kernels *kernels;
    const fv_rope_args *rope;
    int64_t tokens, half; /* of an item; rounded up to whole vectors */
    double frequency[ROPE_HALF];
};

static void rope_row(const struct rope_job *job, int64_t b, int64_t h, int64_t token, const float *cosine,
                     const float *sine)
{
    const fv_rope_args *r = job->rope;
    int64_t half = r->rotary / 2, rest = r->x.dims[3] - r->rotary;
    const float *x = fv_at(&r->x, b, h, token, 0);
    float *out = fv_at(&r->out, b, h, token, 0);

    (r->interleaved ? job->kernels->rotate_pairs : job->kernels->rotate)(half, x, cosine, sine, out);
    if (out != x && rest > 0) memmove(out + r->rotary, x + r->rotary, (size_t)rest * sizeof *out);
}

/* Angles of a token are computed once for all heads. */
static void rope_item(void *user, int64_t index, int thread)
{
    const struct rope_job *job = user;
    const fv_rope_args *r = job->rope;
    int64_t first = index * job->tokens, end = fv_min(first + job->tokens, r->x.dims[2]);
    float cosine[ROPE_TABLE], sine[ROPE_TABLE];

    (void)thread;
    for (int64_t token = first; token < end; token++) {
        double position = r->position ? r->position[token] : (double)(r->offset + token);
        int64_t at = (token - first) * job->half;
        job->kernels->angles(r->rotary / 2, r->inverse ? -position : position, job->frequency, r->magnitude,
                             cosine + at, sine + at);
    }
    bool heads_inside = r->x.strides[1] < r->x.strides[2]; /* rows are walked as they lie in memory */
    int64_t tokens = end - first, heads = r->x.dims[1];
    for (int64_t b = 0; b < r->x.dims[0]; b++)
        for (int64_t i = 0; i < tokens * heads; i++) {
            int64_t h = heads_inside ? i % heads : i / tokens, token = heads_inside ? i / heads : i % tokens;
            rope_row(job, b, h, first + token, cosine + token * job->half, sine + token * job->half);
        }
}

fv_status fv_cpu_rope(fv_ctx *ctx, const fv_rope_args *args)
{
    struct rope_job job = {.kernels = fv_kernels_of(ctx), .rope = args};
    int64_t half = args->rotary / 2;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out) || half > ROPE_HALF || half == 0)
        return fv_backend_ref.rope(ctx, args);
    for (int64_t c = 0; c < half; c++)
        job.frequency[c] = fv_present(&args->frequency)
                               ? ((const float *)args->frequency.data)[c * args->frequency.strides[0]]
                               : pow(args->base, -2.0 * (double)c / (double)args->rotary);
    job.half = fv_ceil_div(half, job.kernels->width) * job.kernels->width;
    job.tokens = fv_min(ROPE_TABLE / job.half, ROPE_TOKENS);
    fv_cpu_run(ctx, fv_ceil_div(args->x.dims[2], job.tokens), 8.0 * (double)fv_tensor_count(&args->x), rope_item, &job);
    return FV_OK;
}

/* ---- pooling --------------------------------------------------------------------------------------------------- */

enum { PARTS = 8, PART_CHANNELS = 256 }; /* of overlapping cells: how many, and how wide, sums are kept */

struct pool_job {
    const struct fv_kernels *kernels;
    const fv_pool_args *pool;
    int64_t cells, pieces; /* of an item; items of a leading index */
    int64_t stride, parts; /* of overlapping cells: a cell is made of this many strides; 0: of rows */
};

static float factor_of(const fv_pool_args *p, int64_t rows)
{
    return p->kind == FV_POOL_MEAN ? 1 / (float)fv_max(rows, 1) : 1;
}

static void pool_cell(const struct pool_job *job, int64_t m, const float *x, float *out)
{
    const fv_pool_args *p = job->pool;
    fv_pool_cell cell = fv_pool_cell_of(p, m);
    int64_t c = p->x.dims[p->x.rank - 1], row = p->x.strides[p->x.rank - 2], width = cell.x1 - cell.x0;
    float factor = factor_of(p, fv_pool_cell_rows(&cell));

    if (fv_pool_cell_rows(&cell) == 0) memset(out, 0, (size_t)c * sizeof *out);
    for (int64_t y = cell.y0; y < cell.y1 && width > 0; y++)
        job->kernels->reduce(p->kind, width, c, x + (y * cell.width + cell.x0) * row, row, y > cell.y0,
                             y == cell.y1 - 1 ? factor : 1, out);
}

/* Cells first..end-1, each `parts` strides of rows long: a stride is summed once for all cells it belongs to.  Cells
 * are sums of those sums, in the same order wherever an item begins. */
static void pool_overlapping(const struct pool_job *job, int64_t first, int64_t end, const float *x, float *out)
{
    const fv_pool_args *p = job->pool;
    int64_t n = p->x.dims[p->x.rank - 2], c = p->x.dims[p->x.rank - 1], row = p->x.strides[p->x.rank - 2], next = first;
    float sums[PARTS * PART_CHANNELS];

    for (int64_t m = first; m < end; m++) {
        for (; next < m + job->parts && next * job->stride < n; next++)
            job->kernels->reduce(p->kind, fv_min(job->stride, n - next * job->stride), c, x + next * job->stride * row,
                                 row, false, 1, sums + next % job->parts * c);
        int64_t rows = fv_min(p->block, n - m * job->stride);
        for (int64_t part = m; part < next; part++)
            job->kernels->reduce(p->kind, 1, c, sums + part % job->parts * c, c, part > m,
                                 part == next - 1 ? factor_of(p, rows) : 1, out + m * p->out.strides[p->x.rank - 2]);
    }
}

static void pool_item(void *user, int64_t index, int thread)
{
    const struct pool_job *job = user;
    const fv_pool_args *p = job->pool;
    int lead = p->x.rank - 2;
    int64_t plane = index / job->pieces, first = index % job->pieces * job->cells;
    int64_t end = fv_min(first + job->cells, p->out.dims[lead]);
    const float *x = (const float *)p->x.data + fv_lead_offset(&p->x, lead, plane);
    float *out = (float *)p->out.data + fv_lead_offset(&p->out, lead, plane);

    (void)thread;
    if (job->parts) {
        pool_overlapping(job, first, end, x, out);
        return;
    }
    for (int64_t m = first; m < end; m++)
        pool_cell(job, m, x, out + m * p->out.strides[lead]);
}

fv_status fv_cpu_pool(fv_ctx *ctx, const fv_pool_args *args)
{
    struct pool_job job = {.kernels = fv_kernels_of(ctx), .pool = args};
    int lead = args->x.rank - 2;
    int64_t cells = args->out.dims[lead], c = args->x.dims[lead + 1], elements = args->x.dims[lead] * c;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out)) return fv_backend_ref.pool(ctx, args);
    job.stride = args->stride ? args->stride : args->block;
    if (!args->start && args->grid_height == 0 && args->block % job.stride == 0 && c <= PART_CHANNELS &&
        args->block / job.stride > 1 && args->block / job.stride <= PARTS && job.stride > 1)
        job.parts = args->block / job.stride;
    job.cells = fv_clamp(PIECE / fv_max(elements / fv_max(cells, 1), 1), 1, cells);
    job.pieces = fv_ceil_div(cells, job.cells);
    fv_cpu_run(ctx, fv_lead_count(&args->out, lead) * job.pieces, 2.0 * (double)fv_tensor_count(&args->x), pool_item,
               &job);
    return FV_OK;
}

/* ---- running sums ---------------------------------------------------------------------------------------------- */

enum { SUM_COLUMNS = 512, SUM_ROWS = 16 }; /* of an item; that are walked before the next columns are */

struct cumsum_job {
    const struct fv_kernels *kernels;
    const fv_cumsum_args *sums;
    int64_t pieces; /* items of a leading index */
};

/* The largest so far, row by row. */
static void run_max(const struct cumsum_job *job, int64_t rows, int64_t columns, const float *x, int64_t x_row,
                    float *out, int64_t out_row)
{
    const float none = -INFINITY, *before = &none;
    int64_t step = 0;

    if (job->sums->exclusive) {
        for (int64_t c = 0; c < columns; c++)
            out[c] = none;
        out += out_row;
        rows--;
    }
    for (int64_t r = 0; r < rows; r++, before = out, out += out_row, step = 1)
        job->kernels->map(FV_MAP_MAX, columns, x + r * x_row, before, step, 0, 0, out);
}

static void cumsum_item(void *user, int64_t index, int thread)
{
    const struct cumsum_job *job = user;
    const fv_cumsum_args *s = job->sums;
    int lead = s->x.rank - 2;
    int64_t rows = s->x.dims[lead], columns = s->x.dims[lead + 1], from = index % job->pieces * SUM_COLUMNS;
    int64_t x_row = s->x.strides[lead], out_row = s->out.strides[lead], first = s->reverse ? rows - 1 : 0;
    const float *x = (const float *)s->x.data + fv_lead_offset(&s->x, lead, index / job->pieces) + from;
    float *out = (float *)s->out.data + fv_lead_offset(&s->out, lead, index / job->pieces) + from;
    double totals[SUM_COLUMNS + FV_MAX_TILE_COLUMNS] = {0};

    (void)thread;
    if (s->max) {
        run_max(job, rows, fv_min(SUM_COLUMNS, columns - from), x + first * x_row, s->reverse ? -x_row : x_row,
                out + first * out_row, s->reverse ? -out_row : out_row);
        return;
    }
    for (int64_t r = 0; r < rows; r += SUM_ROWS) {
        int64_t i = s->reverse ? first - r : r;
        job->kernels->add_up(fv_min(SUM_ROWS, rows - r), fv_min(SUM_COLUMNS, columns - from), x + i * x_row,
                             s->reverse ? -x_row : x_row, s->exclusive, out + i * out_row,
                             s->reverse ? -out_row : out_row, totals);
    }
}

fv_status fv_cpu_cumsum(fv_ctx *ctx, const fv_cumsum_args *args)
{
    struct cumsum_job job = {.kernels = fv_kernels_of(ctx), .sums = args};
    int lead = args->x.rank - 2;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out)) return fv_backend_ref.cumsum(ctx, args);
    job.pieces = fv_ceil_div(args->x.dims[lead + 1], SUM_COLUMNS);
    fv_cpu_run(ctx, fv_lead_count(&args->x, lead) * job.pieces, 8.0 * (double)fv_tensor_count(&args->x), cumsum_item,
               &job);
    return FV_OK;
}

/* ---- features of second order ---------------------------------------------------------------------------------- */

struct taylor_job {
    const struct fv_kernels *kernels;
    const fv_taylor_args *features;
    int64_t rows; /* of an item */
};

static void taylor_item(void *user, int64_t index, int thread)
{
    const struct taylor_job *job = user;
    const fv_tensor *x = &job->features->x, *out = &job->features->out;
    int last = x->rank - 1;
    int64_t C = x->dims[last], end = fv_min((index + 1) * job->rows, fv_lead_count(x, last));

    (void)thread;
    for (int64_t row = index * job->rows; row < end; row++) {
        const float *from = (const float *)x->data + fv_lead_offset(x, last, row);
        float *to = (float *)out->data + fv_lead_offset(out, last, row);
        *to++ = 1;
        memcpy(to, from, (size_t)C * sizeof *to);
        to += C;
        for (int64_t i = 0; i < C; to += C - i, i++) {
            job->kernels->map(FV_MAP_MUL, C - i, from + i, from + i, 0, 1, 0, to);
            *to *= (float)M_SQRT1_2;
        }
    }
}

fv_status fv_cpu_taylor(fv_ctx *ctx, const fv_taylor_args *args)
{
    struct taylor_job job = {.kernels = fv_kernels_of(ctx), .features = args};
    int last = args->x.rank - 1;

    if (!rows_of_f32(&args->x) || !rows_of_f32(&args->out)) return fv_backend_ref.taylor(ctx, args);
    job.rows = rows_per_item(args->out.dims[last]);
    fv_cpu_run(ctx, fv_ceil_div(fv_lead_count(&args->x, last), job.rows), 2.0 * (double)fv_tensor_count(&args->out),
               taylor_item, &job);
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

struct quantize_job {
    fv_store_fn *store;
    const fv_quantize_args *rows;
};

static void quantize_item(void *user, int64_t index, int thread)
{
    const struct quantize_job *job = user;
    const fv_tensor *x = &job->rows->x, *out = &job->rows->out;
    int64_t at = index * out->strides[0] / fv_dtype_block(out->dtype) * (int64_t)fv_dtype_block_bytes(out->dtype);

    (void)thread;
    job->store((const float *)x->data + index * x->strides[0], x->dims[1], (char *)out->data + at);
}

fv_status fv_cpu_quantize(fv_ctx *ctx, const fv_quantize_args *args)
{
    struct quantize_job job = {fv_kernels_of(ctx)->store[args->out.dtype], args};

    fv_cpu_run(ctx, args->x.dims[0], 8 * (double)fv_tensor_count(&args->x), quantize_item, &job);
    return FV_OK;
}
