/* Gradients of attend, in doubles:  with P = exp(s - lse) and delta = d_o.o - d_lse,
 *   d_v_j = sum_i P d_o_i,   d_s = P (d_o_i.v_j - delta_i),   d_x = d_s * slope,
 *   d_q_i = scale t_i sum_j d_x k_j,   d_k_j = scale sum_i t_i d_x q_i,   d_t_i = scale sum_j d_x q_i.k_j.
 * A log-sum-exp that was given is a constant: delta is 0. */
#include <math.h>
#include <string.h>

#include "ops/logits.h"
#include "ops/ref/pieces.h"
#include "ops/ref/ref.h"

struct sums {
    double *v, *d_o;   /* [FV_TILE, Dv] */
    double *d_q;       /* [FV_TILE, D] */
    double *d_k, *d_v; /* [M, D], [M, Dv] of a key-value head */
    double delta[FV_TILE];
    double d_temperature[FV_TILE];
};

struct backward {
    const fv_attend_args *args;
    const fv_attend_grads *grads;
    const fv_plan_view *view;
    const fv_ref_source *source;
    fv_ref_piece *pieces;
    struct sums *sums;
    bool given;
};

struct step {
    const struct backward *backward;
    struct sums *sums;
};

static void add(const fv_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d, double value)
{
    if (fv_present(t)) fv_ref_f32(t, a, b, c)[d * t->strides[3]] += (float)value;
}

static double normaliser(const struct backward *w, const fv_ref_piece *piece, int r, int64_t j)
{
    const fv_attend_args *args = w->args;
    const fv_plan_tile *tile = &piece->tile;

    if (fv_present(&args->lse_in_key)) return *fv_ref_f32(&args->lse_in_key, tile->b, tile->h, j);
    return *fv_ref_f32(fv_present(&args->lse_in) ? &args->lse_in : &args->lse, tile->b, tile->h, tile->row[r]);
}

/* Gradients of the biases for one pair. */
static void add_bias(const struct backward *w, const fv_ref_piece *piece, int r, int64_t j, double d_s)
{
    const fv_attend_grads *g = w->grads;
    const fv_logits *l = &w->args->logits;
    int64_t b = piece->tile.b, h = piece->tile.h, i = piece->tile.query[r];

    add(&g->d_bias, b, h, i, j, d_s);
    if (fv_present(&g->d_offset_bias))
        *fv_ref_f32(&g->d_offset_bias, h, fv_offset_at(l, w->view->plan, i, j), 0) += (float)d_s;
    if (fv_present(&l->row_bias)) {
        add(&g->d_row_bias, b, h, i, fv_row_at(l, i, j), d_s);
        add(&g->d_column_bias, b, h, i, fv_column_at(l, i, j), d_s);
    }
}

static void add_piece(void *user, fv_ref_piece *piece)
{
    const struct step *step = user;
    const struct backward *w = step->backward;
    const fv_logits *logits = &w->args->logits;
    struct sums *sums = step->sums;
    int64_t D = w->args->q.dims[3], Dv = w->args->v.dims[3];

    fv_ref_load_keys(&w->args->v, piece, sums->v);
    for (int r = 0; r < piece->tile.rows; r++) {
        const double *d_o = sums->d_o + r * Dv, *q = piece->q + r * D;
        double *d_q = sums->d_q + r * D, scale = logits->scale;
        if (fv_present(&logits->temperature))
            scale *= *fv_ref_f32(&logits->temperature, piece->tile.b, piece->tile.h, piece->tile.query[r]);
        for (uint64_t bits = piece->bits[r]; bits; bits &= bits - 1) {
            int n = __builtin_ctzll(bits);
            int64_t j = piece->key + n;
            double lse = normaliser(w, piece, r, j), d_p = 0, p, d_s, d_x;
            const double *v = sums->v + n * Dv, *k = piece->k + n * D;
            if (lse == -INFINITY) continue;
            p = exp(piece->logit[r * FV_TILE + n] - lse);
            for (int64_t d = 0; d < Dv; d++) {
                d_p += d_o[d] * v[d];
                sums->d_v[j * Dv + d] += p * d_o[d];
            }
            d_s = p * (d_p - sums->delta[r]);
            add_bias(w, piece, r, j, d_s);
            d_x = d_s * piece->slope[r * FV_TILE + n];
            sums->d_temperature[r] += d_x * logits->scale * piece->dot[r * FV_TILE + n];
            for (int64_t d = 0; d < D; d++) {
                d_q[d] += d_x * scale * k[d];
                sums->d_k[j * D + d] += d_x * scale * q[d];
            }
        }
    }
}

/* What a tile needs before its pieces; returns the sum over its rows of what its head's sink receives. */
static double begin_tile(const struct backward *w, struct sums *sums, const fv_plan_tile *tile, float *row)
{
    const fv_attend_args *args = w->args;
    const fv_attend_grads *g = w->grads;
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];
    double d_sink = 0;

    memset(sums->d_q, 0, (size_t)(tile->rows * D) * sizeof *sums->d_q);
    for (int r = 0; r < tile->rows; r++) {
        const float *o = fv_ref_f32(&args->o, tile->b, tile->h, tile->row[r]);
        double delta = 0;
        fv_ref_load(&g->d_o, tile->b, tile->h, tile->row[r], row, sums->d_o + r * Dv);
        for (int64_t d = 0; d < Dv && !w->given; d++)
            delta += sums->d_o[r * Dv + d] * o[d * args->o.strides[3]];
        if (fv_present(&g->d_lse) && !w->given) delta -= *fv_ref_f32(&g->d_lse, tile->b, tile->h, tile->row[r]);
        sums->delta[r] = delta;
        sums->d_temperature[r] = 0;
        if (!fv_present(&args->sinks) || w->given) continue;
        double lse = *fv_ref_f32(&args->lse, tile->b, tile->h, tile->row[r]);
        double sink = ((const float *)args->sinks.data)[tile->h * args->sinks.strides[0]];
        if (lse > -INFINITY) d_sink -= exp(sink - lse) * delta;
    }
    return d_sink;
}

static void end_tile(const struct backward *w, const struct sums *sums, const fv_plan_tile *tile)
{
    const fv_attend_grads *g = w->grads;
    int64_t D = w->args->q.dims[3];

    for (int r = 0; r < tile->rows; r++) {
        for (int64_t d = 0; d < D; d++)
            add(&g->d_q, tile->b, tile->h, tile->query[r], d, sums->d_q[r * D + d]);
        if (fv_present(&g->d_temperature))
            *fv_ref_f32(&g->d_temperature, tile->b, tile->h, tile->query[r]) += (float)sums->d_temperature[r];
    }
}

/* All query heads of one key-value head of one batch, so that nobody else adds to its keys. */
static void backward_keys(void *user, int64_t item, int thread)
{
    const struct backward *w = user;
    const fv_attend_grads *g = w->grads;
    fv_ref_piece *piece = &w->pieces[thread];
    struct sums *sums = &w->sums[thread];
    struct step step = {w, sums};
    int64_t Hkv = w->args->k.dims[1], M = w->view->keys, D = w->args->q.dims[3], Dv = w->args->v.dims[3];
    int64_t b = item / Hkv, kv = item % Hkv;

    memset(sums->d_k, 0, (size_t)(M * D) * sizeof *sums->d_k);
    memset(sums->d_v, 0, (size_t)(M * Dv) * sizeof *sums->d_v);
    for (int64_t h = 0; h < w->view->heads; h++) {
        int64_t first, count;
        double d_sink = 0;
        if (fv_ref_key_head(w->source, h) != kv) continue;
        count = fv_ref_tiles(w->view, b, h, &first);
        for (int64_t tile = 0; tile < count; tile++) {
            fv_plan_tile_at(w->view, first + tile, &piece->tile);
            d_sink += begin_tile(w, sums, &piece->tile, piece->row);
            fv_ref_pieces_walk(piece, 0, M, add_piece, &step);
            end_tile(w, sums, &piece->tile);
        }
        if (fv_present(&g->d_sinks)) ((float *)g->d_sinks.data)[h * g->d_sinks.strides[0]] += (float)d_sink;
    }
    for (int64_t j = 0; j < M; j++) {
        for (int64_t d = 0; d < D; d++)
            add(&g->d_k, b, kv, j, d, sums->d_k[j * D + d]);
        for (int64_t d = 0; d < Dv; d++)
            add(&g->d_v, b, kv, j, d, sums->d_v[j * Dv + d]);
    }
}

/* Whether several batches or heads add to one element. */
static bool shared(const fv_attend_grads *g, int64_t batch)
{
    const fv_tensor *each[] = {&g->d_q,           &g->d_k,        &g->d_v,          &g->d_bias,
                               &g->d_temperature, &g->d_row_bias, &g->d_column_bias};

    for (size_t n = 0; n < sizeof each / sizeof each[0]; n++)
        if (fv_present(each[n]) && !fv_ref_apart(each[n])) return true;
    if (fv_present(&g->d_offset_bias) && (batch > 1 || g->d_offset_bias.strides[0] == 0)) return true;
    return fv_present(&g->d_sinks) && (batch > 1 || g->d_sinks.strides[0] == 0);
}

fv_status fv_ref_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t B = args->q.dims[0], H = args->q.dims[1], D = args->q.dims[3], Dv = args->v.dims[3], M = args->k.dims[2];
    int threads = fv_ctx_threads(ctx);
    fv_plan_view view;
    fv_ref_source source = {args->q, args->k, &args->logits, args->key_head, &view};
    struct backward w = {.args = args,
                         .grads = grads,
                         .view = &view,
                         .source = &source,
                         .given = fv_present(&args->lse_in) || fv_present(&args->lse_in_key)};
    fv_status status;

    FV_TRY_DONE(fv_plan_open(ctx, args->plan, B, H, 1, FV_TILE, args->q.dims[2], M, &view));
    FV_TRY_DONE(fv_ref_pieces_new(ctx, &source, Dv, &w.pieces));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.sums, threads));
    for (int t = 0; t < threads; t++) {
        struct sums *s = &w.sums[t];
        FV_TRY_DONE(FV_SCRATCH(ctx, s->v, FV_TILE * Dv));
        FV_TRY_DONE(FV_SCRATCH(ctx, s->d_o, FV_TILE * Dv));
        FV_TRY_DONE(FV_SCRATCH(ctx, s->d_q, FV_TILE * D));
        FV_TRY_DONE(FV_SCRATCH(ctx, s->d_k, M * D));
        FV_TRY_DONE(FV_SCRATCH(ctx, s->d_v, M * Dv));
    }
    if (shared(grads, B)) {
        for (int64_t item = 0; item < B * args->k.dims[1]; item++)
            backward_keys(&w, item, 0);
    } else {
        fv_run(ctx, B * args->k.dims[1], backward_keys, &w);
    }
    status = fv_ctx_check(ctx);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
