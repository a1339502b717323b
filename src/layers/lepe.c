/* Locally enhanced positional encoding: a depthwise convolution inside windows of an image of tokens, which sees zeros
 * beyond the border of its window.  CSWin, arXiv 2107.00652. */
#include "layers/layer.h"

struct lepe {
    fv_tuple grid, window;
};

static const fv_option options[] = {
    FV_SIDES(struct lepe, grid, "rows x columns", NULL, 1, INT32_MAX, "rows x columns of the tokens"),
    FV_TUPLE(struct lepe, window, "0", 0, INT32_MAX,
             "rows x columns of a window, 0: the side; zeros around the grid make the last ones whole"),
    FV_OPTIONS_END,
};

static const fv_param inputs[] = {
    FV_PARAM_NEEDED("x", "[B, N, C]", "tokens (values of attention), row by row of the grid"),
    {0},
};

enum { WEIGHT, BIAS };
static const fv_param params[] = {
    FV_PARAM_NEEDED("weight", "[C, k, k]", "of the convolution; k is odd"),
    FV_PARAM("bias", "[C]", "(0)"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("y", "[B, N, C]", "the convolution alone, to be added to the result of attention"),
    {0},
};

static int64_t window_on(const struct lepe *o, int axis)
{
    int64_t window = o->window.items[o->window.count == 1 ? 0 : axis];

    return window ? window : o->grid.items[axis];
}

static fv_status check(const void *values)
{
    const struct lepe *o = values;

    if (o->window.count > 2)
        return fv_fail(FV_E_USAGE, "lepe: option 'window': expected 1 or 2 items, got %d", o->window.count);
    for (int a = 0; a < 2; a++)
        if (window_on(o, a) > o->grid.items[a])
            return fv_fail(FV_E_USAGE, "lepe: option 'window': axis %d: expected at most the grid, %lld, got %lld", a,
                           (long long)o->grid.items[a], (long long)window_on(o, a));
    return FV_OK;
}

static int64_t size(const fv_layer_call *call, const char *name)
{
    const struct lepe *o = call->options;

    return strcmp(name, "N") == 0 ? o->grid.items[0] * o->grid.items[1] : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    int64_t kernel = call->param[WEIGHT].dims[1];

    if (kernel % 2 == 1) return FV_OK;
    return fv_fail(FV_E_SHAPE, "lepe: param 'weight': expected an odd number of rows and columns, got %lld",
                   (long long)kernel);
}

/* Windows tile the grid with pads around it, half of them (rounded down) above and on the left. */
struct tiling {
    int64_t side[2], count[2], before[2]; /* rows and columns: of a window, windows, pads */
    int64_t places;                       /* in all windows */
    fv_tensor token, place;               /* i32: of each place (-1: a pad) and of each token */
};

static fv_status lay_out(fv_ctx *ctx, const struct lepe *o, struct tiling *t)
{
    int64_t rows = o->grid.items[0], columns = o->grid.items[1];
    int32_t *token, *place;

    for (int a = 0; a < 2; a++) {
        t->side[a] = window_on(o, a);
        t->count[a] = fv_ceil_div(o->grid.items[a], t->side[a]);
        t->before[a] = (t->count[a] * t->side[a] - o->grid.items[a]) / 2;
    }
    t->places = t->count[0] * t->side[0] * t->count[1] * t->side[1];
    if (t->places > INT32_MAX)
        return fv_fail(FV_E_SHAPE, "lepe: %lld places in windows are too many", (long long)t->places);
    FV_TRY(fv_tensor_new(ctx, &t->token, FV_I32, FV_DIMS(t->places)));
    FV_TRY(fv_tensor_new(ctx, &t->place, FV_I32, FV_DIMS(rows * columns)));
    token = t->token.data;
    place = t->place.data;
    for (int64_t n = 0; n < t->places; n++)
        token[n] = -1;
    for (int64_t n = 0; n < rows * columns; n++) {
        int64_t y = n / columns + t->before[0], x = n % columns + t->before[1];
        int64_t window = y / t->side[0] * t->count[1] + x / t->side[1];
        place[n] = (int32_t)((window * t->side[0] + y % t->side[0]) * t->side[1] + x % t->side[1]);
        token[place[n]] = (int32_t)n;
    }
    return FV_OK;
}

/* x [B,places,C] as an image of each window [B*windows,C,rows,columns]. */
static fv_tensor as_images(const fv_tensor *x, int64_t rows, int64_t columns)
{
    int64_t C = x->dims[2], area = rows * columns;

    return fv_view(x, FV_DIMS(x->dims[0] * x->dims[1] / area, C, rows, columns),
                   (const int64_t[]){area * C, 1, columns * C, C}, 0);
}

static fv_status convolve(fv_ctx *ctx, const fv_layer_call *call, const struct lepe *o, const fv_tensor *x,
                          const fv_tensor *y)
{
    int64_t C = x->dims[2], kernel = call->param[WEIGHT].dims[1];

    return fv_conv2d(ctx, &(fv_conv2d_args){.x = as_images(x, window_on(o, 0), window_on(o, 1)),
                                            .weight = fv_reshaped(&call->param[WEIGHT], FV_DIMS(C, 1, kernel, kernel)),
                                            .bias = call->param[BIAS],
                                            .out = as_images(y, window_on(o, 0), window_on(o, 1)),
                                            .padding = kernel / 2,
                                            .groups = C});
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct lepe *o = call->options;
    const fv_tensor *x = &call->in[0], *y = &call->out[0];
    fv_tensor cut, local;
    struct tiling t;

    if (window_on(o, 0) == o->grid.items[0] && window_on(o, 1) == o->grid.items[1]) return convolve(ctx, call, o, x, y);
    FV_TRY(lay_out(ctx, o, &t));
    FV_TRY(fv_tensor_new(ctx, &cut, FV_F32, FV_DIMS(x->dims[0], t.places, x->dims[2])));
    FV_TRY(fv_tensor_new(ctx, &local, FV_F32, 3, cut.dims));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = *x, .index = t.token, .out = cut}));
    FV_TRY(convolve(ctx, call, o, &cut, &local));
    return fv_gather(ctx, &(fv_gather_args){.x = local, .index = t.place, .out = *y});
}

const fv_layer_type fv_layer_lepe = {
    .name = "lepe",
    .title = "Locally enhanced positional encoding (CSWin)",
    .paper = "arXiv 2107.00652",
    .sheet = 53,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "y = depthwise k x k convolution of x inside each window, zeros beyond its border",
    .cost = "2 k^2 C flops a token",
    .options = options,
    .options_size = sizeof(struct lepe),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
};
