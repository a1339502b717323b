#include "ops/accumulate.h"
#include "ops/check.h"
#include "ops/ref/ref.h"

enum { ROWS = 32 }; /* of an item */

static void copy_channels(const fv_gather_args *g, int64_t from, int64_t to, bool zero)
{
    int last = g->out.rank - 1;
    int64_t xs = g->x.strides[last], os = g->out.strides[last];
    size_t size = fv_dtype_size(g->x.dtype);

    if (zero) {
        for (int64_t c = 0; c < g->out.dims[last]; c++)
            memset((char *)g->out.data + (to + c * os) * (int64_t)fv_dtype_size(g->out.dtype), 0,
                   fv_dtype_size(g->out.dtype));
    } else if (g->x.dtype != g->out.dtype) {
        for (int64_t c = 0; c < g->out.dims[last]; c++)
            fv_store(g->out.dtype, g->out.data, to + c * os, fv_load(g->x.dtype, g->x.data, from + c * xs));
    } else if (xs == 1 && os == 1) {
        memcpy((char *)g->out.data + to * (int64_t)size, (const char *)g->x.data + from * (int64_t)size,
               (size_t)g->out.dims[last] * size);
    } else {
        for (int64_t c = 0; c < g->out.dims[last]; c++)
            memcpy((char *)g->out.data + (to + c * os) * (int64_t)size,
                   (const char *)g->x.data + (from + c * xs) * (int64_t)size, size);
    }
}

static void gather_rows(void *user, int64_t index, int thread)
{
    const fv_gather_args *g = user;
    int lead = g->out.rank - 2;
    int64_t rows = g->out.dims[lead], pieces = fv_ceil_div(rows, ROWS), n = index / pieces, r = index % pieces * ROWS;
    int64_t x = fv_lead_offset(&g->x, lead, n), out = fv_lead_offset(&g->out, lead, n);
    const int32_t *at = (const int32_t *)g->index.data + fv_lead_offset(&g->index, lead, n);

    (void)thread;
    for (int64_t end = fv_min(r + ROWS, rows); r < end; r++) {
        int64_t row = at[r * g->index.strides[lead]];
        copy_channels(g, x + row * g->x.strides[lead], out + r * g->out.strides[lead], row < 0);
    }
}

/* Rows may meet in one row of out: an item is a whole leading index. */
static void scatter_rows(void *user, int64_t n, int thread)
{
    const fv_gather_args *g = user;
    int lead = g->x.rank - 2, last = lead + 1;
    const float *x = (const float *)g->x.data + fv_lead_offset(&g->x, lead, n);
    float *out = (float *)g->out.data + fv_lead_offset(&g->out, lead, n);
    const int32_t *at = (const int32_t *)g->index.data + fv_lead_offset(&g->index, lead, n);

    (void)thread;
    for (int64_t r = 0; r < g->x.dims[lead]; r++) {
        int64_t row = at[r * g->index.strides[lead]];
        const float *from = x + r * g->x.strides[lead];
        float *to = out + row * g->out.strides[lead];
        for (int64_t c = 0; row >= 0 && c < g->x.dims[last]; c++)
            to[c * g->out.strides[last]] += from[c * g->x.strides[last]];
    }
}

fv_status fv_ref_gather(fv_ctx *ctx, const fv_gather_args *args)
{
    fv_gather_args g = *args;
    int lead = g.x.rank - 2;

    if (!g.scatter) {
        fv_run(ctx, fv_lead_count(&g.out, lead) * fv_ceil_div(g.out.dims[lead], ROWS), gather_rows, &g);
    } else if (fv_tensor_apart(&g.out)) {
        fv_run(ctx, fv_lead_count(&g.x, lead), scatter_rows, &g);
    } else {
        for (int64_t n = 0; n < fv_lead_count(&g.x, lead); n++)
            scatter_rows(&g, n, 0);
    }
    return FV_OK;
}
