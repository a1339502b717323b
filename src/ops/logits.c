#include "ops/logits.h"

#include <math.h>
#include <string.h>

#include "ops/blocks.h"
#include "ops/check.h"

static fv_status check_key_heads(const fv_logits_call *call, int64_t heads, int64_t key_heads)
{
    if (!call->key_head) {
        if (key_heads > 0 && heads % key_heads == 0) return FV_OK;
        if (heads == 0) return FV_OK;
        return fv_fail(FV_E_SHAPE, "%s: %lld key-value heads do not divide %lld query heads (shapes %s and %s)",
                       call->op, (long long)key_heads, (long long)heads, fv_shape_text(call->q),
                       fv_shape_text(call->k));
    }
    for (int64_t h = 0; h < heads; h++)
        if (call->key_head[h] < 0 || call->key_head[h] >= key_heads)
            return fv_fail(FV_E_ARGUMENT, "%s: key_head[%lld]: expected 0 to %lld, got %d", call->op, (long long)h,
                           (long long)(key_heads - 1), call->key_head[h]);
    return FV_OK;
}

static fv_status check_scalars(const char *op, const fv_logits *l)
{
    if (!isfinite(l->scale) || !isfinite(l->softcap) || !isfinite(l->gain) || l->softcap < 0)
        return fv_fail(FV_E_ARGUMENT, "%s: expected a finite scale, gain and soft-cap >= 0, got %g, %g and %g", op,
                       (double)l->scale, (double)l->gain, (double)l->softcap);
    return FV_OK;
}

/* Places need the bias they are for, and those of rows and columns need one another. */
static fv_status check_places(const char *op, const fv_logits *l)
{
    const fv_places *each[] = {&l->offset_place, &l->row_place, &l->column_place};
    bool halves = false;

    for (int n = 0; n < 3; n++)
        halves = halves || !each[n]->query != !each[n]->key;
    if (!halves && !l->row_place.key == !l->column_place.key && (!l->offset_place.key || fv_present(&l->offset_bias)) &&
        (!l->row_place.key || fv_present(&l->row_bias)))
        return FV_OK;
    return fv_fail(FV_E_ARGUMENT,
                   "%s: places of queries and keys, and of rows and columns, go together and with a bias", op);
}

static fv_status spread(const char *op, const char *name, fv_tensor *t, int rank, const int64_t *dims)
{
    if (!fv_present(t)) return FV_OK;
    FV_TRY(fv_check_broadcast(op, name, t, FV_TYPE(FV_F32), rank, dims));
    *t = fv_broadcast(t, rank, dims);
    return FV_OK;
}

fv_status fv_logits_prepare(const fv_logits_call *call, const fv_logits *given, fv_logits *logits)
{
    const fv_tensor *q = call->q, *k = call->k;
    int64_t B, H, N, M, D;

    FV_TRY(fv_check_rank(call->op, "q", q, FV_TYPE(FV_F32), 4, 4));
    B = q->dims[0], H = q->dims[1], N = q->dims[2], D = q->dims[3];
    FV_TRY(fv_check(call->op, "k", k, FV_TYPES_ROWS, FV_DIMS(B, FV_ANY, FV_ANY, D)));
    M = k->dims[2];
    if (D < 1)
        return fv_fail(FV_E_SHAPE, "%s: q: expected a head of at least 1 channel, got %s", call->op, fv_shape_text(q));
    if (M > INT32_MAX || N > INT32_MAX)
        return fv_fail(FV_E_SHAPE, "%s: expected at most %d queries and keys, got %s and %s", call->op, INT32_MAX,
                       fv_shape_text(q), fv_shape_text(k));
    FV_TRY(check_key_heads(call, H, k->dims[1]));
    FV_TRY(check_scalars(call->op, given));
    FV_TRY(check_places(call->op, given));
    FV_TRY(fv_plan_check(call->plan, B, H, N, M, call->rows));

    *logits = *given;
    if (logits->zero_scale)
        logits->scale = 0;
    else if (logits->scale == 0)
        logits->scale = (float)(1 / sqrt((double)D));
    FV_TRY(spread(call->op, "temperature", &logits->temperature, FV_DIMS(B, H, N)));
    FV_TRY(spread(call->op, "bias", &logits->bias, FV_DIMS(B, H, N, M)));
    if (fv_present(&logits->offset_bias)) {
        FV_TRY(fv_check_rank(call->op, "offset_bias", &logits->offset_bias, FV_TYPE(FV_F32), 2, 2));
        if (logits->offset_bias.dims[1] < 1)
            return fv_fail(FV_E_SHAPE, "%s: offset_bias: expected at least one offset, got %s", call->op,
                           fv_shape_text(&logits->offset_bias));
        FV_TRY(spread(call->op, "offset_bias", &logits->offset_bias, FV_DIMS(H, logits->offset_bias.dims[1])));
    }
    if (fv_present(&logits->row_bias) != fv_present(&logits->column_bias))
        return fv_fail(FV_E_ARGUMENT, "%s: row_bias and column_bias must be given together", call->op);
    if (fv_present(&logits->row_bias)) {
        FV_TRY(fv_check_rank(call->op, "row_bias", &logits->row_bias, FV_TYPE(FV_F32), 4, 4));
        FV_TRY(fv_check_rank(call->op, "column_bias", &logits->column_bias, FV_TYPE(FV_F32), 4, 4));
        int64_t rows = logits->row_bias.dims[3], columns = logits->column_bias.dims[3], cells;
        if (rows < 1 || columns < 1 || (!given->row_place.key && (!fv_mul_i64(rows, columns, &cells) || cells != M)))
            return fv_fail(FV_E_SHAPE, "%s: row_bias %s and column_bias %s do not make %lld keys", call->op,
                           fv_shape_text(&logits->row_bias), fv_shape_text(&logits->column_bias), (long long)M);
        FV_TRY(spread(call->op, "row_bias", &logits->row_bias, FV_DIMS(B, H, N, rows)));
        FV_TRY(spread(call->op, "column_bias", &logits->column_bias, FV_DIMS(B, H, N, columns)));
    }
    return FV_OK;
}

/* ---- what the tape keeps --------------------------------------------------------------------------------------- */

static fv_status keep(fv_ctx *ctx, const void *data, int64_t count, size_t size, const void **kept)
{
    void *copy;

    *kept = NULL;
    if (!data) return FV_OK;
    FV_TRY(fv_arena_alloc(ctx->arena, &copy, count, size));
    memcpy(copy, data, (size_t)count * size);
    *kept = copy;
    return FV_OK;
}

fv_status fv_heads_keep(fv_ctx *ctx, const int32_t *key_head, int64_t heads, const int32_t **kept)
{
    return keep(ctx, key_head, heads, sizeof *key_head, (const void **)kept);
}

fv_status fv_plan_keep(fv_ctx *ctx, const fv_plan *plan, const fv_plan **kept)
{
    fv_plan copy;

    *kept = NULL;
    if (!plan) return FV_OK;
    copy = *plan;
    FV_TRY(
        keep(ctx, plan->window.head_sink, plan->window.heads, sizeof(int64_t), (const void **)&copy.window.head_sink));
    FV_TRY(keep(ctx, plan->window.head_window, plan->window.heads, sizeof(int64_t),
                (const void **)&copy.window.head_window));
    return keep(ctx, &copy, 1, sizeof copy, (const void **)kept);
}
