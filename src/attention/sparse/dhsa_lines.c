#include <math.h>

#include "attention/sparse/core.h"
#include "attention/sparse/dhsa.h"

struct lines {
    const fv_call *call;
    int64_t first;              /* position of the first row */
    int64_t from;               /* row of the first of weights */
    fv_tensor weights;          /* [B,H,n,M]: scores, then their softmax */
    fv_tensor column, diagonal; /* [B,H,M] */
};

/* Adds the weights of some rows of one head to its sums. */
static void add_rows(void *user, int64_t plane, int thread)
{
    const struct lines *l = user;
    int64_t M = l->call->keys, n = l->weights.dims[2];
    float *column = (float *)l->column.data + plane * M, *diagonal = (float *)l->diagonal.data + plane * M;

    (void)thread;
    for (int64_t r = 0; r < n; r++) {
        const float *weight = (const float *)l->weights.data + (plane * n + r) * M;
        int64_t p = l->first + l->from + r;
        for (int64_t j = 0; j <= p; j++) {
            column[j] += weight[j];
            diagonal[j] += weight[p - j];
        }
    }
}

static fv_status take_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct lines *l = user;
    int64_t M = l->call->keys, n = scores->dims[2], planes = l->call->batch * l->call->query_heads;

    l->from = from;
    l->weights = *scores;
    for (int64_t row = 0; row < planes * n; row++) {
        float *score = (float *)scores->data + row * M;
        if (l->call->scale == 0) memset(score, 0, (size_t)M * sizeof *score);
        for (int64_t j = l->first + from + row % n + 1; j < M; j++)
            score[j] = -INFINITY;
    }
    if (l->call->softcap > 0)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = *scores, .out = *scores, .alpha = l->call->softcap}));
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = *scores, .out = *scores}));
    fv_run(ctx, planes, add_rows, l);
    return FV_OK;
}

/* Sums over heads, of which all but the `kept` largest become 0. */
static fv_status keep_largest(fv_ctx *ctx, const fv_tensor *heads, int64_t kept, fv_tensor *out)
{
    int64_t B = heads->dims[0], H = heads->dims[1], M = heads->dims[2];
    fv_tensor sum, index;

    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, FV_DIMS(B, 1, M)));
    FV_TRY(fv_tensor_zeros(ctx, out, FV_F32, FV_DIMS(B, M)));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, kept)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_SUM, .x = *heads, .out = sum, .block = H}));
    sum = fv_reshaped(&sum, FV_DIMS(B, M));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = sum, .index = index}));
    for (int64_t n = 0; n < B * kept; n++) {
        int32_t at = ((const int32_t *)index.data)[n];
        if (at >= 0) ((float *)out->data)[n / kept * M + at] = ((const float *)sum.data)[n / kept * M + at];
    }
    return FV_OK;
}

/* What the last `rows` queries of a call attend to, all keys being read: sums of their weights over heads, by key in
 * column [B,M] and by distance in diagonal [B,M], of which only the `columns` and `diagonals` largest stay. */
static fv_status find_lines(fv_ctx *ctx, const fv_call *call, int64_t rows, int64_t columns, int64_t diagonals,
                            fv_tensor *column, fv_tensor *diagonal)
{
    struct lines l = {.call = call, .first = call->offset + call->queries - rows};
    fv_tensor q = fv_slice(&call->q, 2, call->queries - rows, rows), k;

    FV_TRY(fv_as_f32(ctx, &call->k, &k));
    FV_TRY(fv_tensor_zeros(ctx, &l.column, FV_F32, FV_DIMS(call->batch, call->query_heads, call->keys)));
    FV_TRY(fv_tensor_zeros(ctx, &l.diagonal, FV_F32, FV_DIMS(call->batch, call->query_heads, call->keys)));
    FV_TRY(fv_score_rows(ctx, &q, &k, call->scale, take_rows, &l));
    FV_TRY(keep_largest(ctx, &l.column, columns, column));
    return keep_largest(ctx, &l.diagonal, diagonals, diagonal);
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

/* Scores of the chunks between the first and the block's last one: the mass of chosen columns in them, and that of the
 * chosen diagonals that cross them. */
static void score_lines(const fv_call *call, const struct fv_dhsa_groups *g, int64_t i, const double *column,
                        const double *diagonal, float *score)
{
    const struct fv_dhsa *o = call->options;
    int64_t first = (g->first + i) * o->block, last = first + o->block - 1,
            recent = (fv_dhsa_keys(call, g, i) - 1) / o->chunk;

    for (int64_t chunk = 1; chunk < recent; chunk++) {
        int64_t from = chunk * o->chunk, end = from + o->chunk;
        int64_t nearest = fv_max(first - end + 1, 0), farthest = fv_min(last - from, call->keys - 1);
        score[chunk - 1] =
            fv_dhsa_ordered((float)(column[end] - column[from] + diagonal[farthest + 1] - diagonal[nearest]));
    }
}

/* sum[n] of the first n numbers. */
static fv_status sum_up(fv_ctx *ctx, const fv_tensor *values, int64_t b, double **sum)
{
    int64_t M = values->dims[1];
    const float *value = (const float *)values->data + b * M;

    FV_TRY(FV_SCRATCH(ctx, *sum, M + 1));
    (*sum)[0] = 0;
    for (int64_t j = 0; j < M; j++)
        (*sum)[j + 1] = (*sum)[j] + value[j];
    return FV_OK;
}

/* The first chunk, the last one, and the best between. */
static fv_status list_chunks(fv_ctx *ctx, const fv_call *call, const struct fv_dhsa_groups *g, int64_t row,
                             const fv_tensor *column, const fv_tensor *diagonal)
{
    int64_t b = row / g->count, i = g->block[row % g->count], chosen = fv_dhsa_target(call) - 2;
    int64_t between = fv_ceil_div(fv_dhsa_keys(call, g, i), g->granule) - 2;
    int32_t *entry = g->entry + g->row_start[row];
    double *columns, *diagonals;
    fv_tensor score, index;

    *entry++ = 0;
    if (chosen > 0) {
        FV_TRY(fv_tensor_new(ctx, &score, FV_F32, FV_DIMS(between)));
        FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(chosen)));
        FV_TRY(sum_up(ctx, column, b, &columns));
        FV_TRY(sum_up(ctx, diagonal, b, &diagonals));
        score_lines(call, g, i, columns, diagonals, score.data);
        FV_TRY(fv_select(ctx, &(fv_select_args){.scores = score, .index = index}));
        for (int64_t n = 0; n < chosen; n++)
            *entry++ = ((const int32_t *)index.data)[n] + 1;
    }
    *entry = (int32_t)(between + 1);
    return FV_OK;
}

fv_status fv_dhsa_choose_by_lines(fv_ctx *ctx, const fv_call *call, const struct fv_dhsa_groups *g)
{
    const struct fv_dhsa *o = call->options;
    int64_t budget = fv_min(fv_dhsa_target(call) * o->chunk, call->keys),
            columns = (int64_t)(o->vertical * (double)budget);
    int64_t last = call->queries - g->start[g->blocks - 1];
    fv_tensor column, diagonal;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, find_lines(ctx, call, last, columns, budget - columns, &column, &diagonal));
    for (int64_t r = 0; r < call->batch * g->count; r++) {
        int64_t i = g->block[r % g->count];
        if (i < 0 || fv_ceil_div(fv_dhsa_keys(call, g, i), o->chunk) <= fv_dhsa_target(call))
            fv_dhsa_list_all(g, r);
        else
            FV_TRY_SCRATCH(ctx, list_chunks(ctx, call, g, r, &column, &diagonal));
    }
    return FV_OK;
}
