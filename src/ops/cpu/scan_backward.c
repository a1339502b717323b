/* Gradients of scan where a token has one factor of decay and no delta rule: chunks as in the forward, run backward.
 * With L[t,j] = exp(g_t - g_j) for j <= t, g the running sum of log-decays in the chunk (g_n its last), S the state
 * before the chunk, R the gradient of the state behind it, and e the gradients of the sums before division:
 *   P = L (q k^T),  G = L (e v^T),  d_u_j = sum_t P[t,j] e_t + exp(g_n - g_j) R^T k_j,  d_v = beta d_u,  d_beta =
 * v.d_u, d_q_t = sum_j G[t,j] beta_j k_j + exp(g_t) S e_t,  d_k_j = beta_j (sum_t G[t,j] q_t + exp(g_n - g_j) R v_j),
 *   R before = exp(g_n) R + sum_t exp(g_t) q_t e_t^T,
 *   d_log_decay_t = sum_{s >= t} (q_s.d_q_s - k_s.d_k_s) + <R, S behind>.
 * All products by the micro-kernel (bound: 6 D Dv + 5 FV_CHUNK (D + Dv) flops a token, and the forward once more).
 * Other kinds are left to the reference backend. */
#include "ops/accumulate.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/scan.h"

struct memory {
    float *kept;                                            /* [chunks + 1][D, width]: the state before each chunk */
    float *inverse, *d_divisor;                             /* [N]: 1 / divisor, and its gradient */
    float *q, *k, *d_q, *d_k;                               /* [FV_CHUNK, depth] */
    float *v, *e, *d_u;                                     /* [FV_CHUNK, width] */
    float *q_columns, *k_columns;                           /* [D, FV_CHUNK] */
    float *v_columns, *e_columns;                           /* [width, FV_CHUNK] */
    float *p, *g;                                           /* [FV_CHUNK, FV_CHUNK] */
    float *r, *r_columns, *state_columns;                   /* [D, width], [width, depth] */
    float within[FV_CHUNK], left[FV_CHUNK], beta[FV_CHUNK]; /* exp(g_t), exp(g_n - g_t) */
};

struct backward {
    struct fv_scan scan;
    const fv_scan_grads *grads;
    struct memory *memory; /* per thread */
    int64_t depth;         /* D in whole micro-tiles */
    double *d_head_decay;  /* [B * H] */
};

/* c[rows, columns] (+)= a b, operands as the micro-kernel wants them, columns in whole micro-tiles. */
static void product(const struct fv_kernels *kernels, int64_t rows, int64_t columns, int64_t k, const float *a,
                    int64_t a_row, int64_t a_step, const float *b, int64_t b_row, float *c, int64_t c_row, bool add)
{
    for (int64_t r = 0; r < rows; r += kernels->tile_rows)
        for (int64_t n = 0; n < columns; n += kernels->tile_columns)
            kernels->tile((int)fv_min(kernels->tile_rows, rows - r), k, a + r * a_row, a_row, a_step, b + n, b_row,
                          c + r * c_row + n, c_row, add);
}

static void transpose(const struct fv_kernels *kernels, const float *in, int64_t in_row, int64_t rows, int64_t count,
                      float *out, int64_t out_row)
{
    for (int64_t r = 0; r < rows; r += kernels->width)
        kernels->transpose(in + r * in_row, in_row, (int)fv_min(kernels->width, rows - r), count, out + r, out_row);
}

static float dot(const struct fv_kernels *kernels, int64_t n, const float *x, const float *y)
{
    float out;

    kernels->dot[FV_F32](1, n, x, 0, NULL, y, 0, 1, &out, 1);
    return out;
}

static void add_row(const struct backward *w, const fv_tensor *t, int64_t b, int64_t h, int64_t n, const float *row,
                    float factor)
{
    if (!fv_present(t)) return;
    float *to = fv_scan_row(t, b, h, n);
    w->scan.kernels->map(FV_MAP_ADD, t->dims[3], to, row, 1, factor, 0, to);
}

/* Every column j of `rows` rows times factor[j]. */
static void scale_columns(const struct fv_kernels *kernels, float *x, int64_t rows, const float *factor)
{
    for (int64_t r = 0; r < rows; r++)
        kernels->map(FV_MAP_MUL, FV_CHUNK, x + r * FV_CHUNK, factor, 1, 1, 0, x + r * FV_CHUNK);
}

/* weights[t, j] *= exp(g_t - g_j), 0 for j > t */
static void decay_weights(const struct backward *w, float *weights, int count, const double *g)
{
    for (int t = 0; t < count; t++) {
        float *row = weights + t * FV_CHUNK, factor[FV_CHUNK];
        for (int j = 0; j <= t; j++)
            factor[j] = (float)(g[t] - g[j]);
        w->scan.kernels->map(FV_MAP_EXP, t + 1, factor, NULL, 0, 0, 0, factor);
        w->scan.kernels->map(FV_MAP_MUL, t + 1, row, factor, 1, 1, 0, row);
        memset(row + t + 1, 0, (size_t)(FV_CHUNK - 1 - t) * sizeof *row);
    }
}

/* Rows and factors of a chunk. */
static void load_chunk(const struct backward *w, struct memory *m, int64_t b, int64_t h, int64_t kv, int64_t from,
                       int count, double *g)
{
    const struct fv_scan *s = &w->scan;
    const fv_scan_args *a = s->args;
    double sum = 0;

    memset(m->beta, 0, sizeof m->beta);
    memset(m->within, 0, sizeof m->within);
    memset(m->left, 0, sizeof m->left);
    for (int t = 0; t < count; t++) {
        float *e = m->e + t * s->width;
        g[t] = sum += fv_scan_log_decay(a, b, h, from + t);
        m->beta[t] = fv_scan_beta(a, b, h, from + t);
        memcpy(m->q + t * w->depth, fv_scan_row(&a->q, b, h, from + t), (size_t)s->D * sizeof *m->q);
        memcpy(m->k + t * w->depth, fv_scan_row(&a->k, b, kv, from + t), (size_t)s->D * sizeof *m->k);
        fv_scan_load_value(s, fv_scan_row(&a->v, b, kv, from + t), 1, m->v + t * s->width);
        s->kernels->map(FV_MAP_COPY, s->Dv, fv_scan_row(&w->grads->d_o, b, h, from + t), NULL, 0, m->inverse[from + t],
                        0, e);
        if (a->normalise) e[s->Dv] = m->d_divisor[from + t];
    }
    for (int t = 0; t < count; t++) {
        m->within[t] = expf((float)g[t]);
        m->left[t] = expf((float)(g[count - 1] - g[t]));
    }
    transpose(s->kernels, m->q, w->depth, count, s->D, m->q_columns, FV_CHUNK);
    transpose(s->kernels, m->k, w->depth, count, s->D, m->k_columns, FV_CHUNK);
    transpose(s->kernels, m->v, s->width, count, s->width, m->v_columns, FV_CHUNK);
    transpose(s->kernels, m->e, s->width, count, s->width, m->e_columns, FV_CHUNK);
}

/* d_u, d_q and d_k (without beta's factor in d_k) of a chunk; then R goes before it. */
static void chunk_products(const struct backward *w, struct memory *m, const float *state, int count, const double *g)
{
    const struct fv_scan *s = &w->scan;
    const struct fv_kernels *kernels = s->kernels;
    int64_t D = s->D, width = s->width, depth = w->depth;

    product(kernels, count, FV_CHUNK, D, m->q_columns, 1, FV_CHUNK, m->k_columns, FV_CHUNK, m->p, FV_CHUNK, false);
    product(kernels, count, FV_CHUNK, width, m->e_columns, 1, FV_CHUNK, m->v_columns, FV_CHUNK, m->g, FV_CHUNK, false);
    decay_weights(w, m->p, count, g);
    decay_weights(w, m->g, count, g);
    scale_columns(kernels, m->k_columns, D, m->left);
    scale_columns(kernels, m->v_columns, width, m->left);
    scale_columns(kernels, m->e_columns, width, m->within);
    transpose(kernels, state, width, D, width, m->state_columns, depth);
    transpose(kernels, m->r, width, D, width, m->r_columns, depth);

    product(kernels, count, width, count, m->p, 1, FV_CHUNK, m->e, width, m->d_u, width, false);
    product(kernels, count, width, D, m->k_columns, 1, FV_CHUNK, m->r, width, m->d_u, width, true);
    product(kernels, count, depth, count, m->g, 1, FV_CHUNK, m->q, depth, m->d_k, depth, false);
    product(kernels, count, depth, width, m->v_columns, 1, FV_CHUNK, m->r_columns, depth, m->d_k, depth, true);
    scale_columns(kernels, m->g, count, m->beta);
    product(kernels, count, depth, count, m->g, FV_CHUNK, 1, m->k, depth, m->d_q, depth, false);
    product(kernels, count, depth, width, m->e_columns, 1, FV_CHUNK, m->state_columns, depth, m->d_q, depth, true);

    for (int t = 0; t < count; t++)
        kernels->map(FV_MAP_COPY, width, m->e + t * width, NULL, 0, m->within[t], 0, m->e + t * width);
    kernels->map(FV_MAP_COPY, D * width, m->r, NULL, 0, m->within[count - 1], 0, m->r);
    product(kernels, D, width, count, m->q, 1, depth, m->e, width, m->r, width, true);
}

static void write_chunk(const struct backward *w, const struct memory *m, int64_t b, int64_t h, int64_t kv,
                        int64_t from, int count, double behind)
{
    const struct fv_scan *s = &w->scan;
    const fv_scan_grads *g = w->grads;
    double d_decay = behind;

    for (int t = count - 1; t >= 0; t--) {
        const float *q = m->q + t * w->depth, *k = m->k + t * w->depth, *v = m->v + t * s->width;
        const float *d_q = m->d_q + t * w->depth, *d_k = m->d_k + t * w->depth, *d_u = m->d_u + t * s->width;
        add_row(w, &g->d_q, b, h, from + t, d_q, 1);
        add_row(w, &g->d_k, b, kv, from + t, d_k, m->beta[t]);
        add_row(w, &g->d_v, b, kv, from + t, d_u, m->beta[t]);
        if (fv_present(&g->d_beta)) *fv_scan_row(&g->d_beta, b, h, from + t) += dot(s->kernels, s->width, v, d_u);
        if (s->args->decay == FV_DECAY_NONE || !fv_present(&g->d_log_decay)) continue;
        d_decay += (double)dot(s->kernels, s->D, q, d_q);
        d_decay -= (double)(m->beta[t] * dot(s->kernels, s->D, k, d_k));
        w->d_head_decay[b * s->args->q.dims[1] + h] += d_decay;
        if (s->args->decay == FV_DECAY_PER_TOKEN) *fv_scan_row(&g->d_log_decay, b, h, from + t) += (float)d_decay;
    }
}

/* The forward once more: states before chunks, and what sums are divided by. */
static void keep_states(const struct backward *w, struct memory *m, struct fv_scan_memory *forward, int64_t b,
                        int64_t h, int64_t kv)
{
    const struct fv_scan *s = &w->scan;
    int64_t N = s->args->q.dims[2], cells = s->D * s->width;

    fv_scan_load_state(s, forward, b, h);
    memcpy(m->kept, forward->state, (size_t)cells * sizeof *m->kept);
    for (int64_t from = 0; from < N; from += FV_CHUNK) {
        int count = (int)fv_min(FV_CHUNK, N - from);
        fv_scan_chunk(s, forward, b, h, kv, from, count);
        memcpy(m->kept + (from / FV_CHUNK + 1) * cells, forward->state, (size_t)cells * sizeof *m->kept);
        for (int t = 0; t < count; t++) {
            const float *sums = forward->o + t * s->width;
            bool floored;
            float divisor = fv_scan_divisor(s, sums, &floored), inverse = divisor != 0 ? 1 / divisor : 0;
            m->inverse[from + t] = inverse;
            m->d_divisor[from + t] = 0;
            if (s->args->normalise && !floored)
                m->d_divisor[from + t] =
                    -dot(s->kernels, s->Dv, fv_scan_row(&w->grads->d_o, b, h, from + t), sums) * inverse * inverse;
        }
    }
}

static void head_back(const struct backward *w, struct memory *m, struct fv_scan_memory *forward, int64_t b, int64_t h,
                      int64_t kv)
{
    const struct fv_scan *s = &w->scan;
    const fv_scan_grads *grads = w->grads;
    int64_t N = s->args->q.dims[2], cells = s->D * s->width;
    double g[FV_CHUNK];

    keep_states(w, m, forward, b, h, kv);
    memset(m->r, 0, (size_t)cells * sizeof *m->r);
    w->d_head_decay[b * s->args->q.dims[1] + h] = 0;
    for (int64_t d = 0; d < s->D; d++) {
        for (int64_t c = 0; c < s->Dv && fv_present(&grads->d_state_out); c++)
            m->r[d * s->width + c] = *(float *)fv_at(&grads->d_state_out, b, h, d, c);
        if (fv_present(&grads->d_z_out)) m->r[d * s->width + s->Dv] = *fv_scan_row(&grads->d_z_out, b, h, d);
    }
    for (int64_t chunk = fv_ceil_div(N, FV_CHUNK) - 1; chunk >= 0; chunk--) {
        int count = (int)fv_min(FV_CHUNK, N - chunk * FV_CHUNK);
        double behind = (double)dot(s->kernels, cells, m->r, m->kept + (chunk + 1) * cells);
        load_chunk(w, m, b, h, kv, chunk * FV_CHUNK, count, g);
        chunk_products(w, m, m->kept + chunk * cells, count, g);
        write_chunk(w, m, b, h, kv, chunk * FV_CHUNK, count, behind);
    }
    for (int64_t d = 0; d < s->D; d++) {
        add_row(w, &grads->d_state_in, b, h, d, m->r + d * s->width, 1);
        if (fv_present(&grads->d_z_in)) *fv_scan_row(&grads->d_z_in, b, h, d) += m->r[d * s->width + s->Dv];
    }
}

/* All query heads of a key-value head, so that nobody else adds to its keys and values. */
static void keys_back(void *user, int64_t item, int thread)
{
    const struct backward *w = user;
    int64_t key_heads = w->scan.args->k.dims[1], group = w->scan.args->q.dims[1] / key_heads;

    for (int64_t n = 0; n < group; n++)
        head_back(w, &w->memory[thread], &w->scan.memory[thread], item / key_heads, item % key_heads * group + n,
                  item % key_heads);
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

static fv_status take_memory(fv_ctx *ctx, struct backward *w)
{
    const struct fv_scan *s = &w->scan;
    int64_t N = s->args->q.dims[2], cells = s->D * s->width, kept;

    if (!fv_mul_i64(cells, fv_ceil_div(N, FV_CHUNK) + 1, &kept))
        return fv_fail(FV_E_MEMORY, "scan backward: the size of the states overflows");
    FV_TRY(FV_SCRATCH(ctx, w->d_head_decay, s->args->q.dims[0] * s->args->q.dims[1]));
    FV_TRY(FV_SCRATCH(ctx, w->memory, fv_ctx_threads(ctx)));
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        struct memory *m = &w->memory[t];
        float **rows[] = {&m->q, &m->k, &m->d_q, &m->d_k}, **wide[] = {&m->v, &m->e, &m->d_u};
        const struct {
            float **to;
            int64_t count;
        } buffers[] = {{&m->kept, kept},
                       {&m->inverse, N},
                       {&m->d_divisor, N},
                       {&m->q_columns, s->D * FV_CHUNK},
                       {&m->k_columns, s->D * FV_CHUNK},
                       {&m->v_columns, s->width * FV_CHUNK},
                       {&m->e_columns, s->width * FV_CHUNK},
                       {&m->p, FV_CHUNK * FV_CHUNK},
                       {&m->g, FV_CHUNK * FV_CHUNK},
                       {&m->r, cells},
                       {&m->r_columns, s->width * w->depth},
                       {&m->state_columns, s->width * w->depth}};
        for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++)
            FV_TRY(FV_SCRATCH(ctx, *buffers[n].to, buffers[n].count + FV_MAX_TILE_COLUMNS));
        for (int n = 0; n < 7; n++) {
            float **to = n < 4 ? rows[n] : wide[n - 4];
            int64_t count = FV_CHUNK * (n < 4 ? w->depth : s->width);
            FV_TRY(FV_SCRATCH(ctx, *to, count));
            memset(*to, 0, (size_t)count * sizeof **to); /* padding stays 0 */
        }
        memset(m->r_columns, 0, (size_t)(s->width * w->depth) * sizeof(float));
        memset(m->state_columns, 0, (size_t)(s->width * w->depth) * sizeof(float));
    }
    return FV_OK;
}

static bool is_fast(const fv_scan_args *a, const fv_scan_grads *g)
{
    const fv_tensor *read[] = {&a->q, &a->k, &a->v, &g->d_o};
    const fv_tensor *written[] = {&g->d_q, &g->d_k, &g->d_v, &g->d_beta, &g->d_state_in, &g->d_z_in};
    bool fast = !a->delta && a->decay <= FV_DECAY_PER_TOKEN && a->q.dims[2] >= FV_CHUNK_FROM && a->k.dims[1] > 0;

    for (size_t n = 0; n < sizeof read / sizeof *read; n++)
        fast = fast && fv_present(read[n]) && fv_cpu_rows_together(read[n]);
    for (size_t n = 0; n < sizeof written / sizeof *written; n++)
        fast = fast && fv_cpu_rows_together(written[n]) && (!fv_present(written[n]) || fv_tensor_apart(written[n]));
    return fast && (a->decay != FV_DECAY_PER_TOKEN || !fv_present(&g->d_log_decay) || fv_tensor_apart(&g->d_log_decay));
}

fv_status fv_cpu_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads)
{
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    const fv_tensor *d_decay = &grads->d_log_decay;
    int64_t B = args->q.dims[0], H = args->q.dims[1];
    struct backward w = {.grads = grads};
    fv_status status;

    if (!is_fast(args, grads)) return fv_backend_ref.scan_backward(ctx, args, grads);
    FV_TRY_DONE(fv_scan_begin(ctx, args, &w.scan));
    w.depth = fv_round_up(w.scan.D, w.scan.kernels->tile_columns);
    FV_TRY_DONE(take_memory(ctx, &w));
    fv_run(ctx, B * args->k.dims[1], keys_back, &w);
    for (int64_t n = 0; n < B * H && args->decay == FV_DECAY_PER_HEAD && fv_present(d_decay); n++)
        ((float *)d_decay->data)[n % H * d_decay->strides[0]] += (float)w.d_head_decay[n];
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
