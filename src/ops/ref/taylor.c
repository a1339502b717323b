#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

static void taylor_row(void *user, int64_t row, int thread)
{
    const fv_taylor_args *a = user;
    int last = a->x.rank - 1;
    int64_t C = a->x.dims[last], xs = a->x.strides[last], os = a->out.strides[last];
    const float *x = (const float *)a->x.data + fv_lead_offset(&a->x, last, row);
    float *out = (float *)a->out.data + fv_lead_offset(&a->out, last, row);

    (void)thread;
    *out = 1;
    out += os;
    for (int64_t i = 0; i < C; i++, out += os)
        *out = x[i * xs];
    for (int64_t i = 0; i < C; i++)
        for (int64_t j = i; j < C; j++, out += os)
            *out = (float)((double)x[i * xs] * x[j * xs] * (i == j ? M_SQRT1_2 : 1));
}

fv_status fv_ref_taylor(fv_ctx *ctx, const fv_taylor_args *args)
{
    fv_taylor_args a = *args;

    fv_run(ctx, fv_lead_count(&a.x, a.x.rank - 1), taylor_row, &a);
    return FV_OK;
}
