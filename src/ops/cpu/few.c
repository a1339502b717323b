/* Few rows against many keys (decode): logits of a stretch of keys, their softmax, and the weighted sum of values, with
 * keys and values read once and as they are stored.  Bound by the bytes of keys and values where the kernels are not
 * (few_short_tmpl.c). */
#include <math.h>

#include "ops/cpu/attend.h"

enum {
    STRETCH = 1024,
    AHEAD = 8192, /* bytes */
    PARTS = 64,
};

/* Keys that follow each other; `mixed`: some row does not see all of them. */
struct piece {
    int64_t key;
    int at, count;
    bool mixed;
};

struct few {
    const struct attend *attend;
    fv_tiles *tiles;
    const struct attend_part *part;
    const float *normaliser;
    const struct fv_few_kernels *keys, *values; /* how they are read */
    bool pairs;                                 /* of bf16 are what weights become; pieces begin at even places */
    const float *q;                             /* [rows, tiles->q_row], as dots takes it */
    float *logits;                              /* [rows, STRETCH] */
    float *value;                               /* a row of v */
    int count, pieces;
    struct piece piece[PARTS];
};

int64_t fv_attend_few_floats(const struct attend *a)
{
    return FV_FEW_ROWS * (STRETCH + fv_round_up(a->args->q.dims[3], 2 * a->source.kernels->width)) + a->width;
}

static int64_t row_bytes(const fv_tensor *t)
{
    return t->strides[2] / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype);
}

/* The kernels ask for rows AHEAD of where they read; the first ones of a piece are asked for here. */
static void ask(const fv_tensor *t, const void *row, int count)
{
    int64_t bytes = fv_min(count * row_bytes(t), AHEAD);

    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const char *)row + at);
}

/* Adds biases and notes the largest logits; hidden keys have -inf. */
static void finish_logits(struct few *w)
{
    const fv_logits *l = &w->attend->args->logits;
    const fv_tiles *t = w->tiles;
    bool biased = fv_present(&l->bias) || fv_present(&l->offset_bias) || fv_present(&l->row_bias);
    int64_t key[STRETCH];

    if (!biased && !w->part->best) return;
    for (int p = 0; p < w->pieces; p++)
        for (int n = 0; n < w->piece[p].count; n++)
            key[w->piece[p].at + n] = w->piece[p].key + n;
    for (int r = 0; r < t->rows; r++) {
        float *s = w->logits + r * STRETCH, top;
        int n = 0;
        for (int p = 0; biased && p < w->pieces; p++) /* piece by piece: what fills up a pair is no key */
            fv_tiles_add_bias(t, r, key + w->piece[p].at, w->piece[p].count, s + w->piece[p].at);
        if (!w->part->best) continue;
        top = w->attend->source.kernels->largest(w->count, s);
        if (!(top > w->part->best[r])) continue; /* keys ascend, so of equals the first stays */
        while (s[n] != top)
            n++;
        w->part->best[r] = top;
        w->part->best_key[r] = key[n];
    }
}

/* Logits become weights. */
static void weigh(struct few *w, int r)
{
    const struct fv_kernels *kernels = w->attend->source.kernels;
    const fv_tensor *by_key = &w->attend->args->lse_in_key;
    const struct attend_part *part = w->part;
    float *s = w->logits + r * STRETCH, *o = part->o + r * w->attend->width, *total = part->total + r * kernels->width;
    float top;

    if (w->attend->given) {
        const fv_tiles *t = w->tiles;
        float shift = fv_present(by_key) ? 0 : w->normaliser[r];
        for (int p = 0; fv_present(by_key) && p < w->pieces; p++)
            for (int n = w->piece[p].at; n < w->piece[p].at + w->piece[p].count; n++) {
                int64_t key = w->piece[p].key + n - w->piece[p].at;
                float lse = *(const float *)fv_at(by_key, t->b, t->tile.h + r / t->tile.rows, key, 0);
                s[n] = lse == -INFINITY ? -INFINITY : s[n] - lse;
            }
        if (shift == -INFINITY)
            memset(s, 0, (size_t)w->count * sizeof *s);
        else
            kernels->exp(w->count, s, 1, shift, s);
        return;
    }
    top = kernels->largest(w->count, s);
    if (top > part->maximum[r]) {
        float factor = part->maximum[r] == -INFINITY ? 0 : expf(part->maximum[r] - top);
        kernels->map(FV_MAP_COPY, w->attend->width, o, NULL, 0, factor, 0, o);
        kernels->map(FV_MAP_COPY, kernels->width, total, NULL, 0, factor, 0, total);
        part->maximum[r] = top;
    }
    *total += kernels->exp(w->count, s, 1, part->maximum[r] == -INFINITY ? 0 : part->maximum[r], s);
    for (int n = 0; w->attend->args->steps > 0 && n < w->count; n++) {
        float scaled = s[n] * (float)w->attend->args->steps + FV_STEP_SLACK;
        if (scaled >= 0) s[n] = (float)(int)scaled;
    }
}

/* Values of a piece of which not all rows see the same: a weight of 0 must not meet NaN or infinite values. */
static void add_mixed(const struct few *w, const struct piece *piece)
{
    const struct attend *a = w->attend;
    const struct fv_kernels *kernels = a->source.kernels;
    const fv_tensor *v = &a->args->v;
    float *value = w->value;

    for (int n = 0; n < piece->count; n++) {
        fv_kernels_load(kernels, v->dtype, fv_panels_row(v, w->tiles->b, w->tiles->key_head, piece->key + n), 0,
                        v->dims[3], value);
        for (int r = 0; r < w->tiles->rows; r++) {
            const float *row = w->logits + r * STRETCH;
            float *o = w->part->o + r * a->width, weight = row[piece->at + n];
            if (w->pairs) weight = fv_bf16_to_f32(((const uint16_t *)row)[piece->at + n]);
            if (weight != 0) kernels->map(FV_MAP_ADD, v->dims[3], o, value, 1, weight, 0, o);
        }
    }
}

static void flush(struct few *w)
{
    const struct attend *a = w->attend;
    const fv_tensor *v = &a->args->v;

    if (w->count == 0) return;
    finish_logits(w);
    for (int r = 0; r < w->tiles->rows; r++) {
        weigh(w, r);
        if (w->pairs) a->source.kernels->join_pairs(STRETCH, w->logits + r * STRETCH, w->logits + r * STRETCH);
    }
    for (int p = 0; p < w->pieces; p++) {
        const struct piece *piece = &w->piece[p];
        if (piece->mixed)
            add_mixed(w, piece);
        else
            w->values->add(w->tiles->rows, v->dims[3], w->logits + (w->pairs ? piece->at / 2 : piece->at), STRETCH,
                           fv_panels_row(v, w->tiles->b, w->tiles->key_head, piece->key), row_bytes(v), piece->count,
                           w->part->o, a->width);
    }
    w->count = w->pieces = 0;
}

/* Takes keys of a run of which rows see only `bits` (NULL: all keys, but only rows of the run). */
static void mask(struct few *w, const fv_plan_run *run, const uint64_t *bits, int at, int count)
{
    int tokens = w->tiles->tile.rows;
    uint64_t all = count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1, everybody = all;

    for (int token = 0; token < tokens; token++) {
        uint64_t seen = bits ? bits[token] : run->rows >> token & 1 ? all : 0;
        everybody &= seen;
        if (seen == all) continue;
        for (int r = token; r < w->tiles->rows; r += tokens)
            for (int n = 0; n < count; n++)
                if (!(seen >> n & 1)) w->logits[r * STRETCH + at + n] = -INFINITY;
    }
    w->piece[w->pieces - 1].mixed = everybody != all;
}

/* At most FV_KEY_TILE keys where visibility has to be asked for. */
static void take(struct few *w, const fv_plan_run *run, int64_t key, int count, bool whole)
{
    const fv_tensor *k = &w->attend->args->k, *v = &w->attend->args->v;
    const fv_logits *l = &w->attend->args->logits;
    const struct fv_kernels *kernels = w->attend->source.kernels;
    fv_tiles *t = w->tiles;
    float *s = w->logits + w->count;
    uint64_t bits[FV_TILE];

    const void *keys = fv_panels_row(k, t->b, t->key_head, key);
    w->piece[w->pieces++] = (struct piece){key, w->count, count, false};
    ask(k, keys, count);
    w->keys->dots(t->rows, k->dims[3], w->q, t->q_row, keys, row_bytes(k), count, s, STRETCH);
    ask(v, fv_panels_row(v, t->b, t->key_head, key), count);
    for (int r = 0; r < t->rows; r++) {
        if (l->gain != 0 || l->softcap > 0) kernels->curve(count, s + r * STRETCH, l->gain, l->softcap);
        if (run->bias)
            kernels->map(FV_MAP_COPY, count, s + r * STRETCH, NULL, 0, 1, run->bias[r % t->tile.rows], s + r * STRETCH);
    }
    if (!run->whole) fv_plan_bits(&t->runs, run, key, count, bits);
    if (!whole) mask(w, run, run->whole ? NULL : bits, w->count, count);
    w->count += count;
    if (!w->pairs || count % 2 == 0) return;
    for (int r = 0; r < t->rows; r++) /* an odd piece ends with a key that nobody sees */
        w->logits[r * STRETCH + w->count] = -INFINITY;
    w->count++;
}

/* Kernels that round q and weights to 16 bits, where that is allowed and pays. */
static void choose_kernels(struct few *w, int rows)
{
    const struct attend *a = w->attend;
    const struct fv_kernels *kernels = a->source.kernels;
    fv_dtype k = a->args->k.dtype, v = a->args->v.dtype;

    w->keys = &kernels->few[k];
    w->values = &kernels->few[v];
    if (!a->panels.pairs) return;
    if (rows >= kernels->few_short[k].dots_rows) w->keys = &kernels->few_short[k];
    if (rows >= kernels->few_short[v].add_rows) w->values = &kernels->few_short[v];
}

void fv_attend_few(const struct attend *a, fv_tiles *tiles, const struct attend_part *part, const float *normaliser,
                   float *logits, int64_t from, int64_t to)
{
    struct few w = {.attend = a, .tiles = tiles, .part = part, .normaliser = normaliser, .logits = logits};
    uint64_t everybody = tiles->tile.rows == 64 ? UINT64_MAX : ((uint64_t)1 << tiles->tile.rows) - 1;
    fv_plan_run run;

    fv_tiles_begin(tiles);
    w.value = logits + FV_FEW_ROWS * (STRETCH + tiles->q_row);
    choose_kernels(&w, tiles->rows);
    w.pairs = w.values->pairs;
    w.q = tiles->q;
    if (w.keys->query) {
        w.q = logits + FV_FEW_ROWS * STRETCH;
        for (int64_t r = 0, at = 0; r < tiles->rows; r++, at += tiles->q_row)
            w.keys->query(tiles->q_row, tiles->q + at, (float *)w.q + at);
    }
    while (fv_plan_runs_next(&tiles->runs, &run)) {
        int64_t key = fv_max(run.key, from), end = fv_min(run.key + run.count, to);
        bool whole = run.whole && (run.rows & everybody) == everybody;
        for (int count; key < end; key += count) {
            count = (int)fv_min(fv_min(end - key, STRETCH - w.count), whole ? STRETCH : FV_KEY_TILE);
            take(&w, &run, key, count, whole);
            if (w.count >= STRETCH || w.pieces == PARTS) flush(&w);
        }
        if (run.key >= to) break;
    }
    flush(&w);
}
