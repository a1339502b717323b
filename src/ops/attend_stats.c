/* attend_stats: what a call must hold before a backend sees it.  Its results are constants to the tape. */
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/logits.h"

#define F32 FV_TYPE(FV_F32)

fv_status fv_attend_stats(fv_ctx *ctx, const fv_stats_args *args)
{
    fv_stats_args a = *args;
    bool slots = fv_plan_gathers(args->plan) && args->lse.rank == 3;
    fv_logits_call call = {"attend_stats", &args->q,
                           &args->k,       args->plan,
                           args->key_head, slots ? args->lse.dims[2] : args->q.rank == 4 ? args->q.dims[2] : 0};
    int64_t B, H, S, M;

    FV_TRY(fv_logits_prepare(&call, &args->logits, &a.logits));
    B = a.q.dims[0], H = a.q.dims[1], S = call.rows, M = a.k.dims[2];
    FV_TRY(fv_check("attend_stats", "lse", &a.lse, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend_stats", "column_sum", &a.column_sum, F32, FV_DIMS(B, H, M)));
    FV_TRY(fv_check_optional("attend_stats", "entropy", &a.entropy, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend_stats", "distance", &a.distance, F32, FV_DIMS(B, H, S)));
    FV_TRY(fv_check_optional("attend_stats", "mass", &a.mass, F32, FV_DIMS(B, H, S)));
    if (fv_present(&a.mass) && !a.key_set)
        return fv_fail(FV_E_ARGUMENT, "attend_stats: mass needs key_set, which is absent");
    if (a.distance_clip < 0)
        return fv_fail(FV_E_ARGUMENT, "attend_stats: distance_clip: expected 0 or more, got %lld",
                       (long long)a.distance_clip);
    if (fv_present(&a.top_key) != fv_present(&a.top_weight))
        return fv_fail(FV_E_ARGUMENT, "attend_stats: top_key and top_weight must be given together");
    if (fv_present(&a.top_key)) {
        FV_TRY(fv_check("attend_stats", "top_key", &a.top_key, FV_TYPE(FV_I32), FV_DIMS(B, H, S, FV_ANY)));
        FV_TRY(fv_check("attend_stats", "top_weight", &a.top_weight, F32, FV_DIMS(B, H, S, a.top_key.dims[3])));
    }
    return ctx->backend->attend_stats(ctx, &a);
}
