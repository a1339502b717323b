/* Neighbourhood attention: windows on a grid of one to three axes, and perhaps a bias by relative offset (arXiv
 * 2403.04690).  Generalised, a stride makes groups of queries share a window, from per-token windows (stride 1) to
 * blocks (stride = window); arXiv 2504.16922. */
#include "attention/mechanism.h"

struct gna {
    fv_tuple grid, window, dilation, causal;
    fv_tuple stride; /* of na: without items */
    int tail_leader, impl;
};

enum { TAIL_CLIPPED, TAIL_UNCLIPPED };
enum { EXTRA_K, EXTRA_V, RPB };
enum { AXES = 3 };

static const char *const tails[] = {"clipped", "unclipped", NULL};

static const char *const kernels[] = {"fused", "gemm", "naive", NULL};

#define GRID FV_TUPLE(struct gna, grid, NULL, 1, INT32_MAX, "tokens along each of 1 to 3 axes, row-major")
#define WINDOW FV_TUPLE(struct gna, window, NULL, 0, INT32_MAX, "tokens of the window, per axis; 0: the whole axis")
#define DILATION FV_TUPLE(struct gna, dilation, "1", 1, INT32_MAX, "distance of neighbours, per axis")
#define CAUSAL FV_TUPLE(struct gna, causal, "0", 0, 1, "per axis: nothing behind the query")

static const fv_option gna_options[] = {
    GRID,
    WINDOW,
    FV_TUPLE(struct gna, stride, "1", 1, INT32_MAX, "queries that share a window, per axis; at most the window"),
    DILATION,
    CAUSAL,
    FV_ENUM(struct gna, tail_leader, "clipped", tails,
            "whether the axis' end moves the window of its last causal group"),
    FV_OPTIONS_END,
};

static const fv_option na_options[] = {
    GRID,
    WINDOW,
    DILATION,
    CAUSAL,
    FV_ENUM(struct gna, impl, "fused", kernels,
            "the kernels that are meant; one serves for all, with the same numbers"),
    FV_OPTIONS_END,
};

#define EXTRA                                                                                                          \
    FV_PARAM("extra_k", "[B, Hkv, X, D]", "further keys, which every query sees (none)"),                              \
        FV_PARAM("extra_v", "[B, Hkv, X, Dv]", "their values")

static const fv_param gna_params[] = {EXTRA, {0}};
static const fv_param na_params[] = {
    EXTRA,
    FV_PARAM("rpb", "[H, R0] or [H, R0, R1] or [H, R0, R1, R2]",
             "bias of the logits by offset, R = 2 window - 1 on each axis of odd windows, none of them causal (none)"),
    {0},
};

/* One value counts for every axis. */
static int64_t on_axis(const fv_tuple *tuple, int axis)
{
    return tuple->items[tuple->count == 1 ? 0 : axis];
}

static int64_t stride_on(const struct gna *o, int axis)
{
    return o->stride.count > 0 ? on_axis(&o->stride, axis) : 1;
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

static fv_status check(const char *name, const struct gna *o)
{
    const struct {
        const char *name;
        const fv_tuple *tuple;
    } per_axis[] = {{"window", &o->window}, {"stride", &o->stride}, {"dilation", &o->dilation}, {"causal", &o->causal}};

    if (o->grid.count > AXES)
        return fv_fail(FV_E_USAGE, "%s: option 'grid': expected 1 to 3 axes, got %d", name, o->grid.count);
    for (int i = 0; i < 4; i++)
        if (per_axis[i].tuple->count > 1 && per_axis[i].tuple->count != o->grid.count)
            return fv_fail(FV_E_USAGE, "%s: option '%s': expected 1 or %d items, as the grid has axes, got %d", name,
                           per_axis[i].name, o->grid.count, per_axis[i].tuple->count);
    for (int a = 0; a < o->grid.count; a++) {
        int64_t window = window_on(o, a), stride = stride_on(o, a), span;
        if (!fv_mul_i64(window, on_axis(&o->dilation, a), &span) || span > o->grid.items[a])
            return fv_fail(FV_E_USAGE, "%s: axis %d: window %lld x dilation %lld: expected at most the axis, %lld",
                           name, a, (long long)window, (long long)on_axis(&o->dilation, a),
                           (long long)o->grid.items[a]);
        if (stride > window)
            return fv_fail(FV_E_USAGE, "%s: axis %d: stride: expected at most the window, %lld, got %lld", name, a,
                           (long long)window, (long long)stride);
    }
    return FV_OK;
}

static fv_status check_gna(const void *values)
{
    return check("gna", values);
}

static fv_status check_na(const void *values)
{
    return check("na", values);
}

/* R0, R1, R2: offsets on an axis. */
static int64_t size(const void *options, const fv_call *call, const char *name)
{
    const struct gna *o = options;
    int axis = name[0] == 'R' ? name[1] - '0' : AXES;

    (void)call;
    return axis < AXES ? 2 * window_on(o, fv_min(axis, o->grid.count - 1)) - 1 : -1;
}

static fv_status accept_bias(const fv_call *call)
{
    const struct gna *o = call->options;
    const fv_tensor *bias = &call->param[RPB];

    if (!fv_present(bias)) return FV_OK;
    if (bias->rank != 1 + o->grid.count || call->keys > INT32_MAX / 8)
        return fv_fail(FV_E_SHAPE, "na: param 'rpb': expected %d axes after the heads, as the grid has, got %s",
                       o->grid.count, fv_shape_text(bias));
    for (int a = 0; a < o->grid.count; a++)
        if (window_on(o, a) % 2 == 0 || call->causal || on_axis(&o->causal, a))
            return fv_fail(FV_E_USAGE, "na: param 'rpb' needs odd windows and no causal axis; axis %d: window %lld%s",
                           a, (long long)window_on(o, a), call->causal || on_axis(&o->causal, a) ? ", causal" : "");
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct gna *o = call->options;
    const char *name = call->mechanism->name;
    bool all_causal = true, strided = false;

    for (int a = 0; a < o->grid.count; a++) {
        all_causal &= on_axis(&o->causal, a) == 1;
        strided |= stride_on(o, a) > 1;
    }
    call->causal |= all_causal;
    if (fv_present(&call->param[EXTRA_K]) != fv_present(&call->param[EXTRA_V]))
        return fv_fail(FV_E_USAGE, "%s: params 'extra_k' and 'extra_v' need one another", name);
    FV_TRY(accept_bias(call));
    if (call->decoding && strided && o->tail_leader == TAIL_CLIPPED)
        return fv_fail(FV_E_USAGE, "%s: decoding with stride > 1 needs tail_leader=unclipped", name);
    if (call->decoding ? call->keys <= cells(o) : call->keys == cells(o)) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: option 'grid': the grid has %lld cells, but there are %lld tokens", name,
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
        grid->stride[a] = stride_on(o, a);
        grid->dilation[a] = on_axis(&o->dilation, a);
        grid->causal[a] = call->causal || on_axis(&o->causal, a);
    }
}

/* The bias as a table of all offsets, row-major: keys stand at their cell in steps of the dilation, queries before it
 * by the largest offset. */
static fv_status add_bias(fv_ctx *ctx, const fv_call *call, fv_logits *logits)
{
    const struct gna *o = call->options;
    int32_t *query, *key;
    int64_t R = 1, N = call->keys, largest = 0;
    fv_tensor table;

    if (!fv_present(&call->param[RPB])) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, query, N));
    FV_TRY(FV_SCRATCH(ctx, key, N));
    for (int64_t n = 0; n < N; n++)
        key[n] = 0;
    for (int64_t a = o->grid.count - 1, cell = 1; a >= 0; cell *= o->grid.items[a--]) {
        for (int64_t n = 0; n < N; n++)
            key[n] += (int32_t)(n / cell % o->grid.items[a] / on_axis(&o->dilation, (int)a) * R);
        largest += (window_on(o, (int)a) - 1) * R;
        R *= 2 * window_on(o, (int)a) - 1;
    }
    for (int64_t n = 0; n < N; n++)
        query[n] = (int32_t)(key[n] - largest);
    FV_TRY(fv_plain(ctx, &call->param[RPB], &table));
    logits->offset_bias = fv_reshaped(&table, FV_DIMS(call->query_heads, R));
    logits->offset_place = (fv_places){query, key};
    return FV_OK;
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
    FV_TRY(add_bias(ctx, call, &near.logits));
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

#define TRAITS FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE

const fv_mechanism fv_mechanism_gna = {
    .name = "gna",
    .title = "Generalised neighbourhood attention",
    .paper = "arXiv 2504.16922",
    .sheet = 3,
    .family = FV_STATIC_SPARSE,
    .traits = TRAITS,
    .formula =
        "softmax over the keys that lie in the query's window on every axis, and over the extra keys; the window is "
        "centred on the leader of the query's stride group and pushed inward at the ends",
    .cost = "each query reads the product of the windows",
    .options = gna_options,
    .options_size = sizeof(struct gna),
    .params = gna_params,
    .check = check_gna,
    .accept = accept,
    .forward = forward,
    .map = map,
};

const fv_mechanism fv_mechanism_na = {
    .name = "na",
    .title = "Neighbourhood attention",
    .paper = "arXiv 2403.04690",
    .sheet = 4,
    .family = FV_STATIC_SPARSE,
    .traits = TRAITS,
    .formula =
        "softmax of scale q.k + rpb[offset] over the keys that lie in the query's window on every axis, and over "
        "the extra keys; the window is centred on the query and pushed inward at the ends",
    .cost = "each query reads the product of the windows",
    .options = na_options,
    .options_size = sizeof(struct gna),
    .params = na_params,
    .check = check_na,
    .size = size,
    .accept = accept,
    .forward = forward,
    .map = map,
};
