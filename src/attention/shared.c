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

fv_tensor fv_grouped(const fv_tensor *x, int64_t groups)
{
    int64_t group = x->dims[1] / groups;

    return fv_view(x, FV_DIMS(x->dims[0], groups, group, x->dims[2], x->dims[3]),
                   (const int64_t[]){x->strides[0], x->strides[1] * group, x->strides[1], x->strides[2], x->strides[3]},
                   0);
}

fv_status fv_add_local(fv_ctx *ctx, const fv_call *call, const fv_tensor *part, const fv_tensor *weight,
                       const fv_tensor *bias, int64_t height, int64_t width)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries, Dv = call->value_dim;
    int64_t kernel = fv_present(weight) ? weight->dims[1] : 1;
    fv_tensor v, image, local, w, columns;

    FV_TRY(fv_repeat_heads(ctx, &call->v, H, &v));
    if (fv_present(weight))
        FV_TRY(fv_plain(ctx, weight, &w));
    else
        FV_TRY(fv_tensor_zeros(ctx, &w, FV_F32, FV_DIMS(H * Dv, kernel, kernel)));
    FV_TRY(fv_tensor_new(ctx, &image, FV_F32, FV_DIMS(B, H, Dv, N)));
    FV_TRY(fv_tensor_new(ctx, &local, FV_F32, FV_DIMS(B, H * Dv, height, width)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = fv_transposed(&v), .out = image}));
    FV_TRY(fv_conv2d(ctx, &(fv_conv2d_args){.x = fv_reshaped(&image, FV_DIMS(B, H * Dv, height, width)),
                                            .weight = fv_reshaped(&w, FV_DIMS(H * Dv, 1, kernel, kernel)),
                                            .bias = *bias,
                                            .out = local,
                                            .padding = kernel / 2,
                                            .groups = H * Dv}));
    columns = fv_reshaped(&local, FV_DIMS(B, H, Dv, N));
    return fv_map_apply(ctx,
                        &(fv_map_args){.op = FV_MAP_ADD, .x = *part, .y = fv_transposed(&columns), .out = call->o});
}

bool fv_tape_pause(fv_ctx *ctx)
{
    bool recording = ctx->recording;

    ctx->recording = false;
    return recording;
}

void fv_tape_resume(fv_ctx *ctx, bool recording)
{
    ctx->recording = recording;
}
