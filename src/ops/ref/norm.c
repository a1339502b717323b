#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

static void norm_row(void *user, int64_t index, int thread)
{
    const fv_norm_args *n = user;
    int lead = n->x.rank - 1;
    int64_t count = n->x.dims[lead], stride = n->x.strides[lead];
    const float *x = (const float *)n->x.data + fv_lead_offset(&n->x, lead, index);
    float *out = (float *)n->out.data + fv_lead_offset(&n->out, lead, index);
    double mean = 0, square = 0;

    (void)thread;
    for (int64_t i = 0; n->layer && i < count; i++)
        mean += x[i * stride];
    mean /= (double)count;
    for (int64_t i = 0; i < count; i++)
        square += (x[i * stride] - mean) * (x[i * stride] - mean);
    double inverse = 1 / sqrt(square / (double)count + n->epsilon);
    for (int64_t i = 0; i < count; i++) {
        double value = (x[i * stride] - mean) * inverse;
        if (fv_present(&n->weight)) value *= fv_load(n->weight.dtype, n->weight.data, i * n->weight.strides[0]);
        if (fv_present(&n->bias)) value += fv_load(n->bias.dtype, n->bias.data, i * n->bias.strides[0]);
        out[i * n->out.strides[lead]] = (float)value;
    }
}

fv_status fv_ref_norm(fv_ctx *ctx, const fv_norm_args *args)
{
    fv_norm_args n = *args;

    fv_run(ctx, fv_lead_count(&n.x, n.x.rank - 1), norm_row, &n);
    return FV_OK;
}
