/* Cross-shaped windows: half of the heads read within vertical stripes of the image, the other half within horizontal
 * ones, and a convolution inside each window says where values stand.  CSWin, arXiv 2107.00652. */
#include "attention/sparse/order.h"

struct csw {
    fv_tuple grid;
    int64_t stripe;
    int pad;
};

enum { ZERO, MASK };
enum { LEPE_WEIGHT, LEPE_BIAS };

static const char *const pads[] = {"zero", "mask", NULL};

static const fv_option options[] = {
    FV_SIDES(struct csw, grid, "rows x columns", NULL, 1, INT32_MAX, "rows x columns of the tokens"),
    FV_INT(struct csw, stripe, 7, 1, INT32_MAX, "columns, or rows, of a stripe; at most those there are"),
    FV_ENUM(struct csw, pad, "zero", pads,
            "what fills up the outermost stripes: keys and values of zeros, or nothing that is seen"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("lepe_weight", "[H*Dv, 3, 3]", "depthwise convolution of v inside each window (none)"),
    FV_PARAM("lepe_bias", "[H*Dv]", "its bias (0)"),
    {0},
};

static fv_status accept(fv_call *call)
{
    if (call->query_heads % 2 != 0)
        return fv_fail(FV_E_SHAPE, "csw: expected an even number of query heads, got %lld",
                       (long long)call->query_heads);
    return fv_check_cells(call, &((const struct csw *)call->options)->grid, call->queries);
}

/* ---- stripes ----------------------------------------------------------------------------------------------------- */

/* Half of the heads, and the image as they see it: with padding on both sides, so that stripes fit. */
struct half {
    int cut; /* the axis that stripes cut: 1 for vertical ones */
    int64_t size[2], first[2], frame[2], window[2];
    int64_t head, heads; /* first and number */
    int32_t *own_head;   /* of the part's key heads, by query head; NULL: evenly */
};

static struct half half_of(const fv_call *call, int cut)
{
    const struct csw *o = call->options;
    int64_t heads = call->query_heads / 2;
    struct half half = {.cut = cut, .head = cut == 0 ? heads : 0, .heads = heads};

    for (int a = 0; a < 2; a++) {
        half.size[a] = o->grid.items[a];
        half.window[a] = a == cut ? fv_min(o->stripe, half.size[a]) : half.size[a];
        half.frame[a] = fv_round_up(half.size[a], half.window[a]);
        half.first[a] = (half.frame[a] - half.size[a]) / 2;
    }
    return half;
}

/* Heads of a half where it cuts through those that share keys. */
static fv_status map_heads(fv_ctx *ctx, const fv_call *call, struct half *half)
{
    int64_t group = call->query_heads / call->key_heads;

    if (half->heads <= group || half->heads % group == 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, half->own_head, half->heads));
    for (int64_t h = 0; h < half->heads; h++)
        half->own_head[h] = (int32_t)((half->head + h) / group - half->head / group);
    return FV_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* The image in x [B,H,cells of the frame,C], as [B,H,height,width,C]. */
static fv_tensor inside(const struct half *half, const fv_tensor *x)
{
    fv_tensor image = fv_parted(x, 2, half->frame[1]);

    image = fv_slice(&image, 2, half->first[0], half->size[0]);
    return fv_slice(&image, 3, half->first[1], half->size[1]);
}

/* o = part + the convolution of v [B,Hx,cells of the frame,Dv] inside the stripes. */
static fv_status add_local(fv_ctx *ctx, const fv_call *call, const struct half *half, const fv_tensor *part,
                           const fv_tensor *v, const fv_tensor *o)
{
    int64_t width = half->frame[1], Dv = call->value_dim;
    const fv_images images = {.count = half->frame[half->cut] / half->window[half->cut],
                              .height = half->window[0],
                              .width = half->window[1],
                              .image = half->window[half->cut] * (half->cut == 0 ? width : 1),
                              .row = width,
                              .column = 1};
    fv_tensor weight = call->param[LEPE_WEIGHT], bias = call->param[LEPE_BIAS], local;

    if (fv_present(&weight)) weight = fv_slice(&weight, 0, half->head * Dv, half->heads * Dv);
    if (fv_present(&bias)) bias = fv_slice(&bias, 0, half->head * Dv, half->heads * Dv);
    FV_TRY(fv_tensor_new(ctx, &local, FV_F32, FV_DIMS(call->batch, half->heads, v->dims[2], Dv)));
    FV_TRY(fv_convolve_heads(ctx, &images, v, half->own_head, &weight, &bias, &local));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD,
                                            .x = fv_parted(part, 2, half->size[1]),
                                            .y = inside(half, &local),
                                            .out = fv_parted(o, 2, half->size[1])});
}

static fv_status attend_half(fv_ctx *ctx, const fv_call *call, int cut)
{
    bool local = fv_present(&call->param[LEPE_WEIGHT]) || fv_present(&call->param[LEPE_BIAS]);
    struct half half = half_of(call, cut);
    bool uneven = half.frame[cut] > half.size[cut], mask = ((const struct csw *)call->options)->pad == MASK;
    bool framed = uneven && !mask;
    fv_call part = fv_call_heads(call, 0, call->batch, half.head, half.heads);
    fv_plan plan = {.grid = {.rank = 2, .truncated = {true, true}}};
    fv_attend_args attend = fv_call_attend(&part, &plan);
    fv_tensor index, padded = part.v, v;

    FV_TRY(map_heads(ctx, call, &half));
    attend.key_head = half.own_head;
    for (int a = 0; a < 2; a++) {
        plan.grid.dims[a] = framed ? half.frame[a] : half.size[a];
        plan.grid.window[a] = plan.grid.stride[a] = half.window[a];
        plan.grid.query_count[a] = half.size[a];
        plan.grid.query_first[a] = framed ? half.first[a] : 0;
        plan.grid.stride_first[a] = framed ? 0 : -half.first[a];
    }
    if (uneven) FV_TRY(fv_order_frame(ctx, half.size, half.first, half.frame, &index));
    if (framed) FV_TRY(fv_order_rows(ctx, &index, &part.k, &attend.k));
    if (framed || (uneven && local)) FV_TRY(fv_order_rows(ctx, &index, &part.v, &padded));
    if (framed) attend.v = padded;
    if (!local) return fv_attend(ctx, &attend);
    FV_TRY(fv_plain(ctx, &padded, &v));
    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, 4, part.o.dims));
    FV_TRY(fv_attend(ctx, &attend));
    return add_local(ctx, call, &half, &attend.o, &v, &part.o);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    FV_TRY(attend_half(ctx, call, 1));
    return attend_half(ctx, call, 0);
}

static void fill(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const struct half *halves = user, *half = &halves[head >= halves->heads];
    int64_t width = half->size[1], from[2] = {0}, to[2] = {half->size[0], width};
    int64_t at = half->cut == 0 ? i / width : i % width, stripe = half->window[half->cut];
    int64_t first = (at + half->first[half->cut]) / stripe * stripe - half->first[half->cut];

    from[half->cut] = fv_max(first, 0);
    to[half->cut] = fv_min(first + stripe, to[half->cut]);
    for (int64_t y = from[0]; y < to[0]; y++)
        fv_key_row_add(row, y * width + from[1], y * width + to[1]);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    const struct half halves[] = {half_of(call, 1), half_of(call, 0)};

    return fv_key_rows_plan(ctx, call->query_heads, call->queries, call->keys, fill, halves, &pairs->plan);
}

const fv_mechanism fv_mechanism_csw = {
    .name = "csw",
    .title = "Cross-shaped windows (CSWin)",
    .paper = "arXiv 2107.00652",
    .sheet = 53,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_STATIC_PLAN | FV_SELF_ONLY | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula = "the first half of the heads: softmax over the tokens of the query's stripe of `stripe` columns, the "
               "other half: of `stripe` rows; plus a 3x3 convolution of v inside the stripe",
    .cost = "each query reads stripe * rows keys, or stripe * columns",
    .options = options,
    .options_size = sizeof(struct csw),
    .params = params,
    .accept = accept,
    .forward = forward,
    .map = map,
};
