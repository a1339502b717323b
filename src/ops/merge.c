/* merge: what a call must hold before a backend sees it, and its place on the tape. */
#include <stdio.h>

#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

#define F32 FV_TYPE(FV_F32)

static bool weighted(const fv_merge_args *a)
{
    return fv_present(&a->weight[0]);
}

static fv_status check_slots(const fv_merge_args *a)
{
    const fv_tensor *o = &a->o;
    int64_t B = o->dims[0], H = o->dims[1], S, rows = B * H * o->dims[2];

    if (a->parts != 1) return fv_fail(FV_E_ARGUMENT, "merge: slots are combined from one part, got %d", a->parts);
    FV_TRY(fv_check("merge", "o_part[0]", &a->o_part[0], F32, FV_DIMS(B, H, FV_ANY, o->dims[3])));
    S = a->o_part[0].dims[2];
    if (weighted(a))
        FV_TRY(fv_check("merge", "weight[0]", &a->weight[0], F32, FV_DIMS(B, H, S)));
    else
        FV_TRY(fv_check("merge", "lse_part[0]", &a->lse_part[0], F32, FV_DIMS(B, H, S)));
    if (!a->slot_start || !a->slot) return fv_fail(FV_E_ARGUMENT, "merge: slot and slot_start must be given together");
    for (int64_t r = 0; r < rows; r++)
        if (a->slot_start[r] < 0 || a->slot_start[r + 1] < a->slot_start[r])
            return fv_fail(FV_E_ARGUMENT, "merge: slot_start goes from %lld to %lld at %lld",
                           (long long)a->slot_start[r], (long long)a->slot_start[r + 1], (long long)r);
    for (int64_t n = rows ? a->slot_start[0] : 0; rows && n < a->slot_start[rows]; n++)
        if (a->slot[n] < 0 || a->slot[n] >= S)
            return fv_fail(FV_E_ARGUMENT, "merge: slot[%lld]: expected 0 to %lld, got %d", (long long)n,
                           (long long)(S - 1), a->slot[n]);
    return FV_OK;
}

/* Checks a call and spreads its weights to [B,H,N]. */
static fv_status prepare(const fv_merge_args *args, fv_merge_args *a)
{
    int64_t B, H, N, Dv;

    *a = *args;
    if (a->parts < 1 || a->parts > FV_MERGE_PARTS)
        return fv_fail(FV_E_ARGUMENT, "merge: expected 1 to %d parts, got %d", FV_MERGE_PARTS, a->parts);
    FV_TRY(fv_check_rank("merge", "o", &a->o, F32, 4, 4));
    B = a->o.dims[0], H = a->o.dims[1], N = a->o.dims[2], Dv = a->o.dims[3];
    FV_TRY(fv_check_optional("merge", "lse", &a->lse, F32, FV_DIMS(B, H, N)));
    if (weighted(a) && fv_present(&a->lse))
        return fv_fail(FV_E_ARGUMENT, "merge: a sum by weights has no lse, but one is asked for");
    if (a->slot || a->slot_start) return check_slots(a);
    for (int p = 0; p < a->parts; p++) {
        char name[32];
        snprintf(name, sizeof name, "o_part[%d]", p);
        FV_TRY(fv_check("merge", name, &a->o_part[p], F32, FV_DIMS(B, H, N, Dv)));
        if (weighted(a)) {
            snprintf(name, sizeof name, "weight[%d]", p);
            FV_TRY(fv_check_broadcast("merge", name, &a->weight[p], F32, FV_DIMS(B, H, N)));
            a->weight[p] = fv_broadcast(&a->weight[p], FV_DIMS(B, H, N));
        } else {
            snprintf(name, sizeof name, "lse_part[%d]", p);
            FV_TRY(fv_check("merge", name, &a->lse_part[p], F32, FV_DIMS(B, H, N)));
        }
    }
    return FV_OK;
}

static fv_status spread_gradient(const char *name, int part, fv_tensor *gradient, const fv_tensor *of)
{
    if (!fv_present(gradient)) return FV_OK;
    if (!fv_present(of))
        return fv_fail(FV_E_ARGUMENT, "merge backward: %s[%d]: the call has no such tensor", name, part);
    FV_TRY(fv_check_broadcast("merge backward", name, gradient, F32, of->rank, of->dims));
    *gradient = fv_broadcast(gradient, of->rank, of->dims);
    return FV_OK;
}

static fv_status backward(fv_ctx *ctx, const fv_merge_args *a, const fv_merge_grads *grads)
{
    fv_merge_grads g = *grads;

    FV_TRY(fv_check("merge backward", "d_o", &g.d_o, F32, a->o.rank, a->o.dims));
    FV_TRY(fv_check_optional("merge backward", "d_lse", &g.d_lse, F32, 3, a->o.dims));
    for (int p = 0; p < a->parts; p++) {
        FV_TRY(spread_gradient("d_o_part", p, &g.d_o_part[p], &a->o_part[p]));
        FV_TRY(spread_gradient("d_lse_part", p, &g.d_lse_part[p], &a->lse_part[p]));
        FV_TRY(spread_gradient("d_weight", p, &g.d_weight[p], &a->weight[p]));
    }
    return ctx->backend->merge_backward(ctx, a, &g);
}

fv_status fv_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads)
{
    fv_merge_args a;

    FV_TRY(prepare(args, &a));
    return backward(ctx, &a, grads);
}

static fv_status walk_back(fv_ctx *ctx, const void *data)
{
    const fv_merge_args *a = data;
    fv_merge_grads g = {.d_o = fv_tape_shadow(ctx, &a->o), .d_lse = fv_tape_shadow(ctx, &a->lse)};

    for (int p = 0; p < a->parts; p++) {
        g.d_o_part[p] = fv_tape_shadow(ctx, &a->o_part[p]);
        if (weighted(a))
            g.d_weight[p] = fv_tape_shadow(ctx, &a->weight[p]);
        else
            g.d_lse_part[p] = fv_tape_shadow(ctx, &a->lse_part[p]);
    }
    return fv_present(&g.d_o) ? backward(ctx, a, &g) : FV_OK;
}

fv_status fv_merge(fv_ctx *ctx, const fv_merge_args *args)
{
    const fv_tensor *inputs[2 * FV_MERGE_PARTS], *outputs[2];
    fv_merge_args a;

    FV_TRY(prepare(args, &a));
    for (int p = 0; p < a.parts; p++) {
        FV_TRY(fv_check_apart(ctx, "merge", &a.o_part[p], &a.o));
        inputs[2 * p] = &a.o_part[p];
        inputs[2 * p + 1] = weighted(&a) ? &a.weight[p] : &a.lse_part[p];
    }
    FV_TRY(ctx->backend->merge(ctx, &a));
    outputs[0] = &a.o;
    outputs[1] = &a.lse;
    return fv_tape_record(ctx, walk_back, &a, sizeof a, 2 * a.parts, inputs, 2, outputs);
}
