#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

enum { CHANNELS = 32 }; /* of an item */

static void sum_channels(void *user, int64_t index, int thread)
{
    const fv_cumsum_args *s = user;
    int lead = s->x.rank - 2, last = lead + 1;
    int64_t rows = s->x.dims[lead], pieces = fv_ceil_div(s->x.dims[last], CHANNELS), first = index % pieces * CHANNELS;
    int64_t count = fv_min(CHANNELS, s->x.dims[last] - first);
    const float *x = (const float *)s->x.data + fv_lead_offset(&s->x, lead, index / pieces);
    float *out = (float *)s->out.data + fv_lead_offset(&s->out, lead, index / pieces);
    double sum[CHANNELS];

    (void)thread;
    for (int64_t c = 0; c < count; c++)
        sum[c] = s->max ? -INFINITY : 0;
    for (int64_t n = 0; n < rows; n++) {
        int64_t i = s->reverse ? rows - 1 - n : n;
        for (int64_t c = 0; c < count; c++) {
            double before = sum[c], value = x[i * s->x.strides[lead] + (first + c) * s->x.strides[last]];
            sum[c] = !s->max ? before + value : value >= before || isnan(value) ? value : before;
            out[i * s->out.strides[lead] + (first + c) * s->out.strides[last]] =
                (float)(s->exclusive ? before : sum[c]);
        }
    }
}

fv_status fv_ref_cumsum(fv_ctx *ctx, const fv_cumsum_args *args)
{
    fv_cumsum_args s = *args;

    fv_run(ctx, fv_lead_count(&s.x, s.x.rank - 2) * fv_ceil_div(s.x.dims[s.x.rank - 1], CHANNELS), sum_channels, &s);
    return FV_OK;
}
