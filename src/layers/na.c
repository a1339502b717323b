/* Neighbourhood attention in two steps that leave its weights open: na_qk, the logits of each query and its neighbours,
 * and na_av, sums of the neighbours' values by any weights.  Slot t of a query is the t-th neighbour of its window,
 * row-major over the axes.  arXiv 2403.04690. */
#include "attention/local/neighbours.h"
#include "layers/layer.h"
#include "ops/plan.h"

struct na {
    fv_neighbours windows;
    double scale; /* of na_qk alone */
};

static const fv_option qk_options[] = {
    FV_NEIGHBOURS_OPTIONS,
    FV_FLOAT(struct na, scale, 1, -1e30, 1e30, "of the products, not of the bias"),
    FV_OPTIONS_END,
};
static const fv_option av_options[] = {FV_NEIGHBOURS_OPTIONS, FV_OPTIONS_END};

enum { Q, K };
static const fv_param qk_inputs[] = {
    FV_PARAM_NEEDED("q", "[B, H, N, D]", "queries, row by row of the grid"),
    FV_PARAM_NEEDED("k", "[B, Hkv, N, D]", "keys"),
    {0},
};
static const fv_param qk_params[] = {FV_NEIGHBOURS_BIAS, {0}};
static const fv_param qk_outputs[] = {
    FV_PARAM("a", "[B, H, N, W]", "logits of the W slots of each window; -inf behind the end of a causal one"),
    {0},
};

enum { A, V };
static const fv_param av_inputs[] = {
    FV_PARAM_NEEDED("a", "[B, H, N, W]",
                    "weights of the slots of each window; -inf counts 0, as what is behind its end"),
    FV_PARAM_NEEDED("v", "[B, Hkv, N, Dv]", "values"),
    {0},
};
static const fv_param av_params[] = {{0}};
static const fv_param av_outputs[] = {
    FV_PARAM("o", "[B, H, N, Dv]", "sums of values"),
    {0},
};

static fv_status check_qk(const void *options)
{
    return fv_neighbours_check("na_qk", options);
}

static fv_status check_av(const void *options)
{
    return fv_neighbours_check("na_av", options);
}

static int64_t size(const fv_layer_call *call, const char *name)
{
    const fv_neighbours *n = call->options;
    int64_t slots = 1, cells = fv_cells_of(&n->grid);

    if (strcmp(name, "N") == 0) return cells;
    if (strcmp(name, "W") != 0) return fv_neighbours_size(n, name);
    for (int a = 0; a < n->grid.count && cells < INT64_MAX; a++)
        slots *= fv_neighbours_window(n, a); /* no more than there are cells */
    return slots;
}

static fv_status accept_qk(const fv_layer_call *call)
{
    FV_TRY(fv_neighbours_check_bias("na_qk", call->options, false, &call->param[0]));
    return fv_layer_check_groups(call);
}

/* What the window of each of its cells holds along an axis, i32 [cells, window]; -1: nothing. */
static fv_status lay_out_axis(fv_ctx *ctx, const fv_grid *grid, int a, int32_t **cell)
{
    int64_t dilation = grid->dilation[a], window = grid->window[a];

    FV_TRY(FV_SCRATCH(ctx, *cell, grid->dims[a] * window));
    for (int64_t i = 0; i < grid->dims[a]; i++) {
        int64_t from, to;
        fv_plan_axis(grid, a, i % dilation, i / dilation, &from, &to);
        for (int64_t t = 0; t < window; t++)
            (*cell)[i * window + t] = from + t < to ? (int32_t)((from + t) * dilation + i % dilation) : -1;
    }
    return FV_OK;
}

/* Keys of the slots that the axes so far make become those of each with a further axis, whose cells these are. */
static void add_axis(int32_t *key, int64_t slots, const int32_t *cell, int64_t window, int64_t dim)
{
    for (int64_t s = slots - 1; s >= 0; s--) {
        int64_t before = key[s] * dim;
        for (int64_t t = window - 1; t >= 0; t--)
            key[s * window + t] = before < 0 || cell[t] < 0 ? -1 : (int32_t)(before + cell[t]);
    }
}

/* The key in each slot, i32 [1,1,N,W]; -1: none. */
static fv_status lay_out(fv_ctx *ctx, const fv_layer_call *call, fv_tensor *index)
{
    int64_t N = fv_size_of(&call->sizes, "N"), W = fv_size_of(&call->sizes, "W");
    int32_t *cell[FV_NEIGHBOURS_AXES];
    fv_grid grid;

    fv_neighbours_grid(call->options, false, &grid);
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(1, 1, N, W)));
    for (int a = 0; a < grid.rank; a++)
        FV_TRY(lay_out_axis(ctx, &grid, a, &cell[a]));
    for (int64_t n = 0; n < N; n++) {
        int32_t *key = (int32_t *)index->data + n * W;
        int64_t slots = 1, cells = N;
        *key = 0;
        for (int a = 0; a < grid.rank; a++) {
            int64_t dim = grid.dims[a], window = grid.window[a];
            cells /= dim;
            add_axis(key, slots, cell[a] + n / cells % dim * window, window, dim);
            slots *= window;
        }
    }
    return FV_OK;
}

/* The bias in each slot, [H,N,W]. */
static fv_status spread_bias(fv_ctx *ctx, const fv_layer_call *call, const fv_tensor *index, fv_tensor *bias)
{
    int64_t N = index->dims[2], W = index->dims[3], H = call->in[Q].dims[1], offsets;
    fv_places places;
    fv_tensor place;

    FV_TRY(fv_neighbours_places(ctx, call->options, N, &places, &offsets));
    FV_TRY(fv_tensor_new(ctx, &place, FV_I32, FV_DIMS(N * W)));
    for (int64_t n = 0; n < N * W; n++)
        ((int32_t *)place.data)[n] = places.key[((int32_t *)index->data)[n]] - places.query[n / W];
    FV_TRY(fv_tensor_new(ctx, bias, FV_F32, FV_DIMS(H, N, W)));
    return fv_gather(ctx, &(fv_gather_args){.x = fv_reshaped(&call->param[0], FV_DIMS(H, offsets, 1)),
                                            .index = place,
                                            .out = fv_reshaped(bias, FV_DIMS(H, N * W, 1))});
}

static fv_status multiply(fv_ctx *ctx, const fv_layer_call *call)
{
    double scale = ((const struct na *)call->options)->scale;
    bool biased = fv_present(&call->param[0]);
    fv_sampled_dots_args dots = {.x = call->in[Q], .y = call->in[K], .out = call->out[0], .scale = (float)scale};
    fv_tensor bias;

    FV_TRY(lay_out(ctx, call, &dots.index));
    if (dots.scale == 0) FV_TRY(fv_tensor_zeros(ctx, &dots.x, FV_F32, 4, call->in[Q].dims));
    if (biased) FV_TRY(fv_tensor_new(ctx, &dots.out, FV_F32, 4, call->out[0].dims));
    FV_TRY(fv_sampled_dots(ctx, &dots));
    if (!biased) return FV_OK;
    FV_TRY(spread_bias(ctx, call, &dots.index, &bias));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = dots.out, .y = bias, .out = call->out[0]});
}

static fv_status sum(fv_ctx *ctx, const fv_layer_call *call)
{
    fv_sampled_sums_args sums = {.weight = call->in[A], .y = call->in[V], .out = call->out[0]};

    FV_TRY(lay_out(ctx, call, &sums.index));
    return fv_sampled_sums(ctx, &sums);
}

const fv_layer_type fv_layer_na_qk = {
    .name = "na_qk",
    .title = "Logits of neighbourhood attention",
    .paper = "arXiv 2403.04690",
    .sheet = 4,
    .kind = FV_KIND_OPERATOR,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "a[slot] = scale q.k[neighbour in the slot] + rpb[offset]",
    .cost = "2 W D flops a query, W the product of the windows; N (H + 1) W numbers in memory",
    .options = qk_options,
    .options_size = sizeof(struct na),
    .inputs = qk_inputs,
    .params = qk_params,
    .outputs = qk_outputs,
    .check = check_qk,
    .size = size,
    .accept = accept_qk,
    .forward = multiply,
};

const fv_layer_type fv_layer_na_av = {
    .name = "na_av",
    .title = "Sums of neighbourhood attention",
    .paper = "arXiv 2403.04690",
    .sheet = 4,
    .kind = FV_KIND_OPERATOR,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "o = sum over slots of a[slot] v[neighbour in the slot]",
    .cost = "2 W Dv flops a query, W the product of the windows; N W numbers in memory",
    .options = av_options,
    .options_size = sizeof(struct na),
    .inputs = av_inputs,
    .params = av_params,
    .outputs = av_outputs,
    .check = check_av,
    .size = size,
    .accept = fv_layer_check_groups,
    .forward = sum,
};
