#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

static void softmax_row(void *user, int64_t index, int thread)
{
    const fv_softmax_args *s = user;
    int lead = s->x.rank - 1;
    int64_t columns = s->x.dims[lead], count = s->valid ? fv_clamp(s->valid[index], 0, columns) : columns;
    int64_t xs = s->x.strides[lead], os = s->out.strides[lead];
    const float *x = (const float *)s->x.data + fv_lead_offset(&s->x, lead, index);
    float *out = (float *)s->out.data + fv_lead_offset(&s->out, lead, index);
    double highest = -INFINITY, sum = 0;

    (void)thread;
    for (int64_t i = 0; i < count; i++)
        highest = fmax(highest, (double)s->scale * x[i * xs]);
    if (highest == -INFINITY) highest = 0; /* exp of every element is 0 then */
    for (int64_t i = 0; i < count; i++)
        sum += exp((double)s->scale * x[i * xs] - highest);
    for (int64_t i = 0; i < count; i++)
        out[i * os] = sum == 0 ? 0 : (float)(exp((double)s->scale * x[i * xs] - highest) / sum);
    for (int64_t i = count; i < columns; i++)
        out[i * os] = 0;
}

fv_status fv_ref_softmax(fv_ctx *ctx, const fv_softmax_args *args)
{
    fv_softmax_args s = *args;

    fv_run(ctx, fv_lead_count(&s.x, s.x.rank - 1), softmax_row, &s);
    return FV_OK;
}
