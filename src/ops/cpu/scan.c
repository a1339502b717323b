/* Linear recurrences.  Where a token has one factor of decay and no delta rule, FV_CHUNK tokens are taken at once:
 * within the chunk as attention whose weights are products of decays, between chunks through the state, all by the
 * micro-kernel (bound: 4 D Dv + 2 FV_CHUNK (D + Dv) flops a token); every exponent is a sum of log-decays, at most 0.
 * Other kinds go token by token.  The normaliser is one more value column, of ones. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/scan.h"

enum { LEAST_DECAY = -100 };

double fv_scan_log_decay(const fv_scan_args *a, int64_t b, int64_t h, int64_t t)
{
    const fv_tensor *g = &a->log_decay;

    if (a->decay == FV_DECAY_NONE) return 0;
    float value =
        a->decay == FV_DECAY_PER_HEAD ? ((const float *)g->data)[h * g->strides[0]] : *fv_scan_row(g, b, h, t);
    return fmax(value, LEAST_DECAY);
}

void fv_scan_load_value(const struct fv_scan *s, const float *v, float factor, float *out)
{
    for (int64_t c = 0; c < s->Dv; c++)
        out[c] = factor * v[c];
    for (int64_t c = s->Dv; c < s->width; c++)
        out[c] = c == s->Dv && s->args->normalise ? factor : 0;
}

static void write_output(const struct fv_scan *s, int64_t b, int64_t h, int64_t t, const float *from)
{
    const fv_scan_args *a = s->args;
    bool floored;
    float divisor = fv_scan_divisor(s, from, &floored);

    if (fv_present(&a->denominator)) *(float *)fv_at(&a->denominator, b, h, t, 0) = divisor;
    s->kernels->map(FV_MAP_COPY, s->Dv, from, NULL, 0, divisor != 0 ? 1 / divisor : 0, 0, fv_at(&a->o, b, h, t, 0));
}

/* ---- token by token -------------------------------------------------------------------------------------------- */

static void step(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t kv, int64_t t)
{
    const fv_scan_args *a = s->args;
    struct fv_scan_step one = {.keys = s->D,
                               .width = s->width,
                               .state = m->state,
                               .q = fv_scan_row(&a->q, b, h, t),
                               .k = fv_scan_row(&a->k, b, kv, t),
                               .v = m->v,
                               .o = m->o,
                               .beta = fv_scan_beta(a, b, h, t),
                               .delta = a->delta};

    fv_scan_load_value(s, fv_scan_row(&a->v, b, kv, t), 1, m->v);
    if (a->decay == FV_DECAY_PER_KEY || a->decay == FV_DECAY_PER_VALUE) {
        int64_t count = a->log_decay.dims[3];
        s->kernels->map(FV_MAP_EXP, count, fv_scan_row(&a->log_decay, b, h, t), NULL, 0, 0, 0, m->decay);
        if (a->decay == FV_DECAY_PER_VALUE)
            one.value_decay = m->decay; /* what lies behind the values decays by 0: it is nothing anyway */
        else
            one.decay = m->decay, one.decay_step = 1;
    } else if (a->decay != FV_DECAY_NONE) {
        m->decay[0] = expf((float)fv_scan_log_decay(a, b, h, t));
        one.decay = m->decay;
    }
    s->kernels->scan_step(&one);
    write_output(s, b, h, t, m->o);
}

/* ---- chunks ---------------------------------------------------------------------------------------------------- */

/* q rows as panels, each row times scale[r] if given. */
static void pack_queries(const struct fv_scan *s, struct fv_scan_memory *m, int count, const float *scale)
{
    for (int r = 0; r < count; r++)
        if (scale) s->kernels->map(FV_MAP_COPY, s->D, m->q + r * s->D, NULL, 0, scale[r], 0, m->q + r * s->D);
    for (int r = 0; r < count; r += s->kernels->tile_rows) {
        int rows = (int)fv_min(s->kernels->tile_rows, count - r);
        s->kernels->transpose(m->q + r * s->D, s->D, rows, s->D, m->panels + r * s->D, rows);
    }
}

/* weights[t, j] = q_t . k_j exp(g_t - g_j) for j <= t, else 0 */
static void chunk_weights(const struct fv_scan *s, struct fv_scan_memory *m, int count, const double *g)
{
    const struct fv_kernels *kernels = s->kernels;

    for (int n = 0; n < count; n += kernels->width)
        kernels->transpose(m->k + n * s->D, s->D, (int)fv_min(kernels->width, count - n), s->D, m->keys + n, FV_CHUNK);
    pack_queries(s, m, count, NULL);
    for (int r = 0; r < count; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, count - r);
        for (int n = 0; n < r + rows; n += kernels->tile_columns)
            kernels->tile(rows, s->D, m->panels + r * s->D, 1, rows, m->keys + n, FV_CHUNK,
                          m->weights + r * FV_CHUNK + n, FV_CHUNK, false);
    }
    for (int t = 0; t < count; t++) {
        float *row = m->weights + t * FV_CHUNK, factor[FV_CHUNK];
        for (int j = 0; j <= t; j++)
            factor[j] = (float)(g[t] - g[j]);
        if (s->args->decay != FV_DECAY_NONE) {
            kernels->map(FV_MAP_EXP, t + 1, factor, NULL, 0, 0, 0, factor);
            kernels->map(FV_MAP_MUL, t + 1, row, factor, 1, 1, 0, row);
        }
        memset(row + t + 1, 0, (size_t)(FV_CHUNK - 1 - t) * sizeof *row);
    }
}

/* o = weights v + exp(g) q state; state = exp(g_last) state + (exp(g_last - g) k)^T v */
static void chunk_products(const struct fv_scan *s, struct fv_scan_memory *m, int count, const double *g)
{
    const struct fv_kernels *kernels = s->kernels;
    float scale[FV_CHUNK] = {0};

    for (int t = 0; t < count; t++)
        scale[t] = expf((float)g[t]);
    pack_queries(s, m, count, scale);
    for (int r = 0; r < count; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, count - r);
        for (int64_t c = 0; c < s->width; c += kernels->tile_columns) {
            float *o = m->o + r * s->width + c;
            kernels->tile(rows, r + rows, m->weights + r * FV_CHUNK, FV_CHUNK, 1, m->v + c, s->width, o, s->width,
                          false);
            kernels->tile(rows, s->D, m->panels + r * s->D, 1, rows, m->state + c, s->width, o, s->width, true);
        }
    }
    kernels->map(FV_MAP_COPY, s->D * s->width, m->state, NULL, 0, scale[count - 1], 0, m->state);
    for (int t = 0; t < count; t++)
        kernels->map(FV_MAP_COPY, s->D, m->k + t * s->D, NULL, 0, expf((float)(g[count - 1] - g[t])), 0,
                     m->k + t * s->D);
    for (int64_t d = 0; d < s->D; d += kernels->tile_rows)
        for (int64_t c = 0; c < s->width; c += kernels->tile_columns)
            kernels->tile((int)fv_min(kernels->tile_rows, s->D - d), count, m->k + d, 1, s->D, m->v + c, s->width,
                          m->state + d * s->width + c, s->width, true);
}

void fv_scan_chunk(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t kv, int64_t from,
                   int count)
{
    const fv_scan_args *a = s->args;
    double g[FV_CHUNK], sum = 0;

    for (int t = 0; t < count; t++) {
        g[t] = sum += fv_scan_log_decay(a, b, h, from + t);
        memcpy(m->q + t * s->D, fv_scan_row(&a->q, b, h, from + t), (size_t)s->D * sizeof *m->q);
        memcpy(m->k + t * s->D, fv_scan_row(&a->k, b, kv, from + t), (size_t)s->D * sizeof *m->k);
        fv_scan_load_value(s, fv_scan_row(&a->v, b, kv, from + t), fv_scan_beta(a, b, h, from + t),
                           m->v + t * s->width);
    }
    chunk_weights(s, m, count, g);
    chunk_products(s, m, count, g);
}

/* ---- heads ----------------------------------------------------------------------------------------------------- */

void fv_scan_load_state(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;

    memset(m->state, 0, (size_t)(s->D * s->width) * sizeof *m->state);
    for (int64_t d = 0; d < s->D; d++) {
        for (int64_t c = 0; c < s->Dv && fv_present(&a->state_in); c++)
            m->state[d * s->width + c] = *(float *)fv_at(&a->state_in, b, h, d, c);
        if (fv_present(&a->z_in)) m->state[d * s->width + s->Dv] = *(float *)fv_at(&a->z_in, b, h, d, 0);
    }
}

static void end(const struct fv_scan *s, const struct fv_scan_memory *m, int64_t b, int64_t h)
{
    const fv_scan_args *a = s->args;

    for (int64_t d = 0; d < s->D; d++) {
        for (int64_t c = 0; c < s->Dv && fv_present(&a->state_out); c++)
            *(float *)fv_at(&a->state_out, b, h, d, c) = m->state[d * s->width + c];
        if (fv_present(&a->z_out)) *(float *)fv_at(&a->z_out, b, h, d, 0) = m->state[d * s->width + s->Dv];
    }
}

static void scan_head(void *user, int64_t item, int thread)
{
    const struct fv_scan *s = user;
    const fv_scan_args *a = s->args;
    struct fv_scan_memory *m = &s->memory[thread];
    int64_t H = a->q.dims[1], N = a->q.dims[2], b = item / H, h = item % H, kv = h / (H / a->k.dims[1]);

    fv_scan_load_state(s, m, b, h);
    if (s->chunked) {
        for (int64_t from = 0; from < N; from += FV_CHUNK) {
            int count = (int)fv_min(FV_CHUNK, N - from);
            fv_scan_chunk(s, m, b, h, kv, from, count);
            for (int t = 0; t < count; t++)
                write_output(s, b, h, from + t, m->o + t * s->width);
        }
    } else {
        for (int64_t t = 0; t < N; t++)
            step(s, m, b, h, kv, t);
    }
    end(s, m, b, h);
}

fv_status fv_scan_begin(fv_ctx *ctx, const fv_scan_args *args, struct fv_scan *s)
{
    int64_t threads = fv_ctx_threads(ctx), cells;

    *s = (struct fv_scan){.args = args, .kernels = fv_kernels_of(ctx), .D = args->q.dims[3], .Dv = args->v.dims[3]};
    s->width = fv_round_up(s->Dv + args->normalise, s->kernels->tile_columns);
    s->chunked = !args->delta && args->decay <= FV_DECAY_PER_TOKEN && args->q.dims[2] >= FV_CHUNK_FROM;
    if (!fv_mul_i64(s->D, s->width, &cells)) return fv_fail(FV_E_MEMORY, "scan: the size of the state overflows");
    FV_TRY(FV_SCRATCH(ctx, s->memory, threads));
    for (int64_t t = 0; t < threads; t++) {
        struct fv_scan_memory *m = &s->memory[t];
        FV_TRY(FV_SCRATCH(ctx, m->state, cells));
        FV_TRY(FV_SCRATCH(ctx, m->q, FV_CHUNK * s->D));
        FV_TRY(FV_SCRATCH(ctx, m->k, FV_CHUNK * s->D));
        FV_TRY(FV_SCRATCH(ctx, m->v, FV_CHUNK * s->width));
        FV_TRY(FV_SCRATCH(ctx, m->o, FV_CHUNK * s->width));
        FV_TRY(FV_SCRATCH(ctx, m->panels, FV_CHUNK * s->D + FV_MAX_TILE_COLUMNS));
        FV_TRY(FV_SCRATCH(ctx, m->keys, FV_CHUNK * s->D));
        FV_TRY(FV_SCRATCH(ctx, m->weights, FV_CHUNK * FV_CHUNK));
        FV_TRY(FV_SCRATCH(ctx, m->decay, fv_max(s->D, s->width)));
        memset(m->decay, 0, (size_t)fv_max(s->D, s->width) * sizeof *m->decay);
    }
    return FV_OK;
}

fv_status fv_cpu_scan(fv_ctx *ctx, const fv_scan_args *args)
{
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    double work = 4.0 * (double)fv_tensor_count(&args->q) * (double)args->v.dims[3];
    struct fv_scan s;
    fv_status status;

    if (!fv_cpu_rows_together(&args->q) || !fv_cpu_rows_together(&args->k) || !fv_cpu_rows_together(&args->v) ||
        !fv_cpu_rows_together(&args->o) || !fv_cpu_rows_together(&args->log_decay))
        return fv_backend_ref.scan(ctx, args);
    FV_TRY_DONE(fv_scan_begin(ctx, args, &s));
    fv_cpu_run(ctx, args->q.dims[0] * args->q.dims[1], work, scan_head, &s);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
