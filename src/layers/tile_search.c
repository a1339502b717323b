/* How few reference frames each layer of a video model can do with: the fewest of a family whose attention tiles
 * (frame_tile) stay within a distance from dense attention.  Efficient-vDiT, arXiv 2502.06155, stage 2. */
#include "layers/layer.h"

struct search {
    int64_t frames, text, block;
    fv_list family;
    double threshold;
};

static const fv_option options[] = {
    FV_INT_REQUIRED(struct search, frames, 1, INT32_MAX, "F, of the video, which the tokens run through one by one"),
    FV_LIST(struct search, family, NULL, 1, INT32_MAX,
            "numbers of reference frames that are tried (paper: 4+3+2+1 of 8 frames, 12+8+6+4+3 of 24)"),
    FV_FLOAT_REQUIRED(struct search, threshold, 0, 1e30,
                      "mean squared difference from dense that a layer may have; 0: none"),
    FV_INT(struct search, text, 0, 0, INT32_MAX, "last tokens, which read and are read by all"),
    FV_INT(struct search, block, 0, 0, INT32_MAX, "tiles that are computed whole, as frame_tile has them; 0: none"),
    FV_OPTIONS_END,
};

enum { Q, K, V };
static const fv_param inputs[] = {
    FV_PARAM_NEEDED("q", "[L, H, N, D]", "queries of each layer"),
    FV_PARAM_NEEDED("k", "[L, Hkv, N, D]", "keys"),
    FV_PARAM_NEEDED("v", "[L, Hkv, N, Dv]", "values"),
    {0},
};
static const fv_param params[] = {{0}};
enum { REFS, ERRORS };
static const fv_param outputs[] = {
    FV_PARAM_OF(FV_I32, "refs", "[L]", "reference frames of each layer; F: it stays dense"),
    FV_PARAM("errors", "[L, family]", "mean squared difference from dense of each layer with each of the family"),
    {0},
};

static fv_status check(const void *values)
{
    const struct search *o = values;

    for (int n = 0; n < o->family.count; n++)
        if (o->family.items[n] > o->frames)
            return fv_fail(FV_E_USAGE, "tile_search: option 'family': expected at most the frames, %lld, got %lld",
                           (long long)o->frames, (long long)o->family.items[n]);
    return FV_OK;
}

static int64_t size(const fv_layer_call *call, const char *name)
{
    return strcmp(name, "family") == 0 ? ((const struct search *)call->options)->family.count : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    const struct search *o = call->options;
    int64_t N = fv_size_of(&call->sizes, "N");

    FV_TRY(fv_layer_check_groups(call));
    if (N > o->text && (N - o->text) % o->frames == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "tile_search: expected %lld frames of equal length and %lld tokens of text, got %lld tokens",
                   (long long)o->frames, (long long)o->text, (long long)N);
}

/* What a layer is to use. */
static void add_spec(const struct search *o, int64_t refs, fv_text *text)
{
    if (refs == o->frames) {
        fv_text_printf(text, "dense");
        return;
    }
    fv_text_printf(text, "frame_tile:frames=%lld,refs=%lld", (long long)o->frames, (long long)refs);
    if (o->text > 0) fv_text_printf(text, ",text=%lld", (long long)o->text);
    if (o->block > 0) fv_text_printf(text, ",block=%lld", (long long)o->block);
}

/* The attention of one layer with so many reference frames, in scratch memory. */
static fv_status attend(fv_ctx *ctx, const fv_layer_call *call, int64_t layer, int64_t refs, fv_tensor *o)
{
    const int64_t *d = call->in[Q].dims;
    fv_attention_args args = {.q = fv_slice(&call->in[Q], 0, layer, 1),
                              .k = fv_slice(&call->in[K], 0, layer, 1),
                              .v = fv_slice(&call->in[V], 0, layer, 1)};
    fv_text spec = {0};
    fv_status status;

    FV_TRY(fv_tensor_new(ctx, o, FV_F32, FV_DIMS(1, d[1], d[2], call->in[V].dims[3])));
    args.o = *o;
    add_spec(call->options, refs, &spec);
    status = fv_text_status(&spec);
    if (status == FV_OK) status = fv_layer_attend(ctx, &args, "%s", fv_text_get(&spec));
    fv_text_free(&spec);
    return status;
}

/* The mean square of o - dense, which takes o's place. */
static fv_status measure(fv_ctx *ctx, const fv_tensor *dense, fv_tensor *o, float *error)
{
    int64_t rows = o->dims[1] * o->dims[2], C = o->dims[3];
    fv_tensor channels, mean;

    FV_TRY(fv_tensor_new(ctx, &channels, FV_F32, FV_DIMS(1, C)));
    FV_TRY(fv_tensor_new(ctx, &mean, FV_F32, FV_DIMS(1, 1)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = *o, .y = *dense, .out = *o}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = *o, .y = *o, .out = *o}));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = fv_reshaped(o, FV_DIMS(rows, C)), .out = channels, .block = rows}));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = fv_reshaped(&channels, FV_DIMS(C, 1)), .out = mean, .block = C}));
    *error = *(float *)mean.data;
    return FV_OK;
}

static fv_status try_refs(fv_ctx *ctx, const fv_layer_call *call, int64_t layer, int64_t refs, const fv_tensor *dense,
                          float *error)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor o;

    *error = 0;
    if (refs == ((const struct search *)call->options)->frames) return FV_OK;
    FV_TRY(attend(ctx, call, layer, refs, &o));
    FV_TRY(measure(ctx, dense, &o, error));
    fv_scratch_release(ctx, mark);
    return FV_OK;
}

/* The places of a family, from its fewest reference frames on. */
struct order {
    int place[FV_LIST_MAX];
};

static struct order order_of(const fv_list *family)
{
    struct order order;

    for (int n = 0, at; n < family->count; n++) {
        for (at = n; at > 0 && family->items[order.place[at - 1]] > family->items[n]; at--)
            order.place[at] = order.place[at - 1];
        order.place[at] = n;
    }
    return order;
}

/* The fewest that do; what comes behind them is tried only where errors are asked for. */
static fv_status search(fv_ctx *ctx, const fv_layer_call *call, int64_t layer, const struct order *order, int64_t *refs)
{
    const struct search *o = call->options;
    const fv_tensor *errors = &call->out[ERRORS];
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor dense;

    *refs = o->frames;
    FV_TRY(attend(ctx, call, layer, o->frames, &dense));
    for (int n = 0; n < o->family.count && (fv_present(errors) || *refs == o->frames); n++) {
        int64_t tried = o->family.items[order->place[n]];
        float error;
        FV_TRY(try_refs(ctx, call, layer, tried, &dense, &error));
        if (*refs == o->frames && error <= o->threshold) *refs = tried;
        if (fv_present(errors)) ((float *)errors->data)[layer * o->family.count + order->place[n]] = error;
    }
    fv_scratch_release(ctx, mark);
    return FV_OK;
}

/* Layers from .. to-1 of the plan. */
static void add_layers(const struct search *o, int64_t from, int64_t to, int64_t refs, fv_text *plan)
{
    fv_text_printf(plan, "%s%lld", from > 0 ? ";" : "", (long long)from);
    if (to - from > 1) fv_text_printf(plan, "-%lld", (long long)to - 1);
    fv_text_printf(plan, "/");
    add_spec(o, refs, plan);
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct search *o = call->options;
    int64_t L = call->in[Q].dims[0], from = 0, *refs;
    struct order order = order_of(&o->family);

    FV_TRY(FV_SCRATCH(ctx, refs, L));
    for (int64_t layer = 0; layer < L; layer++) {
        FV_TRY(search(ctx, call, layer, &order, &refs[layer]));
        if (fv_present(&call->out[REFS])) ((int32_t *)call->out[REFS].data)[layer] = (int32_t)refs[layer];
    }
    for (int64_t layer = 1; call->plan && layer <= L; layer++) {
        if (layer < L && refs[layer] == refs[from]) continue;
        add_layers(o, from, layer, refs[from], call->plan);
        from = layer;
    }
    return FV_OK;
}

const fv_layer_type fv_layer_tile_search = {
    .name = "tile_search",
    .title = "Fewest reference frames of each layer (Efficient-vDiT)",
    .paper = "arXiv 2502.06155",
    .sheet = 39,
    .kind = FV_KIND_POLICY,
    .formula =
        "refs = the smallest k of the family with e <= threshold, else F; e = mean (o of frame_tile:refs=k - o of "
        "dense)^2",
    .cost = "a dense attention of each layer, and one with tiles for each k that is tried",
    .options = options,
    .options_size = sizeof(struct search),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
};
