/* attend_stats: the probabilities once more, piece by piece, reduced in doubles. */
#include <math.h>
#include <string.h>

#include "ops/ref/pieces.h"
#include "ops/ref/ref.h"

struct sums {
    double *columns; /* [M] */
    double entropy[FV_TILE], distance[FV_TILE], mass[FV_TILE];
    double *top;      /* [FV_TILE, K], descending */
    int32_t *top_key; /* [FV_TILE, K] */
};

struct stats {
    const fv_stats_args *args;
    const fv_plan_view *view;
    fv_ref_piece *pieces; /* per thread */
    struct sums *sums;    /* per thread */
    int64_t K;
};

struct step {
    const struct stats *stats;
    struct sums *sums;
};

/* Keys come in ascending order, so of equals the lower stays ahead. */
static void insert_top(double *top, int32_t *keys, int64_t K, double p, int64_t j)
{
    int64_t n = K;

    if (K == 0 || p <= top[K - 1]) return;
    for (n = K - 1; n > 0 && top[n - 1] < p; n--) {
        top[n] = top[n - 1];
        keys[n] = keys[n - 1];
    }
    top[n] = p;
    keys[n] = (int32_t)j;
}

static void add_piece(void *user, fv_ref_piece *piece)
{
    const struct step *step = user;
    const fv_stats_args *args = step->stats->args;
    const fv_plan *plan = step->stats->view->plan;
    struct sums *sums = step->sums;
    int64_t K = step->stats->K;

    for (int r = 0; r < piece->tile.rows; r++) {
        double lse = *fv_ref_f32(&args->lse, piece->tile.b, piece->tile.h, piece->tile.row[r]);
        if (lse == -INFINITY) continue;
        for (uint64_t bits = piece->bits[r]; bits; bits &= bits - 1) {
            int n = __builtin_ctzll(bits);
            int64_t j = piece->key + n;
            int64_t far = fv_plan_key_position(plan, j) - (piece->tile.query[r] + plan->offset);
            double log_p = piece->logit[r * FV_TILE + n] - lse, p = exp(log_p);
            far = far < 0 ? -far : far;
            if (args->distance_clip > 0) far = fv_min(far, args->distance_clip);
            sums->columns[j] += p;
            sums->entropy[r] -= p > 0 ? p * log_p : 0;
            sums->distance[r] += p * (double)far;
            if (args->key_set && args->key_set[j]) sums->mass[r] += p;
            insert_top(sums->top + r * K, sums->top_key + r * K, K, p, j);
        }
    }
}

static void put(const fv_tensor *t, int64_t b, int64_t h, int64_t i, double value)
{
    if (fv_present(t)) *fv_ref_f32(t, b, h, i) = (float)value;
}

static void write_rows(const struct stats *w, const struct sums *sums, const fv_plan_tile *tile)
{
    const fv_stats_args *args = w->args;
    const fv_tensor *keys = &args->top_key, *weights = &args->top_weight;

    for (int r = 0; r < tile->rows; r++) {
        put(&args->entropy, tile->b, tile->h, tile->row[r], sums->entropy[r]);
        put(&args->distance, tile->b, tile->h, tile->row[r], sums->distance[r]);
        put(&args->mass, tile->b, tile->h, tile->row[r], sums->mass[r]);
        for (int64_t n = 0; n < w->K; n++) {
            *(int32_t *)fv_at(keys, tile->b, tile->h, tile->row[r], n) = sums->top_key[r * w->K + n];
            *(float *)fv_at(weights, tile->b, tile->h, tile->row[r], n) = (float)sums->top[r * w->K + n];
        }
    }
}

/* Rows beyond the slots of a batch and head stand for nothing. */
static void clear_spare_rows(const struct stats *w, struct sums *sums, int64_t b, int64_t h)
{
    fv_plan_tile tile = {.b = b, .h = h, .rows = 1};

    if (!fv_plan_gathers(w->view->plan)) return;
    for (tile.row[0] = fv_plan_slots(w->view->plan, w->view->heads, b, h); tile.row[0] < w->args->lse.dims[2];
         tile.row[0]++)
        write_rows(w, sums, &tile);
}

static void clear(const struct stats *w, struct sums *sums)
{
    memset(sums->entropy, 0, sizeof sums->entropy);
    memset(sums->distance, 0, sizeof sums->distance);
    memset(sums->mass, 0, sizeof sums->mass);
    for (int64_t n = 0; n < FV_TILE * w->K; n++) {
        sums->top[n] = 0;
        sums->top_key[n] = -1;
    }
}

static void stats_head(void *user, int64_t item, int thread)
{
    const struct stats *w = user;
    fv_ref_piece *piece = &w->pieces[thread];
    struct sums *sums = &w->sums[thread];
    struct step step = {w, sums};
    int64_t b = item / w->view->heads, h = item % w->view->heads, first, count = fv_ref_tiles(w->view, b, h, &first);

    memset(sums->columns, 0, (size_t)w->view->keys * sizeof *sums->columns);
    for (int64_t tile = 0; tile < count; tile++) {
        fv_plan_tile_at(w->view, first + tile, &piece->tile);
        clear(w, sums);
        fv_ref_pieces_walk(piece, 0, w->view->keys, add_piece, &step);
        write_rows(w, sums, &piece->tile);
    }
    clear(w, sums);
    clear_spare_rows(w, sums, b, h);
    for (int64_t j = 0; j < w->view->keys; j++)
        put(&w->args->column_sum, b, h, j, sums->columns[j]);
}

fv_status fv_ref_attend_stats(fv_ctx *ctx, const fv_stats_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t B = args->q.dims[0], H = args->q.dims[1], M = args->k.dims[2], places;
    fv_plan_view view;
    fv_ref_source source = {args->q, args->k, &args->logits, args->key_head, &view};
    struct stats w = {.args = args, .view = &view, .K = fv_present(&args->top_key) ? args->top_key.dims[3] : 0};
    fv_status status;

    if (!fv_mul_i64(FV_TILE, w.K, &places)) return fv_fail(FV_E_MEMORY, "attend_stats: too many top keys");
    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, 1, FV_TILE, args->q.dims[2], M, &view));
    FV_TRY_DONE(fv_ref_pieces_new(ctx, &source, 1, &w.pieces));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.sums, fv_ctx_threads(ctx)));
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        FV_TRY_DONE(FV_SCRATCH(ctx, w.sums[t].columns, M));
        FV_TRY_DONE(FV_SCRATCH(ctx, w.sums[t].top, places));
        FV_TRY_DONE(FV_SCRATCH(ctx, w.sums[t].top_key, places));
    }
    fv_run(ctx, B * H, stats_head, &w);
    status = fv_ctx_check(ctx);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
