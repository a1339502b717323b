#include "ops/cpu/tiles.h"

enum { ROWS = 256 }; /* aimed at: what is done once for a tile is shared by so many rows */

int64_t fv_tiles_share(const fv_plan *plan, int64_t heads, int64_t key_heads, const int32_t *key_head,
                       int64_t *tile_rows)
{
    int64_t group = key_head || key_heads == 0 ? 1 : heads / key_heads;
    int64_t share = fv_plan_heads_share(plan, heads, group) ? group : 1;

    *tile_rows = fv_clamp(ROWS / fv_max(share, 1), 1, FV_TILE);
    return share;
}

void fv_tiles_group(const fv_plan_view *view, int64_t n, int64_t *first, int64_t *end)
{
    *first = view->classes == 1 ? n * view->class_tile[1] : view->item_first[n];
    *end = view->classes == 1 ? *first + view->class_tile[1] : view->item_first[n + 1];
}

fv_status fv_tiles_new(fv_ctx *ctx, const fv_tiles_source *source, int64_t width, fv_tiles *tiles)
{
    int64_t rows = source->view->share * source->view->tile_rows, D = source->q.dims[3];
    const struct fv_kernels *kernels = source->kernels;

    *tiles = (fv_tiles){.source = source, .q_row = fv_round_up(D, 2 * kernels->width)};
    if (source->panels)
        tiles->own = *source->panels;
    else
        fv_panels_open(kernels, &source->k, NULL, false, &tiles->own);
    tiles->capped = kernels->scale_cap(tiles->own.pairs, source->logits->softcap, &tiles->cap);
    FV_TRY(FV_SCRATCH(ctx, tiles->bias, FV_TILE * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->open.bias, FV_TILE * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->terms, FV_TERM_ROWS * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->logits, rows * FV_KEY_TILE));
    if (source->slopes && (source->logits->gain != 0 || source->logits->softcap > 0))
        FV_TRY(FV_SCRATCH(ctx, tiles->slopes, rows * FV_KEY_TILE));
    FV_TRY(FV_SCRATCH(ctx, tiles->part_seen, rows));
    FV_TRY(FV_SCRATCH(ctx, tiles->q, rows * tiles->q_row));
    FV_TRY(FV_SCRATCH(ctx, tiles->query_panels, rows * tiles->q_row + FV_MAX_TILE_COLUMNS));
    FV_TRY(FV_SCRATCH(ctx, tiles->keys, tiles->own.key_floats));
    FV_TRY(FV_SCRATCH(ctx, tiles->values, tiles->own.value_floats));
    return FV_SCRATCH(ctx, tiles->staging, fv_max(fv_panels_staging(&tiles->own), FV_KEY_TILE * width));
}

int fv_tiles_stretch(const int64_t *key, int count)
{
    int end = key[count - 1] - key[0] == count - 1 ? count : 1;

    while (end < count && key[end] == key[end - 1] + 1)
        end++;
    return end;
}

const float *fv_tiles_rows(const fv_tiles *tiles, const fv_tensor *t, int64_t padded, float *staging, int64_t *row)
{
    int64_t width = t->dims[3];

    if (t->dtype == FV_F32 && width == padded && fv_tiles_stretch(tiles->key, tiles->count) == tiles->count) {
        *row = t->strides[2];
        return (const float *)fv_panels_row(t, tiles->b, tiles->key_head, tiles->key[0]);
    }
    *row = padded;
    for (int n = 0; n < tiles->count; n++)
        fv_kernels_load(tiles->source->kernels, t->dtype, fv_panels_row(t, tiles->b, tiles->key_head, tiles->key[n]), 0,
                        width, staging + n * padded);
    return staging;
}

/* ---- queries --------------------------------------------------------------------------------------------------- */

static void load_queries(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;
    const fv_tensor *temperature = &s->logits->temperature;
    int64_t D = s->q.dims[3], depth = t->own.depth, in_row = t->q_row;
    const float *in = t->q;

    for (int r = 0; r < t->rows; r++) { /* rows of a patch lie apart */
        const float *q = fv_at(&s->q, t->b, t->tile.h + r / t->tile.rows, t->tile.query[r % t->tile.rows], 0);
        for (int64_t n = 0; n < D; n += 64 / (int64_t)sizeof *q)
            __builtin_prefetch(q + n);
    }
    for (int64_t r = 0, token = 0, h = t->tile.h; r < t->rows; r++) {
        int64_t i = t->tile.query[token];
        const float *q = fv_at(&s->q, t->b, h, i, 0);
        float scale = s->logits->scale, *to = t->q + r * t->q_row;
        if (fv_present(temperature))
            scale *= ((const float *)temperature->data)[t->b * temperature->strides[0] + h * temperature->strides[1] +
                                                        i * temperature->strides[2]];
        s->kernels->map(FV_MAP_COPY, D, q, NULL, 0, scale, 0, to);
        memset(to + D, 0, (size_t)(t->q_row - D) * sizeof *to);
        if (++token == t->tile.rows) token = 0, h++;
    }
    if (fv_tiles_few(t)) return;
    for (int r = 0; r < t->rows; r += t->step) {
        int rows = (int)fv_min(t->step, t->rows - r);
        for (int i = r; t->own.pairs && i < r + rows; i++)
            s->kernels->join_pairs(in_row, in + i * in_row, t->q + i * in_row);
        s->kernels->transpose(in + r * in_row, in_row, rows, depth, t->query_panels + r * depth, rows);
    }
}

/* As many whole lines of a patch as `most` rows hold, or an even part of one. */
static int step_of(int most, int line)
{
    if (line <= 0) return most;
    return line <= most ? most / line * line : (int)fv_ceil_div(line, fv_ceil_div(line, most));
}

void fv_tiles_begin(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;

    t->rows = t->tile.rows * (int)s->view->share;
    t->b = t->tile.b;
    t->key_head = s->key_head ? s->key_head[t->tile.h] : t->tile.h / fv_max(s->q.dims[1] / s->k.dims[1], 1);
    t->step = step_of(s->kernels->tile_rows, t->tile.line);
    load_queries(t);
    if (!fv_tiles_on_strip(t)) fv_plan_runs_begin(&t->runs, s->view, &t->tile);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

void fv_tiles_dots(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;
    const fv_tensor *k = &s->k;
    int64_t D = s->q.dims[3];
    int64_t row_bytes = k->strides[2] / fv_dtype_block(k->dtype) * (int64_t)fv_dtype_block_bytes(k->dtype);

    for (int n = 0, length; n < t->count; n += length) {
        length = fv_tiles_stretch(t->key + n, t->count - n);
        for (int r = 0; r < t->rows; r += FV_DOT_ROWS)
            s->kernels->dot[k->dtype]((int)fv_min(FV_DOT_ROWS, t->rows - r), D, t->q + r * t->q_row, t->q_row, NULL,
                                      fv_panels_row(k, t->b, t->key_head, t->key[n]), row_bytes, length,
                                      t->logits + r * FV_KEY_TILE + n, FV_KEY_TILE);
    }
}

void fv_tiles_products(const fv_tiles *t, int n, float *s)
{
    const struct fv_kernels *kernels = t->source->kernels;
    fv_tile_fn *tile = t->own.pairs ? kernels->tile_bf16 : kernels->tile;
    int64_t depth = t->own.depth;
    int columns = kernels->tile_columns, r = n * t->step, rows = (int)fv_min(t->step, t->rows - r);
    uint64_t part = ((uint64_t)1 << columns) - 1, seen = fv_tiles_seen(t, n);
    const fv_logits *l = t->source->logits;

    for (int key = 0; key < t->count; key += columns)
        if (seen >> key & part)
            tile(rows, depth, t->query_panels + r * depth, 1, rows, t->panels.keys + key * depth, columns, s + key,
                 FV_KEY_TILE, false);
    if (t->deferred && l->softcap > 0 && !t->capped) kernels->curve(rows * FV_KEY_TILE, s, l->gain, l->softcap);
}
