/* Softmax attention over a plan: tiles of up to ROWS rows (all query heads of a key-value head) stream over tiles of
 * FV_KEY_TILE keys with a running maximum, both products by the micro-kernel.  Bound by flops: 2 pairs (D + Dv).
 *
 * Where there are few tiles (decode) the keys are cut into pieces of a size that depends on the shape alone, and the
 * pieces are merged by log-sum-exp in their order, so that results do not depend on the number of threads.
 *
 * Normalisers that are given take the place of the running maximum.  Selected rows of the weights are computed in a
 * second walk, from the log-sum-exp of the first. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/tiles.h"

enum { FEW_ITEMS = 32, PIECE_KEYS = 512 };

/* Unnormalised result of the rows of an item over a piece of the keys. */
struct part {
    float *o; /* [rows, width] */
    float *maximum, *total;
    float *best; /* largest logit, NULL if nobody asks */
    int64_t *best_key;
};

struct attend {
    const fv_attend_args *args;
    const fv_plan_view *view;
    bool given; /* the normaliser is */
    fv_tensor lse;
    fv_tiles_source source;
    fv_tiles *tiles;     /* per thread */
    float **values;      /* per thread: rows of v on their way */
    float **normaliser;  /* per thread: of a tile's rows */
    struct part *part;   /* per item and piece, or per thread where there is one piece */
    int64_t rows, width; /* of a part; width is Dv rounded up to whole micro-tiles */
    int64_t pieces;
};

struct visit {
    const struct attend *attend;
    struct part part;
    float *values;
    const float *normaliser;
};

/* Raises the largest logits; keys ascend, so of equals the first stays. */
static void note_best(const struct fv_kernels *kernels, const fv_tiles *t, const struct part *part)
{
    for (int r = 0; r < t->rows; r++) {
        uint64_t bits = t->bits[r % t->tile.rows];
        float *s = t->logits + r * FV_KEY_TILE, top;
        int n = 0;
        if (!bits) continue;
        for (int hidden = 0; bits != UINT64_MAX && hidden < FV_KEY_TILE; hidden++)
            if (!(bits >> hidden & 1)) s[hidden] = -INFINITY;
        top = kernels->largest(FV_KEY_TILE, s);
        if (!(top > part->best[r])) continue;
        while (s[n] != top)
            n++;
        part->best[r] = top;
        part->best_key[r] = t->key[n];
    }
}

static bool all_finite(const float *x, int64_t count)
{
    const int32_t infinity = 0x7f800000;
    int32_t largest = 0;

    for (int64_t n = 0; n < count; n++) {
        int32_t bits;
        memcpy(&bits, x + n, sizeof bits);
        bits &= INT32_MAX;
        largest = bits > largest ? bits : largest;
    }
    return largest < infinity;
}

/* Whether weights of 0 may stand for keys that a row does not see: not beside NaN or infinite values. */
static bool hides_by_zeros(const fv_tiles *t, const float *v, int64_t row, int64_t width)
{
    uint64_t seen = UINT64_MAX, all = t->count == 64 ? UINT64_MAX : ((uint64_t)1 << t->count) - 1;

    for (int r = 0; r < t->tile.rows; r++)
        seen &= t->bits[r];
    for (int n = 0; (seen & all) != all && n < t->count; n++)
        if (!all_finite(v + n * row, width)) return false;
    return true;
}

/* o += weights v, key by key, leaving out what is hidden. */
static void add_visible(const struct attend *a, const fv_tiles *t, const float *v, int64_t row, float *o)
{
    for (int r = 0; r < t->rows; r++)
        for (int n = 0; n < t->count; n++)
            if (t->bits[r % t->tile.rows] >> n & 1)
                a->source.kernels->map(FV_MAP_ADD, a->width, o + r * a->width, v + n * row, 1,
                                       t->logits[r * FV_KEY_TILE + n], 0, o + r * a->width);
}

static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const struct attend *a = visit->attend;
    const struct fv_kernels *kernels = a->source.kernels;
    int64_t row;
    const float *v = fv_tiles_rows(t, &a->args->v, a->width, visit->values, &row);

    if (visit->part.best) note_best(kernels, t, &visit->part);
    if (a->given)
        fv_tiles_normalise(t, visit->normaliser, &a->args->lse_in_key);
    else
        kernels->online_softmax(t->rows, t->tile.rows, t->bits, t->logits, visit->part.maximum, visit->part.total,
                                visit->part.o, a->width);
    if (!hides_by_zeros(t, v, row, a->args->v.dims[3])) {
        add_visible(a, t, v, row, visit->part.o);
        return;
    }
    for (int r = 0; r < t->rows; r += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, t->rows - r);
        if (!fv_tiles_any(t, r, rows)) continue;
        for (int64_t d = 0; d < a->width; d += kernels->tile_columns)
            kernels->tile(rows, t->count, t->logits + r * FV_KEY_TILE, FV_KEY_TILE, 1, v + d, row,
                          visit->part.o + r * a->width + d, a->width, true);
    }
}

/* Writes o and lse of an item from its first part. */
static void write_rows(const struct attend *a, const fv_plan_tile *tile, const struct part *part)
{
    const fv_tensor *o = &a->args->o, *lse = &a->lse, *best = &a->args->row_max, *best_key = &a->args->arg_max;

    for (int64_t r = 0; r < tile->rows * a->view->share; r++) {
        int64_t h = tile->h + r / tile->rows, row = tile->row[r % tile->rows];
        float total = a->given ? 1 : part->total[r], scale = total > 0 ? 1 / total : 0;
        a->source.kernels->map(FV_MAP_COPY, o->dims[3], part->o + r * a->width, NULL, 0, scale, 0,
                               fv_at(o, tile->b, h, row, 0));
        if (fv_present(lse))
            *(float *)fv_at(lse, tile->b, h, row, 0) = total > 0 ? part->maximum[r] + logf(total) : -INFINITY;
        if (fv_present(best)) *(float *)fv_at(best, tile->b, h, row, 0) = part->best[r];
        if (fv_present(best_key)) *(int32_t *)fv_at(best_key, tile->b, h, row, 0) = (int32_t)part->best_key[r];
    }
}

static void begin_part(const struct attend *a, const fv_plan_tile *tile, const struct part *part, bool first)
{
    const fv_tensor *sinks = &a->args->sinks;

    memset(part->o, 0, (size_t)(a->rows * a->width) * sizeof *part->o);
    for (int64_t r = 0; r < tile->rows * a->view->share; r++) {
        part->maximum[r] = -INFINITY;
        if (first && fv_present(sinks))
            part->maximum[r] = ((const float *)sinks->data)[(tile->h + r / tile->rows) * sinks->strides[0]];
        if (a->given) part->maximum[r] = 0; /* parts are summed as they are */
        part->total[r] = part->maximum[r] > -INFINITY ? 1 : 0;
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

static void attend_item(void *user, int64_t index, int thread)
{
    const struct attend *a = user;
    /* tiles of a causal plan grow towards the end: big ones first */
    int64_t item = a->view->items - 1 - index / a->pieces, piece = index % a->pieces;
    int64_t from = piece * PIECE_KEYS, to = a->pieces > 1 ? from + PIECE_KEYS : a->view->keys;
    struct visit visit = {a, a->part[a->pieces > 1 ? item * a->pieces + piece : thread], a->values[thread],
                          a->normaliser[thread]};
    fv_tiles *tiles = &a->tiles[thread];

    fv_plan_tile_at(a->view, item, &tiles->tile);
    begin_part(a, &tiles->tile, &visit.part, piece == 0);
    if (a->given) load_normaliser(a, &tiles->tile, a->normaliser[thread]);
    fv_tiles_walk(tiles, item, from, to, add_tile, &visit);
    if (a->pieces == 1) write_rows(a, &tiles->tile, &visit.part);
}

static void merge_item(void *user, int64_t item, int thread)
{
    const struct attend *a = user;
    struct part *parts = a->part + item * a->pieces;
    fv_plan_tile tile;

    (void)thread;
    fv_plan_tile_at(a->view, item, &tile);
    for (int64_t r = 0; r < tile.rows * a->view->share; r++) {
        float top = -INFINITY, total = 0, *o = parts[0].o + r * a->width;
        for (int64_t p = 0; p < a->pieces; p++)
            top = fmaxf(top, parts[p].maximum[r]);
        for (int64_t p = 1; parts[0].best && p < a->pieces; p++)
            if (parts[p].best[r] > parts[0].best[r]) {
                parts[0].best[r] = parts[p].best[r];
                parts[0].best_key[r] = parts[p].best_key[r];
            }
        for (int64_t p = 0; p < a->pieces; p++) {
            float factor = parts[p].total[r] > 0 ? expf(parts[p].maximum[r] - top) : 0;
            total += factor * parts[p].total[r];
            if (p == 0)
                a->source.kernels->map(FV_MAP_COPY, a->width, o, NULL, 0, factor, 0, o);
            else if (factor > 0)
                a->source.kernels->map(FV_MAP_ADD, a->width, o, parts[p].o + r * a->width, 1, factor, 0, o);
        }
        parts[0].maximum[r] = top;
        parts[0].total[r] = total;
    }
    write_rows(a, &tile, &parts[0]);
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

static void write_all_weights(fv_ctx *ctx, const struct attend *a)
{
    struct weights w = {a, fv_ceil_div(a->args->weights.dims[2], a->view->tile_rows)};

    fv_run(ctx, a->args->q.dims[0] * (a->view->heads / a->view->share) * w.cuts, weights_item, &w);
}

/* ---------------------------------------------------------------------------------------------------------------- */

static fv_status take_memory(fv_ctx *ctx, struct attend *a)
{
    int64_t threads = fv_ctx_threads(ctx), parts = a->pieces > 1 ? a->view->items * a->pieces : threads;
    bool best = fv_present(&a->args->row_max) || fv_present(&a->args->arg_max);

    FV_TRY(FV_SCRATCH(ctx, a->tiles, threads));
    FV_TRY(FV_SCRATCH(ctx, a->values, threads));
    FV_TRY(FV_SCRATCH(ctx, a->normaliser, threads));
    FV_TRY(FV_SCRATCH(ctx, a->part, parts));
    for (int64_t t = 0; t < threads; t++) {
        FV_TRY(fv_tiles_new(ctx, &a->source, a->width, &a->tiles[t]));
        FV_TRY(FV_SCRATCH(ctx, a->values[t], FV_KEY_TILE * a->width));
        FV_TRY(FV_SCRATCH(ctx, a->normaliser[t], a->view->share * a->view->tile_rows));
        memset(a->values[t], 0, (size_t)(FV_KEY_TILE * a->width) * sizeof(float));
    }
    for (int64_t p = 0; p < parts; p++) {
        FV_TRY(FV_SCRATCH(ctx, a->part[p].o, a->rows * a->width));
        FV_TRY(FV_SCRATCH(ctx, a->part[p].maximum, a->rows));
        FV_TRY(FV_SCRATCH(ctx, a->part[p].total, a->rows));
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

fv_status fv_cpu_attend(fv_ctx *ctx, const fv_attend_args *args)
{
    int64_t B = args->q.dims[0], H = args->q.dims[1], N = args->q.dims[2], M = args->k.dims[2], tile_rows, share;
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    fv_plan_view view;
    struct attend a = {.args = args, .view = &view, .lse = args->lse};
    fv_status status;

    if (!is_fast(args)) return fv_backend_ref.attend(ctx, args);
    share = fv_tiles_share(args->plan, H, args->k.dims[1], args->key_head, &tile_rows);
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, share, tile_rows, N, M, &view));
    a.source = (fv_tiles_source){fv_kernels_of(ctx), args->q, args->k, &args->logits, args->key_head, &view, false};
    a.given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    if (fv_present(&args->weights) && !a.given && !fv_present(&a.lse))
        FV_TRY_DONE(fv_tensor_new(ctx, &a.lse, FV_F32, FV_DIMS(B, H, args->o.dims[2])));
    a.rows = share * fv_min(tile_rows, fv_max(N, 1));
    a.width = fv_round_up(args->v.dims[3], a.source.kernels->tile_columns);
    a.pieces = view.items < FEW_ITEMS && M > PIECE_KEYS ? fv_ceil_div(M, PIECE_KEYS) : 1;
    if (fv_plan_gathers(args->plan)) a.rows = share * tile_rows;
    FV_TRY_DONE(take_memory(ctx, &a));
    fv_run(ctx, view.items * a.pieces, attend_item, &a);
    if (a.pieces > 1) fv_run(ctx, view.items, merge_item, &a);
    if (fv_present(&args->weights)) write_all_weights(ctx, &a);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
