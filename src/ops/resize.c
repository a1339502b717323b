/* Resizing grids, as gathers of the rows around each cell. */
#include <math.h>

#include "ops/check.h"
#include "ops/ops.h"

static fv_status check_resize(const fv_resize_args *r, int64_t *cells)
{
    int64_t rows, shape[FV_MAX_RANK];

    if (r->grid_height < 1 || r->grid_width < 1 || r->out_height < 1 || r->out_width < 1)
        return fv_fail(FV_E_ARGUMENT, "resize: a grid of %lld x %lld to %lld x %lld: expected 1 or more",
                       (long long)r->grid_height, (long long)r->grid_width, (long long)r->out_height,
                       (long long)r->out_width);
    if (!fv_mul_i64(r->grid_height, r->grid_width, &rows) || !fv_mul_i64(r->out_height, r->out_width, cells) ||
        rows > INT32_MAX || *cells > INT32_MAX)
        return fv_fail(FV_E_SHAPE, "resize: a grid of %lld x %lld to %lld x %lld is too large",
                       (long long)r->grid_height, (long long)r->grid_width, (long long)r->out_height,
                       (long long)r->out_width);
    FV_TRY(fv_check_rank("resize", "x", &r->x, FV_TYPE(FV_F32), 2, FV_MAX_RANK));
    memcpy(shape, r->x.dims, sizeof shape);
    shape[r->x.rank - 2] = rows;
    FV_TRY(fv_check("resize", "x", &r->x, FV_TYPE(FV_F32), r->x.rank, shape));
    shape[r->x.rank - 2] = *cells;
    return fv_check("resize", "out", &r->out, FV_TYPE(FV_F32), r->x.rank, shape);
}

/* Where the n-th of `out` cells lies on an axis of `length`: between `low` and the next, which has this weight. */
static int64_t place(const fv_resize_args *r, int64_t n, int64_t length, int64_t out, double *weight)
{
    double at = fmax(((double)n + 0.5) * (double)length / (double)out - 0.5, 0);
    int64_t low = fv_min((int64_t)at, length - 1);

    *weight = r->nearest || low + 1 == length ? 0 : at - (double)low;
    return r->nearest ? n * length / out : low;
}

/* Of each cell the row at one corner (bit 0: the next column, bit 1: the next row) and its weight; false: no cell needs
 * it. */
static bool corner_of(const fv_resize_args *r, int corner, int32_t *row, float *weight)
{
    bool any = false;

    for (int64_t n = 0; n < r->out_height * r->out_width; n++) {
        double down, across;
        int64_t y = place(r, n / r->out_width, r->grid_height, r->out_height, &down);
        int64_t x = place(r, n % r->out_width, r->grid_width, r->out_width, &across);
        weight[n] = (float)((corner & 2 ? down : 1 - down) * (corner & 1 ? across : 1 - across));
        row[n] = weight[n] == 0 ? -1 : (int32_t)((y + corner / 2) * r->grid_width + x + corner % 2);
        any |= weight[n] != 0;
    }
    return any;
}

static fv_status resize(fv_ctx *ctx, const fv_resize_args *r, int64_t cells)
{
    fv_tensor row, weight, sum = {0};

    for (int corner = 0; corner < 4; corner++) {
        fv_tensor rows, part, total;
        FV_TRY(fv_tensor_new(ctx, &row, FV_I32, FV_DIMS(cells)));
        FV_TRY(fv_tensor_new(ctx, &weight, FV_F32, FV_DIMS(cells, 1)));
        if (!corner_of(r, corner, row.data, weight.data)) continue;
        FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, r->out.rank, r->out.dims));
        FV_TRY(fv_tensor_new(ctx, &part, FV_F32, r->out.rank, r->out.dims));
        FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = r->x, .index = row, .out = rows}));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = rows, .y = weight, .out = part}));
        total = part;
        if (fv_present(&sum)) {
            FV_TRY(fv_tensor_new(ctx, &total, FV_F32, r->out.rank, r->out.dims));
            FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = sum, .y = part, .out = total}));
        }
        sum = total;
    }
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = sum, .out = r->out});
}

fv_status fv_resize_rows(fv_ctx *ctx, const fv_resize_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t cells = 0;
    fv_status status;

    FV_TRY(check_resize(args, &cells));
    status = resize(ctx, args, cells);
    fv_scratch_release(ctx, mark);
    return status;
}
