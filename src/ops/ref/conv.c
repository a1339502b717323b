#include "ops/check.h"
#include "ops/ref/ref.h"

static double at(const fv_conv2d_args *c, int64_t b, int64_t o, int64_t oy, int64_t ox)
{
    const fv_tensor *w = &c->weight;
    int64_t first = o / (w->dims[0] / c->groups) * w->dims[1];
    double sum = fv_present(&c->bias) ? fv_load(c->bias.dtype, c->bias.data, o * c->bias.strides[0]) : 0;

    for (int64_t ky = 0; ky < w->dims[2]; ky++) {
        int64_t y = oy * c->stride - c->padding + ky * c->dilation;
        if (y < 0 || y >= c->x.dims[2]) continue;
        for (int64_t kx = 0; kx < w->dims[3]; kx++) {
            int64_t x = ox * c->stride - c->padding + kx * c->dilation;
            if (x < 0 || x >= c->x.dims[3]) continue;
            for (int64_t i = 0; i < w->dims[1]; i++)
                sum += *(const float *)fv_at(&c->x, b, first + i, y, x) * fv_load(w->dtype, fv_at(w, o, i, ky, kx), 0);
        }
    }
    return sum;
}

/* One row of one channel of out. */
static void conv_row(void *user, int64_t index, int thread)
{
    const fv_conv2d_args *c = user;
    int64_t rows = c->out.dims[2], channels = c->out.dims[1];
    int64_t oy = index % rows, o = index / rows % channels, b = index / rows / channels;

    (void)thread;
    for (int64_t ox = 0; ox < c->out.dims[3]; ox++)
        *(float *)fv_at(&c->out, b, o, oy, ox) = (float)at(c, b, o, oy, ox);
}

fv_status fv_ref_conv2d(fv_ctx *ctx, const fv_conv2d_args *args)
{
    fv_conv2d_args c = *args;

    fv_run(ctx, fv_lead_count(&c.out, 3), conv_row, &c);
    return FV_OK;
}
