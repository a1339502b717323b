/* Small steps that several mechanisms share. */
#include "attention/mechanism.h"

fv_status fv_repeat_heads(fv_ctx *ctx, const fv_tensor *x, int64_t heads, fv_tensor *out)
{
    int64_t B = x->dims[0], own = x->dims[1], N = x->dims[2], D = x->dims[3], group = heads / own;
    fv_tensor copy, from;

    *out = *x;
    if (group == 1 && x->dtype == FV_F32) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &copy, FV_F32, FV_DIMS(B, own, group, N, D)));
    from = fv_view(x, FV_DIMS(B, own, group, N, D),
                   (const int64_t[]){x->strides[0], x->strides[1], 0, x->strides[2], x->strides[3]}, 0);
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = from, .out = copy}));
    *out = fv_reshaped(&copy, FV_DIMS(B, heads, N, D));
    return FV_OK;
}

fv_status fv_plain(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out)
{
    *out = *x;
    if (x->dtype == FV_F32 && fv_tensor_contiguous(x)) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, x->rank, x->dims));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *out});
}
