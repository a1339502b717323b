/* Which rows a pooled cell covers. */
#ifndef FV_POOL_H
#define FV_POOL_H

#include "ops/ops.h"

/* Rows y * width + x for y in [y0, y1) and x in [x0, x1). */
typedef struct fv_pool_cell {
    int64_t y0, y1, x0, x1, width;
} fv_pool_cell;

/* Of checked arguments. */
static inline fv_pool_cell fv_pool_cell_of(const fv_pool_args *p, int64_t m)
{
    int64_t stride = p->stride ? p->stride : p->block, rows = p->x.dims[p->x.rank - 2];

    if (p->start) return (fv_pool_cell){0, 1, p->start[m], p->start[m + 1], 0};
    if (p->grid_height == 0) return (fv_pool_cell){0, 1, m * stride, fv_min(m * stride + p->block, rows), 0};

    int64_t i = m / p->out_width, j = m % p->out_width;
    return (fv_pool_cell){.y0 = i * p->grid_height / p->out_height,
                          .y1 = fv_ceil_div((i + 1) * p->grid_height, p->out_height),
                          .x0 = j * p->grid_width / p->out_width,
                          .x1 = fv_ceil_div((j + 1) * p->grid_width, p->out_width),
                          .width = p->grid_width};
}

static inline int64_t fv_pool_cell_rows(const fv_pool_cell *cell)
{
    return (cell->y1 - cell->y0) * (cell->x1 - cell->x0);
}

#endif
