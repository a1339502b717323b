#include "ops/ref/pieces.h"

#include <math.h>

#include "ops/accumulate.h"
#include "ops/blocks.h"
#include "ops/logits.h"

fv_status fv_ref_pieces_new(fv_ctx *ctx, const fv_ref_source *source, int64_t width, fv_ref_piece **pieces)
{
    int64_t threads = fv_ctx_threads(ctx), D = source->q.dims[3];
    fv_ref_piece *p;

    FV_TRY(FV_SCRATCH(ctx, p, threads));
    for (int64_t t = 0; t < threads; t++) {
        p[t].source = source;
        FV_TRY(FV_SCRATCH(ctx, p[t].q, FV_TILE * D));
        FV_TRY(FV_SCRATCH(ctx, p[t].k, FV_TILE * D));
        FV_TRY(FV_SCRATCH(ctx, p[t].transposed, FV_TILE * D));
        FV_TRY(FV_SCRATCH(ctx, p[t].row, fv_max(D, width)));
    }
    *pieces = p;
    return FV_OK;
}

void fv_ref_load(const fv_tensor *t, int64_t b, int64_t h, int64_t n, float *row, double *out)
{
    int64_t offset = b * t->strides[0] + h * t->strides[1] + n * t->strides[2], count = t->dims[3];

    if (fv_dtype_block(t->dtype) > 1)
        fv_blocks_load(t->dtype, t->data, offset / fv_dtype_block(t->dtype), count / fv_dtype_block(t->dtype), row);
    else
        fv_load_row(t->dtype, t->data, offset, t->strides[3], row, count);
    for (int64_t d = 0; d < count; d++)
        out[d] = row[d];
}

void fv_ref_load_keys(const fv_tensor *v, const fv_ref_piece *piece, double *out)
{
    for (int n = 0; n < piece->count; n++)
        fv_ref_load(v, piece->tile.b, piece->key_head, piece->key + n, piece->row, out + n * v->dims[3]);
}

int64_t fv_ref_tiles(const fv_plan_view *view, int64_t b, int64_t h, int64_t *first)
{
    int64_t pair = b * view->heads + h;

    if (view->classes == 1) {
        *first = pair * view->class_tile[1];
        return view->class_tile[1];
    }
    *first = view->item_first[pair];
    return view->item_first[pair + 1] - *first;
}

/* Bias of a row and the keys of the piece, all kinds but that of list entries. */
static double bias_of(const fv_ref_piece *piece, int r, int64_t j)
{
    const fv_logits *l = piece->source->logits;
    const fv_plan *plan = piece->source->view->plan;
    int64_t b = piece->tile.b, h = piece->tile.h, i = piece->tile.query[r];
    double bias = 0;

    if (fv_present(&l->bias)) bias += fv_ref_f32(&l->bias, b, h, i)[j * l->bias.strides[3]];
    if (fv_present(&l->offset_bias)) bias += *fv_ref_f32(&l->offset_bias, h, fv_offset_at(l, plan, i, j), 0);
    if (fv_present(&l->row_bias)) {
        bias += fv_ref_f32(&l->row_bias, b, h, i)[fv_row_at(l, i, j) * l->row_bias.strides[3]];
        bias += fv_ref_f32(&l->column_bias, b, h, i)[fv_column_at(l, i, j) * l->column_bias.strides[3]];
    }
    return bias;
}

static void logits_of(fv_ref_piece *piece, const float *entry_bias)
{
    const fv_logits *l = piece->source->logits;
    bool biased = fv_present(&l->bias) || fv_present(&l->offset_bias) || fv_present(&l->row_bias);

    for (int r = 0; r < piece->tile.rows; r++) {
        double scale = l->scale;
        if (fv_present(&l->temperature))
            scale *= *fv_ref_f32(&l->temperature, piece->tile.b, piece->tile.h, piece->tile.query[r]);
        for (int n = 0; n < piece->count; n++) {
            double s = scale * piece->dot[r * FV_TILE + n], slope = 1;
            if (!(piece->bits[r] >> n & 1)) continue;
            if (l->gain != 0) {
                slope += s < 0 ? -l->gain : l->gain;
                s += l->gain * fabs(s);
            }
            if (l->softcap > 0) {
                double t = tanh(s / l->softcap);
                slope *= 1 - t * t;
                s = l->softcap * t;
            }
            if (biased) s += bias_of(piece, r, piece->key + n);
            if (entry_bias) s += entry_bias[r];
            if (s == -INFINITY) piece->bits[r] &= ~((uint64_t)1 << n);
            piece->logit[r * FV_TILE + n] = s;
            piece->slope[r * FV_TILE + n] = slope;
        }
    }
}

static void dots(fv_ref_piece *piece)
{
    int64_t D = piece->source->q.dims[3];

    for (int n = 0; n < piece->count; n++) {
        fv_ref_load(&piece->source->k, piece->tile.b, piece->key_head, piece->key + n, piece->row, piece->k + n * D);
        for (int64_t d = 0; d < D; d++)
            piece->transposed[d * FV_TILE + n] = piece->k[n * D + d];
    }
    for (int r = 0; r < piece->tile.rows; r++) {
        double *dot = piece->dot + r * FV_TILE;
        if (!piece->bits[r]) continue;
        for (int n = 0; n < piece->count; n++)
            dot[n] = 0;
        for (int64_t d = 0; d < D; d++) {
            double q = piece->q[r * D + d];
            for (int n = 0; n < piece->count; n++)
                dot[n] += q * piece->transposed[d * FV_TILE + n];
        }
    }
}

void fv_ref_pieces_walk(fv_ref_piece *piece, int64_t from, int64_t to, fv_ref_piece_fn *call, void *user)
{
    const fv_ref_source *source = piece->source;
    const fv_plan_tile *tile = &piece->tile;
    int64_t D = source->q.dims[3];
    fv_plan_run run;

    piece->key_head = fv_ref_key_head(source, tile->h);
    for (int r = 0; r < tile->rows; r++)
        fv_ref_load(&source->q, tile->b, tile->h, tile->query[r], piece->row, piece->q + r * D);
    fv_plan_runs_begin(&piece->runs, source->view, tile);
    while (fv_plan_runs_next(&piece->runs, &run)) {
        int64_t end = fv_min(run.key + run.count, to);
        for (piece->key = fv_max(run.key, from); piece->key < end; piece->key += piece->count) {
            piece->count = (int)fv_min(FV_TILE, end - piece->key);
            fv_plan_bits(&piece->runs, &run, piece->key, piece->count, piece->bits);
            dots(piece);
            logits_of(piece, run.bias);
            call(user, piece);
        }
    }
}

bool fv_ref_apart(const fv_tensor *t)
{
    fv_tensor heads = *t;

    for (int d = 2; d < t->rank; d++)
        if (t->strides[d] == 0) heads.dims[d] = 1; /* sums within a head are its own affair */
    return fv_tensor_apart(&heads);
}
