/* Gradients of scan, by the chunks of the forward (scan.h has its formulas), run backward.  With e the gradients of the
 * sums before division, R the gradient of the state behind the chunk and S the state before it, all decayed like their
 * partners in the forward:
 *   d_u_j = sum_{t>=j} QK[t,j] e_t + R^T k_j,   with delta less sum_{t>j} KK[t,j] d_x_t,   d_x = d_v = beta d_u,
 *   d_QK[t,j] = e_t . u_j,   d_KK[t,j] = y_t . u_j,   y = -d_x,
 *   d_q_t = S e_t + sum_j d_QK[t,j] k_j,   k as the later token: d_k_t = S y_t + sum_{j<t} d_KK[t,j] k_j,
 *   as the earlier one: d_k_j = R u_j + sum_{t>=j} d_QK[t,j] q_t + sum_{t>j} d_KK[t,j] k_t,
 *   R before = R + sum_t q_t e_t^T + k_t y_t^T,   d_beta_t = x_t . d_u_t.
 * Every term holds the decays of the tokens between an earlier and a later one (or an end of the chunk), so the
 * gradient of a token's log-decay is what later tokens have as the later partner, less what they have as the earlier
 * one: sum_{s>=t} (q.d_q + k.d_k later - k.d_k earlier)_s + <R, S behind>, channel by channel if keys decay apart, and
 *   sum_{s>=t} (sums e + (x - v) d_x - u d_u)_s + <R, S behind> if values do.
 * Bound: 6 D Dv + 5 chunk (D + Dv) flops a token (10 and 9 with delta), and the forward once more: 10 D Dv alone is 34
 * % of the FMA peak at D = 64 and 45 % at 128 with a decay per head. */
#include "ops/accumulate.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/scan.h"

struct memory {
    float *kept;                              /* [chunks + 1][D, state_row]: the state before each chunk */
    float *r;                                 /* [depth, state_row] */
    float *inverse;                           /* [tokens]: 1 / divisor */
    float *q, *d_q, *d_k, *later;             /* [tokens, depth]; d_k: as the earlier token */
    float *v, *e, *y, *d_u, *d_x;             /* [tokens, width] */
    float *faded;                             /* k or u decayed to the end of the chunk, if by channel */
    float *base;                              /* [tokens, depth] */
    float *e_columns, *y_columns, *u_columns; /* [width, chunk] */
    float *columns;                           /* [depth, chunk] */
    float *d_qk, *d_kk;                       /* [chunk, chunk]: element (j, t) */
    float *d_decay;                           /* [channels] */
};

struct backward {
    struct fv_scan scan;
    const fv_scan_grads *grads;
    struct memory *memory; /* per thread */
    double *d_head_decay;  /* [B * H] */
};

/* A chunk on its way back. */
struct chunk {
    const struct backward *w;
    struct memory *m;
    struct fv_scan_memory *f; /* the forward's: S, and what it makes of the chunk */
    int64_t b, h, kv, from, count, rows;
};

static float dot(const struct fv_kernels *kernels, int64_t n, const float *x, const float *y)
{
    float out;

    kernels->dot[FV_F32](1, n, x, 0, NULL, y, 0, 1, &out, 1);
    return out;
}

static void add_row(const struct backward *w, const fv_tensor *t, int64_t b, int64_t h, int64_t n, const float *row)
{
    if (!fv_present(t)) return;
    float *to = fv_scan_row(t, b, h, n);
    w->scan.kernels->map(FV_MAP_ADD, t->dims[3], to, row, 1, 1, 0, to);
}

/* e, q and v by rows, e and u by columns. */
static void load_chunk(const struct chunk *c)
{
    const struct fv_scan *s = &c->w->scan;
    const fv_scan_args *a = s->args;
    const fv_tensor *d_o = &c->w->grads->d_o;
    struct memory *m = c->m;

    for (int64_t t = 0; t < c->count && a->normalise; t++) {
        bool floored;
        float divisor = fv_scan_divisor(s, c->f->o + t * s->width, &floored);
        m->inverse[t] = divisor != 0 ? 1 / divisor : 0;
    }
    s->leaves->gather(c->count, s->Dv, fv_scan_row(d_o, c->b, c->h, c->from), d_o->strides[2],
                      a->normalise ? m->inverse : NULL, c->rows, s->width, m->e, s->width);
    for (int64_t t = 0; t < c->count && a->normalise; t++) {
        const float *sums = c->f->o + t * s->width;
        float *e = m->e + t * s->width;
        bool floored;
        fv_scan_divisor(s, sums, &floored);
        if (!floored) e[s->Dv] = -dot(s->kernels, s->Dv, e, sums) * m->inverse[t];
    }
    s->leaves->gather(c->count, s->D, fv_scan_row(&a->q, c->b, c->h, c->from), a->q.strides[2], NULL, c->rows, s->depth,
                      m->q, s->depth);
    if (!a->delta) {
        s->leaves->gather(c->count, s->Dv, fv_scan_row(&a->v, c->b, c->kv, c->from), a->v.strides[2], NULL, c->rows,
                          s->width, m->v, s->width);
        for (int64_t t = 0; t < c->count && a->normalise; t++)
            m->v[t * s->width + s->Dv] = 1;
    }
    fv_scan_transpose(s, m->e, s->width, c->rows, s->width, m->e_columns, s->chunk);
}

/* Row i of a matrix counted from the last token. */
static float *last(float *x, int64_t rows, int64_t row)
{
    return x + (rows - 1) * row;
}

/* Runs a triangle from the last token to the first: `p` has rows of u, c and base, and g(j, t) in `weights` (j, t). */
static void run_back(const struct chunk *c, struct fv_scan_rows p, float *weights, const float *decay)
{
    const struct fv_scan *s = &c->w->scan;

    p.rows = c->rows;
    p.g = last(weights, c->rows, s->chunk) + c->rows - 1;
    p.g_row = -s->chunk;
    p.g_step = -1;
    p.step = -1;
    p.u = last(p.u, c->rows, p.u_row);
    p.c = last(p.c, c->rows, p.c_row);
    if (p.base) p.base += (c->rows - 1) * p.base_row;
    if (p.a) p.a += (c->rows - 1) * p.a_row;
    if (decay) p.decay = decay + c->rows * p.decay_row; /* a token takes the decay of the one after it */
    p.u_row = -p.u_row;
    p.c_row = -p.c_row;
    p.base_row = -p.base_row;
    p.a_row = -p.a_row;
    p.decay_row = -p.decay_row;
    s->leaves->triangle(&p);
}

/* d_u, d_x and y. */
static void value_gradients(const struct chunk *c)
{
    const struct fv_scan *s = &c->w->scan;
    struct memory *m = c->m;
    struct fv_scan_memory *f = c->f;
    const float *decay = s->by_value ? f->decay : NULL, *left = s->scalar ? f->left + c->rows - 1 : NULL;
    struct fv_scan_rows p = {.columns = s->width,
                             .k = s->D,
                             .a = f->k,
                             .a_row = s->depth,
                             .a_step = 1,
                             .b = m->r,
                             .b_row = s->state_row,
                             .scale = left,
                             .decay_row = s->width,
                             .u = m->e,
                             .u_row = s->width,
                             .c = m->d_u,
                             .c_row = s->width};

    if (s->by_key) {
        memcpy(m->faded, f->k, (size_t)(c->rows * s->depth) * sizeof *m->faded);
        s->leaves->fade(c->rows, s->depth, m->faded, s->depth, NULL, f->decay, s->depth, false, f->total);
        p.a = m->faded;
    }
    run_back(c, p, f->qk, decay);
    if (s->args->delta) {
        p.a = p.scale = NULL;
        p.solve = true;
        p.beta = f->beta + c->rows - 1;
        p.base = m->d_u;
        p.base_row = s->width;
        p.u = m->d_x;
        run_back(c, p, f->kk, decay);
    }
    for (int64_t t = 0; t < c->rows; t++) {
        float *d_x = m->d_x + t * s->width;
        if (!s->args->delta)
            s->kernels->map(FV_MAP_COPY, s->width, m->d_u + t * s->width, NULL, 0, f->beta[t], 0, d_x);
        else
            s->kernels->map(FV_MAP_COPY, s->width, d_x, NULL, 0, -1, 0, m->y + t * s->width);
    }
}

/* base = (x [D, ..] columns)^T: what rows get from the state before (x: S) or behind (R) */
static void base_of(const struct chunk *c, const float *x, const float *columns)
{
    const struct fv_scan *s = &c->w->scan;
    struct memory *m = c->m;

    s->leaves->product(&(struct fv_scan_product){.rows = fv_round_up(s->D, s->leaves->rows),
                                                 .columns = fv_round_up(c->rows, s->kernels->tile_columns),
                                                 .k = s->width,
                                                 .a = x,
                                                 .a_row = s->state_row,
                                                 .a_step = 1,
                                                 .b = columns,
                                                 .b_row = s->chunk,
                                                 .c = m->columns,
                                                 .c_row = s->chunk});
    fv_scan_transpose(s, m->columns, s->chunk, s->D, c->rows, m->base, s->depth);
}

/* Gradients of a later token's row: of q by d_QK, of k by d_KK. */
static void later_gradients(const struct chunk *c, const float *columns, const float *weights, float *out)
{
    const struct fv_scan *s = &c->w->scan;
    struct fv_scan_memory *f = c->f;

    base_of(c, f->state, columns);
    s->leaves->triangle(&(struct fv_scan_rows){.rows = c->rows,
                                               .columns = s->depth,
                                               .base = c->m->base,
                                               .base_row = s->depth,
                                               .scale = fv_scan_within(s, f),
                                               .decay = s->by_key ? f->decay : NULL,
                                               .decay_row = s->depth,
                                               .g = weights,
                                               .g_row = 1,
                                               .g_step = s->chunk,
                                               .u = f->k,
                                               .u_row = s->depth,
                                               .c = out,
                                               .c_row = s->depth,
                                               .step = 1});
}

/* d_k as the earlier token. */
static void earlier_gradients(const struct chunk *c)
{
    const struct fv_scan *s = &c->w->scan;
    struct memory *m = c->m;
    struct fv_scan_memory *f = c->f;
    const float *decay = s->by_key ? f->decay : NULL, *u = f->u;
    struct fv_scan_rows p = {.columns = s->depth,
                             .base = m->base,
                             .base_row = s->depth,
                             .scale = s->scalar ? f->left + c->rows - 1 : NULL,
                             .decay_row = s->depth,
                             .u = m->q,
                             .u_row = s->depth,
                             .c = m->d_k,
                             .c_row = s->depth};

    if (s->by_value) {
        memcpy(m->faded, f->u, (size_t)(c->rows * s->width) * sizeof *m->faded);
        s->leaves->fade(c->rows, s->width, m->faded, s->width, NULL, f->decay, s->width, false, f->total);
        u = m->faded;
    }
    fv_scan_transpose(s, u, s->width, c->rows, s->width, m->u_columns, s->chunk);
    base_of(c, m->r, m->u_columns);
    run_back(c, p, m->d_qk, decay);
    if (!s->args->delta) return;
    p.base = p.scale = NULL;
    p.u = f->k;
    p.add = true;
    run_back(c, p, m->d_kk, decay);
}

/* R goes before the chunk: it takes in x_t y_t^T, x a key or query by rows (or, decayed, by columns). */
static void add_to_state(const struct chunk *c, float *x, const float *x_columns, float *y, bool first)
{
    static const float one = 1;
    const struct fv_scan *s = &c->w->scan;
    const struct fv_scan_memory *f = c->f;
    bool rows_fade = s->scalar || s->by_value;

    if (rows_fade)
        s->leaves->fade(c->rows, s->width, y, s->width, fv_scan_within(s, f), s->by_value ? f->decay : NULL, s->width,
                        true, NULL);
    s->leaves->product(&(struct fv_scan_product){.rows = fv_round_up(s->D, s->leaves->rows),
                                                 .columns = s->width,
                                                 .k = c->rows,
                                                 .a = s->by_key ? x_columns : x,
                                                 .a_row = s->by_key ? s->chunk : 1,
                                                 .a_step = s->by_key ? 1 : s->depth,
                                                 .b = y,
                                                 .b_row = s->width,
                                                 .c = c->m->r,
                                                 .c_row = s->state_row,
                                                 .keep = first && s->by_value                ? NULL
                                                         : first && (s->by_key || s->scalar) ? f->total
                                                                                             : &one,
                                                 .keep_step = first && s->by_key,
                                                 .keep_columns = first && s->by_value ? f->total : NULL});
}

/* d_decay = <R, S behind>, by channel or all in [0]. */
static void begin_decay(const struct chunk *c, const float *behind)
{
    const struct fv_scan *s = &c->w->scan;
    float *d_decay = c->m->d_decay, sum = 0;

    memset(d_decay, 0, (size_t)fv_max(s->depth, s->width) * sizeof *d_decay);
    for (int64_t d = 0; d < s->D; d++) {
        const float *r = c->m->r + d * s->state_row, *state = behind + d * s->state_row;
        if (s->by_value)
            s->leaves->add_products(s->width, r, state, NULL, NULL, d_decay);
        else if (s->by_key)
            d_decay[d] = dot(s->kernels, s->width, r, state);
        else
            sum += dot(s->kernels, s->width, r, state);
    }
    if (s->scalar) d_decay[0] = sum;
}

static void decay_gradients(const struct chunk *c)
{
    const struct fv_scan *s = &c->w->scan;
    const fv_tensor *out = &c->w->grads->d_log_decay;
    const struct fv_scan_memory *f = c->f;
    struct memory *m = c->m;
    int64_t D = s->D, width = s->width, depth = s->depth;
    double sum = (double)m->d_decay[0], *head = c->w->d_head_decay + c->b * s->args->q.dims[1] + c->h;
    bool delta = s->args->delta;

    for (int64_t t = c->count - 1; t >= 0; t--) {
        const float *q = m->q + t * depth, *d_q = m->d_q + t * depth, *k = f->k + t * depth, *d_k = m->d_k + t * depth;
        const float *later = m->later + t * depth, *u = f->u + t * width, *d_u = m->d_u + t * width;
        float *held = m->v + t * width;
        if (s->by_value) {
            s->leaves->add_products(width, f->o + t * width, m->e + t * width, u, d_u, m->d_decay);
            if (delta) {
                s->kernels->map(FV_MAP_SUB, width, f->x + t * width, f->v + t * width, 1, 0, 0, held);
                s->leaves->add_products(width, held, m->d_x + t * width, NULL, NULL, m->d_decay);
            }
            add_row(c->w, out, c->b, c->h, c->from + t, m->d_decay);
        } else if (s->by_key) {
            s->leaves->add_products(depth, q, d_q, k, d_k, m->d_decay);
            if (delta) s->leaves->add_products(depth, k, later, NULL, NULL, m->d_decay);
            add_row(c->w, out, c->b, c->h, c->from + t, m->d_decay);
        } else {
            sum += (double)dot(s->kernels, D, q, d_q) - (double)dot(s->kernels, D, k, d_k);
            if (delta) sum += (double)dot(s->kernels, D, k, later);
            *head += sum;
            if (s->args->decay == FV_DECAY_PER_TOKEN) *fv_scan_row(out, c->b, c->h, c->from + t) += (float)sum;
        }
    }
}

static void write_gradients(const struct chunk *c)
{
    const struct fv_scan *s = &c->w->scan;
    const fv_scan_grads *g = c->w->grads;
    const struct memory *m = c->m;
    const float *x = s->args->delta ? c->f->x : m->v;

    for (int64_t t = 0; t < c->count; t++) {
        add_row(c->w, &g->d_q, c->b, c->h, c->from + t, m->d_q + t * s->depth);
        add_row(c->w, &g->d_k, c->b, c->kv, c->from + t, m->d_k + t * s->depth);
        if (s->args->delta) add_row(c->w, &g->d_k, c->b, c->kv, c->from + t, m->later + t * s->depth);
        add_row(c->w, &g->d_v, c->b, c->kv, c->from + t, m->d_x + t * s->width);
        if (fv_present(&g->d_beta))
            *fv_scan_row(&g->d_beta, c->b, c->h, c->from + t) +=
                dot(s->kernels, s->width, x + t * s->width, m->d_u + t * s->width);
    }
}

static void chunk_back(const struct chunk *c, const float *behind)
{
    const struct fv_scan *s = &c->w->scan;
    struct memory *m = c->m;
    struct fv_scan_memory *f = c->f;
    bool decays = s->args->decay != FV_DECAY_NONE && fv_present(&c->w->grads->d_log_decay);

    load_chunk(c);
    if (decays) begin_decay(c, behind);
    value_gradients(c);
    fv_scan_weights(s, f, c->rows, s->width, m->e_columns, f->u, s->width, s->by_value, false, m->d_qk);
    later_gradients(c, m->e_columns, m->d_qk, m->d_q);
    if (s->args->delta) {
        fv_scan_transpose(s, m->y, s->width, c->rows, s->width, m->y_columns, s->chunk);
        fv_scan_weights(s, f, c->rows, s->width, m->y_columns, f->u, s->width, s->by_value, true, m->d_kk);
        later_gradients(c, m->y_columns, m->d_kk, m->later);
    }
    earlier_gradients(c);
    write_gradients(c);
    if (decays) decay_gradients(c);
    add_to_state(c, m->q, f->q_columns, m->e, true);
    if (s->args->delta) add_to_state(c, f->k, f->k_columns, m->y, false);
}

/* The forward once more, for the states before chunks. */
static void keep_states(const struct backward *w, struct memory *m, struct fv_scan_memory *f, int64_t b, int64_t h)
{
    const struct fv_scan *s = &w->scan;
    int64_t N = s->args->q.dims[2], cells = s->D * s->state_row, chunk = 0;

    fv_scan_load_state(s, f, b, h);
    memcpy(m->kept, f->state, (size_t)cells * sizeof *m->kept);
    for (int64_t from = 0; from < N; from += s->chunk) {
        int64_t rows = fv_scan_load(s, f, b, h, from, fv_min(s->chunk, N - from), false);
        fv_scan_fade_keys(s, f, rows);
        for (int64_t n = 0; n < s->width; n += s->kernels->tile_columns) {
            if (s->args->delta) fv_scan_solve(s, f, rows, n, s->kernels->tile_columns);
            fv_scan_advance(s, f, rows, n, s->kernels->tile_columns);
        }
        memcpy(m->kept + ++chunk * cells, f->state, (size_t)cells * sizeof *m->kept);
    }
}

static void head_back(const struct backward *w, struct memory *m, struct fv_scan_memory *f, int64_t b, int64_t h)
{
    const struct fv_scan *s = &w->scan;
    const fv_scan_args *a = s->args;
    const fv_scan_grads *grads = w->grads;
    int64_t N = a->q.dims[2], cells = s->D * s->state_row;
    struct chunk c = {.w = w, .m = m, .f = f, .b = b, .h = h, .kv = h / (a->q.dims[1] / a->k.dims[1])};

    keep_states(w, m, f, b, h);
    memset(m->r, 0, (size_t)(s->depth * s->state_row) * sizeof *m->r);
    w->d_head_decay[b * a->q.dims[1] + h] = 0;
    for (int64_t d = 0; d < s->D; d++) {
        float *row = m->r + d * s->state_row;
        for (int64_t n = 0; n < s->Dv && fv_present(&grads->d_state_out); n++)
            row[n] = *(float *)fv_at(&grads->d_state_out, b, h, d, n);
        if (fv_present(&grads->d_z_out)) row[s->Dv] = *fv_scan_row(&grads->d_z_out, b, h, d);
    }
    for (int64_t chunk = fv_ceil_div(N, s->chunk) - 1; chunk >= 0; chunk--) {
        memcpy(f->state, m->kept + chunk * cells, (size_t)cells * sizeof *m->kept);
        c.from = chunk * s->chunk;
        c.count = fv_min(s->chunk, N - c.from);
        c.rows = fv_scan_load(s, f, b, h, c.from, c.count, true);
        if (a->delta) fv_scan_solve(s, f, c.rows, 0, s->width);
        if (a->normalise || s->by_value) fv_scan_sums(s, f, c.rows, 0, s->width, f->o, s->width);
        chunk_back(&c, m->kept + (chunk + 1) * cells);
    }
    for (int64_t d = 0; d < s->D; d++) {
        add_row(w, &grads->d_state_in, b, h, d, m->r + d * s->state_row);
        if (fv_present(&grads->d_z_in)) *fv_scan_row(&grads->d_z_in, b, h, d) += m->r[d * s->state_row + s->Dv];
    }
}

/* All query heads of a key-value head, so that nobody else adds to its keys and values. */
static void keys_back(void *user, int64_t item, int thread)
{
    const struct backward *w = user;
    int64_t key_heads = w->scan.args->k.dims[1], group = w->scan.args->q.dims[1] / key_heads;

    for (int64_t n = 0; n < group; n++)
        head_back(w, &w->memory[thread], &w->scan.memory[thread], item / key_heads, item % key_heads * group + n);
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

static fv_status take_memory(fv_ctx *ctx, struct backward *w)
{
    const struct fv_scan *s = &w->scan;
    int64_t N = s->args->q.dims[2], channels = fv_max(s->depth, s->width), chunk = s->chunk, kept;

    if (!fv_mul_i64(s->D * s->state_row, fv_ceil_div(N, chunk) + 1, &kept))
        return fv_fail(FV_E_MEMORY, "scan backward: the size of the states overflows");
    FV_TRY(FV_SCRATCH(ctx, w->d_head_decay, s->args->q.dims[0] * s->args->q.dims[1]));
    FV_TRY(FV_SCRATCH(ctx, w->memory, fv_ctx_threads(ctx)));
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        struct memory *m = &w->memory[t];
        float **keyed[] = {&m->q, &m->d_q, &m->d_k, &m->later, &m->base, &m->columns};
        float **valued[] = {&m->v, &m->e, &m->y, &m->d_u, &m->d_x, &m->e_columns, &m->y_columns, &m->u_columns};
        const struct {
            float **to;
            int64_t count;
        } others[] = {{&m->r, s->depth * s->state_row}, {&m->inverse, chunk},      {&m->faded, chunk * channels},
                      {&m->d_qk, chunk * chunk},        {&m->d_kk, chunk * chunk}, {&m->d_decay, channels}};
        FV_TRY(FV_SCRATCH(ctx, m->kept, kept));
        for (size_t n = 0; n < sizeof keyed / sizeof *keyed; n++) {
            FV_TRY(FV_SCRATCH(ctx, *keyed[n], chunk * s->depth));
            memset(*keyed[n], 0, (size_t)(chunk * s->depth) * sizeof(float)); /* padding stays 0 */
        }
        for (size_t n = 0; n < sizeof valued / sizeof *valued; n++) {
            FV_TRY(FV_SCRATCH(ctx, *valued[n], chunk * s->width));
            memset(*valued[n], 0, (size_t)(chunk * s->width) * sizeof(float));
        }
        for (size_t n = 0; n < sizeof others / sizeof *others; n++) {
            FV_TRY(FV_SCRATCH(ctx, *others[n].to, others[n].count));
            memset(*others[n].to, 0, (size_t)others[n].count * sizeof(float));
        }
    }
    return FV_OK;
}

static bool is_fast(const fv_scan_args *a, const fv_scan_grads *g)
{
    const fv_tensor *read[] = {&a->q, &a->k, &a->v, &a->log_decay, &g->d_o};
    const fv_tensor *written[] = {&g->d_q, &g->d_k, &g->d_v, &g->d_beta, &g->d_state_in, &g->d_z_in, &g->d_log_decay};
    bool fast = a->k.dims[1] > 0 && fv_present(&g->d_o);

    for (size_t n = 0; n < sizeof read / sizeof *read; n++)
        fast = fast && fv_cpu_rows_together(read[n]);
    for (size_t n = 0; n < sizeof written / sizeof *written - (a->decay == FV_DECAY_PER_HEAD); n++)
        fast = fast && fv_cpu_rows_together(written[n]) && (!fv_present(written[n]) || fv_tensor_apart(written[n]));
    return fast;
}

fv_status fv_cpu_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads)
{
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    const fv_tensor *d_decay = &grads->d_log_decay;
    int64_t B = args->q.dims[0], H = args->q.dims[1];
    struct backward w = {.grads = grads};
    fv_status status;

    if (!is_fast(args, grads)) return fv_backend_ref.scan_backward(ctx, args, grads);
    FV_TRY_DONE(fv_scan_begin(ctx, args, fv_scan_chunk_length(ctx, args), &w.scan));
    FV_TRY_DONE(take_memory(ctx, &w));
    fv_run(ctx, B * args->k.dims[1], keys_back, &w);
    for (int64_t n = 0; n < B * H && args->decay == FV_DECAY_PER_HEAD && fv_present(d_decay); n++)
        ((float *)d_decay->data)[n % H * d_decay->strides[0]] += (float)w.d_head_decay[n];
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
