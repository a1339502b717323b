#include "ops/pool.h"

#include "ops/check.h"
#include "ops/ref/ref.h"

static void pool_cell(void *user, int64_t index, int thread)
{
    const fv_pool_args *p = user;
    int lead = p->x.rank - 2, last = lead + 1;
    int64_t cells = p->out.dims[lead], m = index % cells, step = p->x.strides[lead];
    fv_pool_cell cell = fv_pool_cell_of(p, m);
    const float *x = (const float *)p->x.data + fv_lead_offset(&p->x, lead, index / cells);
    float *out = (float *)p->out.data + fv_lead_offset(&p->out, lead + 1, index);
    bool any = fv_pool_cell_rows(&cell) > 0;

    (void)thread;
    for (int64_t c = 0; c < p->x.dims[last]; c++) {
        const float *column = x + c * p->x.strides[last];
        double sum = 0, highest = any ? column[(cell.y0 * cell.width + cell.x0) * step] : 0;
        for (int64_t y = cell.y0; y < cell.y1; y++) {
            for (int64_t i = y * cell.width + cell.x0; i < y * cell.width + cell.x1; i++) {
                double value = column[i * step];
                sum += value;
                highest = value > highest ? value : highest;
            }
        }
        if (p->kind == FV_POOL_MEAN && any) sum /= (double)fv_pool_cell_rows(&cell);
        out[c * p->out.strides[last]] = (float)(p->kind == FV_POOL_MAX ? highest : sum);
    }
}

fv_status fv_ref_pool(fv_ctx *ctx, const fv_pool_args *args)
{
    fv_pool_args p = *args;

    fv_run(ctx, fv_lead_count(&p.out, p.out.rank - 1), pool_cell, &p);
    return FV_OK;
}
