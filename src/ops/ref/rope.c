#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

/* One row; pairs are read before they are written, so x and out may be the same memory. */
static void rope_row(void *user, int64_t index, int thread)
{
    const fv_rope_args *r = user;
    int64_t token = index % r->x.dims[2], half = r->rotary / 2, xs = r->x.strides[3], os = r->out.strides[3];
    const float *x = (const float *)r->x.data + fv_lead_offset(&r->x, 3, index);
    float *out = (float *)r->out.data + fv_lead_offset(&r->out, 3, index);
    double position = r->position ? r->position[token] : (double)(r->offset + token);

    (void)thread;
    for (int64_t c = 0; c < half; c++) {
        int64_t first = r->interleaved ? 2 * c : c, second = r->interleaved ? 2 * c + 1 : c + half;
        double frequency = fv_present(&r->frequency) ? ((const float *)r->frequency.data)[c * r->frequency.strides[0]]
                                                     : pow(r->base, -2.0 * (double)c / (double)r->rotary);
        double cosine = r->magnitude * cos(position * frequency), sine = r->magnitude * sin(position * frequency);
        double a = x[first * xs], b = x[second * xs];
        if (r->inverse) sine = -sine;
        out[first * os] = (float)(a * cosine - b * sine);
        out[second * os] = (float)(a * sine + b * cosine);
    }
    for (int64_t c = r->rotary; c < r->x.dims[3]; c++)
        out[c * os] = x[c * xs];
}

fv_status fv_ref_rope(fv_ctx *ctx, const fv_rope_args *args)
{
    fv_rope_args r = *args;

    fv_run(ctx, fv_lead_count(&r.x, 3), rope_row, &r);
    return FV_OK;
}
