#include "ops/cpu/tiles.h"

#include <math.h>

#include "ops/logits.h"

enum {
    ROWS = 256,      /* aimed at: what is done once for a tile is shared by so many rows */
    LEAST_KEYS = 40, /* of a block, for it to be a tile of its own */
    TOGETHER = 8,    /* terms of a bias that are worth a call of a kernel */
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

/* How many of the keys, which ascend, follow each other from the first on. */
static int stretch(const int64_t *key, int count)
{
    int end = key[count - 1] - key[0] == count - 1 ? count : 1;

    while (end < count && key[end] == key[end - 1] + 1)
        end++;
    return end;
}

const float *fv_tiles_rows(const fv_tiles *tiles, const fv_tensor *t, int64_t padded, float *staging, int64_t *row)
{
    int64_t width = t->dims[3];

    if (t->dtype == FV_F32 && width == padded && stretch(tiles->key, tiles->count) == tiles->count) {
        *row = t->strides[2];
        return (const float *)fv_panels_row(t, tiles->b, tiles->key_head, tiles->key[0]);
    }
    *row = padded;
    for (int n = 0; n < tiles->count; n++)
        fv_kernels_load(tiles->source->kernels, t->dtype, fv_panels_row(t, tiles->b, tiles->key_head, tiles->key[n]), 0,
                        width, staging + n * padded);
    return staging;
}

/* ---- logits ---------------------------------------------------------------------------------------------------- */

static uint64_t first_bits(int count)
{
    return count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
}

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

/* Few rows: bound by the bytes of the keys. */
static void dots(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;
    const fv_tensor *k = &s->k;
    int64_t D = s->q.dims[3];
    int64_t row_bytes = k->strides[2] / fv_dtype_block(k->dtype) * (int64_t)fv_dtype_block_bytes(k->dtype);

    for (int n = 0, length; n < t->count; n += length) {
        length = stretch(t->key + n, t->count - n);
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

/* Adds the bias by relative offset of keys that follow each other: a stretch of its row, with both ends repeated. */
static void add_offset_bias(const fv_tiles *t, int64_t h, int64_t i, int64_t key, int count, float *s)
{
    const fv_plan *plan = t->source->view->plan;
    const fv_tensor *bias = &t->source->logits->offset_bias;
    const float *row = (const float *)bias->data + h * bias->strides[0];
    int64_t R = bias->dims[1], first = key - (i + plan->offset) + R / 2, step = bias->strides[1];

    if (!plan->key_position && step == 1) {
        int low = (int)fv_clamp(-first, 0, count), high = (int)fv_clamp(R - first, low, count);
        for (int n = 0; n < low; n++)
            s[n] += row[0];
        if (low < high) t->source->kernels->map(FV_MAP_ADD, high - low, s + low, row + first + low, 1, 1, 0, s + low);
        for (int n = high; n < count; n++)
            s[n] += row[R - 1];
        return;
    }
    for (int n = 0; n < count; n++) {
        int64_t place = fv_plan_key_position(plan, key + n) - (i + plan->offset) + R / 2;
        s[n] += row[fv_clamp(place, 0, R - 1) * step];
    }
}

/* Adds row[j / columns] + column[j % columns] for keys that follow each other. */
static void add_separable_bias(const fv_tiles *t, int64_t h, int64_t i, int64_t key, int count, float *s)
{
    const fv_logits *l = t->source->logits;
    const fv_tensor *column = &l->column_bias;
    int64_t columns = column->dims[3], step = column->strides[3];

    for (int n = 0, length; n < count; n += length) {
        int64_t line = (key + n) / columns, at = (key + n) % columns;
        float shift = *(const float *)fv_at(&l->row_bias, t->b, h, i, line);
        const float *from = fv_at(column, t->b, h, i, at);
        length = (int)fv_min(columns - at, count - n);
        for (int m = 0; m < length; m++)
            s[n + m] += shift + from[m * step];
    }
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

    for (int n = 0; l->gain != 0 && n < t->count; n++)
        slope[n] = 1 + (s[n] < 0 ? -l->gain : l->gain);
    kernels->curve(FV_KEY_TILE, s, l->gain, l->softcap);
    if (l->softcap <= 0) return;
    kernels->map(FV_MAP_MUL, t->count, s, s, 1, -1 / (l->softcap * l->softcap), 0, to);
    kernels->map(FV_MAP_COPY, t->count, to, NULL, 0, 1, 1, to);
    if (l->gain != 0) kernels->map(FV_MAP_MUL, t->count, slope, capped, 1, 1, 0, slope);
}

void fv_tiles_add_bias(const fv_tiles *t, int r, const int64_t *key, int count, float *s)
{
    const fv_logits *l = t->source->logits;
    const fv_tensor *offset = &l->offset_bias, *row = &l->row_bias;
    int64_t h = t->tile.h + r / t->tile.rows, i = t->tile.query[r % t->tile.rows];

    for (int n = 0; l->offset_place.key && n < count; n++)
        s[n] += *(const float *)fv_at(offset, h, fv_offset_at(l, t->source->view->plan, i, key[n]), 0, 0);
    for (int n = 0; l->row_place.key && n < count; n++)
        s[n] += *(const float *)fv_at(row, t->b, h, i, fv_row_at(l, i, key[n])) +
                *(const float *)fv_at(&l->column_bias, t->b, h, i, fv_column_at(l, i, key[n]));
    for (int n = 0, length; n < count; n += length) {
        length = stretch(key + n, count - n);
        bool together = l->bias.strides[3] == 1 && length >= TOGETHER;
        if (fv_present(&l->bias) && together)
            t->source->kernels->map(FV_MAP_ADD, length, s + n, fv_at(&l->bias, t->b, h, i, key[n]), 1, 1, 0, s + n);
        for (int m = n; fv_present(&l->bias) && !together && m < n + length; m++)
            s[m] += *(const float *)fv_at(&l->bias, t->b, h, i, key[m]);
        if (fv_present(offset) && !l->offset_place.key) add_offset_bias(t, h, i, key[n], length, s + n);
        if (fv_present(row) && !l->row_place.key) add_separable_bias(t, h, i, key[n], length, s + n);
    }
}

/* Whether the bias is one that is read by places, and lies so that neighbours in it are neighbours in memory. */
static bool is_placed(const fv_logits *l)
{
    bool offset = l->offset_place.key, rows = l->row_place.key;

    if (offset == rows || fv_present(&l->bias) || (rows && fv_present(&l->offset_bias)) ||
        (offset && fv_present(&l->row_bias)))
        return false;
    return offset ? l->offset_bias.strides[1] == 1 : l->column_bias.strides[3] == 1;
}

int fv_tiles_placed(const int32_t *across, const int32_t *down, const int64_t *key, int count)
{
    int n = 1;

    while (n < count && across[key[n]] == across[key[0]] + n && (!down || down[key[n]] == down[key[0]]))
        n++;
    return n;
}

/* `count` numbers of a row of R from place `from` on; in `spare` where the row ends before, with its ends repeated. */
static const float *placed_row(const float *row, int64_t R, int64_t from, int count, float *spare)
{
    if (from >= 0 && from + count <= R) return row + from;
    for (int n = 0; n < count; n++)
        spare[n] = row[fv_clamp(from + n, 0, R - 1)];
    return spare;
}

/* The bias by places of `rows` rows of a head, from row r of the walk on, in t->terms; undefined where a row does not
 * see a stretch of keys. */
static void gather_placed(const fv_tiles *t, int r, int rows)
{
    const fv_logits *l = t->source->logits;
    bool offset = l->offset_place.key;
    const fv_places *across = offset ? &l->offset_place : &l->column_place, *down = offset ? NULL : &l->row_place;
    const fv_tensor *bias = offset ? &l->offset_bias : &l->column_bias;
    int64_t h = t->tile.h + r / t->tile.rows, R = bias->dims[bias->rank - 1];
    const int64_t *query = t->tile.query + r % t->tile.rows;
    static const float nothing;
    const float *from[FV_TERM_ROWS], *shift[FV_TERM_ROWS];
    float spare[FV_TERM_ROWS][FV_KEY_TILE];

    for (int n = 0, length; n < t->count; n += length) {
        int64_t key = t->key[n];
        length = fv_tiles_placed(across->key, down ? down->key : NULL, t->key + n, t->count - n);
        for (int m = 0; m < rows; m++) {
            int64_t i = query[m], place = (int64_t)across->key[key] - across->query[i];
            from[m] = NULL;
            if (!(t->bits[r % t->tile.rows + m] >> n & first_bits(length))) continue;
            const float *row = offset ? fv_at(bias, h, 0, 0, 0) : fv_at(bias, t->b, h, i, 0);
            from[m] = placed_row(row, R, place, length, spare[m]);
            shift[m] = down ? fv_at(&l->row_bias, t->b, h, i, fv_row_at(l, i, key)) : &nothing;
        }
        t->source->kernels->place_rows(rows, length, from, shift, t->terms + n);
    }
}

/* Whole rows of the bias tensor at once, where tile and tensor let it; whether they did. */
static bool add_bias_rows(fv_tiles *t)
{
    const fv_logits *l = t->source->logits;
    int tokens = t->tile.rows;

    for (int r = 0, rows; is_placed(l) && r < t->rows; r += rows) {
        rows = (int)fv_min(FV_TERM_ROWS, tokens - r % tokens);
        gather_placed(t, r, rows);
        t->source->kernels->add_rows(rows, t->count, t->logits + r * FV_KEY_TILE, t->terms, FV_KEY_TILE);
    }
    if (is_placed(l)) return true;
    if (fv_present(&l->offset_bias) || fv_present(&l->row_bias) || l->bias.strides[3] != 1) return false;
    if (stretch(t->key, t->count) < t->count || t->tile.query[tokens - 1] - t->tile.query[0] != tokens - 1)
        return false;
    for (int r = 1; r < tokens; r++)
        if (t->tile.query[r] != t->tile.query[r - 1] + 1) return false;
    for (int r = 0; r < t->rows; r += tokens)
        t->source->kernels->add_rows(tokens, t->count, t->logits + r * FV_KEY_TILE,
                                     fv_at(&l->bias, t->b, t->tile.h + r / tokens, t->tile.query[0], t->key[0]),
                                     l->bias.strides[2]);
    return true;
}

static void transform(fv_tiles *t)
{
    const fv_logits *l = t->source->logits;
    bool biased = has_bias(l), curved = is_curved(l);

    if (curved && !t->slopes) t->source->kernels->curve(t->rows * FV_KEY_TILE, t->logits, l->gain, l->softcap);
    if (biased && !t->slopes) biased = !add_bias_rows(t);
    for (int r = 0; r < t->rows && (biased || t->biased || t->slopes); r++) {
        int token = r % t->tile.rows;
        float *s = t->logits + r * FV_KEY_TILE;
        if (!t->bits[token]) continue;
        if (t->slopes) curve(t, s, t->slopes + r * FV_KEY_TILE);
        if (biased) fv_tiles_add_bias(t, r, t->key, t->count, s);
        if (t->biased) t->source->kernels->map(FV_MAP_ADD, t->count, s, t->bias + token * FV_KEY_TILE, 1, 1, 0, s);
    }
}

/* Where the bias of `rows` rows from h, i on lies, if it has one term for 64 keys that follow each other. */
static bool bias_in_place(const fv_tiles *t, int64_t h, int64_t i, int rows, struct fv_softmax_step *step)
{
    const fv_logits *l = t->source->logits;
    static const float nothing[FV_KEY_TILE];
    const fv_tensor *offset = &l->offset_bias, *column = &l->column_bias;
    int64_t key = t->key[0];

    if (l->offset_place.key || l->row_place.key) return false;
    if (fv_present(&l->bias)) {
        step->bias = fv_at(&l->bias, t->b, h, i, key);
        step->bias_row = l->bias.strides[2];
        return l->bias.strides[3] == 1;
    }
    if (fv_present(offset)) {
        const fv_plan *plan = t->source->view->plan;
        int64_t R = offset->dims[1], first = key - (i + plan->offset) + R / 2;
        if (plan->key_position || offset->strides[1] != 1) return false;
        if (first + FV_KEY_TILE <= 1 || first - rows + 1 >= R - 1) { /* behind an end */
            step->bias = nothing;
            step->bias_row = step->shift_row = 0;
            step->shift = (const float *)offset->data + h * offset->strides[0] + (first < 0 ? 0 : R - 1);
            return true;
        }
        if (first < rows - 1 || first + FV_KEY_TILE > R) return false;
        step->bias = (const float *)offset->data + h * offset->strides[0] + first;
        step->bias_row = -1;
        return true;
    }
    int64_t columns = column->dims[3], at = key % columns;
    if (column->strides[3] != 1 || at + FV_KEY_TILE > columns) return false;
    step->bias = fv_at(column, t->b, h, i, at);
    step->bias_row = column->strides[2];
    step->shift = fv_at(&l->row_bias, t->b, h, i, key / columns);
    step->shift_row = l->row_bias.strides[2];
    return true;
}

/* The same put together in t->terms. */
static void gather_bias(const fv_tiles *t, int r, int rows, bool separable, struct fv_softmax_step *step)
{
    const fv_logits *l = t->source->logits;
    int64_t h = t->tile.h + r / t->tile.rows, i = t->tile.query[r % t->tile.rows];

    step->bias = t->terms;
    step->bias_row = FV_KEY_TILE;
    for (int n = 0, length; separable && n < t->count; n += length) {
        int64_t columns = l->column_bias.dims[3], at = t->key[n] % columns;
        length = (int)fv_min(columns - at, t->count - n);
        t->source->kernels->shift_rows(rows, length, fv_at(&l->column_bias, t->b, h, i, at), l->column_bias.strides[2],
                                       fv_at(&l->row_bias, t->b, h, i, t->key[n] / columns), l->row_bias.strides[2],
                                       t->terms + n);
    }
    for (int n = 0; !separable && n < rows; n++) {
        float *to = t->terms + n * FV_KEY_TILE;
        if (t->biased)
            memcpy(to, t->bias + (r + n) % t->tile.rows * FV_KEY_TILE, FV_KEY_TILE * sizeof *to);
        else
            memset(to, 0, FV_KEY_TILE * sizeof *to);
        fv_tiles_add_bias(t, r + n, t->key, t->count, to);
    }
}

/* A bias whose rows lie far apart is asked for a step of rows before it is needed, in the next key tile behind the
 * last: evenly, as memory gives it, and not so early that rows which fall into the same sets of a cache drive it out
 * again. For how many rows that is the same distance. */
static int ask_for_bias(const fv_tiles *t, int token, int rows, struct fv_softmax_step *step)
{
    int last = (int)fv_max(t->tile.rows - t->step, 0);

    if (step->bias_row <= FV_KEY_TILE) return rows;
    step->ask = token < last ? t->step * step->bias_row : FV_KEY_TILE - last * step->bias_row;
    return token < last ? (int)fv_min(rows, last - token) : rows;
}

/* A bias that is the same for all queries of a head, put together once in t->terms. */
static void gather_key_bias(const fv_tiles *t, int64_t h, struct fv_softmax_step *step)
{
    const fv_tensor *bias = &t->source->logits->bias;
    const float *row = fv_at(bias, t->b, h, 0, 0);

    for (int n = 0; n < FV_KEY_TILE; n++)
        t->terms[n] = n < t->count ? row[t->key[n] * bias->strides[3]] : 0;
    step->bias = t->terms;
    step->bias_row = 0;
}

int fv_tiles_terms(const fv_tiles *t, int r, int most, struct fv_softmax_step *step)
{
    const fv_logits *l = t->source->logits;
    int token = r % t->tile.rows, rows = 1;
    int64_t h = t->tile.h + r / t->tile.rows;
    const int64_t *query = t->tile.query + token;
    bool joined = stretch(t->key, t->count) == t->count;
    int terms = fv_present(&l->bias) + fv_present(&l->offset_bias) + fv_present(&l->row_bias) + t->biased;

    step->gain = t->capped || l->softcap <= 0 ? l->gain : 0;
    step->cap = t->capped ? &t->cap : NULL;
    step->bias = step->shift = NULL;
    step->ask = 0;
    if (terms == 0) return most;
    most = (int)fv_min(most, t->tile.rows - token);
    if (t->biased && terms == 1) {
        step->bias = t->bias + token * FV_KEY_TILE;
        step->bias_row = FV_KEY_TILE;
        return most;
    }
    if (terms == 1 && is_placed(l)) {
        rows = (int)fv_min(most, FV_TERM_ROWS);
        gather_placed(t, r, rows);
        step->bias = t->terms;
        step->bias_row = FV_KEY_TILE;
        return rows;
    }
    while (rows < most && query[rows] == query[rows - 1] + 1)
        rows++;
    if (terms == 1 && joined && t->count == FV_KEY_TILE && bias_in_place(t, h, query[0], rows, step))
        return ask_for_bias(t, token, rows, step);
    step->shift = NULL;
    if (terms == 1 && fv_present(&l->bias) && l->bias.strides[2] == 0) {
        gather_key_bias(t, h, step);
        return rows;
    }
    rows = (int)fv_min(rows, FV_TERM_ROWS);
    gather_bias(t, r, rows,
                terms == 1 && joined && fv_present(&l->row_bias) && !l->row_place.key && l->column_bias.strides[3] == 1,
                step);
    return rows;
}

/* ---- walking --------------------------------------------------------------------------------------------------- */

static void clear(fv_tiles *t)
{
    t->count = 0;
    t->common = 0;
    t->biased = false;
    memset(t->bits, 0, sizeof t->bits);
}

static void note_seen(fv_tiles *t)
{
    int tokens = t->tile.rows;

    t->whole = t->common == first_bits(t->count);
    t->seen = t->common;
    for (int from = 0, at = 0; from < tokens; from += t->step, at++) {
        uint64_t seen = t->common;
        for (int r = from, end = (int)fv_min(from + t->step, tokens); r < end; r++) {
            t->bits[r] |= t->common;
            seen |= t->bits[r];
        }
        t->part_seen[at] = seen;
        t->seen |= seen;
    }
    if (t->whole || t->rows == tokens) return;
    for (int r = 0, token = 0, at = 0; r < t->rows; at++) {
        uint64_t seen = 0;
        for (int end = (int)fv_min(r + t->step, t->rows); r < end; r++) {
            seen |= t->bits[token];
            token = token + 1 < tokens ? token + 1 : 0;
        }
        t->part_seen[at] = seen;
    }
}

/* The tile is complete but for its panels; `block` >= 0 if they are held. */
static void finish(fv_tiles *t, int64_t block, fv_tiles_fn *visit, void *user)
{
    const fv_tiles_source *s = t->source;
    bool valued = t->own.v.data;

    note_seen(t);
    if (t->seen) {
        if (fv_tiles_few(t)) {
            dots(t);
        } else {
            if (block >= 0) {
                t->panels = fv_panels_block(&t->own, t->b, t->key_head, block, t->staging);
            } else {
                t->panels = (fv_panels){t->keys, t->values, true};
                t->panels.finite = fv_panels_fill(&t->own, t->b, t->key_head, t->key, t->count, t->staging, t->keys,
                                                  valued ? t->values : NULL);
            }
            for (int n = 0; !t->deferred && n * t->step < t->rows; n++)
                fv_tiles_products(t, n, t->logits + n * t->step * FV_KEY_TILE);
        }
        if (!t->deferred && (t->biased || has_bias(s->logits) || is_curved(s->logits))) transform(t);
        visit(user, t);
    }
    clear(t);
}

/* Puts `count` keys of the open block, from place `from` on, behind those the tile has. */
static void pack(fv_tiles *t, int from, int count)
{
    uint64_t all = first_bits(count);

    if (t->open.biased && !t->biased) {
        memset(t->bias, 0, FV_TILE * FV_KEY_TILE * sizeof *t->bias);
        t->biased = true;
    }
    t->common |= (t->open.common >> from & all) << t->count;
    for (int r = 0; t->open.mixed && r < t->tile.rows; r++)
        t->bits[r] |= (t->open.bits[r] >> from & all) << t->count;
    for (int r = 0; t->open.biased && r < t->tile.rows; r++)
        memcpy(t->bias + r * FV_KEY_TILE + t->count, t->open.bias + r * FV_KEY_TILE + from,
               (size_t)count * sizeof *t->bias);
    for (int n = 0; n < count; n++)
        t->key[t->count + n] = t->open.block * FV_KEY_TILE + from + n;
    t->count += count;
}

static void swap_bias(fv_tiles *t)
{
    float *bias = t->bias;

    t->bias = t->open.bias;
    t->open.bias = bias;
}

/* The open block as a tile of its own, while packed keys wait. */
static void visit_block(fv_tiles *t, fv_tiles_fn *visit, void *user)
{
    int64_t first = t->open.block * FV_KEY_TILE, keys = t->source->view->keys;
    bool swapped = t->open.biased;

    t->waiting.count = t->count;
    t->waiting.common = t->common;
    t->waiting.biased = t->biased;
    if (t->count > 0) {
        memcpy(t->waiting.key, t->key, sizeof t->key);
        memcpy(t->waiting.bits, t->bits, sizeof t->bits);
    }
    t->count = (int)fv_min(FV_KEY_TILE, keys - first);
    for (int n = 0; n < t->count; n++)
        t->key[n] = first + n;
    if (t->open.mixed)
        memcpy(t->bits, t->open.bits, sizeof t->bits);
    else
        memset(t->bits, 0, sizeof t->bits);
    t->common = t->open.common;
    t->biased = t->open.biased;
    if (swapped) swap_bias(t);
    finish(t, t->open.block, visit, user);
    if (swapped) swap_bias(t);
    if (t->waiting.count == 0) return;
    t->count = t->waiting.count;
    t->common = t->waiting.common;
    t->biased = t->waiting.biased;
    memcpy(t->key, t->waiting.key, sizeof t->key);
    memcpy(t->bits, t->waiting.bits, sizeof t->bits);
}

/* With `fixed` the open block is a tile however few of its keys are seen. */
static void close_block(fv_tiles *t, bool fixed, fv_tiles_fn *visit, void *user)
{
    uint64_t keys = t->open.keys;

    if (t->open.block < 0) return;
    if (t->own.slots > 0 && (__builtin_popcountll(keys) >= LEAST_KEYS || (keys && fixed))) {
        visit_block(t, visit, user);
        return;
    }
    if (keys && fixed) {
        pack(t, 0, (int)fv_min(FV_KEY_TILE, t->source->view->keys - t->open.block * FV_KEY_TILE));
        finish(t, -1, visit, user);
        return;
    }
    for (int from = 0; keys; keys &= ~first_bits(from)) {
        from = __builtin_ctzll(keys);
        int length = ~(keys >> from) ? __builtin_ctzll(~(keys >> from)) : 64;
        for (int count; length > 0; length -= count, from += count) {
            count = (int)fv_min(FV_KEY_TILE - t->count, length);
            pack(t, from, count);
            if (t->count == FV_KEY_TILE) finish(t, -1, visit, user);
        }
    }
}

static void open_block(fv_tiles *t, int64_t block)
{
    t->open.block = block;
    t->open.keys = t->open.common = 0;
    t->open.mixed = t->open.biased = false;
}

/* Takes `count` keys of a run, all in the open block. */
static void take(fv_tiles *t, const fv_plan_run *run, int64_t key, int count)
{
    uint64_t bits[FV_TILE], everybody = first_bits(t->tile.rows), seen = 0;
    int from = (int)(key - t->open.block * FV_KEY_TILE);
    uint64_t all = first_bits(count) << from;

    if (run->bias && !t->open.biased) {
        memset(t->open.bias, 0, FV_TILE * FV_KEY_TILE * sizeof *t->open.bias);
        t->open.biased = true;
    }
    for (int r = 0; run->bias && r < t->tile.rows; r++)
        for (int n = 0; n < count; n++)
            t->open.bias[r * FV_KEY_TILE + from + n] = run->bias[r];
    if (run->whole && (run->rows & everybody) == everybody) {
        t->open.keys |= all;
        t->open.common |= all;
        return;
    }
    if (!run->whole && !t->open.mixed && from == 0) { /* the first words, and mostly the only ones */
        fv_plan_bits(&t->runs, run, key, count, t->open.bits);
        t->open.mixed = true;
        for (int r = 0; r < t->tile.rows; r++)
            seen |= t->open.bits[r];
        t->open.keys |= seen;
        return;
    }
    if (!t->open.mixed) memset(t->open.bits, 0, sizeof t->open.bits);
    t->open.mixed = true;
    if (!run->whole) fv_plan_bits(&t->runs, run, key, count, bits);
    for (int r = 0; r < t->tile.rows; r++) {
        uint64_t word = !run->whole ? bits[r] << from : run->rows >> r & 1 ? all : 0;
        t->open.bits[r] |= word;
        seen |= word;
    }
    t->open.keys |= seen;
}

/* As many whole lines of a patch as `most` rows hold, or an even part of one. */
static int step_of(int most, int line)
{
    if (line <= 0) return most;
    return line <= most ? most / line * line : (int)fv_ceil_div(line, fv_ceil_div(line, most));
}

static bool follows_strip(const fv_tiles *t)
{
    return t->own.strips && !fv_tiles_few(t);
}

void fv_tiles_begin(fv_tiles *t)
{
    const fv_tiles_source *s = t->source;

    t->rows = t->tile.rows * (int)s->view->share;
    t->b = t->tile.b;
    t->key_head = s->key_head ? s->key_head[t->tile.h] : t->tile.h / fv_max(s->q.dims[1] / s->k.dims[1], 1);
    t->step = step_of(s->kernels->tile_rows, t->tile.line);
    load_queries(t);
    if (!follows_strip(t)) fv_plan_runs_begin(&t->runs, s->view, &t->tile);
}

/* A tile on a grid whose strips are held. */
static void walk_strip(fv_tiles *t, fv_tiles_fn *visit, void *user)
{
    const fv_plan_view *view = t->source->view;
    fv_plan_strip strip;

    fv_plan_strip_of(view, &t->tile, &strip);
    for (int64_t block = strip.block; block < strip.end; block++) {
        t->count = fv_plan_strip_keys(view, block, t->key);
        fv_plan_strip_bits(&strip, block, t->bits);
        t->common = first_bits(t->count);
        for (int r = 0; r < t->tile.rows; r++)
            t->common &= t->bits[r];
        finish(t, block, visit, user);
    }
}

/* The next single keys, if every row sees them: a tile's worth where they lie too far apart for tiles of blocks, else
 * those of a block.  The rows of a tile have one list then, so that sums depend on it alone. */
static bool take_keys(fv_tiles *t, fv_tiles_fn *visit, void *user)
{
    int64_t ahead[FV_KEY_TILE], block;
    int count = FV_KEY_TILE - t->count;
    uint64_t keys;

    if (fv_plan_runs_keys(&t->runs, count, FV_KEY_TILE * count / LEAST_KEYS, t->key + t->count) > 0) {
        t->common |= first_bits(count) << t->count;
        t->count += count;
        count = fv_plan_runs_ahead(&t->runs, FV_KEY_TILE, ahead);
        if (!fv_tiles_few(t)) fv_panels_ask(&t->own, t->b, t->key_head, ahead, count);
        finish(t, -1, visit, user);
        return true;
    }
    keys = fv_plan_runs_block(&t->runs, &block);
    if (!keys) return false;
    open_block(t, block);
    t->open.keys = t->open.common = keys;
    close_block(t, false, visit, user);
    t->open.block = -1;
    return true;
}

void fv_tiles_walk_rows(fv_tiles *t, int64_t from, int64_t to, fv_tiles_fn *visit, void *user)
{
    bool all_keys = from <= 0 && to >= t->source->view->keys;
    fv_plan_run run;

    clear(t);
    t->open.block = -1;
    fv_tiles_begin(t);
    if (follows_strip(t)) {
        walk_strip(t, visit, user);
        return;
    }
    while (true) {
        if (all_keys && t->open.block < 0)
            while (take_keys(t, visit, user)) {
            }
        if (!fv_plan_runs_next(&t->runs, &run)) break;
        int64_t key = fv_max(run.key, from), end = fv_min(run.key + run.count, to);
        for (int count; key < end; key += count) {
            int64_t block = key / FV_KEY_TILE;
            count = (int)fv_min((block + 1) * FV_KEY_TILE, end) - (int)key;
            if (block != t->open.block) {
                close_block(t, t->source->fixed, visit, user);
                open_block(t, block);
            }
            take(t, &run, key, count);
        }
        if (run.key >= to) break;
    }
    close_block(t, t->source->fixed, visit, user);
    if (t->count > 0) finish(t, -1, visit, user);
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
