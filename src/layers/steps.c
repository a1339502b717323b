#include <stdarg.h>
#include <stdio.h>

#include "layers/layer.h"

fv_status fv_layer_check_heads(const fv_layer_call *call, int64_t heads, const char *channels)
{
    int64_t size = fv_size_of(&call->sizes, channels);

    if (size % heads == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: %lld heads do not divide %lld channels (%s)", call->type->name, (long long)heads,
                   (long long)size, channels);
}

fv_status fv_layer_check_groups(const fv_layer_call *call)
{
    int64_t H = fv_size_of(&call->sizes, "H"), groups = fv_size_of(&call->sizes, "Hkv");

    if (H % groups == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: expected heads of keys that divide those of queries, got %lld and %lld",
                   call->type->name, (long long)groups, (long long)H);
}

/* x [..,C] as rows [rows, C]. */
static fv_tensor rows_of(const fv_tensor *x)
{
    int64_t C = x->dims[x->rank - 1], rows = 1;

    for (int d = 0; d < x->rank - 1; d++)
        rows *= x->dims[d];
    return fv_reshaped(x, FV_DIMS(rows, C));
}

fv_status fv_layer_linear(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                          fv_tensor *out)
{
    fv_linear_part part = {.weight = *weight};
    int64_t dims[FV_MAX_RANK];

    if (!fv_present(out)) {
        memcpy(dims, x->dims, sizeof dims);
        dims[x->rank - 1] = weight->dims[0];
        FV_TRY(fv_tensor_new(ctx, out, FV_F32, x->rank, dims));
    }
    if (bias) part.bias = *bias;
    part.out = rows_of(out);
    return fv_linear(ctx, &(fv_linear_args){.x = rows_of(x), .parts = 1, .part = {part}});
}

fv_status fv_layer_norm(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias, float epsilon,
                        fv_tensor *out)
{
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, x->rank, x->dims));
    return fv_norm(ctx, &(fv_norm_args){
                            .layer = true, .x = *x, .weight = *weight, .bias = *bias, .out = *out, .epsilon = epsilon});
}

fv_status fv_layer_map(fv_ctx *ctx, fv_map op, const fv_tensor *x, const fv_tensor *y, fv_tensor *out)
{
    fv_map_args map = {.op = op, .x = *x};

    *out = *x;
    if (ctx->recording) FV_TRY(fv_tensor_new(ctx, out, FV_F32, map.x.rank, map.x.dims));
    if (y) map.y = *y;
    map.out = *out;
    return fv_map_apply(ctx, &map);
}

fv_tensor fv_layer_heads(const fv_tensor *x, int64_t heads)
{
    int64_t N = x->dims[x->rank - 2], C = x->dims[x->rank - 1], D = C / heads;

    return fv_view(x, FV_DIMS(fv_tensor_count(x) / (N * C), heads, N, D), (const int64_t[]){N * C, D, C, 1}, 0);
}

fv_status fv_layer_project(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                           int64_t heads, fv_tensor *out)
{
    fv_tensor rows = {0};

    FV_TRY(fv_layer_linear(ctx, x, weight, bias, &rows));
    *out = fv_layer_heads(&rows, heads);
    return FV_OK;
}

fv_status fv_layer_attend(fv_ctx *ctx, const fv_attention_args *args, const char *format, ...)
{
    char spec[FV_SPEC_TEXT];
    fv_attention *attention;
    fv_status status;
    va_list values;

    va_start(values, format);
    vsnprintf(spec, sizeof spec, format, values);
    va_end(values);
    FV_TRY(fv_attention_new(spec, &attention));
    status = fv_attention_forward(ctx, attention, args);
    fv_attention_free(attention);
    return status;
}
