/* Gradients of attention for q, k and v, in one pass over the tiles of a key-value head:
 *   P = exp(s - lse),  d_v += P^T d_o,  d_s = P (d_o v^T - delta),  d_q += d_s k,  d_k += d_s^T q,
 * with delta = d_o.o - d_lse; five products a tile, all by the micro-kernel (bound: 2 pairs (3 D + 2 Dv) flops).
 * A key-value head belongs to one thread, so sums have one order.  Gradients of biases, sinks and temperature, slopes
 * of soft-caps and gains, given normalisers and gradients that repeat are left to the reference backend. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/tiles.h"

struct memory {
    fv_tiles tiles;
    float *q, *d_q;       /* [rows, key_width] */
    float *o_panels;      /* d_o for the micro-kernel */
    float *d_o;           /* [rows, value_width] */
    float *values, *keys; /* staging [FV_KEY_TILE, value_width], [.., key_width] */
    float *transposed;    /* v [Dv, FV_KEY_TILE] */
    float *d_p;           /* [rows, FV_KEY_TILE]: d_o v^T, then d_s */
    float *d_rows;        /* [FV_KEY_TILE, wider]: of k or v */
    float *delta, *lse;   /* [rows] */
};

struct backward {
    const fv_attend_args *args;
    const fv_attend_grads *grads;
    const fv_plan_view *view;
    fv_tiles_source source;
    struct memory *memory; /* per thread */
    int64_t key_width, value_width;
};

struct visit {
    const struct backward *w;
    struct memory *m;
};

static float *row_of(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    return fv_at(t, b, h, n, 0);
}

/* Adds `count` rows of d_rows to those of the tile's keys. */
static void add_key_rows(const struct visit *visit, const fv_tiles *t, const fv_tensor *to, int64_t width)
{
    for (int n = 0; n < t->count; n++) {
        float *row = row_of(to, t->b, t->key_head, t->key[n]);
        visit->w->source.kernels->map(FV_MAP_ADD, to->dims[3], row, visit->m->d_rows + n * width, 1, 1, 0, row);
    }
}

/* d_rows = weights^T rows, weights [rows, FV_KEY_TILE], rows [rows, width] */
static void reduce_rows(const struct visit *visit, const fv_tiles *t, const float *weights, const float *rows,
                        int64_t width)
{
    const struct fv_kernels *kernels = visit->w->source.kernels;

    for (int n = 0; n < t->count; n += kernels->tile_rows)
        for (int64_t d = 0; d < width; d += kernels->tile_columns)
            kernels->tile((int)fv_min(kernels->tile_rows, t->count - n), t->rows, weights + n, 1, FV_KEY_TILE, rows + d,
                          width, visit->m->d_rows + n * width + d, width, false);
}

/* Logits become probabilities, 0 where nothing is seen. */
static void probabilities(const struct visit *visit, fv_tiles *t)
{
    for (int r = 0; r < t->rows; r++) {
        float *p = t->logits + r * FV_KEY_TILE, lse = visit->m->lse[r];
        uint64_t bits = lse == -INFINITY ? 0 : t->bits[r % t->tile.rows];
        if (!bits) {
            memset(p, 0, FV_KEY_TILE * sizeof *p);
            continue;
        }
        visit->w->source.kernels->exp(FV_KEY_TILE, p, 1, lse, p);
        for (int n = 0; bits != UINT64_MAX && n < FV_KEY_TILE; n++)
            if (!(bits >> n & 1)) p[n] = 0;
    }
}

/* d_p = P (d_o v^T - delta) */
static void logit_gradients(const struct visit *visit, const fv_tiles *t, const float *v, int64_t v_row)
{
    const struct fv_kernels *kernels = visit->w->source.kernels;
    struct memory *m = visit->m;
    int64_t Dv = visit->w->args->v.dims[3];

    for (int n = 0; n < t->count; n += kernels->width)
        kernels->transpose(v + n * v_row, v_row, (int)fv_min(kernels->width, t->count - n), Dv, m->transposed + n,
                           FV_KEY_TILE);
    for (int r = 0; r < t->rows; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, t->rows - r);
        for (int n = 0; n < t->count; n += kernels->tile_columns)
            kernels->tile(rows, Dv, m->o_panels + r * Dv, 1, rows, m->transposed + n, FV_KEY_TILE,
                          m->d_p + r * FV_KEY_TILE + n, FV_KEY_TILE, false);
    }
    for (int r = 0; r < t->rows; r++) {
        float *d = m->d_p + r * FV_KEY_TILE;
        const float *p = t->logits + r * FV_KEY_TILE;
        for (int n = 0; n < t->count; n++)
            d[n] = p[n] * (d[n] - m->delta[r]);
    }
}

static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const struct backward *w = visit->w;
    const struct fv_kernels *kernels = w->source.kernels;
    struct memory *m = visit->m;
    int64_t v_row, k_row;
    const float *v = fv_tiles_rows(t, &w->args->v, w->value_width, m->values, &v_row);

    probabilities(visit, t);
    if (fv_present(&w->grads->d_v)) {
        reduce_rows(visit, t, t->logits, m->d_o, w->value_width);
        add_key_rows(visit, t, &w->grads->d_v, w->value_width);
    }
    if (!fv_present(&w->grads->d_q) && !fv_present(&w->grads->d_k)) return;
    logit_gradients(visit, t, v, v_row);
    if (fv_present(&w->grads->d_k)) {
        reduce_rows(visit, t, m->d_p, m->q, w->key_width);
        add_key_rows(visit, t, &w->grads->d_k, w->key_width);
    }
    if (!fv_present(&w->grads->d_q)) return;
    const float *k = fv_tiles_rows(t, &w->args->k, w->key_width, m->keys, &k_row);
    for (int r = 0; r < t->rows; r += kernels->tile_rows)
        for (int64_t d = 0; d < w->key_width; d += kernels->tile_columns)
            kernels->tile((int)fv_min(kernels->tile_rows, t->rows - r), t->count, m->d_p + r * FV_KEY_TILE, FV_KEY_TILE,
                          1, k + d, k_row, m->d_q + r * w->key_width + d, w->key_width, true);
}

/* ---- tiles of queries ------------------------------------------------------------------------------------------ */

static float scale_of(const struct backward *w, int64_t b, int64_t h, int64_t i)
{
    const fv_tensor *temperature = &w->args->logits.temperature;
    float scale = w->args->logits.scale;

    if (!fv_present(temperature)) return scale;
    return scale * ((const float *)temperature->data)[b * temperature->strides[0] + h * temperature->strides[1] +
                                                      i * temperature->strides[2]];
}

static void begin_tile(const struct backward *w, struct memory *m, const fv_plan_tile *tile)
{
    const struct fv_kernels *kernels = w->source.kernels;
    int64_t D = w->args->q.dims[3], Dv = w->args->v.dims[3], rows = tile->rows * w->view->share;

    memset(m->d_q, 0, (size_t)(rows * w->key_width) * sizeof *m->d_q);
    for (int64_t r = 0; r < rows; r++) {
        int64_t h = tile->h + r / tile->rows, row = tile->row[r % tile->rows], i = tile->query[r % tile->rows];
        const float *o = row_of(&w->args->o, tile->b, h, row), *d_o = row_of(&w->grads->d_o, tile->b, h, row);
        double delta = 0;
        for (int64_t d = 0; d < Dv; d++)
            delta += (double)o[d] * d_o[d];
        if (fv_present(&w->grads->d_lse)) delta -= *row_of(&w->grads->d_lse, tile->b, h, row);
        m->delta[r] = (float)delta;
        m->lse[r] = *row_of(&w->args->lse, tile->b, h, row);
        memcpy(m->d_o + r * w->value_width, d_o, (size_t)Dv * sizeof *d_o);
        kernels->map(FV_MAP_COPY, D, row_of(&w->args->q, tile->b, h, i), NULL, 0, scale_of(w, tile->b, h, i), 0,
                     m->q + r * w->key_width);
    }
    for (int64_t r = 0; r < rows; r += kernels->tile_rows) {
        int count = (int)fv_min(kernels->tile_rows, rows - r);
        kernels->transpose(m->d_o + r * w->value_width, w->value_width, count, Dv, m->o_panels + r * Dv, count);
    }
}

static void end_tile(const struct backward *w, const struct memory *m, const fv_plan_tile *tile)
{
    if (!fv_present(&w->grads->d_q)) return;
    for (int64_t r = 0; r < tile->rows * w->view->share; r++) {
        int64_t h = tile->h + r / tile->rows, i = tile->query[r % tile->rows];
        float *to = row_of(&w->grads->d_q, tile->b, h, i);
        w->source.kernels->map(FV_MAP_ADD, w->args->q.dims[3], to, m->d_q + r * w->key_width, 1,
                               scale_of(w, tile->b, h, i), 0, to);
    }
}

/* All tiles of all query heads that read one key-value head. */
static void backward_item(void *user, int64_t index, int thread)
{
    const struct backward *w = user;
    const fv_plan_view *view = w->view;
    struct memory *m = &w->memory[thread];
    struct visit visit = {w, m};
    int64_t key_heads = w->args->k.dims[1], groups = view->heads / view->share, b = index / key_heads;
    const int32_t *map = w->args->key_head;

    for (int64_t g = 0; g < groups; g++) {
        int64_t h = g * view->share, pair = b * groups + g;
        int64_t first = view->classes == 1 ? pair * view->class_tile[1] : view->item_first[pair];
        int64_t end = view->classes == 1 ? first + view->class_tile[1] : view->item_first[pair + 1];
        if ((map ? map[h] : h / (view->heads / key_heads)) != index % key_heads) continue;
        for (int64_t item = first; item < end; item++) {
            fv_plan_tile_at(view, item, &m->tiles.tile);
            begin_tile(w, m, &m->tiles.tile);
            fv_tiles_walk(&m->tiles, item, 0, view->keys, add_tile, &visit);
            end_tile(w, m, &m->tiles.tile);
        }
    }
}

static fv_status take_memory(fv_ctx *ctx, struct backward *w)
{
    int64_t threads = fv_ctx_threads(ctx), rows = w->view->share * w->view->tile_rows, Dv = w->args->v.dims[3];

    FV_TRY(FV_SCRATCH(ctx, w->memory, threads));
    for (int64_t t = 0; t < threads; t++) {
        struct memory *m = &w->memory[t];
        const struct {
            float **to;
            int64_t count;
        } buffers[] = {{&m->q, rows * w->key_width},
                       {&m->d_q, rows * w->key_width},
                       {&m->o_panels, rows * Dv + FV_MAX_TILE_COLUMNS},
                       {&m->d_o, rows * w->value_width},
                       {&m->values, FV_KEY_TILE * w->value_width},
                       {&m->keys, FV_KEY_TILE * w->key_width},
                       {&m->transposed, FV_KEY_TILE * Dv},
                       {&m->d_p, rows * FV_KEY_TILE},
                       {&m->d_rows, FV_KEY_TILE * fv_max(w->key_width, w->value_width)},
                       {&m->delta, rows},
                       {&m->lse, rows}};
        FV_TRY(fv_tiles_new(ctx, &w->source, fv_max(w->key_width, w->value_width), &m->tiles));
        for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++) {
            FV_TRY(FV_SCRATCH(ctx, *buffers[n].to, buffers[n].count));
            memset(*buffers[n].to, 0, (size_t)buffers[n].count * sizeof(float)); /* padding stays 0 */
        }
    }
    return FV_OK;
}

/* Absent, or a place of its own for each element. */
static bool does_not_repeat(const fv_tensor *t)
{
    bool repeats = false;

    for (int d = 0; fv_present(t) && d < t->rank; d++)
        repeats = repeats || (t->strides[d] == 0 && t->dims[d] > 1);
    return !repeats && fv_cpu_rows_together(t);
}

static bool is_fast(const fv_attend_args *a, const fv_attend_grads *g)
{
    return fv_cpu_rows_together(&a->q) && fv_cpu_rows_together(&a->k) && fv_cpu_rows_together(&a->v) &&
           fv_cpu_rows_together(&a->o) && fv_cpu_rows_together(&g->d_o) && does_not_repeat(&g->d_q) &&
           does_not_repeat(&g->d_k) && does_not_repeat(&g->d_v) && !fv_present(&a->lse_in) &&
           !fv_present(&a->lse_in_key) && a->logits.softcap == 0 && a->logits.gain == 0 && !fv_present(&g->d_bias) &&
           !fv_present(&g->d_sinks) && !fv_present(&g->d_temperature) && !fv_present(&g->d_offset_bias) &&
           !fv_present(&g->d_row_bias) && !fv_present(&g->d_column_bias) && a->k.dims[1] > 0;
}

fv_status fv_cpu_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads)
{
    const fv_logits *l = &args->logits;
    int64_t B = args->q.dims[0], H = args->q.dims[1], N = args->q.dims[2], M = args->k.dims[2], tile_rows, share;
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    fv_plan_view view;
    struct backward w = {.args = args, .grads = grads, .view = &view};
    fv_status status;

    if (!is_fast(args, grads)) return fv_backend_ref.attend_backward(ctx, args, grads);
    share = fv_tiles_share(args->plan, H, args->k.dims[1], args->key_head, &tile_rows);
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, share, tile_rows, N, M, &view));
    w.source = (fv_tiles_source){kernels, args->q, args->k, l, args->key_head, &view, false};
    w.key_width = fv_round_up(args->q.dims[3], kernels->tile_columns);
    w.value_width = fv_round_up(args->v.dims[3], kernels->tile_columns);
    FV_TRY_DONE(take_memory(ctx, &w));
    fv_run(ctx, B * args->k.dims[1], backward_item, &w);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
