/* attend_stats on attention's tiles: the probabilities once more, reduced while they are in the first-level cache.
 * Bound by flops: 2 pairs D for the products, and for each pair an exponential and a multiplication per statistic; 55
 * to 69 % of the time of attend.  A row's K largest weights are placed one after another, about K (1 + ln(M / 64)) and
 * what the first tile's lanes let through: K = 13 adds 33 % of attend at 2048 keys, 40 % at 256, K = 4 20 to 30 %.
 *
 * The tiles of a group of heads are dealt to a number of slices that depends on the shape alone; each has column sums
 * of its own, which are added in order, so that results do not depend on the number of threads. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/tiles.h"
#include "ops/cpu/weights_kernels.h"

enum { ITEMS = 16 };

struct memory {
    fv_tiles tiles;
    float *lse, *top, *least;          /* [rows], [rows, places] falling, [rows]: the K-th of them */
    double *entropy, *distance, *mass; /* [rows] */
    int32_t *top_key;                  /* [rows, places] */
    float *sums;                       /* [share, FV_KEY_TILE] */
    uint64_t *above;                   /* [rows] */
    float query[FV_TILE];              /* positions, from that of the tile's first query */
    float chosen[FV_KEY_TILE];         /* of the tile's keys: 1 if in the set */
    float place[FV_KEY_TILE];          /* positions, from that of the tile's first query */
};

struct stats {
    const fv_stats_args *args;
    const fv_plan_view *view;
    fv_tiles_source source;
    struct memory *memory;     /* per thread */
    int64_t K, places, slices; /* K in whole vectors */
    double *columns;           /* [batch * groups, slices, share, M] */
};

struct visit {
    const struct stats *stats;
    struct memory *memory;
    double *columns; /* [share, M] */
};

static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const fv_stats_args *args = visit->stats->args;
    const fv_plan *plan = t->source->view->plan;
    struct memory *m = visit->memory;
    bool top = visit->stats->K > 0;
    int64_t keys = t->source->view->keys, places = visit->stats->places;

    for (int n = 0; n < t->count && fv_present(&args->mass); n++)
        m->chosen[n] = args->key_set[t->key[n]] ? 1 : 0;
    for (int n = 0; n < t->count && fv_present(&args->distance); n++)
        m->place[n] = (float)(fv_plan_key_position(plan, t->key[n]) - (t->tile.query[0] + plan->offset));
    t->source->kernels->weights->sums(
        &(struct fv_sums_step){.rows = t->rows,
                               .tokens = t->tile.rows,
                               .bits = t->bits,
                               .lse = m->lse,
                               .s = t->logits,
                               .columns = visit->columns ? m->sums : NULL,
                               .entropy = fv_present(&args->entropy) ? m->entropy : NULL,
                               .mass = fv_present(&args->mass) ? m->mass : NULL,
                               .distance = fv_present(&args->distance) ? m->distance : NULL,
                               .chosen = m->chosen,
                               .place = m->place,
                               .query = m->query,
                               .clip = args->distance_clip > 0 ? (float)args->distance_clip : INFINITY,
                               .least = top ? m->least : NULL,
                               .weights = t->logits,
                               .above = m->above});
    for (int r = 0; r < t->rows && top; r++) {
        if (!m->above[r]) continue;
        t->source->kernels->weights->insert(visit->stats->K, m->above[r], t->logits + r * FV_KEY_TILE, t->key,
                                            m->top + r * places, m->top_key + r * places);
        m->least[r] = m->top[r * places + visit->stats->K - 1];
    }
    for (int64_t h = 0; h < t->source->view->share && visit->columns; h++)
        for (int n = 0; n < t->count; n++)
            visit->columns[h * keys + t->key[n]] += (double)m->sums[h * FV_KEY_TILE + n];
}

/* ---- tiles of queries ------------------------------------------------------------------------------------------ */

static void put(const fv_tensor *t, int64_t b, int64_t h, int64_t i, double value)
{
    if (fv_present(t)) *(float *)fv_at(t, b, h, i, 0) = (float)value;
}

static void clear(const struct stats *w, struct memory *m, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++)
        m->entropy[r] = m->distance[r] = m->mass[r] = m->least[r] = 0;
    for (int64_t n = 0; n < rows * w->places; n++) {
        m->top[n] = 0;
        m->top_key[n] = -1;
    }
}

static void write_rows(const struct stats *w, const struct memory *m, const fv_plan_tile *tile)
{
    const fv_stats_args *args = w->args;

    for (int64_t r = 0; r < tile->rows * w->view->share; r++) {
        int64_t h = tile->h + r / tile->rows, row = tile->row[r % tile->rows];
        put(&args->entropy, tile->b, h, row, m->entropy[r]);
        put(&args->distance, tile->b, h, row, m->distance[r]);
        put(&args->mass, tile->b, h, row, m->mass[r]);
        if (w->K == 0) continue;
        int32_t *key = fv_at(&args->top_key, tile->b, h, row, 0);
        float *weight = fv_at(&args->top_weight, tile->b, h, row, 0);
        for (int64_t n = 0; n < w->K; n++) {
            key[n * args->top_key.strides[3]] = m->top_key[r * w->places + n];
            weight[n * args->top_weight.strides[3]] = m->top[r * w->places + n];
        }
    }
}

/* Rows beyond the slots of a batch and head stand for nothing. */
static void clear_spare_rows(const struct stats *w, struct memory *m, int64_t b, int64_t h)
{
    fv_plan_tile tile = {.b = b, .h = h, .rows = 1};

    if (!fv_plan_gathers(w->view->plan)) return;
    clear(w, m, w->view->share);
    for (tile.row[0] = fv_plan_slots(w->view->plan, w->view->heads, b, h); tile.row[0] < w->args->lse.dims[2];
         tile.row[0]++)
        write_rows(w, m, &tile);
}

static void stats_item(void *user, int64_t index, int thread)
{
    const struct stats *w = user;
    const fv_plan_view *view = w->view;
    struct memory *m = &w->memory[thread];
    int64_t groups = view->heads / view->share, group = index / w->slices, slice = index % w->slices, first, end;
    int64_t cells = view->share * view->keys;
    struct visit visit = {w, m, w->columns ? w->columns + index * cells : NULL};
    fv_plan_tile *tile = &m->tiles.tile;

    if (visit.columns) memset(visit.columns, 0, (size_t)cells * sizeof *visit.columns);
    if (slice == 0) clear_spare_rows(w, m, group / groups, group % groups * view->share);
    fv_tiles_group(view, group, &first, &end);
    for (int64_t item = first + slice; item < end; item += w->slices) {
        fv_plan_tile_at(view, item, tile);
        clear(w, m, tile->rows * view->share);
        for (int64_t r = 0; r < tile->rows * view->share; r++)
            m->lse[r] = *(float *)fv_at(&w->args->lse, tile->b, tile->h + r / tile->rows, tile->row[r % tile->rows], 0);
        for (int r = 0; r < tile->rows; r++)
            m->query[r] = (float)(tile->query[r] - tile->query[0]);
        fv_tiles_walk_rows(&m->tiles, 0, view->keys, add_tile, &visit);
        write_rows(w, m, tile);
    }
}

static void columns_item(void *user, int64_t index, int thread)
{
    const struct stats *w = user;
    const fv_plan_view *view = w->view;
    int64_t cells = view->share * view->keys, b = index / view->heads, h = index % view->heads;
    const double *from = w->columns + index / view->share * w->slices * cells + h % view->share * view->keys;

    (void)thread;
    for (int64_t j = 0; j < view->keys; j++) {
        double sum = 0;
        for (int64_t slice = 0; slice < w->slices; slice++)
            sum += from[slice * cells + j];
        put(&w->args->column_sum, b, h, j, sum);
    }
}

static fv_status take_memory(fv_ctx *ctx, struct stats *w, int64_t items)
{
    int64_t threads = fv_ctx_threads(ctx), rows = w->view->share * w->view->tile_rows, places, columns;

    if (!fv_mul_i64(rows, w->places, &places) || !fv_mul_i64(items * w->view->share, w->view->keys, &columns))
        return fv_fail(FV_E_MEMORY, "attend_stats: too many keys or top keys");
    FV_TRY(FV_SCRATCH(ctx, w->memory, threads));
    if (fv_present(&w->args->column_sum)) FV_TRY(FV_SCRATCH(ctx, w->columns, columns));
    for (int64_t t = 0; t < threads; t++) {
        struct memory *m = &w->memory[t];
        FV_TRY(fv_tiles_new(ctx, &w->source, 0, &m->tiles));
        memset(m->chosen, 0, sizeof m->chosen);
        memset(m->place, 0, sizeof m->place);
        FV_TRY(FV_SCRATCH(ctx, m->lse, rows));
        FV_TRY(FV_SCRATCH(ctx, m->least, rows));
        FV_TRY(FV_SCRATCH(ctx, m->above, rows));
        FV_TRY(FV_SCRATCH(ctx, m->sums, w->view->share * FV_KEY_TILE));
        FV_TRY(FV_SCRATCH(ctx, m->entropy, rows));
        FV_TRY(FV_SCRATCH(ctx, m->distance, rows));
        FV_TRY(FV_SCRATCH(ctx, m->mass, rows));
        FV_TRY(FV_SCRATCH(ctx, m->top, places));
        FV_TRY(FV_SCRATCH(ctx, m->top_key, places));
    }
    return FV_OK;
}

fv_status fv_cpu_attend_stats(fv_ctx *ctx, const fv_stats_args *args)
{
    int64_t B = args->q.dims[0], H = args->q.dims[1], N = args->q.dims[2], M = args->k.dims[2], tile_rows, share, items;
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_plan_view view;
    struct stats w = {.args = args, .view = &view, .K = fv_present(&args->top_key) ? args->top_key.dims[3] : 0};
    fv_status status;

    if (!fv_cpu_rows_together(&args->q) || !fv_cpu_rows_together(&args->k))
        return fv_backend_ref.attend_stats(ctx, args);
    share = fv_tiles_share(args->plan, H, args->k.dims[1], args->key_head, &tile_rows);
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, share, tile_rows, N, M, &view));
    w.source = (fv_tiles_source){
        fv_kernels_of(ctx), args->q, args->k, &args->logits, args->key_head, &view, false, NULL, false};
    w.slices = fv_clamp(ITEMS / fv_max(B * H / share, 1), 1, fv_max(view.items / fv_max(B * H / share, 1), 1));
    items = B * H / share * w.slices;
    w.places = fv_round_up(w.K, w.source.kernels->width);
    FV_TRY_DONE(take_memory(ctx, &w, items));
    fv_run(ctx, items, stats_item, &w);
    if (w.columns) fv_run(ctx, B * H, columns_item, &w);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
