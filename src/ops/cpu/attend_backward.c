/* Gradients of attention in one pass over the tiles of a key-value head:
 *   P = exp(s - lse),  d_v += P^T d_o,  d_s = P (d_o v^T - delta),  d_x = d_s slope,  d_q += d_x k,  d_k += d_x^T q,
 * with delta = d_o.o - d_lse (0 where the log-sum-exp was given); five products a tile, all by the micro-kernel.  A
 * temperature's gradient is q . d_q before scaling.  Bound: 2 pairs (3 D + 2 Dv) flops; at D = 64 and 128 76 and 79 %
 * of the FMA peak, causal 69 and 71 %.
 *
 * Where attention takes bf16 products, so do these, along pairs: of columns for s and d_o v^T, of keys for d_q, of rows
 * for d_k and d_v, with sums in f32.  The log-sum-exp fits, as s is the same as in attention.  74 and 80 % of the dot
 * peak, causal 66 and 70 %: the passes over a tile's weights are a tenth of it at D = 64.
 *
 * The tiles of a key-value head are dealt to a number of slices that depends on the shape alone; each sums d_k and d_v
 * in memory of its own, and slices are added in order, so that results do not depend on the number of threads. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/cpu/attend.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/weights_kernels.h"
#include "ops/logits.h"
#include "ops/ref/pieces.h"

enum { ITEMS = 16, PART_FLOATS = 32 << 20, PART_KEYS = 64, PANEL_BYTES = 32 << 20 };

struct memory {
    fv_tiles tiles;
    bool pairs;           /* the products of the tile of queries are taken in bf16: */
    float *q, *d_o;       /* [rows, key_width], [rows, value_width], or half as many pairs of rows */
    float *d_q;           /* [rows, key_width] */
    float *o_panels;      /* d_o for the micro-kernel */
    float *values, *keys; /* staging [FV_KEY_TILE, value_width], [.., key_width] */
    float *transposed;    /* v for the micro-kernel */
    float *d_p;           /* [rows, FV_KEY_TILE]: d_o v^T, then d_s (or pairs of it by keys) */
    float *d_pairs;       /* d_s by pairs of rows */
    float *d_rows;        /* [FV_KEY_TILE, wider]: of k or v */
    float *delta, *lse;   /* [rows] */
};

struct backward {
    const fv_attend_args *args;
    const fv_attend_grads *grads;
    const fv_plan_view *view;
    fv_tiles_source source;
    bool pairs;                  /* products are taken in bf16, with panels: */
    fv_panel_store keys, values; /* of k by columns and (in the place of values) by keys; of v by columns */
    int64_t first;               /* item of the heads whose panels are held now */
    struct memory *memory;       /* per thread */
    int64_t key_width, value_width;
    bool given; /* the log-sum-exp is */
    int64_t slices;
    float *d_k, *d_v; /* [B * Hkv, slices, M, D or Dv], if slices > 1 */
    double *d_sinks;  /* [B * Hkv, slices, H] */
};

struct visit {
    const struct backward *w;
    struct memory *m;
    float *d_k, *d_v; /* rows of the key-value head, or of the slice */
    int64_t d_k_row, d_v_row;
    double *d_sinks; /* [H] */
};

static float *row_of(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    return fv_at(t, b, h, n, 0);
}

static fv_tile_fn *tile_of(const struct visit *visit)
{
    return visit->m->pairs ? visit->w->source.kernels->tile_bf16 : visit->w->source.kernels->tile;
}

static uint64_t bits_from(int n, int count)
{
    return (count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1) << n;
}

/* Keys that some row of first..end-1 sees, or some row near them. */
static uint64_t seen_by(const fv_tiles *t, int first, int end)
{
    uint64_t seen = 0;

    for (int n = first / t->step; n * t->step < end; n++)
        seen |= fv_tiles_seen(t, n);
    return seen;
}

/* The rows between the first and the last that see any of some keys, or rows near them. */
static void rows_that_see(const fv_tiles *t, uint64_t keys, int *from, int *to)
{
    int first = 0, last = (int)fv_ceil_div(t->rows, t->step);

    while (first < last && !(fv_tiles_seen(t, first) & keys))
        first++;
    while (last > first && !(fv_tiles_seen(t, last - 1) & keys))
        last--;
    *from = first * t->step;
    *to = (int)fv_min(last * t->step, t->rows);
}

/* to[key] += (weights^T rows) for the tile's keys, weights [rows, FV_KEY_TILE], rows [rows, width], or pairs of rows:
 * where the keys lie, if they follow each other and their rows are whole micro-tiles. */
static void add_key_rows(const struct visit *visit, const fv_tiles *t, const float *weights, const float *rows,
                         int64_t width, float *to, int64_t to_row, int64_t columns)
{
    const struct fv_kernels *kernels = visit->w->source.kernels;
    bool in_place = width == columns && t->key[t->count - 1] - t->key[0] == t->count - 1;
    float *c = in_place ? to + t->key[0] * to_row : visit->m->d_rows;
    int64_t c_row = in_place ? to_row : width;
    int together = visit->m->pairs ? 2 : 1;

    for (int n = 0; n < t->count; n += kernels->tile_rows) {
        int count = (int)fv_min(kernels->tile_rows, t->count - n), from, end;
        rows_that_see(t, bits_from(n, count), &from, &end);
        from /= together;
        end = (end + together - 1) / together;
        for (int64_t d = 0; d < width; d += kernels->tile_columns)
            tile_of(visit)(count, end - from, weights + from * FV_KEY_TILE + n, 1, FV_KEY_TILE, rows + from * width + d,
                           width, c + n * c_row + d, c_row, in_place);
    }
    for (int n = 0; !in_place && n < t->count; n++) {
        float *row = to + t->key[n] * to_row;
        kernels->map(FV_MAP_ADD, columns, row, c + n * width, 1, 1, 0, row);
    }
}

/* v for the micro-kernel: [Dv, FV_KEY_TILE] floats, or panels of pairs */
static const float *load_values(const struct visit *visit, const fv_tiles *t)
{
    const struct backward *w = visit->w;
    const struct fv_kernels *kernels = w->source.kernels;
    struct memory *m = visit->m;
    int64_t row;

    if (m->pairs && t->panels.keys != t->keys) /* a block of its own */
        return fv_panels_block(&w->values, t->b, t->key_head, t->key[0] / FV_KEY_TILE, t->staging).keys;
    if (m->pairs) {
        fv_panels_fill(&w->values, t->b, t->key_head, t->key, t->count, t->staging, m->transposed, NULL);
        return m->transposed;
    }
    const float *v = fv_tiles_rows(t, &w->args->v, w->value_width, m->values, &row);
    for (int n = 0; n < t->count; n += kernels->width)
        kernels->transpose(v + n * row, row, (int)fv_min(kernels->width, t->count - n), w->args->v.dims[3],
                           m->transposed + n, FV_KEY_TILE);
    return m->transposed;
}

/* Floats of a row of d_o in o_panels. */
static int64_t value_depth(const struct backward *w, const struct memory *m)
{
    return m->pairs ? w->values.depth : w->args->v.dims[3];
}

/* d_p = d_o v^T of rows first..end-1, where keys are seen */
static void weight_gradients(const struct visit *visit, const fv_tiles *t, const float *v, int first, int end)
{
    const struct fv_kernels *kernels = visit->w->source.kernels;
    struct memory *m = visit->m;
    int64_t depth = value_depth(visit->w, m);
    int columns = kernels->tile_columns;

    for (int r = first; r < end; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, end - r);
        uint64_t seen = seen_by(t, r, r + rows);
        for (int n = 0; n < t->count; n += columns)
            if (seen & bits_from(n, columns))
                tile_of(visit)(rows, depth, m->o_panels + r * depth, 1, rows, v + (m->pairs ? n * depth : n),
                               m->pairs ? columns : FV_KEY_TILE, m->d_p + r * FV_KEY_TILE + n, FV_KEY_TILE, false);
    }
}

static bool wants_biases(const fv_attend_grads *g)
{
    return fv_present(&g->d_bias) || fv_present(&g->d_offset_bias) || fv_present(&g->d_row_bias) ||
           fv_present(&g->d_column_bias);
}

/* Logits become weights, and gradients of weights those of scaled products; biases take theirs between. */
static void pass_logits(const struct visit *visit, fv_tiles *t, int first, int end, bool gradients)
{
    const struct backward *w = visit->w;
    struct memory *m = visit->m;
    bool biases = gradients && wants_biases(w->grads);

    w->source.kernels->weights->gradients(
        &(struct fv_weights_step){.first = first,
                                  .end = end,
                                  .tokens = t->tile.rows,
                                  .bits = t->bits,
                                  .lse = fv_present(&w->args->lse_in_key) ? NULL : m->lse,
                                  .s = t->logits,
                                  .coarse = m->pairs,
                                  .d = gradients ? m->d_p : NULL,
                                  .delta = m->delta,
                                  .slopes = biases ? NULL : t->slopes});
    for (int r = first; biases && r < end; r++) {
        uint64_t bits = t->bits[r % t->tile.rows];
        float *d = m->d_p + r * FV_KEY_TILE;
        if (bits) fv_tiles_add_bias_gradients(t, w->grads, r, d);
        for (int n = 0; bits && t->slopes && n < t->count; n++)
            if (bits >> n & 1) d[n] *= t->slopes[r * FV_KEY_TILE + n];
    }
}

/* Weights and gradients as the products take them: pairs of rows, which the tile's first rows have room for, and
 * gradients by pairs of keys too. */
static void pair_up(const struct visit *visit, fv_tiles *t, int first, int end, bool gradients)
{
    const struct fv_kernels *kernels = visit->w->source.kernels;
    static const float nothing[FV_KEY_TILE];

    for (int r = first; r < end; r += 2) {
        float *s = t->logits + r * FV_KEY_TILE, *d = visit->m->d_p + r * FV_KEY_TILE;
        kernels->pack_pairs(FV_KEY_TILE, s, r + 1 < end ? s + FV_KEY_TILE : nothing, t->logits + r / 2 * FV_KEY_TILE);
        if (!gradients) continue;
        kernels->pack_pairs(FV_KEY_TILE, d, r + 1 < end ? d + FV_KEY_TILE : nothing,
                            visit->m->d_pairs + r / 2 * FV_KEY_TILE);
        for (int i = r; i < end && i < r + 2; i++, d += FV_KEY_TILE)
            kernels->join_pairs(FV_KEY_TILE, d, d);
    }
}

/* Keys by rows, as the products of d_q take them.  Those that hold NaN or infinities must not meet the zeros of rows
 * that do not see them: such keys stand apart. */
struct key_rows {
    const float *k;
    int64_t row, panel; /* floats between rows, and between the columns of a micro-tile and the next */
    uint64_t apart;
};

static struct key_rows load_keys(const struct visit *visit, const fv_tiles *t)
{
    const struct backward *w = visit->w;
    const struct fv_kernels *kernels = w->source.kernels;
    int64_t D = w->args->k.dims[3], columns = kernels->tile_columns;
    struct memory *m = visit->m;
    struct key_rows keys = {.panel = columns};

    if (m->pairs)
        return (struct key_rows){t->panels.values, columns, columns * (FV_KEY_TILE / 2),
                                 t->whole || t->panels.finite ? 0 : UINT64_MAX};
    keys.k = fv_tiles_rows(t, &w->args->k, w->key_width, m->keys, &keys.row);
    if (!t->whole) keys.apart = kernels->weights->spoiled(t->count, D, keys.k, keys.row);
    if (!keys.apart) return keys;
    for (int n = 0; n < t->count; n++) {
        float *own = m->keys + n * w->key_width;
        if (keys.apart >> n & 1)
            memset(own, 0, (size_t)D * sizeof *own);
        else if (own != keys.k + n * keys.row)
            memcpy(own, keys.k + n * keys.row, (size_t)D * sizeof *own);
    }
    keys.k = m->keys;
    keys.row = w->key_width;
    return keys;
}

/* d_q += d_p k for rows first..end-1 that see the key. */
static void add_key(const struct visit *visit, const fv_tiles *t, int n, int first, int end)
{
    const struct backward *w = visit->w;
    const fv_tensor *k = &w->args->k;
    struct memory *m = visit->m;

    fv_kernels_load(w->source.kernels, k->dtype, fv_panels_row(k, t->b, t->key_head, t->key[n]), 0, k->dims[3],
                    m->d_rows);
    for (int r = first; r < end; r++) {
        const float *row = m->d_p + r * FV_KEY_TILE;
        float weight = m->pairs ? fv_bf16_to_f32(((const uint16_t *)row)[n]) : row[n], *to = m->d_q + r * w->key_width;
        if (t->bits[r % t->tile.rows] >> n & 1)
            w->source.kernels->map(FV_MAP_ADD, k->dims[3], to, m->d_rows, 1, weight, 0, to);
    }
}

/* d_q += d_p k for rows first..end-1: each micro-tile over the keys that its rows see. */
static void add_query_rows(const struct visit *visit, const fv_tiles *t, const struct key_rows *keys, int first,
                           int end)
{
    const struct backward *w = visit->w;
    struct memory *m = visit->m;
    int columns = w->source.kernels->tile_columns, step = w->source.kernels->tile_rows, together = m->pairs ? 2 : 1;

    for (int n = 0; keys->apart && n < t->count; n++)
        if (keys->apart >> n & 1) add_key(visit, t, n, first, end);
    if (m->pairs && keys->apart) return;
    for (int r = first; r < end; r += step) {
        int rows = (int)fv_min(step, end - r), from, to;
        uint64_t seen = seen_by(t, r, r + rows);
        if (!seen) continue;
        from = __builtin_ctzll(seen) / together;
        to = (64 - __builtin_clzll(seen) + together - 1) / together;
        for (int64_t d = 0; d < w->key_width; d += columns)
            tile_of(visit)(rows, to - from, m->d_p + r * FV_KEY_TILE + from, FV_KEY_TILE, 1,
                           keys->k + d / columns * keys->panel + from * keys->row, keys->row,
                           m->d_q + r * w->key_width + d, w->key_width, true);
    }
}

static bool wants_queries(const fv_attend_grads *g)
{
    return fv_present(&g->d_q) || fv_present(&g->d_temperature);
}

/* A few rows at a time, which stay in the first-level cache. */
static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const struct backward *w = visit->w;
    struct memory *m = visit->m;
    bool gradients = wants_queries(w->grads) || fv_present(&w->grads->d_k) || wants_biases(w->grads);
    int together = 2 * w->source.kernels->tile_rows;
    struct key_rows keys = {0};
    const float *v = gradients ? load_values(visit, t) : NULL;

    if (wants_queries(w->grads)) keys = load_keys(visit, t);
    if (fv_present(&w->args->lse_in_key)) fv_tiles_normalise(t, m->lse, &w->args->lse_in_key);
    for (int r = 0; r < t->rows; r += together) {
        int end = (int)fv_min(r + together, t->rows);
        if (gradients) weight_gradients(visit, t, v, r, end);
        pass_logits(visit, t, r, end, gradients);
        if (m->pairs) pair_up(visit, t, r, end, gradients);
        if (wants_queries(w->grads)) add_query_rows(visit, t, &keys, r, end);
    }
    if (fv_present(&w->grads->d_v))
        add_key_rows(visit, t, t->logits, m->d_o, w->value_width, visit->d_v, visit->d_v_row, w->args->v.dims[3]);
    if (fv_present(&w->grads->d_k))
        add_key_rows(visit, t, m->pairs ? m->d_pairs : m->d_p, m->q, w->key_width, visit->d_k, visit->d_k_row,
                     w->args->k.dims[3]);
}

/* ---- tiles of queries ------------------------------------------------------------------------------------------ */

/* What the scale of logits is multiplied with. */
static float *temperature_of(const fv_tensor *t, int64_t b, int64_t h, int64_t i)
{
    return (float *)t->data + b * t->strides[0] + h * t->strides[1] + i * t->strides[2];
}

static float scale_of(const struct backward *w, int64_t b, int64_t h, int64_t i)
{
    const fv_tensor *temperature = &w->args->logits.temperature;
    float scale = w->args->logits.scale;

    if (!fv_present(temperature)) return scale;
    return scale * *temperature_of(temperature, b, h, i);
}

/* Rows [rows, width] become half as many rows of pairs. */
static void pair_rows(const struct fv_kernels *kernels, int64_t rows, int64_t width, float *x)
{
    if (rows % 2) memset(x + rows * width, 0, (size_t)width * sizeof *x);
    for (int64_t r = 0; r < rows; r += 2)
        kernels->pack_pairs(width, x + r * width, x + (r + 1) * width, x + r / 2 * width);
}

/* Brings d_o into the layout of the micro-kernel, and then, for pairs, d_o and q into theirs. */
static void lay_out(const struct backward *w, struct memory *m, int64_t rows)
{
    const struct fv_kernels *kernels = w->source.kernels;
    int64_t width = w->value_width, depth = value_depth(w, m);

    for (int64_t r = 0; r < rows; r += kernels->tile_rows) {
        int count = (int)fv_min(kernels->tile_rows, rows - r);
        const float *in = m->d_o + r * width;
        for (int n = 0; m->pairs && n < count; n++)
            kernels->join_pairs(width, in + n * width, m->d_rows + n * width);
        kernels->transpose(m->pairs ? m->d_rows : in, width, count, depth, m->o_panels + r * depth, count);
    }
    if (!m->pairs) return;
    pair_rows(kernels, rows, w->value_width, m->d_o);
    pair_rows(kernels, rows, w->key_width, m->q);
}

/* d_o . o of a row: summed up in doubles where weights are not rounded. */
static double along_output(const struct backward *w, const struct memory *m, const float *o, const float *d_o)
{
    int64_t Dv = w->args->v.dims[3];
    double sum = 0;
    float rounded;

    if (m->pairs) {
        w->source.kernels->dot[FV_F32](1, Dv, d_o, 0, NULL, o, 0, 1, &rounded, 1);
        return (double)rounded;
    }
    for (int64_t d = 0; d < Dv; d++)
        sum += (double)o[d] * d_o[d];
    return sum;
}

/* What a tile needs before its walk; sinks take their gradients here. */
static void begin_tile(const struct visit *visit, const fv_plan_tile *tile)
{
    const struct backward *w = visit->w;
    struct memory *m = visit->m;
    const fv_attend_args *a = w->args;
    const fv_tensor *lse = fv_present(&a->lse_in) ? &a->lse_in : &a->lse;
    int64_t D = w->args->q.dims[3], Dv = w->args->v.dims[3], rows = tile->rows * w->view->share;

    m->pairs = w->pairs && rows > FV_FEW_ROWS; /* the logits of fewer rows are of another kind */
    memset(m->d_q, 0, (size_t)(rows * w->key_width) * sizeof *m->d_q);
    for (int64_t r = 0; r < rows; r++) {
        int64_t h = tile->h + r / tile->rows, row = tile->row[r % tile->rows], i = tile->query[r % tile->rows];
        const float *o = row_of(&w->args->o, tile->b, h, row), *d_o = row_of(&w->grads->d_o, tile->b, h, row);
        double delta = w->given ? 0 : along_output(w, m, o, d_o);
        if (fv_present(&w->grads->d_lse) && !w->given) delta -= *row_of(&w->grads->d_lse, tile->b, h, row);
        m->delta[r] = (float)delta;
        m->lse[r] = fv_present(lse) ? *row_of(lse, tile->b, h, row) : 0;
        if (fv_present(&a->sinks) && !w->given && m->lse[r] > -INFINITY) {
            float sink = ((const float *)a->sinks.data)[h * a->sinks.strides[0]];
            visit->d_sinks[h] -= exp((double)(sink - m->lse[r])) * delta;
        }
        memcpy(m->d_o + r * w->value_width, d_o, (size_t)Dv * sizeof *d_o);
        w->source.kernels->map(FV_MAP_COPY, D, row_of(&w->args->q, tile->b, h, i), NULL, 0, scale_of(w, tile->b, h, i),
                               0, m->q + r * w->key_width);
    }
    lay_out(w, m, rows);
}

static void end_tile(const struct backward *w, const struct memory *m, const fv_plan_tile *tile)
{
    const struct fv_kernels *kernels = w->source.kernels;
    const fv_tensor *temperature = &w->grads->d_temperature;
    int64_t D = w->args->q.dims[3];

    for (int64_t r = 0; wants_queries(w->grads) && r < tile->rows * w->view->share; r++) {
        int64_t h = tile->h + r / tile->rows, i = tile->query[r % tile->rows];
        const float *d_q = m->d_q + r * w->key_width;
        float along;
        if (fv_present(&w->grads->d_q)) {
            float *to = row_of(&w->grads->d_q, tile->b, h, i);
            kernels->map(FV_MAP_ADD, D, to, d_q, 1, scale_of(w, tile->b, h, i), 0, to);
        }
        if (!fv_present(temperature)) continue;
        kernels->dot[FV_F32](1, D, d_q, 0, NULL, row_of(&w->args->q, tile->b, h, i), 0, 1, &along, 1);
        *temperature_of(temperature, tile->b, h, i) += w->args->logits.scale * along;
    }
}

/* A slice of the tiles of all query heads that read one key-value head. */
static void backward_item(void *user, int64_t n, int thread)
{
    const struct backward *w = user;
    const fv_plan_view *view = w->view;
    const fv_tensor *k = &w->args->k, *v = &w->args->v, *d_k = &w->grads->d_k, *d_v = &w->grads->d_v;
    struct memory *m = &w->memory[thread];
    int64_t key_heads = k->dims[1], groups = view->heads / view->share, turn = 0;
    int64_t index = w->first + n, owner = index / w->slices;
    int64_t b = owner / key_heads, key_head = owner % key_heads;
    struct visit visit = {w, m, NULL, NULL, k->dims[3], v->dims[3], w->d_sinks + index * view->heads};
    const int32_t *map = w->args->key_head;

    memset(visit.d_sinks, 0, (size_t)view->heads * sizeof *visit.d_sinks);
    if (w->slices > 1) {
        visit.d_k = w->d_k + index * view->keys * visit.d_k_row;
        visit.d_v = w->d_v + index * view->keys * visit.d_v_row;
        memset(visit.d_k, 0, (size_t)(view->keys * visit.d_k_row) * sizeof *visit.d_k);
        memset(visit.d_v, 0, (size_t)(view->keys * visit.d_v_row) * sizeof *visit.d_v);
    } else {
        if (fv_present(d_k)) visit.d_k = row_of(d_k, b, key_head, 0), visit.d_k_row = d_k->strides[2];
        if (fv_present(d_v)) visit.d_v = row_of(d_v, b, key_head, 0), visit.d_v_row = d_v->strides[2];
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t h = g * view->share, first, end;
        if ((map ? map[h] : h / (view->heads / key_heads)) != key_head) continue;
        fv_tiles_group(view, b * groups + g, &first, &end);
        for (int64_t item = first; item < end; item++) {
            if (turn++ % w->slices != index % w->slices) continue;
            fv_plan_tile_at(view, item, &m->tiles.tile);
            begin_tile(&visit, &m->tiles.tile);
            fv_tiles_walk_rows(&m->tiles, 0, view->keys, add_tile, &visit);
            end_tile(w, m, &m->tiles.tile);
        }
    }
}

/* Adds rows first..end-1 of all slices of a key-value head to its gradient. */
static void add_parts(const struct backward *w, const fv_tensor *to, const float *parts, int64_t owner, int64_t first,
                      int64_t end)
{
    int64_t key_heads = w->args->k.dims[1], width = to->dims[3];

    for (int64_t j = first; fv_present(to) && j < end; j++) {
        float *row = row_of(to, owner / key_heads, owner % key_heads, j);
        for (int64_t slice = 0; slice < w->slices; slice++)
            w->source.kernels->map(FV_MAP_ADD, width, row,
                                   parts + ((owner * w->slices + slice) * w->view->keys + j) * width, 1, 1, 0, row);
    }
}

static void parts_item(void *user, int64_t index, int thread)
{
    const struct backward *w = user;
    int64_t cuts = fv_ceil_div(w->view->keys, PART_KEYS), first = index % cuts * PART_KEYS;
    int64_t end = fv_min(first + PART_KEYS, w->view->keys);

    (void)thread;
    add_parts(w, &w->grads->d_k, w->d_k, index / cuts, first, end);
    add_parts(w, &w->grads->d_v, w->d_v, index / cuts, first, end);
}

static void add_sinks(const struct backward *w, int64_t items)
{
    const fv_tensor *to = &w->grads->d_sinks;

    for (int64_t h = 0; fv_present(to) && h < w->view->heads; h++) {
        double sum = 0;
        for (int64_t item = 0; item < items; item++)
            sum += w->d_sinks[item * w->view->heads + h];
        ((float *)to->data)[h * to->strides[0]] += (float)sum;
    }
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

static fv_status take_memory(fv_ctx *ctx, struct backward *w, int64_t items)
{
    int64_t threads = fv_ctx_threads(ctx), rows = w->view->share * w->view->tile_rows, Dv = w->args->v.dims[3];
    int64_t staged = fv_max(w->key_width, w->value_width);

    if (w->pairs) staged = fv_max(staged, fv_panels_staging(&w->values) / FV_KEY_TILE);

    FV_TRY(FV_SCRATCH(ctx, w->d_sinks, items * w->view->heads));
    if (w->slices > 1) {
        FV_TRY(FV_SCRATCH(ctx, w->d_k, items * w->view->keys * w->args->k.dims[3]));
        FV_TRY(FV_SCRATCH(ctx, w->d_v, items * w->view->keys * Dv));
    }
    FV_TRY(FV_SCRATCH(ctx, w->memory, threads));
    for (int64_t t = 0; t < threads; t++) {
        struct memory *m = &w->memory[t];
        const struct {
            float **to;
            int64_t count;
        } buffers[] = {{&m->q, (rows + 1) * w->key_width},
                       {&m->d_q, rows * w->key_width},
                       {&m->o_panels, rows * Dv + FV_MAX_TILE_COLUMNS},
                       {&m->d_o, (rows + 1) * w->value_width},
                       {&m->values, FV_KEY_TILE * w->value_width},
                       {&m->keys, FV_KEY_TILE * w->key_width},
                       {&m->transposed, FV_KEY_TILE * Dv + FV_MAX_TILE_COLUMNS},
                       {&m->d_p, rows * FV_KEY_TILE},
                       {&m->d_pairs, w->pairs ? (rows + 1) / 2 * FV_KEY_TILE : 0},
                       {&m->d_rows, FV_KEY_TILE * fv_max(w->key_width, w->value_width)},
                       {&m->delta, rows},
                       {&m->lse, rows}};
        FV_TRY(fv_tiles_new(ctx, &w->source, staged, &m->tiles));
        for (size_t n = 0; n < sizeof buffers / sizeof *buffers; n++) {
            FV_TRY(FV_SCRATCH(ctx, *buffers[n].to, buffers[n].count));
            memset(*buffers[n].to, 0, (size_t)buffers[n].count * sizeof(float)); /* padding stays 0 */
        }
    }
    return FV_OK;
}

static bool does_not_repeat(const fv_tensor *t)
{
    return !fv_present(t) || (fv_tensor_apart(t) && fv_cpu_rows_together(t));
}

static bool is_fast(const fv_attend_args *a, const fv_attend_grads *g)
{
    return fv_cpu_rows_together(&a->q) && fv_cpu_rows_together(&a->k) && fv_cpu_rows_together(&a->v) &&
           fv_cpu_rows_together(&a->o) && fv_cpu_rows_together(&g->d_o) && does_not_repeat(&g->d_q) &&
           does_not_repeat(&g->d_k) && does_not_repeat(&g->d_v) && a->k.dims[1] > 0;
}

/* What several tiles of a head add to; and what several heads or batches do, so that items must not run together. */
static void find_shared(const struct backward *w, bool *rows, bool *heads)
{
    const fv_attend_grads *g = w->grads;
    const fv_tensor *each[] = {&g->d_bias, &g->d_row_bias, &g->d_column_bias, &g->d_temperature};

    *rows = fv_present(&g->d_offset_bias) || fv_plan_gathers(w->view->plan);
    *heads = fv_present(&g->d_offset_bias) && (w->view->batch > 1 || g->d_offset_bias.strides[0] == 0);
    for (size_t n = 0; n < sizeof each / sizeof *each; n++) {
        *rows = *rows || (fv_present(each[n]) && !fv_tensor_apart(each[n]));
        *heads = *heads || (fv_present(each[n]) && !fv_ref_apart(each[n]));
    }
}

static int64_t slices_of(const struct backward *w, int64_t owners)
{
    int64_t floats = owners * w->view->keys * (w->args->k.dims[3] + w->args->v.dims[3]);
    int64_t items = fv_min(ITEMS, w->view->items);

    return fv_max(fv_min(items / fv_max(owners, 1), PART_FLOATS / fv_max(floats, 1)), 1);
}

/* Panels are held where a head has several tiles of queries; of as many heads at a time as memory is meant to take. */
static fv_status hold_panels(fv_ctx *ctx, struct backward *w, int64_t owners)
{
    int64_t bytes = w->keys.blocks * (w->keys.key_floats + w->keys.value_floats + w->values.key_floats) * 4, slots;

    if (owners == 0 || bytes == 0 || w->view->items < 2 * owners) return FV_OK;
    slots = fv_clamp(PANEL_BYTES / bytes, 1, owners);
    FV_TRY(fv_panels_hold(ctx, &w->keys, slots));
    return fv_panels_hold(ctx, &w->values, slots);
}

static void run_items(fv_ctx *ctx, struct backward *w, int64_t owners, bool alone)
{
    int64_t together = w->keys.slots > 0 ? w->keys.slots : owners;

    for (int64_t owner = 0; owner < owners; owner += together) {
        int64_t count = fv_min(together, owners - owner);
        if (w->keys.slots > 0) {
            fv_panels_clear(&w->keys);
            fv_panels_clear(&w->values);
            for (int64_t n = 0; n < count; n++)
                w->keys.slot[owner + n] = w->values.slot[owner + n] = (int32_t)n;
        }
        w->first = owner * w->slices;
        for (int64_t item = 0; alone && item < count * w->slices; item++)
            backward_item(w, item, 0);
        if (!alone) fv_run(ctx, count * w->slices, backward_item, w);
    }
}

fv_status fv_cpu_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads)
{
    int64_t B = args->q.dims[0], H = args->q.dims[1], N = args->q.dims[2], M = args->k.dims[2], tile_rows, share;
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    int64_t owners = B * args->k.dims[1];
    fv_plan_view view;
    struct backward w = {.args = args, .grads = grads, .view = &view, .slices = 1};
    bool rows_shared, heads_shared;
    fv_status status;

    if (!is_fast(args, grads)) return fv_backend_ref.attend_backward(ctx, args, grads);
    share = fv_tiles_share(args->plan, H, args->k.dims[1], args->key_head, &tile_rows);
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, share, tile_rows, N, M, &view));
    w.source = (fv_tiles_source){kernels, args->q, args->k, &args->logits, args->key_head, &view, true, NULL, false};
    w.pairs = fv_attend_takes_pairs(ctx, kernels, args);
    if (w.pairs) {
        fv_panels_open(kernels, &args->k, &args->k, true, &w.keys);
        fv_panels_open(kernels, &args->v, NULL, true, &w.values);
        FV_TRY_DONE(hold_panels(ctx, &w, owners));
        w.source.panels = &w.keys;
    }
    w.key_width = fv_round_up(args->q.dims[3], kernels->tile_columns);
    w.value_width = fv_round_up(args->v.dims[3], kernels->tile_columns);
    w.given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    find_shared(&w, &rows_shared, &heads_shared);
    if (!rows_shared) w.slices = slices_of(&w, owners);
    FV_TRY_DONE(take_memory(ctx, &w, owners * w.slices));
    run_items(ctx, &w, owners, heads_shared);
    if (w.slices > 1) fv_run(ctx, owners * fv_ceil_div(M, PART_KEYS), parts_item, &w);
    add_sinks(&w, owners * w.slices);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
