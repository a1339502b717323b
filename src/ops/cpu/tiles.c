#include "ops/cpu/tiles.h"

#include <math.h>

enum {
    ROWS = 192,    /* aimed at: the cost of bringing keys into order is shared by so many rows */
    DOT_LIMIT = 8, /* rows up to which keys are multiplied where they lie */
};

int64_t fv_tiles_share(const fv_plan *plan, int64_t heads, int64_t key_heads, const int32_t *key_head,
                       int64_t *tile_rows)
{
    int64_t group = key_head || key_heads == 0 ? 1 : heads / key_heads;
    int64_t share = fv_plan_heads_share(plan, heads, group) ? group : 1;

    *tile_rows = fv_clamp(ROWS / fv_max(share, 1), 1, FV_TILE);
    return share;
}

fv_status fv_tiles_new(fv_ctx *ctx, const fv_tiles_source *source, int64_t width, fv_tiles *tiles)
{
    int64_t rows = source->view->share * source->view->tile_rows, D = source->q.dims[3];

    *tiles = (fv_tiles){.source = source};
    width = fv_max(width, D);
    FV_TRY(FV_SCRATCH(ctx, tiles->bias, FV_TILE * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->logits, rows * FV_KEY_TILE));
    if (source->slopes && (source->logits->gain != 0 || source->logits->softcap > 0))
        FV_TRY(FV_SCRATCH(ctx, tiles->slopes, rows * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->q, rows * D));
    FV_TRY(FV_SCRATCH(ctx, tiles->panels, rows * D + FV_MAX_TILE_COLUMNS));
    FV_TRY(FV_SCRATCH(ctx, tiles->keys, D * FV_KEY_TILE));
    return FV_SCRATCH(ctx, tiles->staging, FV_KEY_TILE * width);
}

bool fv_tiles_any(const fv_tiles *tiles, int from, int count)
{
    uint64_t any = 0;

    for (int r = from; r < from + count; r++)
        any |= tiles->bits[r % tiles->tile.rows];
    return any != 0;
}

static const char *row_at(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    int64_t offset = b * t->strides[0] + h * t->strides[1] + n * t->strides[2];

    return (const char *)t->data + offset / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype);
}

/* Keys of the tile that follow each other from place n on. */
static int stretch(const fv_tiles *tiles, int n)
{
    int end = n + 1;

    while (end < tiles->count && tiles->key[end] == tiles->key[end - 1] + 1)
        end++;
    return end - n;
}

const float *fv_tiles_rows(const fv_tiles *tiles, const fv_tensor *t, int64_t padded, float *staging, int64_t *row)
{
    int64_t width = t->dims[3];

    if (t->dtype == FV_F32 && width == padded && stretch(tiles, 0) == tiles->count) {
        *row = t->strides[2];
        return (const float *)row_at(t, tiles->b, tiles->key_head, tiles->key[0]);
    }
    *row = padded;
    for (int n = 0; n < tiles->count; n++)
        fv_kernels_load(tiles->source->kernels, t->dtype, row_at(t, tiles->b, tiles->key_head, tiles->key[n]), 0, width,
                        staging + n * padded);
    return staging;
}

/* ---- logits ---------------------------------------------------------------------------------------------------- */

static void load_queries(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;
    const fv_tensor *temperature = &s->logits->temperature;
    int64_t D = s->q.dims[3];

    for (int r = 0; r < t->rows; r++) {
        int64_t h = t->tile.h + r / t->tile.rows, i = t->tile.query[r % t->tile.rows];
        const float *q = (const float *)row_at(&s->q, t->b, h, i);
        float scale = s->logits->scale;
        if (fv_present(temperature))
            scale *= ((const float *)temperature->data)[t->b * temperature->strides[0] + h * temperature->strides[1] +
                                                        i * temperature->strides[2]];
        s->kernels->map(FV_MAP_COPY, D, q, NULL, 0, scale, 0, t->q + r * D);
    }
    if (t->rows <= DOT_LIMIT) return;
    for (int r = 0; r < t->rows; r += s->kernels->tile_rows) {
        int rows = (int)fv_min(s->kernels->tile_rows, t->rows - r);
        s->kernels->transpose(t->q + r * D, D, rows, D, t->panels + r * D, rows);
    }
}

/* Few rows: bound by the bytes of the keys. */
static void dots(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;
    const fv_tensor *k = &s->k;
    int64_t D = s->q.dims[3];
    int64_t row_bytes = k->strides[2] / fv_dtype_block(k->dtype) * (int64_t)fv_dtype_block_bytes(k->dtype);

    for (int n = 0, length; n < t->count; n += length) {
        length = stretch(t, n);
        for (int r = 0; r < t->rows; r += FV_DOT_ROWS)
            s->kernels->dot[k->dtype]((int)fv_min(FV_DOT_ROWS, t->rows - r), D, t->q + r * D, D, NULL,
                                      row_at(k, t->b, t->key_head, t->key[n]), row_bytes, length,
                                      t->logits + r * FV_KEY_TILE + n, FV_KEY_TILE);
    }
}

static void products(fv_tiles *t)
{
    const struct fv_kernels *kernels = t->source->kernels;
    int64_t D = t->source->q.dims[3], row;
    const float *keys = fv_tiles_rows(t, &t->source->k, D, t->staging, &row);

    for (int n = 0; n < t->count; n += kernels->width)
        kernels->transpose(keys + n * row, row, (int)fv_min(kernels->width, t->count - n), D, t->keys + n, FV_KEY_TILE);
    for (int r = 0; r < t->rows; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, t->rows - r);
        if (!fv_tiles_any(t, r, rows)) continue;
        for (int n = 0; n < t->count; n += kernels->tile_columns)
            kernels->tile(rows, D, t->panels + r * D, 1, rows, t->keys + n, FV_KEY_TILE,
                          t->logits + r * FV_KEY_TILE + n, FV_KEY_TILE, false);
    }
}

static float bias_of(const fv_tiles *t, int64_t h, int64_t i, int64_t j)
{
    const fv_logits *l = t->source->logits;
    const fv_plan *plan = t->source->view->plan;
    float bias = 0;

    if (fv_present(&l->bias)) bias += *(const float *)fv_at(&l->bias, t->b, h, i, j);
    if (fv_present(&l->offset_bias)) {
        int64_t R = l->offset_bias.dims[1], distance = fv_plan_key_position(plan, j) - (i + plan->offset);
        int64_t index = fv_clamp(distance + R / 2, 0, R - 1);
        bias += ((const float *)l->offset_bias.data)[h * l->offset_bias.strides[0] + index * l->offset_bias.strides[1]];
    }
    if (fv_present(&l->row_bias)) {
        int64_t columns = l->column_bias.dims[3];
        bias += *(const float *)fv_at(&l->row_bias, t->b, h, i, j / columns);
        bias += *(const float *)fv_at(&l->column_bias, t->b, h, i, j % columns);
    }
    return bias;
}

static bool has_bias(const fv_logits *l)
{
    return fv_present(&l->bias) || fv_present(&l->offset_bias) || fv_present(&l->row_bias);
}

static bool is_curved(const fv_logits *l)
{
    return l->gain != 0 || l->softcap > 0;
}

/* s += gain |s|; soft-cap; and what a change of s then makes of itself. */
static void curve(const fv_tiles *t, float *s, float *slope)
{
    const fv_logits *l = t->source->logits;
    const struct fv_kernels *kernels = t->source->kernels;
    float capped[FV_KEY_TILE], *to = l->gain != 0 ? capped : slope;

    for (int n = 0; slope && l->gain != 0 && n < t->count; n++)
        slope[n] = 1 + (s[n] < 0 ? -l->gain : l->gain);
    for (int n = 0; l->gain != 0 && n < t->count; n++)
        s[n] += l->gain * fabsf(s[n]);
    if (l->softcap <= 0) return;
    kernels->map(FV_MAP_SOFTCAP, t->count, s, NULL, 0, l->softcap, 0, s);
    if (!slope) return;
    kernels->map(FV_MAP_MUL, t->count, s, s, 1, -1 / (l->softcap * l->softcap), 0, to);
    kernels->map(FV_MAP_COPY, t->count, to, NULL, 0, 1, 1, to);
    if (l->gain != 0) kernels->map(FV_MAP_MUL, t->count, slope, capped, 1, 1, 0, slope);
}

/* Adds the biases of a row. */
static void add_biases(const fv_tiles *t, int64_t h, int64_t i, float *s)
{
    const fv_logits *l = t->source->logits;
    bool one_row = !fv_present(&l->offset_bias) && !fv_present(&l->row_bias) && stretch(t, 0) == t->count;

    if (one_row && l->bias.strides[3] == 1) {
        t->source->kernels->map(FV_MAP_ADD, t->count, s, fv_at(&l->bias, t->b, h, i, t->key[0]), 1, 1, 0, s);
        return;
    }
    for (int n = 0; n < t->count; n++)
        s[n] += bias_of(t, h, i, t->key[n]);
}

static void transform(fv_tiles *t)
{
    const fv_logits *l = t->source->logits;
    bool biased = has_bias(l), curved = is_curved(l);

    for (int r = 0; r < t->rows; r++) {
        int token = r % t->tile.rows;
        int64_t h = t->tile.h + r / t->tile.rows, i = t->tile.query[token];
        float *s = t->logits + r * FV_KEY_TILE;
        if (!t->bits[token]) continue;
        if (curved) curve(t, s, t->slopes ? t->slopes + r * FV_KEY_TILE : NULL);
        if (biased) add_biases(t, h, i, s);
        for (int n = 0; t->biased && n < t->count; n++)
            s[n] += t->bias[token * FV_KEY_TILE + n];
    }
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

static void finish(fv_tiles *t, fv_tiles_fn *visit, void *user)
{
    const fv_tiles_source *s = t->source;
    bool in_place = t->rows <= DOT_LIMIT && s->kernels->dot[s->k.dtype];

    if (t->count == 0) return;
    if (fv_tiles_any(t, 0, t->tile.rows)) {
        if (in_place)
            dots(t);
        else
            products(t);
        if (t->biased || has_bias(s->logits) || is_curved(s->logits)) transform(t);
        visit(user, t);
    }
    t->count = 0;
    t->biased = false;
    memset(t->bits, 0, sizeof t->bits);
}

/* Puts `count` keys of a run behind those the tile has. */
static void append(fv_tiles *t, const fv_plan_run *run, int64_t key, int count)
{
    uint64_t bits[FV_TILE], all = (count == 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1) << t->count;

    if (run->bias && !t->biased) {
        memset(t->bias, 0, FV_TILE * FV_KEY_TILE * sizeof *t->bias);
        t->biased = true;
    }
    if (!run->whole) fv_plan_bits(&t->runs, run, key, count, bits);
    for (int r = 0; r < t->tile.rows; r++) {
        t->bits[r] |= !run->whole ? bits[r] << t->count : run->rows >> r & 1 ? all : 0;
        for (int n = 0; run->bias && n < count; n++)
            t->bias[r * FV_KEY_TILE + t->count + n] = run->bias[r];
    }
    for (int n = 0; n < count; n++)
        t->key[t->count + n] = key + n;
    t->count += count;
}

void fv_tiles_walk(fv_tiles *t, int64_t item, int64_t from, int64_t to, fv_tiles_fn *visit, void *user)
{
    fv_plan_tile_at(t->source->view, item, &t->tile);
    fv_tiles_walk_rows(t, from, to, visit, user);
}

void fv_tiles_walk_rows(fv_tiles *t, int64_t from, int64_t to, fv_tiles_fn *visit, void *user)
{
    const fv_tiles_source *s = t->source;
    fv_plan_run run;

    t->rows = t->tile.rows * (int)s->view->share;
    t->b = t->tile.b;
    t->key_head = s->key_head ? s->key_head[t->tile.h] : t->tile.h / fv_max(s->q.dims[1] / s->k.dims[1], 1);
    t->count = 0;
    t->biased = false;
    memset(t->bits, 0, sizeof t->bits);
    load_queries(t);
    fv_plan_runs_begin(&t->runs, s->view, &t->tile);
    while (fv_plan_runs_next(&t->runs, &run)) {
        int64_t key = fv_max(run.key, from), end = fv_min(run.key + run.count, to);
        for (int count; key < end; key += count) {
            count = (int)fv_min(FV_KEY_TILE - t->count, end - key);
            append(t, &run, key, count);
            if (t->count == FV_KEY_TILE) finish(t, visit, user);
        }
        if (run.key >= to) break;
    }
    finish(t, visit, user);
}

/* ---- what is made of logits ------------------------------------------------------------------------------------ */

void fv_tiles_normalise(fv_tiles *t, const float *lse, const fv_tensor *by_key)
{
    bool keyed = by_key && fv_present(by_key);

    for (int r = 0; r < t->rows; r++) {
        float *p = t->logits + r * FV_KEY_TILE;
        uint64_t bits = !keyed && lse[r] == -INFINITY ? 0 : t->bits[r % t->tile.rows];
        if (!bits) {
            memset(p, 0, FV_KEY_TILE * sizeof *p);
            continue;
        }
        for (int n = 0; keyed && n < t->count; n++) {
            float shift = *(const float *)fv_at(by_key, t->b, t->tile.h + r / t->tile.rows, t->key[n], 0);
            p[n] = shift == -INFINITY ? -INFINITY : p[n] - shift;
        }
        for (int n = 0; bits != UINT64_MAX && n < FV_KEY_TILE; n++)
            if (!(bits >> n & 1)) p[n] = -INFINITY;
        t->source->kernels->exp(FV_KEY_TILE, p, 1, keyed ? 0 : lse[r], p);
    }
}

void fv_tiles_group(const fv_plan_view *view, int64_t n, int64_t *first, int64_t *end)
{
    *first = view->classes == 1 ? n * view->class_tile[1] : view->item_first[n];
    *end = view->classes == 1 ? *first + view->class_tile[1] : view->item_first[n + 1];
}
