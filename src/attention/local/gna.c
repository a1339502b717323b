/* Neighbourhood attention: windows on a grid of one to three axes, and perhaps a bias by relative offset (arXiv
 * 2403.04690).  Generalised, a stride makes groups of queries share a window, from per-token windows (stride 1) to
 * blocks (stride = window); arXiv 2504.16922. */
#include "attention/local/neighbours.h"

struct gna {
    fv_neighbours windows; /* of na: without stride */
    int tail_leader, impl;
};

enum { TAIL_CLIPPED, TAIL_UNCLIPPED };
enum { EXTRA_K, EXTRA_V, RPB };

static const char *const tails[] = {"clipped", "unclipped", NULL};

static const char *const kernels[] = {"fused", "gemm", "naive", NULL};

static const fv_option gna_options[] = {
    FV_NEIGHBOURS_OPTIONS,
    FV_TUPLE(fv_neighbours, stride, "1", 1, INT32_MAX, "queries that share a window, per axis; at most the window"),
    FV_ENUM(struct gna, tail_leader, "clipped", tails,
            "whether the axis' end moves the window of its last causal group"),
    FV_OPTIONS_END,
};

static const fv_option na_options[] = {
    FV_NEIGHBOURS_OPTIONS,
    FV_ENUM(struct gna, impl, "fused", kernels,
            "the kernels that are meant; one serves for all, with the same numbers"),
    FV_OPTIONS_END,
};

#define EXTRA                                                                                                          \
    FV_PARAM("extra_k", "[B, Hkv, X, D]", "further keys, which every query sees (none)"),                              \
        FV_PARAM("extra_v", "[B, Hkv, X, Dv]", "their values")

static const fv_param gna_params[] = {EXTRA, {0}};
static const fv_param na_params[] = {EXTRA, FV_NEIGHBOURS_BIAS, {0}};

static fv_status check_gna(const void *values)
{
    return fv_neighbours_check("gna", values);
}

static fv_status check_na(const void *values)
{
    return fv_neighbours_check("na", values);
}

static int64_t size(const void *options, const fv_call *call, const char *name)
{
    (void)call;
    return fv_neighbours_size(options, name);
}

static fv_status accept(fv_call *call)
{
    const struct gna *o = call->options;
    const fv_neighbours *n = &o->windows;
    const char *name = call->mechanism->name;
    bool all_causal = true, strided = false;

    for (int a = 0; a < n->grid.count; a++) {
        all_causal &= fv_neighbours_on_axis(&n->causal, a) == 1;
        strided |= fv_neighbours_stride(n, a) > 1;
    }
    call->causal |= all_causal;
    if (fv_present(&call->param[EXTRA_K]) != fv_present(&call->param[EXTRA_V]))
        return fv_fail(FV_E_USAGE, "%s: params 'extra_k' and 'extra_v' need one another", name);
    FV_TRY(fv_neighbours_check_bias(name, n, call->causal, &call->param[RPB]));
    if (call->decoding && strided && o->tail_leader == TAIL_CLIPPED)
        return fv_fail(FV_E_USAGE, "%s: decoding with stride > 1 needs tail_leader=unclipped", name);
    if (call->decoding && call->keys <= fv_cells_of(&n->grid)) return FV_OK;
    return fv_check_cells(call, &n->grid, call->keys);
}

static fv_plan plan_of(const fv_call *call)
{
    const struct gna *o = call->options;
    fv_plan plan = {.causal = call->causal, .offset = call->offset};

    fv_neighbours_grid(&o->windows, call->causal, &plan.grid);
    plan.grid.unclipped = o->tail_leader == TAIL_UNCLIPPED;
    return plan;
}

static fv_status add_bias(fv_ctx *ctx, const fv_call *call, fv_logits *logits)
{
    const struct gna *o = call->options;
    fv_tensor table;
    int64_t offsets;

    if (!fv_present(&call->param[RPB])) return FV_OK;
    FV_TRY(fv_neighbours_places(ctx, &o->windows, call->keys, &logits->offset_place, &offsets));
    FV_TRY(fv_plain(ctx, &call->param[RPB], &table));
    logits->offset_bias = fv_reshaped(&table, FV_DIMS(call->query_heads, offsets));
    return FV_OK;
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    fv_plan plan = plan_of(call);
    fv_attend_args part[] = {fv_call_attend(call, &plan), fv_call_attend(call, NULL)};

    part[1].k = call->param[EXTRA_K];
    part[1].v = call->param[EXTRA_V];
    FV_TRY(add_bias(ctx, call, &part[0].logits));
    return fv_attend_joined(ctx, call, fv_present(&part[1].k) ? 2 : 1, part);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx;
    pairs->plan = plan_of(call);
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
