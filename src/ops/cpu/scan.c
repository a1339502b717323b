/* Linear recurrences, a chunk of tokens at a time (scan.h has the formulas): within the chunk as attention whose
 * weights are products of decays, between chunks through the state.  Decays are multiplied one by one and never
 * divided, so that their size does not matter.  Bound: 4 D Dv flops a token for the state (6 with the delta rule) and
 * chunk (D + Dv) within the chunk (twice that with it).  The normaliser is one more value column, of ones.  With a
 * decay per head 4 D Dv alone is 56 % of the FMA peak at D = 64 and 67 % at 128 (2048 tokens; 4096 tokens, more than
 * the last cache holds: 54 % at D = 64).  At D = 64 the tiles of a chunk of 32 tokens allow 65 %; the rest is rows on
 * their way through a first-level cache that a chunk fills.
 *
 * A few tokens (decoding) go one by one, by a step that reads and writes the state where the caller has it. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/scan.h"

enum { SMALL_STATE = 8192 }; /* floats, with which the first-level cache is shared by a chunk */

/* ---- a chunk --------------------------------------------------------------------------------------------------- */

void fv_scan_transpose(const struct fv_scan *s, const float *in, int64_t in_row, int64_t count, int64_t width,
                       float *out, int64_t out_row)
{
    for (int64_t r = 0; r < count; r += s->kernels->width)
        s->kernels->transpose(in + r * in_row, in_row, (int)fv_min(s->kernels->width, count - r), width, out + r,
                              out_row);
}

/* Factors of the chunk's tokens from their logarithms. */
static void load_decay(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t from,
                       int64_t count, int64_t rows)
{
    const fv_tensor *g = &s->args->log_decay;
    int64_t channels = s->by_key ? s->depth : s->width;

    if (s->by_key || s->by_value) {
        s->leaves->gather(count, g->dims[3], fv_scan_row(g, b, h, from), g->strides[2], NULL, rows + 1, channels,
                          m->decay, channels);
        s->kernels->map(FV_MAP_EXP, (rows + 1) * channels, m->decay, NULL, 0, 0, 0, m->decay);
        return;
    }
    for (int64_t t = 0; t < rows; t++) {
        m->decay[t] = 0;
        if (t >= count || s->args->decay == FV_DECAY_NONE) continue;
        m->decay[t] = s->args->decay == FV_DECAY_PER_HEAD ? ((const float *)g->data)[h * g->strides[0]]
                                                          : *fv_scan_row(g, b, h, from + t);
    }
    s->kernels->map(FV_MAP_EXP, rows, m->decay, NULL, 0, 0, 0, m->decay);
}

/* Products of factors of whole tokens. */
static void load_products(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows)
{
    float *between = m->between;

    s->leaves->between(rows, s->chunk, m->decay, between);
    for (int64_t t = 0; t < rows; t++) {
        m->within[t] = between[t] * m->decay[0];
        m->left[t] = between[t * s->chunk + rows - 1];
    }
    m->total[0] = m->within[rows - 1];
}

/* Powers of the factor of a head's tokens (1, if channels have their own) in the place of `between`, whose rows are the
 * same but that each begins one later: these few stay in the first-level cache.  Those of a full chunk are kept. */
static void load_powers(const struct fv_scan *s, struct fv_scan_memory *m, int64_t h, int64_t count, int64_t rows)
{
    float *power = m->between + s->chunk - 1, factor;

    if (m->head == h && count == s->chunk) return;
    m->head = count == s->chunk ? h : -1;
    factor = s->scalar ? m->decay[0] : 1;
    power[0] = 1;
    for (int64_t t = 1; t < s->chunk; t++) {
        power[-t] = 0;
        power[t] = power[t - 1] * factor;
    }
    for (int64_t t = 0; t < rows; t++) {
        m->within[t] = power[t] * factor;
        m->left[t] = power[fv_max(count - 1 - t, 0)];
    }
    if (s->scalar) m->total[0] = m->within[count - 1];
}

/* Rows of a tensor are read where they lie, if they lie close to each other (far ones would share few sets of the
 * first-level cache) and are whole micro-tiles. */
static bool lends(const fv_tensor *t, int64_t count, int64_t rows)
{
    return count == rows && t->strides[2] >= 0 && t->strides[2] <= 2 * t->dims[3];
}

static void lend(const fv_tensor *t, int64_t b, int64_t kv, int64_t from, float **rows, int64_t *row)
{
    *rows = fv_scan_row(t, b, kv, from);
    *row = t->strides[2];
}

static void load_values(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t kv,
                        int64_t from, int64_t count, int64_t rows)
{
    const fv_scan_args *a = s->args;
    const fv_tensor *v = &a->v;
    bool plain = a->delta || !fv_present(&a->beta);

    for (int64_t t = 0; t < rows && fv_present(&a->beta); t++)
        m->beta[t] = t < count ? fv_scan_beta(a, b, h, from + t) : 0;
    if (s->lend_values && lends(v, count, rows)) {
        lend(v, b, kv, from, &m->values, &m->values_row);
        return;
    }
    m->values = m->u;
    m->values_row = s->width;
    s->leaves->gather(count, s->Dv, fv_scan_row(v, b, kv, from), v->strides[2], plain ? NULL : m->beta, rows, s->width,
                      a->delta ? m->v : m->u, s->width);
    for (int64_t t = 0; t < count && a->normalise; t++)
        m->u[t * s->width + s->Dv] = m->beta[t];
}

static void load_keys(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t kv, int64_t from,
                      int64_t count, int64_t rows)
{
    const fv_tensor *k = &s->args->k;

    if (s->lend_keys && lends(k, count, rows)) {
        lend(k, b, kv, from, &m->keys, &m->keys_row);
        return;
    }
    m->keys = m->k;
    m->keys_row = s->depth;
    s->leaves->gather(count, s->D, fv_scan_row(k, b, kv, from), k->strides[2], NULL, rows, s->depth, m->k, s->depth);
}

void fv_scan_weights(const struct fv_scan *s, const struct fv_scan_memory *m, int64_t rows, int64_t channels,
                     float *columns, const float *k, int64_t row, bool apart, bool strict, float *out)
{
    if (apart) {
        s->leaves->pairs(&(struct fv_scan_pairs){.tokens = rows,
                                                 .depth = channels,
                                                 .lanes = s->chunk,
                                                 .x = columns,
                                                 .k = k,
                                                 .decay = m->decay,
                                                 .row = row,
                                                 .out = out,
                                                 .strict = strict});
        return;
    }
    s->leaves->product(&(struct fv_scan_product){.rows = rows,
                                                 .columns = fv_round_up(rows, s->kernels->tile_columns),
                                                 .k = channels,
                                                 .a = k,
                                                 .a_row = row,
                                                 .a_step = 1,
                                                 .b = columns,
                                                 .b_row = s->chunk,
                                                 .c = out,
                                                 .c_row = s->chunk,
                                                 .times = s->powers ? m->between + s->chunk - 1 : m->between,
                                                 .times_row = s->powers ? -1 : s->chunk,
                                                 .triangle = true});
    for (int64_t t = 0; t < rows && strict; t++)
        out[t * s->chunk + t] = 0;
}

int64_t fv_scan_load(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t from,
                     int64_t count, bool sums)
{
    const fv_scan_args *a = s->args;
    int64_t rows = fv_round_up(count, s->leaves->rows), kv = h / (a->q.dims[1] / a->k.dims[1]);

    load_keys(s, m, b, kv, from, count, rows);
    load_values(s, m, b, h, kv, from, count, rows);
    if (s->by_key || s->by_value || !s->powers)
        load_decay(s, m, b, h, from, count, rows);
    else if (m->head != h)
        load_decay(s, m, b, h, from, 1, 1);
    if (s->powers)
        load_powers(s, m, h, count, rows);
    else
        load_products(s, m, rows);
    if (sums) {
        fv_scan_transpose(s, fv_scan_row(&a->q, b, h, from), a->q.strides[2], count, s->D, m->q_columns, s->chunk);
        fv_scan_weights(s, m, rows, s->D, m->q_columns, m->keys, m->keys_row, s->by_key, false, m->qk);
    }
    if (a->delta) {
        fv_scan_transpose(s, m->keys, m->keys_row, rows, s->D, m->k_columns, s->chunk);
        fv_scan_weights(s, m, rows, s->D, m->k_columns, m->keys, m->keys_row, s->by_key, true, m->kk);
    }
    return rows;
}

/* The triangle of `g` below q's or k's products with the state. */
static struct fv_scan_rows triangle(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n,
                                    int64_t columns, const float *a, const float *g)
{
    return (struct fv_scan_rows){.rows = rows,
                                 .columns = columns,
                                 .k = s->D,
                                 .a = a,
                                 .a_row = 1,
                                 .a_step = s->chunk,
                                 .b = m->state + n,
                                 .b_row = s->state_row,
                                 .scale = fv_scan_within(s, m),
                                 .decay = s->by_value ? m->decay + n : NULL,
                                 .decay_row = s->width,
                                 .g = g,
                                 .g_row = 1,
                                 .g_step = s->chunk,
                                 .u = m->values + n,
                                 .u_row = m->values_row,
                                 .step = 1,
                                 .ahead = &m->ahead};
}

void fv_scan_solve(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns)
{
    struct fv_scan_rows p = triangle(s, m, rows, n, columns, m->k_columns, m->kk);

    p.solve = true;
    p.beta = m->beta;
    p.base = m->v + n;
    p.c = m->x + n;
    p.base_row = p.c_row = s->width;
    s->leaves->triangle(&p);
}

void fv_scan_sums(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns, float *o,
                  int64_t o_row)
{
    struct fv_scan_rows p = triangle(s, m, rows, n, columns, m->q_columns, m->qk);

    p.c = o;
    p.c_row = o_row;
    s->leaves->triangle(&p);
}

void fv_scan_fade_keys(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows)
{
    if (s->scalar)
        s->leaves->gather(rows, s->D, m->keys, m->keys_row, m->left, rows, s->depth, m->k, s->depth);
    else if (m->keys != m->k)
        s->leaves->gather(rows, s->D, m->keys, m->keys_row, NULL, rows, s->depth, m->k, s->depth);
    if (s->by_key) s->leaves->fade(rows, s->depth, m->k, s->depth, NULL, m->decay, s->depth, false, m->total);
}

void fv_scan_advance(const struct fv_scan *s, struct fv_scan_memory *m, int64_t rows, int64_t n, int64_t columns)
{
    static const float one = 1;

    if (s->by_value)
        s->leaves->fade(rows, columns, m->u + n, s->width, NULL, m->decay + n, s->width, false, m->total + n);
    s->leaves->product(&(struct fv_scan_product){.rows = fv_round_up(s->D, s->leaves->rows),
                                                 .columns = columns,
                                                 .k = rows,
                                                 .a = m->k,
                                                 .a_row = 1,
                                                 .a_step = s->depth,
                                                 .b = m->values + n,
                                                 .b_row = m->values_row,
                                                 .c = m->state + n,
                                                 .c_row = s->state_row,
                                                 .keep = s->by_value              ? NULL
                                                         : s->by_key || s->scalar ? m->total
                                                                                  : &one,
                                                 .keep_step = s->by_key,
                                                 .keep_columns = s->by_value ? m->total + n : NULL,
                                                 .ahead = &m->ahead});
}

/* ---- heads ----------------------------------------------------------------------------------------------------- */

void fv_scan_load_state(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;
    bool together = a->state_in.strides[3] == 1;

    memset(m->state, 0, (size_t)(s->depth * s->state_row) * sizeof *m->state);
    m->head = -1;
    for (int64_t d = 0; d < s->D; d++) {
        float *row = m->state + d * s->state_row;
        if (fv_present(&a->state_in) && together)
            memcpy(row, fv_scan_row(&a->state_in, b, h, d), (size_t)s->Dv * sizeof *row);
        for (int64_t c = 0; c < s->Dv && fv_present(&a->state_in) && !together; c++)
            row[c] = *(float *)fv_at(&a->state_in, b, h, d, c);
        if (fv_present(&a->z_in)) row[s->Dv] = *fv_scan_row(&a->z_in, b, h, d);
    }
}

static void write_state(const struct fv_scan *s, const struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;

    for (int64_t d = 0; d < s->D; d++) {
        const float *row = m->state + d * s->state_row;
        for (int64_t c = 0; c < s->Dv && fv_present(&a->state_out); c++)
            *(float *)fv_at(&a->state_out, b, h, d, c) = row[c];
        if (fv_present(&a->z_out)) *fv_scan_row(&a->z_out, b, h, d) = row[s->Dv];
    }
}

static void write_output(const struct fv_scan *s, int64_t b, int64_t h, int64_t t, const float *sums)
{
    const fv_scan_args *a = s->args;
    bool floored;
    float divisor = fv_scan_divisor(s, sums, &floored);

    if (fv_present(&a->denominator)) *fv_scan_row(&a->denominator, b, h, t) = divisor;
    s->kernels->map(FV_MAP_COPY, s->Dv, sums, NULL, 0, divisor != 0 ? 1 / divisor : 0, 0, fv_scan_row(&a->o, b, h, t));
}

/* What the next chunk reads and writes. */
static struct fv_scan_ahead ahead_of(const struct fv_scan *s, int64_t b, int64_t h, int64_t from)
{
    const fv_scan_args *a = s->args;
    int64_t kv = h / (a->q.dims[1] / a->k.dims[1]);
    const fv_tensor *each[] = {&a->q, &a->k, &a->v, &a->o};
    int64_t tiles = s->width / s->kernels->tile_columns * ((s->chunk + s->depth) / s->leaves->rows);
    struct fv_scan_ahead ahead = {.left = fv_clamp(a->q.dims[2] - from, 0, s->chunk),
                                  .each = (int)fv_ceil_div(s->chunk, tiles)};

    for (int n = 0; n < 4; n++) {
        ahead.at[n] = fv_scan_row(each[n], b, n == 1 || n == 2 ? kv : h, from);
        ahead.row[n] = each[n]->strides[2];
        ahead.width[n] = each[n]->dims[3];
    }
    return ahead;
}

/* Panels of columns, so that what is read and written of the state stays in the first-level cache. */
static void scan_head(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;
    int64_t N = a->q.dims[2], panel = s->kernels->tile_columns;

    fv_scan_load_state(s, m, b, h);
    for (int64_t from = 0; from < N; from += s->chunk) {
        int64_t count = fv_min(s->chunk, N - from), rows = fv_scan_load(s, m, b, h, from, count, true);
        bool direct = s->width == s->Dv && !a->normalise && rows == count;
        m->ahead = ahead_of(s, b, h, from + s->chunk);
        fv_scan_fade_keys(s, m, rows);
        for (int64_t n = 0; n < s->width; n += panel) {
            if (a->delta) fv_scan_solve(s, m, rows, n, panel);
            if (direct)
                fv_scan_sums(s, m, rows, n, panel, fv_scan_row(&a->o, b, h, from) + n, a->o.strides[2]);
            else
                fv_scan_sums(s, m, rows, n, panel, m->o + n, s->width);
            fv_scan_advance(s, m, rows, n, panel);
        }
        for (int64_t t = 0; t < count && !direct; t++)
            write_output(s, b, h, from + t, m->o + t * s->width);
    }
    write_state(s, m, b, h);
}

/* ---- token by token -------------------------------------------------------------------------------------------- */

/* The normaliser's state: z = decay z + beta k; returns q . z. */
static float step_normaliser(const struct fv_scan *s, const struct fv_scan_step *one, float *z)
{
    float sum = 0;

    for (int64_t d = 0; d < s->D; d++) {
        z[d] = z[d] * (one->decay ? one->decay[d * one->decay_step] : 1) + one->beta * one->k[d];
        sum += one->q[d] * z[d];
    }
    return sum;
}

static void step_token(const struct fv_scan *s, struct fv_scan_memory *m, struct fv_scan_step *one, int64_t b,
                       int64_t h, int64_t t)
{
    const fv_scan_args *a = s->args;
    int64_t kv = h / (a->q.dims[1] / a->k.dims[1]);

    load_decay(s, m, b, h, t, 1, 1);
    one->q = fv_scan_row(&a->q, b, h, t);
    one->k = fv_scan_row(&a->k, b, kv, t);
    one->v = fv_scan_row(&a->v, b, kv, t);
    one->o = m->o;
    one->beta = fv_scan_beta(a, b, h, t);
    if (s->by_value)
        one->value_decay = m->decay;
    else if (s->by_key || s->scalar)
        one->decay = m->decay, one->decay_step = s->by_key;
    s->leaves->step(one);
    if (a->normalise) m->o[s->Dv] = step_normaliser(s, one, m->total);
    write_output(s, b, h, t, m->o);
}

/* The state stays where the caller has it, if its rows lie together there. */
static void step_head(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;
    const fv_tensor *in = &a->state_in, *out = &a->state_out;
    bool in_place = fv_present(out) && out->strides[3] == 1 && (!fv_present(in) || in->strides[3] == 1);
    struct fv_scan_step one = {.keys = s->D, .columns = s->Dv, .delta = a->delta};

    if (in_place) {
        if (fv_present(in)) one.from = fv_scan_row(in, b, h, 0), one.from_row = in->strides[2];
        one.to = fv_scan_row(out, b, h, 0);
        one.to_row = out->strides[2];
    } else {
        fv_scan_load_state(s, m, b, h);
        one.from = one.to = m->state;
        one.from_row = one.to_row = s->state_row;
    }
    for (int64_t d = 0; d < s->D && a->normalise; d++)
        m->total[d] = fv_present(&a->z_in) ? *fv_scan_row(&a->z_in, b, h, d) : 0;
    for (int64_t t = 0; t < a->q.dims[2]; t++) {
        step_token(s, m, &one, b, h, t);
        one.from = one.to;
        one.from_row = one.to_row;
    }
    for (int64_t d = 0; d < s->D && fv_present(&a->z_out); d++)
        *fv_scan_row(&a->z_out, b, h, d) = m->total[d];
    for (int64_t d = 0; d < s->D && !in_place && fv_present(out); d++)
        for (int64_t c = 0; c < s->Dv; c++)
            *(float *)fv_at(out, b, h, d, c) = m->state[d * s->state_row + c];
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

/* What a token costs within its chunk grows with the chunk, and what it costs to bring the state through the registers
 * falls with it; in flops, weighed as measured on a machine with 48 KiB of first-level cache: a float of the state as
 * 10 of them, or 33 from the second level. */
static double cost_of(const fv_scan_args *args, int64_t chunk)
{
    double D = (double)args->q.dims[3], Dv = (double)args->v.dims[3], C = (double)chunk;
    double within = 1.25 * C * (D + Dv) * (args->delta ? 2 : 1);

    if (args->decay == FV_DECAY_PER_KEY) within += C * D * (args->delta ? 2 : 1);
    if (args->decay == FV_DECAY_PER_VALUE) within += C * Dv * (args->delta ? 2 : 1);
    return within + (D * Dv > SMALL_STATE ? 33 : 10) * D * Dv / C;
}

int64_t fv_scan_chunk_length(const fv_ctx *ctx, const fv_scan_args *args)
{
    int64_t step = fv_round_up(32, fv_kernels_of(ctx)->tile_columns), chunk = step;

    while (chunk < FV_LONGEST_CHUNK && cost_of(args, chunk + step) < cost_of(args, chunk))
        chunk += step;
    if (args->chunk <= 0) return chunk;
    return fv_min(chunk, fv_round_up(args->chunk, fv_kernels_of(ctx)->tile_columns));
}

fv_status fv_scan_begin(fv_ctx *ctx, const fv_scan_args *args, int64_t chunk, struct fv_scan *s)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    int64_t threads = fv_ctx_threads(ctx), cells, line = 64 / (int64_t)sizeof(float);
    int64_t width = fv_round_up(args->v.dims[3] + args->normalise, kernels->tile_columns);

    *s = (struct fv_scan){.args = args,
                          .kernels = kernels,
                          .leaves = kernels->scan,
                          .D = args->q.dims[3],
                          .Dv = args->v.dims[3],
                          .depth = fv_round_up(args->q.dims[3], kernels->tile_columns),
                          .width = width,
                          .chunk = chunk,
                          .by_key = args->decay == FV_DECAY_PER_KEY,
                          .by_value = args->decay == FV_DECAY_PER_VALUE,
                          .powers = args->decay != FV_DECAY_PER_TOKEN,
                          .scalar = args->decay == FV_DECAY_PER_HEAD || args->decay == FV_DECAY_PER_TOKEN};
    s->state_row = fv_round_up(s->width, line);
    if (s->state_row / line % 2 == 0) s->state_row += line; /* rows fall on all sets of the cache */
    if (!fv_mul_i64(s->depth, s->state_row, &cells))
        return fv_fail(FV_E_MEMORY, "scan: the size of the state overflows");
    FV_TRY(FV_SCRATCH(ctx, s->memory, threads));
    for (int64_t t = 0; t < threads; t++) {
        struct fv_scan_memory *m = &s->memory[t];
        int64_t channels = fv_max(s->depth, s->width);
        const struct {
            float **to;
            int64_t count;
        } buffers[] = {{&m->state, cells},
                       {&m->q_columns, s->depth * chunk},
                       {&m->k_columns, args->delta ? s->depth * chunk : 0},
                       {&m->k, chunk * s->depth},
                       {&m->v, args->delta ? chunk * s->width : 0},
                       {&m->x, args->delta ? chunk * s->width : 0},
                       {&m->u, chunk * s->width},
                       {&m->o, chunk * s->width},
                       {&m->qk, chunk * chunk},
                       {&m->kk, args->delta ? chunk * chunk : 0},
                       {&m->decay, (chunk + 1) * channels},
                       {&m->between, chunk * chunk}, /* or 2 chunk - 1 powers: chunks have two tokens or more */
                       {&m->within, chunk},
                       {&m->left, chunk},
                       {&m->beta, chunk},
                       {&m->total, channels}};
        *m = (struct fv_scan_memory){.head = -1};
        for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++) {
            FV_TRY(FV_SCRATCH(ctx, *buffers[n].to, buffers[n].count));
            memset(*buffers[n].to, 0, (size_t)buffers[n].count * sizeof(float));
        }
        for (int64_t r = 0; r < chunk; r++)
            m->beta[r] = 1;
    }
    return FV_OK;
}

/* A call is cut into heads, and heads into parts of their value columns if there are fewer of them than threads:
 * columns know nothing of each other. */
struct call {
    struct fv_scan *parts;
    int64_t count; /* of parts */
    bool steps;
};

static void scan_item(void *user, int64_t item, int thread)
{
    const struct call *call = user;
    const struct fv_scan *s = &call->parts[item % call->count];
    int64_t head = item / call->count, H = s->args->q.dims[1];

    if (call->steps)
        step_head(s, &s->memory[thread], head / H, head % H);
    else
        scan_head(s, &s->memory[thread], head / H, head % H);
}

/* The call for value columns from..from + count - 1. */
static fv_scan_args part_of(const fv_scan_args *args, int64_t from, int64_t count)
{
    fv_scan_args part = *args;

    part.v = fv_slice(&args->v, 3, from, count);
    part.o = fv_slice(&args->o, 3, from, count);
    if (fv_present(&args->state_in)) part.state_in = fv_slice(&args->state_in, 3, from, count);
    if (fv_present(&args->state_out)) part.state_out = fv_slice(&args->state_out, 3, from, count);
    if (args->decay == FV_DECAY_PER_VALUE) part.log_decay = fv_slice(&args->log_decay, 3, from, count);
    return part;
}

static fv_status prepare(fv_ctx *ctx, const fv_scan_args *args, struct call *call)
{
    int64_t heads = args->q.dims[0] * args->q.dims[1], Dv = args->v.dims[3];
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    bool steps = args->q.dims[2] < FV_CHUNK_FROM;
    int64_t step = steps ? kernels->scan->step_columns : kernels->tile_columns;
    int64_t parts = fv_clamp(fv_ctx_threads(ctx) / fv_max(heads, 1), 1, fv_max(Dv / step, 1));
    int64_t each = fv_round_up(fv_ceil_div(Dv, args->normalise ? 1 : parts), step);
    fv_scan_args *own;

    call->count = fv_max(fv_ceil_div(Dv, fv_max(each, 1)), 1);
    call->steps = steps;
    FV_TRY(FV_SCRATCH(ctx, call->parts, call->count));
    FV_TRY(FV_SCRATCH(ctx, own, call->count));
    for (int64_t p = 0; p < call->count; p++) {
        own[p] = part_of(args, p * each, fv_min(each, Dv - p * each));
        struct fv_scan *part = &call->parts[p];
        FV_TRY(fv_scan_begin(ctx, &own[p], steps ? 2 : fv_scan_chunk_length(ctx, args), part));
        part->lend_keys = !part->by_key;
        part->lend_values = part->width == part->Dv && !args->delta && !fv_present(&args->beta) && !part->by_value;
    }
    return FV_OK;
}

fv_status fv_cpu_scan(fv_ctx *ctx, const fv_scan_args *args)
{
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    double work = 4.0 * (double)fv_tensor_count(&args->q) * (double)args->v.dims[3];
    struct call call;
    fv_status status;

    if (!fv_cpu_rows_together(&args->q) || !fv_cpu_rows_together(&args->k) || !fv_cpu_rows_together(&args->v) ||
        !fv_cpu_rows_together(&args->o) || !fv_cpu_rows_together(&args->log_decay))
        return fv_backend_ref.scan(ctx, args);
    FV_TRY_DONE(prepare(ctx, args, &call));
    fv_cpu_run(ctx, args->q.dims[0] * args->q.dims[1] * call.count, work, scan_item, &call);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
