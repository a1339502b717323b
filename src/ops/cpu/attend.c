/* Softmax attention over a plan: tiles of up to 256 rows (all query heads of a key-value head) stream over tiles of
 * FV_KEY_TILE keys with a running maximum, both products by the micro-kernel: in bf16 pairs where the context's
 * precision allows, else in f32.  Bound by flops, 2 pairs (D + Dv): 8 heads of 4096 tokens reach 68 to 83 % of the FMA
 * peak (causal 70 to 78 %) and 60 to 83 % of the bf16 dot peak (causal 58 to 78 %), as much of the caches as neighbours
 * leave.
 *
 * Where there are few tiles the keys are cut into pieces of a size that depends on the shape alone, and the pieces are
 * merged by log-sum-exp in their order, so that results do not depend on the number of threads.
 *
 * Normalisers that are given take the place of the running maximum.  Selected rows of the weights are computed in a
 * second walk, from the log-sum-exp of the first. */
#include "ops/cpu/attend.h"

#include <math.h>

#include "ops/cpu/cpu.h"

enum {
    FEW_ITEMS = 32,
    PIECES = 48,
    LEAST_PIECE = 256,
    LEAST_BYTES = 448 << 10,
    PANEL_BYTES = 32 << 20,
    STRIP_BYTES = 8 << 20
};

struct visit {
    const struct attend *attend;
    struct attend_part part;
    const float *normaliser;
};

/* Raises the largest logits; of equals the lowest key stays. */
static void note_best(const struct fv_kernels *kernels, const fv_tiles *t, const struct attend_part *part)
{
    for (int r = 0; r < t->rows; r++) {
        uint64_t bits = t->bits[r % t->tile.rows];
        const float *s = t->logits + r * FV_KEY_TILE;
        float visible[FV_KEY_TILE], top;
        int n = 0;
        if (!bits) continue;
        for (int i = 0; bits != UINT64_MAX && i < FV_KEY_TILE; i++)
            visible[i] = bits >> i & 1 ? s[i] : -INFINITY;
        if (bits != UINT64_MAX) s = visible;
        top = kernels->largest(FV_KEY_TILE, s);
        if (!(top >= part->best[r]) || top == -INFINITY) continue;
        while (s[n] != top)
            n++;
        if (top == part->best[r] && t->key[n] > part->best_key[r]) continue;
        part->best[r] = top;
        part->best_key[r] = t->key[n];
    }
}

/* o += weights v, key by key, leaving out what is hidden: a weight of 0 must not meet NaN or infinite values. */
static void add_visible(const struct attend *a, const fv_tiles *t, float *o)
{
    const struct fv_kernels *kernels = a->source.kernels;
    const fv_tensor *v = &a->args->v;

    for (int n = 0; n < t->count; n++) {
        fv_kernels_load(kernels, v->dtype, fv_panels_row(v, t->b, t->key_head, t->key[n]), 0, v->dims[3], t->staging);
        for (int r = 0; r < t->rows; r++) {
            const float *row = t->logits + r * FV_KEY_TILE;
            float weight = row[n];
            if (!(t->bits[r % t->tile.rows] >> n & 1)) continue;
            if (t->own.pairs) weight = fv_bf16_to_f32(((const uint16_t *)row)[n]);
            kernels->map(FV_MAP_ADD, v->dims[3], o + r * a->width, t->staging, 1, weight, 0, o + r * a->width);
        }
    }
}

/* o += weights v for the n-th step of rows, over the keys that they see. */
static void add_values(const struct attend *a, const fv_tiles *t, int n, const float *weights, float *o)
{
    const struct fv_kernels *kernels = a->source.kernels;
    fv_tile_fn *tile = t->own.pairs ? kernels->tile_bf16 : kernels->tile;
    int columns = kernels->tile_columns, together = t->own.pairs ? 2 : 1, rows, from, to;
    uint64_t seen = fv_tiles_seen(t, n);

    rows = (int)fv_min(t->step, t->rows - n * t->step);
    from = __builtin_ctzll(seen) / together;
    to = (64 - __builtin_clzll(seen) + together - 1) / together;
    for (int64_t d = 0; d < a->width; d += columns)
        tile(rows, to - from, weights + from, FV_KEY_TILE, 1,
             t->panels.values + d * (FV_KEY_TILE / together) + from * columns, columns, o + d, a->width, true);
}

/* Logits of the n-th step of rows become weights, with all terms of deferred logits added. */
static void weigh(const struct attend *a, const fv_tiles *t, int n, const struct attend_part *part, float *s)
{
    int first = n * t->step, end = (int)fv_min(t->rows, first + t->step);
    struct fv_softmax_step step = {.rows = end - first, .tokens = t->tile.rows, .to = FV_KEY_TILE};
    uint64_t seen = fv_tiles_seen(t, n);

    step.pairs = t->own.pairs;
    step.o_row = a->width;
    step.steps = (float)a->args->steps;
    if (!(seen & UINT32_MAX)) step.from = FV_KEY_TILE / 2;
    if (!(seen >> 32)) step.to = FV_KEY_TILE / 2;
    for (int r = first; r < end; r += step.rows) {
        if (t->deferred) step.rows = fv_tiles_terms(t, r, end - r, &step);
        step.bits = t->bits;
        step.token = r % t->tile.rows;
        step.s = s + (r - first) * FV_KEY_TILE;
        step.maximum = part->maximum + r;
        step.total = part->total + r * a->source.kernels->width;
        step.o = part->o + r * a->width;
        a->source.kernels->softmax_tile(&step);
    }
}

/* A step of rows goes through all of it while its logits are in the first-level cache. */
static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const struct attend *a = visit->attend;
    const struct fv_kernels *kernels = a->source.kernels;
    const struct attend_part *part = &visit->part;
    bool together = t->whole || t->panels.finite;

    if (part->best) note_best(kernels, t, part);
    if (a->given) fv_tiles_normalise(t, visit->normaliser, &a->args->lse_in_key);
    for (int n = 0, r = 0; r < t->rows; n++, r += t->step) {
        float *s = t->logits + (t->deferred && together ? 0 : r * FV_KEY_TILE);
        if (!fv_tiles_seen(t, n)) continue;
        if (t->deferred) fv_tiles_products(t, n, s);
        if (!a->given) weigh(a, t, n, part, s);
        for (int i = r; a->given && t->own.pairs && i < fv_min(r + t->step, t->rows); i++)
            kernels->join_pairs(FV_KEY_TILE, t->logits + i * FV_KEY_TILE, t->logits + i * FV_KEY_TILE);
        if (together) add_values(a, t, n, s, part->o + r * a->width);
    }
    if (!together) add_visible(a, t, part->o);
}

static float total_of(const struct attend *a, const struct attend_part *part, int64_t r)
{
    return a->source.kernels->sum(a->source.kernels->width, part->total + r * a->source.kernels->width);
}

static void set_total(const struct attend *a, const struct attend_part *part, int64_t r, float total)
{
    float *lanes = part->total + r * a->source.kernels->width;

    memset(lanes, 0, (size_t)a->source.kernels->width * sizeof *lanes);
    lanes[0] = total;
}

/* Writes o and lse of an item from its first part. */
static void write_rows(const struct attend *a, const fv_plan_tile *tile, const struct attend_part *part)
{
    const fv_tensor *o = &a->args->o, *lse = &a->lse, *best = &a->args->row_max, *best_key = &a->args->arg_max;

    for (int64_t r = 0, token = 0, h = tile->h; r < tile->rows * a->view->share; r++) {
        int64_t row = tile->row[token];
        float total = a->given ? 1 : total_of(a, part, r), scale = total > 0 ? 1 / total : 0;
        if (a->args->steps > 0) scale /= (float)a->args->steps;
        a->source.kernels->map(FV_MAP_COPY, o->dims[3], part->o + r * a->width, NULL, 0, scale, 0,
                               fv_at(o, tile->b, h, row, 0));
        if (fv_present(lse))
            *(float *)fv_at(lse, tile->b, h, row, 0) = total > 0 ? part->maximum[r] + logf(total) : -INFINITY;
        if (fv_present(best)) *(float *)fv_at(best, tile->b, h, row, 0) = part->best[r];
        if (fv_present(best_key)) *(int32_t *)fv_at(best_key, tile->b, h, row, 0) = (int32_t)part->best_key[r];
        if (++token == tile->rows) token = 0, h++;
    }
}

static void begin_part(const struct attend *a, const fv_plan_tile *tile, const struct attend_part *part, bool first)
{
    const fv_tensor *sinks = &a->args->sinks;

    memset(part->o, 0, (size_t)(a->rows * a->width) * sizeof *part->o);
    for (int64_t r = 0; r < tile->rows * a->view->share; r++) {
        part->maximum[r] = -INFINITY;
        if (first && fv_present(sinks))
            part->maximum[r] = ((const float *)sinks->data)[(tile->h + r / tile->rows) * sinks->strides[0]];
        if (a->given) part->maximum[r] = 0; /* parts are summed as they are */
        set_total(a, part, r, part->maximum[r] > -INFINITY ? 1 : 0);
        if (!part->best) continue;
        part->best[r] = -INFINITY;
        part->best_key[r] = -1;
    }
}

/* What normalises the rows of a tile where it was computed or given by row. */
static void load_normaliser(const struct attend *a, const fv_plan_tile *tile, float *out)
{
    const fv_tensor *lse = fv_present(&a->args->lse_in) ? &a->args->lse_in : &a->lse;

    for (int64_t r = 0; fv_present(lse) && r < tile->rows * a->view->share; r++)
        out[r] = *(float *)fv_at(lse, tile->b, tile->h + r / tile->rows, tile->row[r % tile->rows], 0);
}

static void ask_rows(const struct attend *a, const fv_tensor *t, const fv_plan_tile *tile, const int64_t *row)
{
    for (int64_t h = tile->h; h < tile->h + a->view->share; h++)
        for (int r = 0; r < tile->rows; r++) {
            const float *at = fv_at(t, tile->b, h, row[r], 0);
            for (int64_t n = 0; n < t->dims[3]; n += 64 / (int64_t)sizeof *at)
                __builtin_prefetch(at + n, 0, 2); /* into the second level */
        }
}

/* Asks for o and the next tile's q where tiles are patches: what lies apart is slow to come, and there is little else
 * to do. */
static void ask_ahead(const struct attend *a, const fv_plan_tile *tile, int64_t item)
{
    fv_plan_tile next;

    if (!a->panels.strips) return;
    ask_rows(a, &a->args->o, tile, tile->row);
    if (item == a->first_item) return;
    fv_plan_tile_at(a->view, item - 1, &next);
    ask_rows(a, &a->args->q, &next, next.query);
}

/* Whoever is done with the last piece of an item merges all of them, in their order. */
static void merge_parts(const struct attend *a, int64_t item, const fv_plan_tile *tile)
{
    struct attend_part *parts = a->part + item * a->pieces;

    for (int64_t r = 0; r < tile->rows * a->view->share; r++) {
        float top = -INFINITY, total = 0, *o = parts[0].o + r * a->width;
        for (int64_t p = 0; p < a->pieces; p++)
            top = fmaxf(top, parts[p].maximum[r]);
        for (int64_t p = 1; parts[0].best && p < a->pieces; p++)
            if (parts[p].best[r] > parts[0].best[r]) {
                parts[0].best[r] = parts[p].best[r];
                parts[0].best_key[r] = parts[p].best_key[r];
            }
        for (int64_t p = 0; p < a->pieces; p++) {
            float own = total_of(a, &parts[p], r), factor = own > 0 ? expf(parts[p].maximum[r] - top) : 0;
            total += factor * own;
            if (p == 0)
                a->source.kernels->map(FV_MAP_COPY, a->width, o, NULL, 0, factor, 0, o);
            else if (factor > 0)
                a->source.kernels->map(FV_MAP_ADD, a->width, o, parts[p].o + r * a->width, 1, factor, 0, o);
        }
        parts[0].maximum[r] = top;
        set_total(a, &parts[0], r, total);
    }
    write_rows(a, tile, &parts[0]);
}

static void attend_item(void *user, int64_t index, int thread)
{
    const struct attend *a = user;
    /* tiles of a causal plan grow towards the end: big ones first */
    int64_t item = a->end_item - 1 - index / a->pieces, piece = index % a->pieces;
    int64_t from = a->pieces > 1 ? a->cut[item * (a->pieces + 1) + piece] : 0;
    int64_t to = a->pieces > 1 ? a->cut[item * (a->pieces + 1) + piece + 1] : a->view->keys;
    struct visit visit = {a, a->part[a->pieces > 1 ? item * a->pieces + piece : thread], a->normaliser[thread]};
    fv_tiles *tiles = &a->tiles[thread];

    fv_plan_tile_at(a->view, item, &tiles->tile);
    begin_part(a, &tiles->tile, &visit.part, piece == 0);
    if (a->given) load_normaliser(a, &tiles->tile, a->normaliser[thread]);
    ask_ahead(a, &tiles->tile, item);
    if (tiles->tile.rows * a->view->share <= FV_FEW_ROWS && !a->source.fixed)
        fv_attend_few(a, tiles, &visit.part, visit.normaliser, a->few[thread], from, to);
    else
        fv_tiles_walk_rows(tiles, from, to, add_tile, &visit);
    if (a->pieces == 1)
        write_rows(a, &tiles->tile, &visit.part);
    else if (atomic_fetch_add_explicit(&a->done[item], 1, memory_order_acq_rel) + 1 == a->pieces)
        merge_parts(a, item, &tiles->tile);
}

/* ---- selected rows of the weights ------------------------------------------------------------------------------ */

struct weights {
    const struct attend *attend;
    int64_t cuts; /* of the selected rows, each a tile */
};

struct weights_visit {
    const struct attend *attend;
    const float *normaliser;
    int64_t first; /* row of weights that the tile's first goes to */
};

static void write_weights(void *user, fv_tiles *t)
{
    const struct weights_visit *visit = user;
    const fv_attend_args *args = visit->attend->args;
    const fv_tensor *out = &args->weights;

    fv_tiles_normalise(t, visit->normaliser, &args->lse_in_key);
    for (int r = 0; r < t->rows; r++) {
        float *to = fv_at(out, t->b, t->tile.h + r / t->tile.rows, visit->first + r % t->tile.rows, 0);
        for (int n = 0; n < t->count; n++)
            to[(t->key[n] - args->weight_from) * out->strides[3]] = t->logits[r * FV_KEY_TILE + n];
    }
}

static void weights_item(void *user, int64_t index, int thread)
{
    const struct weights *w = user;
    const struct attend *a = w->attend;
    const fv_plan_view *view = a->view;
    const fv_tensor *out = &a->args->weights;
    fv_tiles *tiles = &a->tiles[thread];
    fv_plan_tile *tile = &tiles->tile;
    int64_t groups = view->heads / view->share, group = index / w->cuts;
    struct weights_visit visit = {a, a->normaliser[thread], index % w->cuts * view->tile_rows};

    tile->b = group / groups;
    tile->h = group % groups * view->share;
    tile->rows = (int)fv_min(view->tile_rows, out->dims[2] - visit.first);
    tile->line = 0;
    for (int r = 0; r < tile->rows; r++) {
        tile->row[r] = a->args->weight_rows ? a->args->weight_rows[visit.first + r] : visit.first + r;
        tile->query[r] = fv_plan_query(view->plan, view->heads, tile->b, tile->h, tile->row[r]);
        for (int64_t h = tile->h; h < tile->h + view->share; h++)
            for (int64_t n = 0; n < out->dims[3]; n++)
                *(float *)fv_at(out, tile->b, h, visit.first + r, n) = 0;
    }
    load_normaliser(a, tile, a->normaliser[thread]);
    fv_tiles_walk_rows(tiles, a->args->weight_from, a->args->weight_from + out->dims[3], write_weights, &visit);
}

/* Keys from f32 and in order, as the walk gives them without panels. */
static fv_status write_all_weights(fv_ctx *ctx, struct attend *a)
{
    struct weights w = {a, fv_ceil_div(a->args->weights.dims[2], a->view->tile_rows)};

    a->source.panels = NULL;
    for (int t = 0; t < fv_ctx_threads(ctx); t++)
        FV_TRY(fv_tiles_new(ctx, &a->source, 0, &a->tiles[t]));
    fv_run(ctx, a->args->q.dims[0] * (a->view->heads / a->view->share) * w.cuts, weights_item, &w);
    return FV_OK;
}

/* ---------------------------------------------------------------------------------------------------------------- */

static fv_status take_memory(fv_ctx *ctx, struct attend *a)
{
    int64_t threads = fv_ctx_threads(ctx), parts = a->pieces > 1 ? a->view->items * a->pieces : threads;
    bool best = fv_present(&a->args->row_max) || fv_present(&a->args->arg_max);

    FV_TRY(FV_SCRATCH(ctx, a->tiles, threads));
    FV_TRY(FV_SCRATCH(ctx, a->few, threads));
    FV_TRY(FV_SCRATCH(ctx, a->normaliser, threads));
    FV_TRY(FV_SCRATCH(ctx, a->part, parts));
    for (int64_t t = 0; t < threads; t++) {
        FV_TRY(fv_tiles_new(ctx, &a->source, a->width, &a->tiles[t]));
        a->tiles[t].deferred = !a->given && !best;
        FV_TRY(FV_SCRATCH(ctx, a->few[t], fv_attend_few_floats(a)));
        FV_TRY(FV_SCRATCH(ctx, a->normaliser[t], a->view->share * a->view->tile_rows));
    }
    for (int64_t p = 0; p < parts; p++) {
        FV_TRY(FV_SCRATCH(ctx, a->part[p].o, a->rows * a->width));
        FV_TRY(FV_SCRATCH(ctx, a->part[p].maximum, a->rows));
        FV_TRY(FV_SCRATCH(ctx, a->part[p].total, a->rows * a->source.kernels->width));
        a->part[p].best = NULL;
        if (!best) continue;
        FV_TRY(FV_SCRATCH(ctx, a->part[p].best, a->rows));
        FV_TRY(FV_SCRATCH(ctx, a->part[p].best_key, a->rows));
    }
    return FV_OK;
}

static bool is_fast(const fv_attend_args *args)
{
    return fv_cpu_rows_together(&args->q) && fv_cpu_rows_together(&args->k) && fv_cpu_rows_together(&args->v) &&
           fv_cpu_rows_together(&args->o);
}

static bool is_half(const fv_tensor *t)
{
    return fv_dtype_block(t->dtype) > 1 || fv_dtype_size(t->dtype) <= 2;
}

bool fv_attend_takes_pairs(const fv_ctx *ctx, const struct fv_kernels *kernels, const fv_attend_args *args)
{
    if (!kernels->tile_bf16 || ctx->precision == FV_PRECISION_F32) return false;
    return ctx->precision == FV_PRECISION_BF16 || (is_half(&args->k) && is_half(&args->v));
}

/* Spans of keys of an item, and their keys in all. */
static int64_t spans_of(const struct attend *a, int64_t item, fv_plan_tile *tile, fv_plan_runs *runs)
{
    int64_t keys = 0;

    fv_plan_tile_at(a->view, item, tile);
    fv_plan_runs_begin(runs, a->view, tile);
    for (int n = 0; n < runs->spans; n++)
        keys += runs->span[n].to - runs->span[n].from;
    return keys;
}

static int64_t bytes_of_row(const fv_tensor *t)
{
    return fv_max(fv_ceil_div(t->dims[3], fv_dtype_block(t->dtype)), 1) * (int64_t)fv_dtype_block_bytes(t->dtype);
}

/* Cuts the keys that each of a few items sees into pieces of about the same number. */
static fv_status cut_keys(fv_ctx *ctx, struct attend *a)
{
    int64_t items = a->view->items, longest = 0, piece, least;
    fv_plan_tile tile;
    fv_plan_runs runs;

    a->pieces = 1;
    if (items >= FEW_ITEMS || a->source.fixed) return FV_OK;
    for (int64_t item = 0; item < items; item++)
        longest = fv_max(longest, spans_of(a, item, &tile, &runs));
    /* of tiles, whose results are large, not many more than even threads out; of a step's few rows so many bytes that
     * beginning to read them is little beside */
    least = a->rows > FV_FEW_ROWS ? LEAST_PIECE : LEAST_BYTES / (bytes_of_row(&a->args->k) + bytes_of_row(&a->args->v));
    piece = fv_max(fv_ceil_div(longest * items, PIECES), least);
    if (longest < 2 * piece) return FV_OK;
    piece = fv_round_up(fv_ceil_div(longest, fv_ceil_div(longest, piece)), FV_KEY_TILE);
    a->pieces = fv_ceil_div(longest, piece);
    FV_TRY(FV_SCRATCH(ctx, a->cut, items * (a->pieces + 1)));
    FV_TRY(FV_SCRATCH(ctx, a->done, items));
    for (int64_t item = 0; item < items; item++)
        atomic_init(&a->done[item], 0);
    for (int64_t item = 0; item < items; item++) {
        int64_t *cut = a->cut + item * (a->pieces + 1), before = 0, p = 1;
        spans_of(a, item, &tile, &runs);
        cut[0] = 0;
        for (int n = 0; n < runs.spans; n++) {
            int64_t keys = runs.span[n].to - runs.span[n].from;
            for (; p < a->pieces && p * piece < before + keys; p++)
                cut[p] = runs.span[n].from + p * piece - before;
            before += keys;
        }
        for (; p <= a->pieces; p++)
            cut[p] = a->view->keys;
    }
    return FV_OK;
}

/* Panels are held where a head has several tiles of queries; of as many heads at a time as memory is meant to take. */
static fv_status hold_panels(fv_ctx *ctx, struct attend *a)
{
    const fv_panel_store *p = &a->panels;
    const fv_lists *lists = &a->view->plan->lists;
    bool astride = lists->key_start || lists->key_block % FV_KEY_TILE != 0; /* key blocks lie across panels */
    int64_t heads = p->k.dims[0] * p->k.dims[1], bytes;

    if (fv_plan_gathers(a->view->plan) && astride && !a->source.fixed) return FV_OK;

    if (heads == 0 || p->blocks == 0 || (a->rows <= FV_FEW_ROWS && !a->source.fixed) || a->view->items < 2 * heads)
        return FV_OK;
    if (a->view->strips > 0 && a->pieces == 1) fv_panels_follow(&a->panels, a->view);
    bytes = p->blocks * (p->key_floats + p->value_floats) * (int64_t)sizeof(float);
    return fv_panels_hold(ctx, &a->panels, fv_clamp((p->strips ? STRIP_BYTES : PANEL_BYTES) / bytes, 1, heads));
}

/* Gives slots to the heads of items from `first` on; the first item that finds none. */
static int64_t next_round(struct attend *a, int64_t first)
{
    const fv_plan_view *view = a->view;
    int64_t groups = view->heads / view->share, used = 0;
    int64_t step = fv_max(view->heads / fv_max(a->args->k.dims[1], 1), 1);

    fv_panels_clear(&a->panels);
    for (int64_t n = 0; n < view->batch * groups; n++) {
        int64_t from, to, h = n % groups * view->share;
        int64_t key_head = a->args->key_head ? a->args->key_head[h] : h / step;
        int32_t *slot = &a->panels.slot[n / groups * a->args->k.dims[1] + key_head];
        fv_tiles_group(view, n, &from, &to);
        if (from < first) continue;
        if (*slot < 0 && used == a->panels.slots) return from;
        if (*slot < 0) *slot = (int32_t)used++;
    }
    return view->items;
}

static void run_items(fv_ctx *ctx, struct attend *a)
{
    a->first_item = 0;
    a->end_item = a->view->items;
    if (a->panels.slots == 0) {
        fv_run(ctx, a->view->items * a->pieces, attend_item, a);
        return;
    }
    for (; a->first_item < a->view->items; a->first_item = a->end_item) {
        a->end_item = next_round(a, a->first_item);
        fv_run(ctx, (a->end_item - a->first_item) * a->pieces, attend_item, a);
    }
}

fv_status fv_cpu_attend(fv_ctx *ctx, const fv_attend_args *args)
{
    int64_t B = args->q.dims[0], H = args->q.dims[1], N = args->q.dims[2], M = args->k.dims[2], tile_rows, share;
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    fv_plan_view view;
    struct attend a = {.args = args, .view = &view, .lse = args->lse};
    fv_status status;

    if (!is_fast(args)) return fv_backend_ref.attend(ctx, args);
    share = fv_tiles_share(args->plan, H, args->k.dims[1], args->key_head, &tile_rows);
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, share, tile_rows, N, M, &view));
    fv_panels_open(kernels, &args->k, &args->v, fv_attend_takes_pairs(ctx, kernels, args), &a.panels);
    a.source = (fv_tiles_source){kernels,       args->q,        args->k,
                                 &args->logits, args->key_head, &view,
                                 false,         &a.panels,      ctx->batching == FV_BATCH_PROMPT};
    a.given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    if (fv_present(&args->weights) && !a.given && !fv_present(&a.lse))
        FV_TRY_DONE(fv_tensor_new(ctx, &a.lse, FV_F32, FV_DIMS(B, H, args->o.dims[2])));
    a.rows = share * fv_min(tile_rows, fv_max(N, 1));
    a.width = a.panels.width;
    FV_TRY_DONE(cut_keys(ctx, &a));
    if (fv_plan_gathers(args->plan)) a.rows = share * tile_rows;
    FV_TRY_DONE(hold_panels(ctx, &a));
    FV_TRY_DONE(take_memory(ctx, &a));
    run_items(ctx, &a);
    if (fv_present(&args->weights)) FV_TRY_DONE(write_all_weights(ctx, &a));
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
