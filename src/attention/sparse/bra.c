/* Bi-level routing attention: regions of a grid choose the regions they read by their mean queries and keys.
 * BiFormer, arXiv 2303.08810. */
#include "attention/sparse/order.h"

struct bra {
    fv_tuple grid;
    int64_t regions, top;
    double route_scale;
};

enum { LEPE_WEIGHT, LEPE_BIAS };

static const fv_option options[] = {
    FV_SIDES(struct bra, grid, "rows x columns", NULL, 1, INT32_MAX, "rows x columns of the tokens"),
    FV_INT(struct bra, regions, 7, 1, 1 << 15, "regions per side; the last ones may be smaller, or not there"),
    FV_INT(struct bra, top, 4, 1, 1 << 30, "regions each region reads"),
    FV_FLOAT(struct bra, route_scale, 1, 1e-30, 1e30, "factor of the routing scores"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("lepe_weight", "[H*Dv, 5, 5]", "depthwise convolution of v on the grid (none)"),
    FV_PARAM("lepe_bias", "[H*Dv]", "its bias (0)"),
    {0},
};

static fv_status accept(fv_call *call)
{
    return fv_check_cells(call, &((const struct bra *)call->options)->grid, call->queries);
}

/* ---- regions ---------------------------------------------------------------------------------------------------- */

/* Tokens ordered by region, row by row within each. */
struct layout {
    int64_t regions, largest; /* that have cells; cells of a whole region */
    int64_t *start;           /* [regions + 1] places */
    fv_order order;
};

static fv_status lay_out(fv_ctx *ctx, const fv_call *call, struct layout *l)
{
    const struct bra *o = call->options;
    int64_t height = fv_ceil_div(o->grid.items[0], o->regions), width = fv_ceil_div(o->grid.items[1], o->regions);
    int64_t across = fv_ceil_div(o->grid.items[1], width), N = call->queries;
    int32_t *region;

    l->regions = across * fv_ceil_div(o->grid.items[0], height);
    l->largest = height * width;
    FV_TRY(FV_SCRATCH(ctx, region, N));
    FV_TRY(FV_SCRATCH(ctx, l->start, l->regions + 1));
    for (int64_t t = 0; t < N; t++)
        region[t] = (int32_t)(t / o->grid.items[1] / height * across + t % o->grid.items[1] / width);
    return fv_order_by_key(ctx, region, 1, 1, N, l->regions, &l->order, l->start);
}

/* Mean rows of each region over all channels: x [B,Hx,N,D] by place -> [B,regions,H*D]. */
static fv_status describe(fv_ctx *ctx, const fv_call *call, const struct layout *l, const fv_tensor *x, fv_tensor *out)
{
    fv_tensor means, wide;

    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(call->batch, x->dims[1], l->regions, call->head_dim)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = *x, .out = means, .start = l->start}));
    FV_TRY(fv_repeat_heads(ctx, &means, call->query_heads, &wide));
    return fv_join_heads(ctx, &wide, out);
}

/* The regions that each region of a call that is laid out reads, as lists shared by all heads. */
static fv_status route(fv_ctx *ctx, const fv_call *call, const struct layout *l, fv_plan *plan)
{
    const struct bra *o = call->options;
    int64_t B = call->batch, R = l->regions, top = fv_min(o->top, R), *row_start;
    fv_tensor queries, keys, scores, index;

    FV_TRY(FV_SCRATCH(ctx, row_start, B * R + 1));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, R, top)));
    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(B, R, R)));
    FV_TRY(describe(ctx, call, l, &call->q, &queries));
    FV_TRY(describe(ctx, call, l, &call->k, &keys));
    FV_TRY(fv_gemm(
        ctx, &(fv_gemm_args){.a = queries, .b = fv_transposed(&keys), .c = scores, .alpha = (float)o->route_scale}));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = scores, .index = index}));
    for (int64_t r = 0; r <= B * R; r++)
        row_start[r] = r * top;
    plan->lists = (fv_lists){.query_block = l->largest,
                             .key_block = l->largest,
                             .groups = R,
                             .key_blocks = R,
                             .query_start = l->start,
                             .key_start = l->start,
                             .batch_stride = R,
                             .heads = 1,
                             .row_start = row_start,
                             .entry = index.data};
    return FV_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct bra *o = call->options;
    struct layout l;
    fv_plan plan = {0};
    fv_attend_args attend;
    fv_call laid, whole = *call;
    bool local = fv_present(&call->param[LEPE_WEIGHT]) || fv_present(&call->param[LEPE_BIAS]);

    FV_TRY(lay_out(ctx, call, &l));
    FV_TRY(fv_order_call(ctx, &l.order, call, &laid));
    FV_TRY_CHOOSING(ctx, route(ctx, &laid, &l, &plan));
    attend = fv_call_attend(&laid, &plan);
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    if (local) FV_TRY(fv_tensor_new(ctx, &whole.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_order_call_back(ctx, &l.order, &laid, &whole));
    if (!local) return FV_OK;
    return fv_add_local(ctx, call, &whole.o, &call->param[LEPE_WEIGHT], &call->param[LEPE_BIAS],
                        fv_images_of(1, o->grid.items[0], o->grid.items[1]));
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct layout l;
    fv_call laid;

    FV_TRY(lay_out(ctx, call, &l));
    FV_TRY(fv_order_call(ctx, &l.order, call, &laid));
    pairs->query_order = pairs->key_order = l.order.order.data;
    FV_TRY_CHOOSING(ctx, route(ctx, &laid, &l, &pairs->plan));
    return FV_OK;
}

const fv_mechanism fv_mechanism_bra = {
    .name = "bra",
    .title = "Bi-level routing attention",
    .paper = "arXiv 2303.08810",
    .sheet = 91,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "region r reads the top regions s by route_scale mean(q in r).mean(k in s) over all channels; softmax over "
        "their tokens; plus a depthwise convolution of v",
    .cost = "each query reads top * N / regions^2 keys; routing costs 2 regions^4 H D flops",
    .options = options,
    .options_size = sizeof(struct bra),
    .params = params,
    .accept = accept,
    .forward = forward,
    .counts = true,
    .map = map,
};
