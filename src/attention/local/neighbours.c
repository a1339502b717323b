#include "attention/local/neighbours.h"

int64_t fv_neighbours_stride(const fv_neighbours *n, int axis)
{
    return n->stride.count > 0 ? fv_neighbours_on_axis(&n->stride, axis) : 1;
}

int64_t fv_neighbours_window(const fv_neighbours *n, int axis)
{
    int64_t window = fv_neighbours_on_axis(&n->window, axis);

    return window ? window : n->grid.items[axis];
}

int64_t fv_neighbours_size(const fv_neighbours *n, const char *name)
{
    int axis = name[0] == 'R' ? name[1] - '0' : FV_NEIGHBOURS_AXES;

    return axis < FV_NEIGHBOURS_AXES ? 2 * fv_neighbours_window(n, fv_min(axis, n->grid.count - 1)) - 1 : -1;
}

fv_status fv_neighbours_check(const char *name, const fv_neighbours *n)
{
    const struct {
        const char *name;
        const fv_tuple *tuple;
    } per_axis[] = {{"window", &n->window}, {"stride", &n->stride}, {"dilation", &n->dilation}, {"causal", &n->causal}};

    if (n->grid.count > FV_NEIGHBOURS_AXES)
        return fv_fail(FV_E_USAGE, "%s: option 'grid': expected 1 to 3 axes, got %d", name, n->grid.count);
    for (int i = 0; i < 4; i++)
        if (per_axis[i].tuple->count > 1 && per_axis[i].tuple->count != n->grid.count)
            return fv_fail(FV_E_USAGE, "%s: option '%s': expected 1 or %d items, as the grid has axes, got %d", name,
                           per_axis[i].name, n->grid.count, per_axis[i].tuple->count);
    for (int a = 0; a < n->grid.count; a++) {
        int64_t window = fv_neighbours_window(n, a), stride = fv_neighbours_stride(n, a), span;
        if (!fv_mul_i64(window, fv_neighbours_on_axis(&n->dilation, a), &span) || span > n->grid.items[a])
            return fv_fail(FV_E_USAGE, "%s: axis %d: window %lld x dilation %lld: expected at most the axis, %lld",
                           name, a, (long long)window, (long long)fv_neighbours_on_axis(&n->dilation, a),
                           (long long)n->grid.items[a]);
        if (stride > window)
            return fv_fail(FV_E_USAGE, "%s: axis %d: stride: expected at most the window, %lld, got %lld", name, a,
                           (long long)window, (long long)stride);
    }
    return FV_OK;
}

fv_status fv_neighbours_check_bias(const char *name, const fv_neighbours *n, bool causal, const fv_tensor *bias)
{
    if (!fv_present(bias)) return FV_OK;
    if (bias->rank != 1 + n->grid.count || fv_cells_of(&n->grid) > INT32_MAX / 8)
        return fv_fail(FV_E_SHAPE, "%s: param 'rpb': expected %d axes after the heads, as the grid has, got %s", name,
                       n->grid.count, fv_shape_text(bias));
    for (int a = 0; a < n->grid.count; a++) {
        bool on_axis = causal || fv_neighbours_on_axis(&n->causal, a);
        if (fv_neighbours_window(n, a) % 2 == 0 || on_axis)
            return fv_fail(FV_E_USAGE, "%s: param 'rpb' needs odd windows and no causal axis; axis %d: window %lld%s",
                           name, a, (long long)fv_neighbours_window(n, a), on_axis ? ", causal" : "");
    }
    return FV_OK;
}

void fv_neighbours_grid(const fv_neighbours *n, bool causal, fv_grid *grid)
{
    *grid = (fv_grid){.rank = n->grid.count};
    for (int a = 0; a < n->grid.count; a++) {
        grid->dims[a] = n->grid.items[a];
        grid->window[a] = fv_neighbours_window(n, a);
        grid->stride[a] = fv_neighbours_stride(n, a);
        grid->dilation[a] = fv_neighbours_on_axis(&n->dilation, a);
        grid->causal[a] = causal || fv_neighbours_on_axis(&n->causal, a);
    }
}

/* Keys stand at their cell in steps of the dilation, queries before it by the largest offset. */
fv_status fv_neighbours_places(fv_ctx *ctx, const fv_neighbours *n, int64_t N, fv_places *places, int64_t *offsets)
{
    int64_t R = 1, largest = 0;
    int32_t *query, *key;

    FV_TRY(FV_SCRATCH(ctx, query, N));
    FV_TRY(FV_SCRATCH(ctx, key, N));
    for (int64_t i = 0; i < N; i++)
        key[i] = 0;
    for (int64_t a = n->grid.count - 1, cell = 1; a >= 0; cell *= n->grid.items[a--]) {
        for (int64_t i = 0; i < N; i++)
            key[i] += (int32_t)(i / cell % n->grid.items[a] / fv_neighbours_on_axis(&n->dilation, (int)a) * R);
        largest += (fv_neighbours_window(n, (int)a) - 1) * R;
        R *= 2 * fv_neighbours_window(n, (int)a) - 1;
    }
    for (int64_t i = 0; i < N; i++)
        query[i] = (int32_t)(key[i] - largest);
    *places = (fv_places){query, key};
    *offsets = R;
    return FV_OK;
}
