/* The walk over the keys that a tile's rows see: blocks of them are tiles of their own, others are packed together. */
#include "ops/cpu/tiles.h"

enum { LEAST_KEYS = 40 }; /* of a block, for it to be a tile of its own */

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

    t->whole = t->common == fv_first_bits(t->count);
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
    bool valued = t->own.v.data;

    note_seen(t);
    if (t->seen) {
        if (fv_tiles_few(t)) {
            fv_tiles_dots(t);
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
        if (!t->deferred) fv_tiles_transform(t);
        visit(user, t);
    }
    clear(t);
}

/* Puts `count` keys of the open block, from place `from` on, behind those the tile has. */
static void pack(fv_tiles *t, int from, int count)
{
    uint64_t all = fv_first_bits(count);

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
    for (int from = 0; keys; keys &= ~fv_first_bits(from)) {
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
    uint64_t bits[FV_TILE], everybody = fv_first_bits(t->tile.rows), seen = 0;
    int from = (int)(key - t->open.block * FV_KEY_TILE);
    uint64_t all = fv_first_bits(count) << from;

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

/* A tile on a grid whose strips are held. */
static void walk_strip(fv_tiles *t, fv_tiles_fn *visit, void *user)
{
    const fv_plan_view *view = t->source->view;
    fv_plan_strip strip;

    fv_plan_strip_of(view, &t->tile, &strip);
    for (int64_t block = strip.block; block < strip.end; block++) {
        t->count = fv_plan_strip_keys(view, block, t->key);
        fv_plan_strip_bits(&strip, block, t->bits);
        t->common = fv_first_bits(t->count);
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
        t->common |= fv_first_bits(count) << t->count;
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
    if (fv_tiles_on_strip(t)) {
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
