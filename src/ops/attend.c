/* attend: what a call must hold before a backend sees it, and its place on the tape. */
#include <math.h>

#include "ops/backend.h"
#include "ops/check.h"
#include "ops/logits.h"
#include "ops/tape.h"

#define F32 FV_TYPE(FV_F32)

static int64_t o_rows(const fv_attend_args *a)
{
    return fv_plan_gathers(a->plan) && a->o.rank == 4 ? a->o.dims[2] : a->q.rank == 4 ? a->q.dims[2] : 0;
}

static fv_status check_by_products(const fv_attend_args *a, int64_t B, int64_t H, int64_t S, int64_t M)
{
    FV_TRY(fv_check_optional("attend", "row_max", &a->row_max, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend", "arg_max", &a->arg_max, FV_TYPE(FV_I32), FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend", "weights", &a->weights, F32, FV_DIMS(B, H, FV_ANY, FV_ANY)));
    if (!fv_present(&a->weights)) return FV_OK;
    int64_t R = a->weights.dims[2], K = a->weights.dims[3];
    if (a->weight_from < 0 || a->weight_from > M || K > M - a->weight_from)
        return fv_fail(FV_E_SHAPE, "attend: weights: keys %lld to %lld do not lie within %lld keys",
                       (long long)a->weight_from, (long long)(a->weight_from + K), (long long)M);
    if (!a->weight_rows && R > S)
        return fv_fail(FV_E_SHAPE, "attend: weights: %lld rows of %lld", (long long)R, (long long)S);
    for (int64_t r = 0; a->weight_rows && r < R; r++)
        if (a->weight_rows[r] < 0 || a->weight_rows[r] >= S)
            return fv_fail(FV_E_ARGUMENT, "attend: weight_rows[%lld]: expected 0 to %lld, got %d", (long long)r,
                           (long long)(S - 1), a->weight_rows[r]);
    for (int64_t b = 0; fv_plan_gathers(a->plan) && b < B; b++) /* a row that is no slot has no query */
        for (int64_t h = 0; h < H; h++)
            for (int64_t r = 0; r < R; r++)
                if ((a->weight_rows ? a->weight_rows[r] : r) >= fv_plan_slots(a->plan, H, b, h))
                    return fv_fail(FV_E_ARGUMENT, "attend: weights: row %lld is no slot of batch %lld, head %lld",
                                   (long long)(a->weight_rows ? a->weight_rows[r] : r), (long long)b, (long long)h);
    return FV_OK;
}

/* Checks a call and makes it uniform. */
static fv_status prepare(const fv_attend_args *args, fv_attend_args *a)
{
    fv_logits_call call = {"attend", &args->q, &args->k, args->plan, args->key_head, o_rows(args)};
    int64_t B, H, S, M, Dv;

    *a = *args;
    FV_TRY(fv_logits_prepare(&call, &args->logits, &a->logits));
    B = a->q.dims[0], H = a->q.dims[1], S = call.rows, M = a->k.dims[2];
    FV_TRY(fv_check("attend", "v", &a->v, FV_TYPES_ROWS, FV_DIMS(B, a->k.dims[1], M, FV_ANY)));
    Dv = a->v.dims[3];
    FV_TRY(fv_check("attend", "o", &a->o, F32, FV_DIMS(B, H, S, Dv)));
    FV_TRY(fv_check_optional("attend", "lse", &a->lse, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend", "sinks", &a->sinks, F32, FV_DIMS(H)));
    if (fv_present(&a->lse_in) && fv_present(&a->lse_in_key))
        return fv_fail(FV_E_ARGUMENT, "attend: lse_in and lse_in_key exclude each other");
    if (a->steps < 0 || a->steps > 256)
        return fv_fail(FV_E_ARGUMENT, "attend: steps: expected 0 to 256, got %d", a->steps);
    if (a->steps > 0 && (fv_present(&a->lse_in) || fv_present(&a->lse_in_key)))
        return fv_fail(FV_E_ARGUMENT, "attend: steps and lse_in exclude each other");
    FV_TRY(fv_check_optional("attend", "lse_in", &a->lse_in, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend", "lse_in_key", &a->lse_in_key, F32, FV_DIMS(B, H, M)));
    if (fv_present(&a->lse_in) || fv_present(&a->lse_in_key)) a->lse = (fv_tensor){0}; /* not written */
    return check_by_products(a, B, H, S, M);
}

/* Rows of o beyond the slots of a batch and head see nothing. */
static void clear_spare_rows(const fv_attend_args *a)
{
    const fv_tensor *o = &a->o, *lse = &a->lse, *max = &a->row_max, *arg = &a->arg_max;

    for (int64_t b = 0; b < o->dims[0]; b++)
        for (int64_t h = 0; h < o->dims[1]; h++)
            for (int64_t s = fv_plan_slots(a->plan, o->dims[1], b, h); s < o->dims[2]; s++) {
                for (int64_t d = 0; d < o->dims[3]; d++)
                    *(float *)fv_at(o, b, h, s, d) = 0;
                if (fv_present(lse)) *(float *)fv_at(lse, b, h, s, 0) = -INFINITY;
                if (fv_present(max)) *(float *)fv_at(max, b, h, s, 0) = -INFINITY;
                if (fv_present(arg)) *(int32_t *)fv_at(arg, b, h, s, 0) = -1;
            }
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

static fv_status check_gradient(const char *name, const fv_tensor *gradient, const fv_tensor *of)
{
    if (!fv_present(gradient)) return FV_OK;
    if (!fv_present(of)) return fv_fail(FV_E_ARGUMENT, "attend backward: %s: the call has no such tensor", name);
    return fv_check_broadcast("attend backward", name, gradient, F32, of->rank, of->dims);
}

static fv_status backward(fv_ctx *ctx, const fv_attend_args *a, const fv_attend_grads *grads)
{
    fv_attend_grads g = *grads;
    struct {
        const char *name;
        fv_tensor *gradient;
        const fv_tensor *of;
    } pairs[] = {
        {"d_q", &g.d_q, &a->q},
        {"d_k", &g.d_k, &a->k},
        {"d_v", &g.d_v, &a->v},
        {"d_bias", &g.d_bias, &a->logits.bias},
        {"d_sinks", &g.d_sinks, &a->sinks},
        {"d_temperature", &g.d_temperature, &a->logits.temperature},
        {"d_offset_bias", &g.d_offset_bias, &a->logits.offset_bias},
        {"d_row_bias", &g.d_row_bias, &a->logits.row_bias},
        {"d_column_bias", &g.d_column_bias, &a->logits.column_bias},
    };

    FV_TRY(fv_check("attend backward", "d_o", &g.d_o, F32, a->o.rank, a->o.dims));
    FV_TRY(fv_check_optional("attend backward", "d_lse", &g.d_lse, F32, 3, a->o.dims));
    for (size_t n = 0; n < sizeof pairs / sizeof pairs[0]; n++) {
        FV_TRY(check_gradient(pairs[n].name, pairs[n].gradient, pairs[n].of));
        if (fv_present(pairs[n].gradient))
            *pairs[n].gradient = fv_broadcast(pairs[n].gradient, pairs[n].of->rank, pairs[n].of->dims);
    }
    if (!fv_present(&a->lse_in) && !fv_present(&a->lse_in_key) && !fv_present(&a->lse))
        return fv_fail(FV_E_ARGUMENT, "attend backward: lse of the forward call is needed, got none");
    return ctx->backend->attend_backward(ctx, a, &g);
}

fv_status fv_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads)
{
    fv_attend_args a;

    FV_TRY(prepare(args, &a));
    return backward(ctx, &a, grads);
}

static fv_status walk_back(fv_ctx *ctx, const void *data)
{
    const fv_attend_args *a = data;
    fv_attend_grads g = {
        .d_o = fv_tape_shadow(ctx, &a->o),
        .d_lse = fv_tape_shadow(ctx, &a->lse),
        .d_q = fv_tape_shadow(ctx, &a->q),
        .d_k = fv_tape_shadow(ctx, &a->k),
        .d_v = fv_tape_shadow(ctx, &a->v),
        .d_bias = fv_tape_shadow(ctx, &a->logits.bias),
        .d_sinks = fv_tape_shadow(ctx, &a->sinks),
        .d_temperature = fv_tape_shadow(ctx, &a->logits.temperature),
        .d_offset_bias = fv_tape_shadow(ctx, &a->logits.offset_bias),
        .d_row_bias = fv_tape_shadow(ctx, &a->logits.row_bias),
        .d_column_bias = fv_tape_shadow(ctx, &a->logits.column_bias),
    };

    return fv_present(&g.d_o) ? backward(ctx, a, &g) : FV_OK;
}

/* The plan and the head map may lie on the caller's stack, so the tape keeps copies. */
static fv_status record(fv_ctx *ctx, fv_attend_args *a)
{
    const fv_logits *l = &a->logits;

    FV_TRY(fv_plan_keep(ctx, a->plan, &a->plan));
    FV_TRY(fv_heads_keep(ctx, a->key_head, a->q.dims[1], &a->key_head));
    return FV_TAPE_RECORD(ctx, walk_back, a, 9, &a->q, &a->k, &a->v, &a->sinks, &l->bias, &l->temperature,
                          &l->offset_bias, &l->row_bias, &l->column_bias, &a->o, &a->lse);
}

fv_status fv_attend(fv_ctx *ctx, const fv_attend_args *args)
{
    fv_attend_args a;

    FV_TRY(prepare(args, &a));
    if (ctx->recording && !fv_present(&a.lse) && !fv_present(&a.lse_in) && !fv_present(&a.lse_in_key))
        FV_TRY(fv_tensor_new(ctx, &a.lse, FV_F32, 3, a.o.dims));
    FV_TRY(fv_check_apart(ctx, "attend", &a.q, &a.o));
    if (fv_plan_gathers(a.plan)) clear_spare_rows(&a);
    FV_TRY(ctx->backend->attend(ctx, &a));
    return ctx->recording ? record(ctx, &a) : FV_OK;
}
