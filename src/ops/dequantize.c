/* Rows of any data type as f32, and rows of f32 as blocks. */
#include "ops/backend.h"
#include "ops/blocks.h"
#include "ops/check.h"

fv_status fv_dequantize_rows(fv_ctx *ctx, const fv_dequantize_args *args)
{
    const fv_tensor *x = &args->x;
    int64_t block, rows, count;

    FV_TRY(fv_check_rank("dequantize", "x", x, FV_TYPES_PLAIN | FV_TYPES_BLOCKS, 2, 2));
    FV_TRY(fv_check("dequantize", "out", &args->out, FV_TYPE(FV_F32), FV_DIMS(FV_ANY, x->dims[1])));
    if (fv_type_in(x->dtype, FV_TYPES_BLOCKS) && !fv_blocks_supported(x->dtype))
        return fv_fail(FV_E_UNSUPPORTED, "dequantize: x: blocks of %s are not supported", fv_dtype_name(x->dtype));
    block = fv_dtype_block(x->dtype);
    if (block > 1 && (x->dims[1] % block != 0 || x->strides[0] % block != 0 || (x->dims[1] > 1 && x->strides[1] != 1)))
        return fv_fail(FV_E_SHAPE, "dequantize: x: expected rows of whole %s blocks of %lld, got shape %s",
                       fv_dtype_name(x->dtype), (long long)block, fv_shape_text(x));
    rows = args->out.dims[0];
    count = x->dims[0];
    if (!args->index && rows > count)
        return fv_fail(FV_E_SHAPE, "dequantize: out: expected at most %lld rows, got shape %s", (long long)count,
                       fv_shape_text(&args->out));
    for (int64_t r = 0; args->index && r < rows; r++)
        if (args->index[r] < 0 || args->index[r] >= count)
            return fv_fail(FV_E_ARGUMENT, "dequantize: index %lld: expected 0 to %lld, got %d", (long long)r,
                           (long long)count - 1, args->index[r]);
    return fv_tensor_count(&args->out) > 0 ? ctx->backend->dequantize(ctx, args) : FV_OK;
}

fv_status fv_quantize_rows(fv_ctx *ctx, const fv_quantize_args *args)
{
    const fv_tensor *x = &args->x, *out = &args->out;

    FV_TRY(fv_check_rank("quantize", "x", x, FV_TYPE(FV_F32), 2, 2));
    FV_TRY(fv_check("quantize", "out", out, FV_TYPE(FV_Q8_0) | FV_TYPE(FV_Q4_0), 2, x->dims));
    int64_t block = fv_dtype_block(out->dtype);
    if (x->dims[1] % block != 0 || out->strides[0] % block != 0 || out->strides[1] != 1 || x->strides[1] != 1)
        return fv_fail(FV_E_SHAPE, "quantize: expected rows of whole %s blocks of %lld side by side, got shape %s",
                       fv_dtype_name(out->dtype), (long long)block, fv_shape_text(x));
    return fv_tensor_count(x) > 0 ? ctx->backend->quantize(ctx, args) : FV_OK;
}
