/* attend: one softmax over the visible keys of a row, streamed; doubles throughout. */
#include <math.h>
#include <string.h>

#include "ops/ref/pieces.h"
#include "ops/ref/ref.h"

struct rows {
    double max[FV_TILE], sum[FV_TILE], best[FV_TILE];
    int64_t best_key[FV_TILE];
    double *o, *v; /* [FV_TILE, Dv] each */
};

struct attend {
    fv_ctx *ctx;
    const fv_attend_args *args;
    const fv_plan_view *view;
    fv_ref_piece *pieces; /* per thread */
    struct rows *rows;    /* per thread */
    fv_tensor lse;        /* where the weights' pass reads it; absent with lse_in */
};

struct step {
    const struct attend *attend;
    struct rows *rows;
};

/* The log-sum-exp that normalises row r and key j from outside; NAN: none does. */
static double given_lse(const fv_attend_args *args, const fv_ref_piece *piece, int r, int64_t j)
{
    const fv_plan_tile *tile = &piece->tile;

    if (fv_present(&args->lse_in)) return *fv_ref_f32(&args->lse_in, tile->b, tile->h, tile->row[r]);
    if (fv_present(&args->lse_in_key)) return *fv_ref_f32(&args->lse_in_key, tile->b, tile->h, j);
    return NAN;
}

static void add_piece(void *user, fv_ref_piece *piece)
{
    const struct step *step = user;
    const fv_attend_args *args = step->attend->args;
    struct rows *rows = step->rows;
    bool given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    int64_t Dv = args->v.dims[3];

    fv_ref_load_keys(&args->v, piece, rows->v);
    for (int r = 0; r < piece->tile.rows; r++) {
        const double *logit = piece->logit + r * FV_TILE;
        double *o = rows->o + r * Dv, max = rows->max[r];
        for (uint64_t bits = piece->bits[r]; bits; bits &= bits - 1) {
            int n = __builtin_ctzll(bits);
            if (logit[n] > rows->best[r]) {
                rows->best[r] = logit[n];
                rows->best_key[r] = piece->key + n;
            }
            max = fmax(max, logit[n]);
        }
        if (!given && max > rows->max[r]) {
            double factor = rows->max[r] == -INFINITY ? 0 : exp(rows->max[r] - max);
            for (int64_t d = 0; d < Dv; d++)
                o[d] *= factor;
            rows->sum[r] *= factor;
            rows->max[r] = max;
        }
        for (uint64_t bits = piece->bits[r]; bits; bits &= bits - 1) {
            int n = __builtin_ctzll(bits);
            double lse = given ? given_lse(args, piece, r, piece->key + n) : rows->max[r];
            double weight = lse == -INFINITY ? 0 : exp(logit[n] - lse);
            rows->sum[r] += weight;
            if (args->steps > 0) weight = trunc(args->steps * weight + FV_STEP_SLACK) / args->steps;
            for (int64_t d = 0; d < Dv; d++)
                o[d] += weight * rows->v[n * Dv + d];
        }
    }
}

static void write_rows(const struct attend *a, const fv_plan_tile *tile, const struct rows *rows)
{
    const fv_attend_args *args = a->args;
    bool given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    int64_t Dv = args->v.dims[3];

    for (int r = 0; r < tile->rows; r++) {
        double divisor = given ? 1 : rows->sum[r] > 0 ? rows->sum[r] : 1;
        float *o = fv_ref_f32(&args->o, tile->b, tile->h, tile->row[r]);
        for (int64_t d = 0; d < Dv; d++)
            o[d * args->o.strides[3]] = (float)(rows->o[r * Dv + d] / divisor);
        if (fv_present(&a->lse) && !given)
            *fv_ref_f32(&a->lse, tile->b, tile->h, tile->row[r]) =
                rows->sum[r] > 0 ? (float)(rows->max[r] + log(rows->sum[r])) : -INFINITY;
        if (fv_present(&args->row_max))
            *fv_ref_f32(&args->row_max, tile->b, tile->h, tile->row[r]) = (float)rows->best[r];
        if (fv_present(&args->arg_max)) {
            const fv_tensor *t = &args->arg_max;
            ((int32_t *)t->data)[tile->b * t->strides[0] + tile->h * t->strides[1] + tile->row[r] * t->strides[2]] =
                (int32_t)rows->best_key[r];
        }
    }
}

static void attend_tile(void *user, int64_t item, int thread)
{
    const struct attend *a = user;
    fv_ref_piece *piece = &a->pieces[thread];
    struct rows *rows = &a->rows[thread];
    struct step step = {a, rows};

    if (atomic_load_explicit(&a->ctx->interrupted, memory_order_relaxed)) return; /* the call ends with the check */
    fv_plan_tile_at(a->view, item, &piece->tile);
    for (int r = 0; r < piece->tile.rows; r++) {
        bool sink = fv_present(&a->args->sinks);
        rows->best[r] = -INFINITY;
        rows->best_key[r] = -1;
        rows->max[r] = -INFINITY;
        if (sink) rows->max[r] = ((const float *)a->args->sinks.data)[piece->tile.h * a->args->sinks.strides[0]];
        rows->sum[r] = sink && rows->max[r] > -INFINITY ? 1 : 0;
    }
    memset(rows->o, 0, (size_t)(piece->tile.rows * a->args->v.dims[3]) * sizeof *rows->o);
    fv_ref_pieces_walk(piece, 0, a->view->keys, add_piece, &step);
    write_rows(a, &piece->tile, rows);
}

/* ---- selected rows of the weights ------------------------------------------------------------------------------ */

struct weights_step {
    const struct attend *attend;
    int64_t first; /* weights row of the tile's first */
};

static void write_weights(void *user, fv_ref_piece *piece)
{
    const struct weights_step *step = user;
    const fv_attend_args *args = step->attend->args;
    const fv_plan_tile *tile = &piece->tile;

    for (int r = 0; r < tile->rows; r++) {
        float *out = fv_ref_f32(&args->weights, tile->b, tile->h, step->first + r);
        for (uint64_t bits = piece->bits[r]; bits; bits &= bits - 1) {
            int n = __builtin_ctzll(bits);
            double lse = given_lse(args, piece, r, piece->key + n);
            if (isnan(lse)) lse = *fv_ref_f32(&step->attend->lse, tile->b, tile->h, tile->row[r]);
            if (lse > -INFINITY)
                out[(piece->key + n - args->weight_from) * args->weights.strides[3]] =
                    (float)exp(piece->logit[r * FV_TILE + n] - lse);
        }
    }
}

static void weights_head(void *user, int64_t item, int thread)
{
    const struct attend *a = user;
    const fv_attend_args *args = a->args;
    fv_ref_piece *piece = &a->pieces[thread];
    fv_plan_tile *tile = &piece->tile;
    int64_t R = args->weights.dims[2], K = args->weights.dims[3];

    tile->b = item / a->view->heads;
    tile->h = item % a->view->heads;
    for (int64_t first = 0; first < R; first += tile->rows) {
        struct weights_step step = {a, first};
        tile->rows = (int)fv_min(FV_TILE, R - first);
        for (int r = 0; r < tile->rows; r++) {
            float *out = fv_ref_f32(&args->weights, tile->b, tile->h, first + r);
            tile->row[r] = args->weight_rows ? args->weight_rows[first + r] : first + r;
            tile->query[r] = fv_plan_query(a->view->plan, a->view->heads, tile->b, tile->h, tile->row[r]);
            for (int64_t j = 0; j < K; j++)
                out[j * args->weights.strides[3]] = 0;
        }
        fv_ref_pieces_walk(piece, args->weight_from, args->weight_from + K, write_weights, &step);
    }
}

fv_status fv_ref_attend(fv_ctx *ctx, const fv_attend_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t B = args->q.dims[0], H = args->q.dims[1], Dv = args->v.dims[3];
    bool given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key);
    fv_plan_view view;
    fv_ref_source source = {args->q, args->k, &args->logits, args->key_head, &view};
    struct attend a = {.ctx = ctx, .args = args, .view = &view, .lse = args->lse};
    fv_status status;

    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, 1, FV_TILE, args->q.dims[2], args->k.dims[2], &view));
    FV_TRY_DONE(fv_ref_pieces_new(ctx, &source, Dv, &a.pieces));
    FV_TRY_DONE(FV_SCRATCH(ctx, a.rows, fv_ctx_threads(ctx)));
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        FV_TRY_DONE(FV_SCRATCH(ctx, a.rows[t].o, FV_TILE * Dv));
        FV_TRY_DONE(FV_SCRATCH(ctx, a.rows[t].v, FV_TILE * Dv));
    }
    if (fv_present(&args->weights) && !given && !fv_present(&a.lse))
        FV_TRY_DONE(fv_tensor_new(ctx, &a.lse, FV_F32, FV_DIMS(B, H, args->o.dims[2])));
    fv_run(ctx, view.items, attend_tile, &a);
    if (fv_present(&args->weights)) fv_run(ctx, B * H, weights_head, &a);
    status = fv_ctx_check(ctx);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
