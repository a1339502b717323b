/* Small steps that several mechanisms share. */
#include "attention/mechanism.h"
#include "ops/check.h"

fv_status fv_repeat_heads(fv_ctx *ctx, const fv_tensor *x, int64_t heads, fv_tensor *out)
{
    int64_t B = x->dims[0], own = x->dims[1], N = x->dims[2], D = x->dims[3], group = heads / own;
    fv_tensor copy, from, plain;

    if (fv_dtype_block(x->dtype) > 1) {
        FV_TRY(fv_plain(ctx, x, &plain));
        return fv_repeat_heads(ctx, &plain, heads, out);
    }
    *out = *x;
    if (group == 1 && x->dtype == FV_F32) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &copy, FV_F32, FV_DIMS(B, own, group, N, D)));
    from = fv_view(x, FV_DIMS(B, own, group, N, D),
                   (const int64_t[]){x->strides[0], x->strides[1], 0, x->strides[2], x->strides[3]}, 0);
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = from, .out = copy}));
    *out = fv_reshaped(&copy, FV_DIMS(B, heads, N, D));
    return FV_OK;
}

fv_status fv_join_heads(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out)
{
    int64_t B = x->dims[0], H = x->dims[1], N = x->dims[2], D = x->dims[3];

    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(B, N, H, D)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = fv_permuted(x, (const int[]){0, 2, 1, 3}), .out = *out}));
    *out = fv_reshaped(out, FV_DIMS(B, N, H * D));
    return FV_OK;
}

/* Blocks have no cast of their own. */
static fv_status unpack(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *out)
{
    int lead = x->rank - 2;

    for (int64_t n = 0; n < fv_lead_count(x, lead); n++) {
        const int64_t *dims = x->dims + lead;
        fv_dequantize_args rows = {.x = fv_view(x, 2, dims, x->strides + lead, fv_lead_offset(x, lead, n)),
                                   .out = fv_view(out, 2, dims, out->strides + lead, fv_lead_offset(out, lead, n))};
        FV_TRY(fv_dequantize_rows(ctx, &rows));
    }
    return FV_OK;
}

fv_status fv_plain(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out)
{
    *out = *x;
    if (x->dtype == FV_F32 && fv_tensor_contiguous(x)) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, x->rank, x->dims));
    if (fv_dtype_block(x->dtype) > 1) return unpack(ctx, x, out);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *out});
}

fv_status fv_as_f32(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out)
{
    *out = *x;
    return x->dtype == FV_F32 ? FV_OK : fv_plain(ctx, x, out);
}

fv_tensor fv_grouped(const fv_tensor *x, int64_t groups)
{
    return fv_parted(x, 1, x->dims[1] / groups);
}

fv_status fv_mapped(fv_ctx *ctx, const fv_map_args *args, fv_tensor *out)
{
    fv_map_args map = *args;

    FV_TRY(fv_tensor_new(ctx, &map.out, FV_F32, map.x.rank, map.x.dims));
    *out = map.out;
    return fv_map_apply(ctx, &map);
}

fv_status fv_number(fv_ctx *ctx, float value, fv_tensor *out)
{
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(1)));
    *(float *)out->data = value;
    return FV_OK;
}

fv_status fv_largest_logits(fv_ctx *ctx, const fv_attend_args *args, const fv_tensor *most)
{
    const int64_t *q = args->q.dims, *k = args->k.dims;
    fv_attend_args one = *args;
    fv_tensor least;

    FV_TRY(fv_tensor_zeros(ctx, &one.v, FV_F32, FV_DIMS(k[0], k[1], k[2], 1))); /* nobody asks what is read */
    FV_TRY(fv_tensor_new(ctx, &one.o, FV_F32, FV_DIMS(q[0], q[1], q[2], 1)));
    FV_TRY(fv_tensor_new(ctx, &least, FV_F32, 3, q));
    one.row_max = *most;
    FV_TRY(fv_attend(ctx, &one));
    one.logits.scale = -one.logits.scale;
    one.row_max = least;
    one.lse = (fv_tensor){0};
    FV_TRY(fv_attend(ctx, &one));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = *most, .y = least, .out = *most});
}

/* The images of a batch and head of x [B,Hx,N,C] as [count,C,height,width]. */
static fv_tensor as_images(const fv_tensor *x, int64_t b, int64_t head, const fv_images *images)
{
    const int64_t *s = x->strides;

    return fv_view(x, FV_DIMS(images->count, x->dims[3], images->height, images->width),
                   (const int64_t[]){s[2] * images->image, s[3], s[2] * images->row, s[2] * images->column},
                   b * s[0] + head * s[1]);
}

fv_status fv_convolve_heads(fv_ctx *ctx, const fv_images *images, const fv_tensor *v, const int32_t *key_head,
                            const fv_tensor *weight, const fv_tensor *bias, const fv_tensor *out)
{
    int64_t H = out->dims[1], Dv = out->dims[3], kernel = fv_present(weight) ? weight->dims[1] : 1;
    fv_tensor w = *weight;

    if (!fv_present(&w)) FV_TRY(fv_tensor_zeros(ctx, &w, FV_F32, FV_DIMS(H * Dv, kernel, kernel)));
    w = fv_view(&w, FV_DIMS(H * Dv, 1, kernel, kernel),
                (const int64_t[]){w.strides[0], w.strides[0], w.strides[1], w.strides[2]}, 0);
    for (int64_t n = 0; n < out->dims[0] * H; n++) {
        int64_t b = n / H, h = n % H;
        fv_conv2d_args conv = {.x = as_images(v, b, key_head ? key_head[h] : h / (H / v->dims[1]), images),
                               .weight = fv_slice(&w, 0, h * Dv, Dv),
                               .out = as_images(out, b, h, images),
                               .padding = kernel / 2,
                               .groups = Dv};
        if (fv_present(bias)) conv.bias = fv_slice(bias, 0, h * Dv, Dv);
        FV_TRY(fv_conv2d(ctx, &conv));
    }
    return FV_OK;
}

fv_status fv_add_local(fv_ctx *ctx, const fv_call *call, const fv_tensor *part, const fv_tensor *weight,
                       const fv_tensor *bias, fv_images images)
{
    fv_tensor v, local;

    FV_TRY(fv_plain(ctx, &call->v, &v));
    FV_TRY(fv_tensor_new(ctx, &local, FV_F32, 4, call->o.dims));
    FV_TRY(fv_convolve_heads(ctx, &images, &v, NULL, weight, bias, &local));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *part, .y = local, .out = call->o});
}

fv_status fv_attend_counted(fv_ctx *ctx, const fv_call *call, const fv_attend_args *attend)
{
    const int64_t *q = attend->q.dims;
    const fv_call counted = {.batch = q[0], .query_heads = q[1], .queries = q[2], .pairs = call->pairs};

    FV_TRY(fv_count_pairs(ctx, &counted, attend->plan, attend->k.dims[2]));
    return fv_attend(ctx, attend);
}

fv_status fv_call_merge(fv_ctx *ctx, const fv_call *call, int parts, fv_merge_args *merge)
{
    *merge = (fv_merge_args){.parts = parts, .o = call->o, .lse = call->lse};
    for (int p = 0; p < parts; p++) {
        FV_TRY(fv_tensor_new(ctx, &merge->o_part[p], FV_F32, 4, call->o.dims));
        FV_TRY(fv_tensor_new(ctx, &merge->lse_part[p], FV_F32, 3, call->o.dims));
    }
    return FV_OK;
}

fv_call fv_merge_part(const fv_call *call, const fv_merge_args *merge, int part)
{
    fv_call filled = *call;

    filled.o = merge->o_part[part];
    filled.lse = merge->lse_part[part];
    return filled;
}

fv_status fv_attend_joined(fv_ctx *ctx, const fv_call *call, int parts, fv_attend_args *part)
{
    fv_merge_args merge = {.o_part = {call->o}, .lse_part = {call->lse}};

    if (parts > 1) FV_TRY(fv_call_merge(ctx, call, parts, &merge));
    for (int p = 0; p < parts; p++) {
        part[p].o = merge.o_part[p];
        part[p].lse = merge.lse_part[p];
        FV_TRY(fv_attend_counted(ctx, call, &part[p]));
    }
    return parts > 1 ? fv_merge(ctx, &merge) : FV_OK;
}

fv_choosing fv_choosing_begin(fv_ctx *ctx)
{
    fv_choosing before = {ctx->recording, fv_phase_enter(ctx, FV_PHASE_SELECT)};

    ctx->recording = false;
    return before;
}

void fv_choosing_end(fv_ctx *ctx, fv_choosing before)
{
    ctx->recording = before.recording;
    fv_phase_enter(ctx, before.phase);
}
