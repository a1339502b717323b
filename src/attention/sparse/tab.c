/* Token aggregation of CATANet: tokens sorted by the centre they are nearest to, attention within groups of the sorted
 * order, and to the centres.  arXiv 2503.06896. */
#include "attention/sparse/core.h"
#include "attention/sparse/order.h"

struct tab {
    int64_t group, windows;
    bool inter, mask_pad;
};

static const fv_option options[] = {
    FV_INT(struct tab, group, 128, 1, INT32_MAX, "tokens that follow each other in sorted order"),
    FV_INT(struct tab, windows, 2, 1, 3, "groups that a group reads: its own and those behind it"),
    FV_BOOL(struct tab, inter, 1, "with centre_k and centre_v, add attention to the centres"),
    FV_BOOL(struct tab, mask_pad, 0, "what lies behind the last token is hidden, instead of mirrored tokens"),
    FV_OPTIONS_END,
};

enum { ASSIGN, FEATURES, CENTRES, CENTRE_K, CENTRE_V };

static const fv_param params[] = {
    FV_PARAM_OF(FV_I32, "assign", "[B, N]", "cluster of each token"),
    FV_PARAM_FIXED("features", "[B, N, C]", "what assigns tokens by cosine (none: all to one)"),
    FV_PARAM_FIXED("centres", "[K, C]", "of the clusters"),
    FV_PARAM("centre_k", "[H, K, D]", "keys of centres"),
    FV_PARAM("centre_v", "[H, K, Dv]", "their values"),
    {0},
};

static fv_status accept(fv_call *call)
{
    const fv_tensor *param = call->param;
    bool features = fv_present(&param[FEATURES]);

    if (call->query_heads != call->key_heads)
        return fv_fail(FV_E_SHAPE, "tab: expected as many key-value heads as query heads, got %lld and %lld",
                       (long long)call->key_heads, (long long)call->query_heads);
    if (features != fv_present(&param[CENTRES]))
        return fv_fail(FV_E_USAGE, "tab: params 'features' and 'centres' need one another");
    if (fv_present(&param[CENTRE_K]) != fv_present(&param[CENTRE_V]))
        return fv_fail(FV_E_USAGE, "tab: params 'centre_k' and 'centre_v' need one another");
    if (features && fv_present(&param[ASSIGN]))
        return fv_fail(FV_E_USAGE, "tab: params 'assign' and 'features' exclude each other");
    return FV_OK;
}

/* ---- the order -------------------------------------------------------------------------------------------------- */

enum { CLUSTERS = 1 << 20 };

/* The tokens in their order; place n of it, and, behind the last, of the keys. */
struct layout {
    int64_t group, places; /* tokens of a group; places of keys */
    fv_order order;
    fv_tensor key; /* [B,1,places] i32 */
};

/* The nearest centre of each token by cosine: the largest product with centres of one length. */
static fv_status assign_by_features(fv_ctx *ctx, const fv_call *call, const fv_tensor *cluster)
{
    const fv_tensor *centres = &call->param[CENTRES];
    fv_tensor rows = fv_expanded(&call->param[FEATURES], 1), best = fv_expanded(cluster, 3), even;

    FV_TRY(fv_tensor_new(ctx, &even, FV_F32, 2, centres->dims));
    FV_TRY(fv_norm(ctx, &(fv_norm_args){.x = *centres, .out = even, .epsilon = 1e-30f}));
    even = fv_broadcast(&even, FV_DIMS(call->batch, 1, centres->dims[0], centres->dims[1]));
    FV_TRY(fv_best_rows(ctx, &rows, &even, &best));
    for (int64_t i = 0; i < call->batch * call->queries; i++) /* features that are no numbers have none */
        ((int32_t *)cluster->data)[i] = fv_max(((int32_t *)cluster->data)[i], 0);
    return FV_OK;
}

/* The cluster of each token [B,1,N], and a bound of them. */
static fv_status assign(fv_ctx *ctx, const fv_call *call, const fv_tensor *cluster, int64_t *bound)
{
    const fv_tensor *given = &call->param[ASSIGN], *keys = &call->param[CENTRE_K];
    int64_t N = call->queries, count = call->batch * N, most = fv_present(keys) ? keys->dims[1] : CLUSTERS;
    int32_t *to = cluster->data;

    *bound = fv_present(&call->param[CENTRES]) ? call->param[CENTRES].dims[0] : 1;
    memset(to, 0, (size_t)count * sizeof *to);
    if (fv_present(&call->param[FEATURES])) return assign_by_features(ctx, call, cluster);
    for (int64_t i = 0; fv_present(given) && i < count; i++) {
        to[i] = *(int32_t *)fv_at(given, i / N, i % N, 0, 0);
        if (to[i] < 0 || to[i] >= most)
            return fv_fail(FV_E_SHAPE, "tab: param 'assign': token %lld: expected 0 to %lld, got %d", (long long)i,
                           (long long)most - 1, to[i]);
        *bound = fv_max(*bound, to[i] + 1);
    }
    return FV_OK;
}

static struct layout layout_of(const fv_call *call)
{
    const struct tab *o = call->options;
    int64_t N = call->queries, group = fv_min(o->group, N);

    return (struct layout){.group = group,
                           .places = o->mask_pad ? N : (fv_ceil_div(N, group) - 1 + o->windows) * group};
}

static fv_status lay_out(fv_ctx *ctx, const fv_call *call, struct layout *l)
{
    int64_t B = call->batch, N = call->queries, bound;
    fv_tensor cluster;

    *l = layout_of(call);
    FV_TRY(fv_tensor_new(ctx, &cluster, FV_I32, FV_DIMS(B, 1, N)));
    FV_TRY(fv_tensor_new(ctx, &l->key, FV_I32, FV_DIMS(B, 1, l->places)));
    FV_TRY(assign(ctx, call, &cluster, &bound));
    FV_TRY(fv_order_by_key(ctx, cluster.data, B, 1, N, bound, &l->order, NULL));
    for (int64_t b = 0; b < B; b++) {
        const int32_t *order = fv_at(&l->order.order, b, 0, 0, 0);
        for (int64_t t = 0; t < l->places; t++) {
            int64_t at = t % (2 * N); /* there and back again */
            *(int32_t *)fv_at(&l->key, b, 0, t, 0) = order[at < N ? at : 2 * N - 1 - at];
        }
    }
    return FV_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* Groups of places that read their own and those behind it. */
static fv_status list_groups(fv_ctx *ctx, const fv_call *call, const struct layout *l, fv_plan *plan)
{
    int64_t windows = ((const struct tab *)call->options)->windows;
    fv_list_builder lists;

    FV_TRY(fv_lists_begin(
        ctx, &lists,
        &(fv_list_shape){.query_block = l->group, .key_block = l->group, .queries = call->queries, .keys = l->places}));
    for (int64_t g = 0; g < lists.groups; g++) {
        fv_lists_row(&lists);
        fv_lists_add_range(&lists, g, g + windows);
    }
    return fv_lists_end(&lists, plan);
}

/* Within groups, tokens in their own order. */
static fv_status attend_groups(fv_ctx *ctx, const fv_call *call, const fv_tensor *o)
{
    struct layout l;
    fv_plan plan = {0};
    fv_attend_args attend = {.plan = &plan, .logits = fv_call_logits(call)};

    FV_TRY_CHOOSING(ctx, lay_out(ctx, call, &l));
    FV_TRY(list_groups(ctx, call, &l, &plan));
    FV_TRY(fv_order_rows(ctx, &l.order.order, &call->q, &attend.q));
    FV_TRY(fv_order_rows(ctx, &l.key, &call->k, &attend.k));
    FV_TRY(fv_order_rows(ctx, &l.key, &call->v, &attend.v));
    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    return fv_order_back(ctx, &l.order, &attend.o, o);
}

/* Rows of a centre's [H,K,C] for every batch; a copy, so that its gradient is a sum. */
static fv_status for_batches(fv_ctx *ctx, int64_t batch, const fv_tensor *x, fv_tensor *out)
{
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(batch, x->dims[0], x->dims[1], x->dims[2])));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *out});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const fv_tensor *k = &call->param[CENTRE_K], *v = &call->param[CENTRE_V];
    fv_attend_args attend = {.q = call->q, .logits = fv_call_logits(call)};
    fv_tensor near;

    if (!fv_present(k) || !((const struct tab *)call->options)->inter) return attend_groups(ctx, call, &call->o);
    FV_TRY(fv_tensor_new(ctx, &near, FV_F32, 4, call->o.dims));
    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, 4, call->o.dims));
    FV_TRY(attend_groups(ctx, call, &near));
    FV_TRY(for_batches(ctx, call->batch, k, &attend.k));
    FV_TRY(for_batches(ctx, call->batch, v, &attend.v));
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = near, .y = attend.o, .out = call->o});
}

/* The keys of each token's group, in the order of tokens. */
static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct layout l;
    fv_list_shape shape = fv_call_lists(call, 1, 1, 1);
    fv_list_builder lists;
    int64_t windows = ((const struct tab *)call->options)->windows;

    FV_TRY(lay_out(ctx, call, &l));
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t row = 0; row < call->batch * call->queries; row++) {
        int64_t b = row / call->queries, first = *(int32_t *)fv_at(&l.order.place, b, 0, row % call->queries, 0);
        fv_lists_row(&lists);
        first -= first % l.group;
        for (int64_t t = first; t < fv_min(first + windows * l.group, l.places); t++)
            fv_lists_add(&lists, *(int32_t *)fv_at(&l.key, b, 0, t, 0));
    }
    return fv_lists_end(&lists, &pairs->plan);
}

const fv_mechanism fv_mechanism_tab = {
    .name = "tab",
    .title = "Token aggregation block (CATANet)",
    .paper = "arXiv 2503.06896",
    .sheet = 117,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "tokens in a stable order by cluster, mirrored behind the last; softmax over the keys of a token's group "
        "and the windows - 1 behind it, plus softmax over the centres",
    .cost = "each query reads windows * group keys and K centres; clusters cost 2 N K C flops",
    .options = options,
    .options_size = sizeof(struct tab),
    .params = params,
    .accept = accept,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
