/* Windows on a grid, as a gather. */
#include "ops/check.h"
#include "ops/ops.h"

struct tiling {
    int64_t windows, places, across; /* windows in all, rows in a window, windows beside one another */
};

static fv_status check_windows(const fv_window_args *w, struct tiling *tiling)
{
    const fv_tensor *grid = w->inverse ? &w->out : &w->x, *tiles = w->inverse ? &w->x : &w->out;
    const char *grid_name = w->inverse ? "out" : "x", *tiles_name = w->inverse ? "x" : "out";
    int64_t rows, down, padded, shape[FV_MAX_RANK];
    int r = grid->rank;

    if (w->grid_height < 1 || w->grid_width < 1 || w->window_height < 1 || w->window_width < 1)
        return fv_fail(FV_E_ARGUMENT, "window: windows of %lld x %lld on a grid of %lld x %lld: expected 1 or more",
                       (long long)w->window_height, (long long)w->window_width, (long long)w->grid_height,
                       (long long)w->grid_width);
    down = fv_ceil_div(w->grid_height, w->window_height);
    tiling->across = fv_ceil_div(w->grid_width, w->window_width);
    if (!fv_mul_i64(w->grid_height, w->grid_width, &rows) ||
        !fv_mul_i64(w->window_height, w->window_width, &tiling->places) ||
        !fv_mul_i64(down, tiling->across, &tiling->windows) || !fv_mul_i64(tiling->windows, tiling->places, &padded) ||
        padded > INT32_MAX)
        return fv_fail(FV_E_SHAPE, "window: a grid of %lld x %lld in windows of %lld x %lld is too large",
                       (long long)w->grid_height, (long long)w->grid_width, (long long)w->window_height,
                       (long long)w->window_width);
    FV_TRY(fv_check_rank("window", grid_name, grid, FV_TYPES_PLAIN, 2, FV_MAX_RANK - 1));
    memcpy(shape, grid->dims, sizeof shape);
    shape[r - 2] = rows;
    FV_TRY(fv_check("window", grid_name, grid, FV_TYPES_PLAIN, r, shape));
    shape[r - 2] = tiling->windows;
    shape[r - 1] = tiling->places;
    shape[r] = grid->dims[r - 1];
    return fv_check("window", tiles_name, tiles, FV_TYPES_PLAIN, r + 1, shape);
}

/* The row of the grid behind a place of the windows, -1 for padding. */
static int64_t row_of(const fv_window_args *w, const struct tiling *tiling, int64_t window, int64_t place)
{
    int64_t y = window / tiling->across * w->window_height + place / w->window_width;
    int64_t x = window % tiling->across * w->window_width + place % w->window_width;

    return y < w->grid_height && x < w->grid_width ? y * w->grid_width + x : -1;
}

/* [.., windows, places, C] with the two joined; copied if the strides do not let them. */
static fv_status joined(fv_ctx *ctx, const fv_tensor *tiles, fv_tensor *rows)
{
    int r = tiles->rank;
    fv_tensor whole = *tiles;

    if (tiles->strides[r - 3] != tiles->dims[r - 2] * tiles->strides[r - 2]) {
        FV_TRY(fv_tensor_new(ctx, &whole, tiles->dtype, r, tiles->dims));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *tiles, .out = whole}));
    }
    *rows = whole;
    rows->rank = r - 1;
    rows->dims[r - 3] = whole.dims[r - 3] * whole.dims[r - 2];
    rows->strides[r - 3] = whole.strides[r - 2];
    rows->dims[r - 2] = whole.dims[r - 1];
    rows->strides[r - 2] = whole.strides[r - 1];
    return FV_OK;
}

/* Every window reads the same grid: x repeats over them. */
static fv_status gather_tiles(fv_ctx *ctx, const fv_window_args *w, const fv_tensor *index)
{
    fv_tensor x = w->x;
    int r = x.rank;

    x.rank = r + 1;
    for (int d = r; d > r - 2; d--) {
        x.dims[d] = x.dims[d - 1];
        x.strides[d] = x.strides[d - 1];
    }
    x.dims[r - 2] = w->out.dims[r - 2];
    x.strides[r - 2] = 0;
    return fv_gather(ctx, &(fv_gather_args){.x = x, .index = *index, .out = w->out});
}

fv_status fv_window_rows(fv_ctx *ctx, const fv_window_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct tiling tiling = {0};
    fv_tensor index, rows;
    int32_t *at;

    FV_TRY(check_windows(args, &tiling));
    if (args->inverse)
        FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(args->grid_height * args->grid_width)));
    else
        FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(tiling.windows, tiling.places)));
    at = index.data;
    for (int64_t n = 0; n < tiling.windows * tiling.places; n++) {
        int64_t row = row_of(args, &tiling, n / tiling.places, n % tiling.places);
        if (args->order) args->order[n] = row;
        if (!args->inverse)
            at[n] = (int32_t)row;
        else if (row >= 0)
            at[row] = (int32_t)n;
    }
    fv_status status = FV_OK;
    if (args->inverse) {
        status = joined(ctx, &args->x, &rows);
        if (status == FV_OK) status = fv_gather(ctx, &(fv_gather_args){.x = rows, .index = index, .out = args->out});
    } else {
        status = gather_tiles(ctx, args, &index);
    }
    fv_scratch_release(ctx, mark);
    return status;
}
