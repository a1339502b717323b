/* Logits of tiles: what is added to products and becomes of them, for the softmax at once or row by row. */
#include <math.h>

#include "ops/cpu/tiles.h"
#include "ops/logits.h"

enum { TOGETHER = 8 }; /* terms of a bias that are worth a call of a kernel */

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
        length = fv_tiles_stretch(key + n, count - n);
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
            if (!(t->bits[r % t->tile.rows + m] >> n & fv_first_bits(length))) continue;
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
    if (fv_tiles_stretch(t->key, t->count) < t->count || t->tile.query[tokens - 1] - t->tile.query[0] != tokens - 1)
        return false;
    for (int r = 1; r < tokens; r++)
        if (t->tile.query[r] != t->tile.query[r - 1] + 1) return false;
    for (int r = 0; r < t->rows; r += tokens)
        t->source->kernels->add_rows(tokens, t->count, t->logits + r * FV_KEY_TILE,
                                     fv_at(&l->bias, t->b, t->tile.h + r / tokens, t->tile.query[0], t->key[0]),
                                     l->bias.strides[2]);
    return true;
}

void fv_tiles_transform(fv_tiles *t)
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
    bool joined = fv_tiles_stretch(t->key, t->count) == t->count;
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
