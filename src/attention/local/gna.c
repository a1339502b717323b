/* Generalised neighbourhood attention: windows on a grid of one to three axes; a stride makes groups of queries share
 * a window, from per-token windows (stride 1) to blocks (stride = window).  arXiv 2504.16922. */
#include "attention/mechanism.h"

struct gna {
    fv_tuple grid, window, stride, dilation, causal;
    int tail_leader;
};

enum { TAIL_CLIPPED, TAIL_UNCLIPPED };
enum { EXTRA_K, EXTRA_V };
enum { AXES = 3 };

static const char *const tails[] = {"clipped", "unclipped", NULL};

static const fv_option options[] = {
    FV_TUPLE(struct gna, grid, NULL, 1, INT32_MAX, "tokens along each of 1 to 3 axes, row-major"),
    FV_TUPLE(struct gna, window, NULL, 0, INT32_MAX, "tokens of the window, per axis; 0: the whole axis"),
    FV_TUPLE(struct gna, stride, "1", 1, INT32_MAX, "queries that share a window, per axis; at most the window"),
    FV_TUPLE(struct gna, dilation, "1", 1, INT32_MAX, "distance of neighbours, per axis"),
    FV_TUPLE(struct gna, causal, "0", 0, 1, "per axis: nothing behind the query"),
    FV_ENUM(struct gna, tail_leader, "clipped", tails,
            "whether the axis' end moves the window of its last causal group"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("extra_k", "[B, Hkv, X, D]", "further keys, which every query sees (none)"),
    FV_PARAM("extra_v", "[B, Hkv, X, Dv]", "their values"),
    {0},
};

/* One value counts for every axis. */
static int64_t on_axis(const fv_tuple *tuple, int axis)
{
    return tuple->items[tuple->count == 1 ? 0 : axis];
}

static int64_t window_on(const struct gna *o, int axis)
{
    int64_t window = on_axis(&o->window, axis);

    return window ? window : o->grid.items[axis];
}

static int64_t cells(const struct gna *o)
{
    int64_t product = 1;

    for (int a = 0; a < o->grid.count; a++)
        if (!fv_mul_i64(product, o->grid.items[a], &product)) return INT64_MAX;
    return product;
}

static fv_status check(const void *values)
{
    const struct gna *o = values;
    const struct {
        const char *name;
        const fv_tuple *tuple;
    } per_axis[] = {{"window", &o->window}, {"stride", &o->stride}, {"dilation", &o->dilation}, {"causal", &o->causal}};

    if (o->grid.count > AXES)
        return fv_fail(FV_E_USAGE, "gna: option 'grid': expected 1 to 3 axes, got %d", o->grid.count);
    for (int i = 0; i < 4; i++)
        if (per_axis[i].tuple->count != 1 && per_axis[i].tuple->count != o->grid.count)
            return fv_fail(FV_E_USAGE, "gna: option '%s': expected 1 or %d items, as the grid has axes, got %d",
                           per_axis[i].name, o->grid.count, per_axis[i].tuple->count);
    for (int a = 0; a < o->grid.count; a++) {
        int64_t window = window_on(o, a), stride = on_axis(&o->stride, a), span;
        if (!fv_mul_i64(window, on_axis(&o->dilation, a), &span) || span > o->grid.items[a])
            return fv_fail(FV_E_USAGE, "gna: axis %d: window %lld x dilation %lld: expected at most the axis, %lld", a,
                           (long long)window, (long long)on_axis(&o->dilation, a), (long long)o->grid.items[a]);
        if (stride > window)
            return fv_fail(FV_E_USAGE, "gna: axis %d: stride: expected at most the window, %lld, got %lld", a,
                           (long long)window, (long long)stride);
    }
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct gna *o = call->options;
    bool all_causal = true, strided = false;

    for (int a = 0; a < o->grid.count; a++) {
        all_causal &= on_axis(&o->causal, a) == 1;
        strided |= on_axis(&o->stride, a) > 1;
    }
    call->causal |= all_causal;
    if (fv_present(&call->param[EXTRA_K]) != fv_present(&call->param[EXTRA_V]))
        return fv_fail(FV_E_USAGE, "gna: params 'extra_k' and 'extra_v' need one another");
    if (call->decoding && strided && o->tail_leader == TAIL_CLIPPED)
        return fv_fail(FV_E_USAGE, "gna: decoding with stride > 1 needs tail_leader=unclipped");
    if (call->decoding ? call->keys <= cells(o) : call->keys == cells(o)) return FV_OK;
    return fv_fail(FV_E_SHAPE, "gna: option 'grid': the grid has %lld cells, but there are %lld tokens",
                   (long long)cells(o), (long long)call->keys);
}

static void fill_plan(const fv_call *call, fv_plan *plan)
{
    const struct gna *o = call->options;
    fv_grid *grid = &plan->grid;

    *plan = (fv_plan){.causal = call->causal, .offset = call->offset};
    grid->rank = o->grid.count;
    grid->unclipped = o->tail_leader == TAIL_UNCLIPPED;
    for (int a = 0; a < o->grid.count; a++) {
        grid->dims[a] = o->grid.items[a];
        grid->window[a] = window_on(o, a);
        grid->stride[a] = on_axis(&o->stride, a);
        grid->dilation[a] = on_axis(&o->dilation, a);
        grid->causal[a] = call->causal || on_axis(&o->causal, a);
    }
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    fv_plan plan;
    fv_attend_args near = {.q = call->q,
                           .k = call->k,
                           .v = call->v,
                           .o = call->o,
                           .lse = call->lse,
                           .plan = &plan,
                           .logits = fv_call_logits(call)};
    fv_attend_args extra = {
        .q = call->q, .k = call->param[EXTRA_K], .v = call->param[EXTRA_V], .logits = fv_call_logits(call)};

    fill_plan(call, &plan);
    if (!fv_present(&extra.k)) return fv_attend(ctx, &near);
    FV_TRY(fv_tensor_new(ctx, &near.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_tensor_new(ctx, &near.lse, FV_F32, 3, call->o.dims));
    FV_TRY(fv_tensor_new(ctx, &extra.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_tensor_new(ctx, &extra.lse, FV_F32, 3, call->o.dims));
    FV_TRY(fv_attend(ctx, &near));
    FV_TRY(fv_attend(ctx, &extra));
    return fv_merge(ctx, &(fv_merge_args){.parts = 2,
                                          .o_part = {near.o, extra.o},
                                          .lse_part = {near.lse, extra.lse},
                                          .o = call->o,
                                          .lse = call->lse});
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx;
    fill_plan(call, &pairs->plan);
    return FV_OK;
}

const fv_mechanism fv_mechanism_gna = {
    .name = "gna",
    .title = "Generalised neighbourhood attention",
    .paper = "arXiv 2504.16922",
    .sheet = 3,
    .family = FV_STATIC_SPARSE,
    .traits = FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula =
        "softmax over the keys that lie in the query's window on every axis, and over the extra keys; the window is "
        "centred on the leader of the query's stride group and pushed inward at the ends",
    .cost = "each query reads the product of the windows",
    .options = options,
    .options_size = sizeof(struct gna),
    .params = params,
    .check = check,
    .accept = accept,
    .forward = forward,
    .map = map,
};
