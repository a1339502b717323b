/* attend_stats on attention's tiles: the probabilities once more, reduced while they are in the first-level cache.
 * Bound by flops: 2 pairs D for the products, and for each pair an exponential and a multiplication per statistic.
 *
 * The tiles of a group of heads are dealt to a number of slices that depends on the shape alone; each has column sums
 * of its own, which are added in order, so that results do not depend on the number of threads. */
#include <math.h>

#include "ops/cpu/cpu.h"
#include "ops/cpu/tiles.h"

enum { ITEMS = 16, LEAST_LOG = -100 }; /* exp of this is 0 in f32 */

struct memory {
    fv_tiles tiles;
    float *lse, *top;                  /* [rows], [rows, K] falling */
    double *entropy, *distance, *mass; /* [rows] */
    int32_t *top_key;                  /* [rows, K] */
    float chosen[FV_KEY_TILE];         /* of the tile's keys: 1 if in the set */
    float place[FV_KEY_TILE];          /* positions, from that of the tile's first query */
};

struct stats {
    const fv_stats_args *args;
    const fv_plan_view *view;
    fv_tiles_source source;
    struct memory *memory; /* per thread */
    int64_t K, slices;
    double *columns; /* [batch * groups, slices, share, M] */
};

struct visit {
    const struct stats *stats;
    struct memory *memory;
    double *columns; /* [share, M] */
};

/* Keys come in ascending order, so of equals the lower stays ahead. */
static void insert_top(float *top, int32_t *keys, int64_t K, float p, int64_t j)
{
    int64_t n = K - 1;

    for (; n > 0 && top[n - 1] < p; n--) {
        top[n] = top[n - 1];
        keys[n] = keys[n - 1];
    }
    top[n] = p;
    keys[n] = (int32_t)j;
}

static float dot(const struct fv_kernels *kernels, const float *x, const float *y)
{
    float out;

    kernels->dot[FV_F32](1, FV_KEY_TILE, x, 0, NULL, y, 0, 1, &out, 1);
    return out;
}

/* Statistics of row r over a tile whose log-probabilities are x. */
static void add_row(const struct visit *visit, const fv_tiles *t, int r, const float *x)
{
    const struct fv_kernels *kernels = t->source->kernels;
    const fv_stats_args *args = visit->stats->args;
    struct memory *m = visit->memory;
    float *p = t->logits + r * FV_KEY_TILE, far[FV_KEY_TILE];
    int64_t K = visit->stats->K;
    float query = (float)(t->tile.query[r % t->tile.rows] - t->tile.query[0]);

    kernels->exp(FV_KEY_TILE, x, 1, 0, p);
    if (fv_present(&args->entropy)) m->entropy[r] -= (double)dot(kernels, p, x);
    if (fv_present(&args->mass)) m->mass[r] += (double)dot(kernels, p, m->chosen);
    if (fv_present(&args->distance)) {
        float clip = args->distance_clip > 0 ? (float)args->distance_clip : INFINITY;
        for (int n = 0; n < FV_KEY_TILE; n++) {
            float distance = fabsf(m->place[n] - query);
            far[n] = distance < clip ? distance : clip;
        }
        m->distance[r] += (double)dot(kernels, p, far);
    }
    if (K == 0 || kernels->largest(FV_KEY_TILE, p) <= m->top[r * K + K - 1]) return;
    for (int n = 0; n < t->count; n++)
        if (p[n] > m->top[r * K + K - 1]) insert_top(m->top + r * K, m->top_key + r * K, K, p[n], t->key[n]);
}

static void add_columns(const struct visit *visit, const fv_tiles *t)
{
    const struct fv_kernels *kernels = t->source->kernels;

    for (int first = 0; first < t->rows; first += t->tile.rows) {
        float sum[FV_KEY_TILE] = {0};
        double *to = visit->columns + first / t->tile.rows * visit->stats->view->keys;
        for (int r = first; r < first + t->tile.rows; r++)
            if (t->bits[r - first])
                kernels->map(FV_MAP_ADD, FV_KEY_TILE, sum, t->logits + r * FV_KEY_TILE, 1, 1, 0, sum);
        for (int n = 0; n < t->count; n++)
            to[t->key[n]] += (double)sum[n];
    }
}

static void add_tile(void *user, fv_tiles *t)
{
    const struct visit *visit = user;
    const fv_stats_args *args = visit->stats->args;
    const fv_plan *plan = t->source->view->plan;
    const struct fv_kernels *kernels = t->source->kernels;
    struct memory *m = visit->memory;
    float x[FV_KEY_TILE];

    memset(m->chosen, 0, sizeof m->chosen);
    memset(m->place, 0, sizeof m->place);
    for (int n = 0; n < t->count; n++) {
        m->chosen[n] = args->key_set && args->key_set[t->key[n]] ? 1 : 0;
        m->place[n] = (float)(fv_plan_key_position(plan, t->key[n]) - (t->tile.query[0] + plan->offset));
    }
    for (int r = 0; r < t->rows; r++) {
        float *s = t->logits + r * FV_KEY_TILE;
        uint64_t bits = t->bits[r % t->tile.rows];
        if (!bits) continue;
        if (m->lse[r] == -INFINITY) {
            memset(s, 0, FV_KEY_TILE * sizeof *s);
            continue;
        }
        for (int n = 0; bits != UINT64_MAX && n < FV_KEY_TILE; n++)
            if (!(bits >> n & 1)) s[n] = -INFINITY;
        kernels->map(FV_MAP_COPY, FV_KEY_TILE, s, NULL, 0, 1, -m->lse[r], x);
        kernels->map(FV_MAP_MAX, FV_KEY_TILE, x, NULL, 0, LEAST_LOG, 0, x);
        add_row(visit, t, r, x);
    }
    if (visit->columns) add_columns(visit, t);
}

/* ---- tiles of queries ------------------------------------------------------------------------------------------ */

static void put(const fv_tensor *t, int64_t b, int64_t h, int64_t i, double value)
{
    if (fv_present(t)) *(float *)fv_at(t, b, h, i, 0) = (float)value;
}

static void clear(const struct stats *w, struct memory *m, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++)
        m->entropy[r] = m->distance[r] = m->mass[r] = 0;
    for (int64_t n = 0; n < rows * w->K; n++) {
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
        for (int64_t n = 0; n < w->K; n++) {
            *(int32_t *)fv_at(&args->top_key, tile->b, h, row, n) = m->top_key[r * w->K + n];
            *(float *)fv_at(&args->top_weight, tile->b, h, row, n) = m->top[r * w->K + n];
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

    if (!fv_mul_i64(rows, w->K, &places) || !fv_mul_i64(items * w->view->share, w->view->keys, &columns))
        return fv_fail(FV_E_MEMORY, "attend_stats: too many keys or top keys");
    FV_TRY(FV_SCRATCH(ctx, w->memory, threads));
    if (fv_present(&w->args->column_sum)) FV_TRY(FV_SCRATCH(ctx, w->columns, columns));
    for (int64_t t = 0; t < threads; t++) {
        struct memory *m = &w->memory[t];
        FV_TRY(fv_tiles_new(ctx, &w->source, 0, &m->tiles));
        FV_TRY(FV_SCRATCH(ctx, m->lse, rows));
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
    w.source =
        (fv_tiles_source){fv_kernels_of(ctx), args->q, args->k, &args->logits, args->key_head, &view, false, NULL};
    w.slices = fv_clamp(ITEMS / fv_max(B * H / share, 1), 1, fv_max(view.items / fv_max(B * H / share, 1), 1));
    items = B * H / share * w.slices;
    FV_TRY_DONE(take_memory(ctx, &w, items));
    fv_run(ctx, items, stats_item, &w);
    if (w.columns) fv_run(ctx, B * H, columns_item, &w);
    status = fv_ctx_check(ctx);
done:
    fv_arena_release(ctx->arena, mark);
    return status;
}
