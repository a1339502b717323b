#include "ops/blocks.h"
#include "ops/check.h"
#include "ops/ref/ref.h"

static void dequantize_row(void *user, int64_t r, int thread)
{
    const fv_dequantize_args *d = user;
    int64_t block = fv_dtype_block(d->x.dtype), channels = d->x.dims[1], step = d->out.strides[1];
    int64_t from = (d->index ? d->index[r] : r) * d->x.strides[0];
    float *out = (float *)d->out.data + r * d->out.strides[0];
    float values[256]; /* the longest block */

    (void)thread;
    if (block == 1 && step == 1) {
        fv_load_row(d->x.dtype, d->x.data, from, d->x.strides[1], out, channels);
    } else if (step == 1) {
        fv_blocks_load(d->x.dtype, d->x.data, from / block, channels / block, out);
    } else {
        for (int64_t c = 0; c < channels; c += block) {
            if (block == 1)
                values[0] = (float)fv_load(d->x.dtype, d->x.data, from + c * d->x.strides[1]);
            else
                fv_blocks_load(d->x.dtype, d->x.data, (from + c) / block, 1, values);
            for (int64_t i = 0; i < block; i++)
                out[(c + i) * step] = values[i];
        }
    }
}

fv_status fv_ref_dequantize(fv_ctx *ctx, const fv_dequantize_args *args)
{
    fv_dequantize_args d = *args;

    fv_run(ctx, d.out.dims[0], dequantize_row, &d);
    return FV_OK;
}

static void quantize_row(void *user, int64_t r, int thread)
{
    const fv_quantize_args *a = user;
    int64_t at = r * a->out.strides[0] / fv_dtype_block(a->out.dtype);

    (void)thread;
    fv_blocks_store(a->out.dtype, (const float *)a->x.data + r * a->x.strides[0], a->x.dims[1],
                    (char *)a->out.data + at * (int64_t)fv_dtype_block_bytes(a->out.dtype));
}

fv_status fv_ref_quantize(fv_ctx *ctx, const fv_quantize_args *args)
{
    fv_quantize_args a = *args;

    fv_run(ctx, a.x.dims[0], quantize_row, &a);
    return FV_OK;
}
