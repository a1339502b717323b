/* Blocked local attention: the queries of a block of an image share a window, the block and a halo around it, and the
 * logits have a term of the query and the distance.  HaloNet, arXiv 2103.12731. */
#include "attention/sparse/order.h"

struct halo {
    fv_tuple grid;
    int64_t block, halo, stride;
    int rel, pad;
    bool rel_scale;
};

enum { HALVES, SUM };
enum { ZERO, MASK };
enum { REL_H, REL_W };

static const char *const forms[] = {"halves", "sum", NULL};
static const char *const pads[] = {"zero", "mask", NULL};

static const fv_option options[] = {
    FV_SIDES(struct halo, grid, "rows x columns", NULL, 1, INT32_MAX,
             "rows x columns of the keys; the block divides both"),
    FV_INT(struct halo, block, 8, 1, INT32_MAX, "rows and columns of a block of queries"),
    FV_INT(struct halo, halo, 3, 0, INT32_MAX / 4, "rows and columns around it that are read too"),
    FV_INT(struct halo, stride, 1, 1, 2, "2: queries are every second row and column of each block"),
    FV_ENUM(struct halo, rel, "halves", forms,
            "the term of the distance: half of the channels by rows and half by columns, or all by both"),
    FV_BOOL(struct halo, rel_scale, 0, "that term is multiplied by the scale too"),
    FV_ENUM(struct halo, pad, "zero", pads,
            "what lies beside the image: keys and values of zeros, whose logit is that term, or nothing"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("rel_h", "[offsets, channels]",
             "by rows, of 2 (block + halo) - 1 offsets; D/2 channels, D of a sum (none)"),
    FV_PARAM("rel_w", "[offsets, channels]", "by columns"),
    {0},
};

static fv_status check(const void *values)
{
    const struct halo *o = values;
    const int64_t *grid = o->grid.items;
    int64_t cells;

    if (grid[0] % o->block != 0 || grid[1] % o->block != 0)
        return fv_fail(FV_E_USAGE, "halo: option 'block': expected a divisor of %lld rows and %lld columns, got %lld",
                       (long long)grid[0], (long long)grid[1], (long long)o->block);
    if (o->block % o->stride != 0)
        return fv_fail(FV_E_USAGE, "halo: option 'stride': 2 needs an even block, got %lld", (long long)o->block);
    if (!fv_mul_i64(grid[0] + 2 * o->halo, grid[1] + 2 * o->halo, &cells) || cells > INT32_MAX)
        return fv_fail(FV_E_USAGE, "halo: option 'halo': %lld around %lldx%lld: expected at most %d cells",
                       (long long)o->halo, (long long)grid[0], (long long)grid[1], INT32_MAX);
    return FV_OK;
}

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    const struct halo *o = values;

    if (strcmp(name, "offsets") == 0) return 2 * (o->block + o->halo) - 1;
    if (strcmp(name, "channels") == 0) return o->rel == SUM ? call->head_dim : call->head_dim / 2;
    return -1;
}

static fv_status accept(fv_call *call)
{
    const struct halo *o = call->options;
    int64_t cells = o->grid.items[0] * o->grid.items[1];

    if (fv_present(&call->param[REL_H]) != fv_present(&call->param[REL_W]))
        return fv_fail(FV_E_USAGE, "halo: params 'rel_h' and 'rel_w' need one another");
    if (fv_present(&call->param[REL_H]) && o->rel == HALVES && call->head_dim % 2 != 0)
        return fv_fail(FV_E_SHAPE, "halo: rel=halves: expected an even head, got %lld channels",
                       (long long)call->head_dim);
    if (call->keys == cells && call->queries * o->stride * o->stride == cells) return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "halo: option 'grid': %lldx%lld has %lld cells, but there are %lld keys and %lld queries",
                   (long long)o->grid.items[0], (long long)o->grid.items[1], (long long)cells, (long long)call->keys,
                   (long long)call->queries);
}

/* ---- windows ----------------------------------------------------------------------------------------------------- */

/* The image in a frame: of a halo, or of nothing. */
struct view {
    const struct halo *options;
    int64_t first[2], frame[2];
};

static struct view view_of(const fv_call *call, bool framed)
{
    const struct halo *o = call->options;
    struct view view = {.options = o};

    for (int a = 0; a < 2; a++) {
        view.first[a] = framed ? o->halo : 0;
        view.frame[a] = o->grid.items[a] + 2 * view.first[a];
    }
    return view;
}

/* Row (a = 0) or column of query i in the frame. */
static int64_t query_at(const struct view *view, int a, int64_t i)
{
    const struct halo *o = view->options;
    int64_t width = o->grid.items[1] / o->stride;

    return view->first[a] + (a == 0 ? i / width : i % width) * o->stride;
}

static fv_grid grid_of(const struct view *view)
{
    const struct halo *o = view->options;
    fv_grid grid = {.rank = 2, .truncated = {true, true}};

    for (int a = 0; a < 2; a++) {
        grid.dims[a] = view->frame[a];
        grid.window[a] = o->block + 2 * o->halo;
        grid.stride[a] = o->block;
        grid.query_first[a] = grid.stride_first[a] = view->first[a];
        grid.query_step[a] = o->stride;
        grid.query_count[a] = o->grid.items[a] / o->stride;
    }
    return grid;
}

/* ---- the term of the distance ------------------------------------------------------------------------------------ */

/* Where keys and queries stand on an axis: their difference is the place of their distance in its table. */
static fv_status places_of(fv_ctx *ctx, const struct view *view, int a, int64_t queries, fv_places *places)
{
    const struct halo *o = view->options;
    int64_t keys = view->frame[0] * view->frame[1];
    int32_t *query, *key;

    FV_TRY(FV_SCRATCH(ctx, query, queries));
    FV_TRY(FV_SCRATCH(ctx, key, keys));
    for (int64_t i = 0; i < queries; i++)
        query[i] = (int32_t)(query_at(view, a, i) - (o->block - 1 + o->halo));
    for (int64_t j = 0; j < keys; j++)
        key[j] = (int32_t)(a == 0 ? j / view->frame[1] : j % view->frame[1]);
    *places = (fv_places){query, key};
    return FV_OK;
}

/* Products of the queries with a table, [B,H,N,offsets]. */
static fv_status products(fv_ctx *ctx, const fv_call *call, int which, fv_tensor *out)
{
    const struct halo *o = call->options;
    const fv_tensor *table = &call->param[which];
    int64_t R = table->dims[0], C = table->dims[1];
    fv_tensor q = fv_slice(&call->q, 3, o->rel == HALVES ? which * C : 0, C);

    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(call->batch, call->query_heads, call->queries, R)));
    return fv_gemm(
        ctx, &(fv_gemm_args){.a = q, .b = fv_transposed(table), .c = *out, .alpha = o->rel_scale ? call->scale : 1});
}

static fv_status add_distance(fv_ctx *ctx, const fv_call *call, const struct view *view, fv_logits *logits)
{
    bool vanishes = view->options->rel_scale && call->scale == 0;

    if (!fv_present(&call->param[REL_H]) || vanishes) return FV_OK;
    FV_TRY(products(ctx, call, REL_H, &logits->row_bias));
    FV_TRY(products(ctx, call, REL_W, &logits->column_bias));
    FV_TRY(places_of(ctx, view, 0, call->queries, &logits->row_place));
    return places_of(ctx, view, 1, call->queries, &logits->column_place);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct halo *o = call->options;
    bool framed = o->pad == ZERO && o->halo > 0;
    struct view view = view_of(call, framed);
    fv_plan plan = {.grid = grid_of(&view)};
    fv_attend_args attend = fv_call_attend(call, &plan);
    fv_tensor index;

    if (framed) {
        FV_TRY(fv_order_frame(ctx, o->grid.items, view.first, view.frame, &index));
        FV_TRY(fv_order_rows(ctx, &index, &call->k, &attend.k));
        FV_TRY(fv_order_rows(ctx, &index, &call->v, &attend.v));
    }
    FV_TRY(add_distance(ctx, call, &view, &attend.logits));
    return fv_attend(ctx, &attend);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct view view = view_of(call, false);

    (void)ctx;
    pairs->plan = (fv_plan){.grid = grid_of(&view)};
    return FV_OK;
}

const fv_mechanism fv_mechanism_halo = {
    .name = "halo",
    .title = "Blocked local attention with a halo (HaloNet)",
    .paper = "arXiv 2103.12731",
    .sheet = 82,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_STATIC_PLAN | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula = "softmax of scale q.k + q.(r_h[row distance], r_w[column distance]) over the query's block of the image "
               "and `halo` rows and columns around it",
    .cost = "each query reads (block + 2 halo)^2 keys",
    .options = options,
    .options_size = sizeof(struct halo),
    .params = params,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
    .map = map,
};
