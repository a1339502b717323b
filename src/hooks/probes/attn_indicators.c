/* What kind of attention maps each layer has: eight numbers, by the layer of this name.  arXiv 2510.11602. */
#include "fovea/layer.h"
#include "hooks/probe.h"

static const fv_option options[] = {
    FV_PROBE_PREFIX(4096),
    FV_PROBE_LAYERS,
    FV_PROBE_OUT("[8,layers] f32 in a .npy file, NaN where nothing was looked at"),
    FV_OPTIONS_END,
};

enum { INDICATORS = 8 };
static const fv_probe_field fields[] = {
    FV_PROBE_FIELD("entropy", "Entropy", "nats", "of all rows of a map together, mean over heads"),
    FV_PROBE_FIELD("norm", "Concentration", "Frobenius norm", "of a map, mean over heads"),
    FV_PROBE_FIELD("diversity", "Diversity", "weight",
                   "how far heads' weights lie apart: their standard deviation, mean over pairs"),
    FV_PROBE_FIELD("sink", "Sink", "", "weight of the first key, mean over rows and heads"),
    FV_PROBE_FIELD("local0", "Itself", "", "weight of a token on itself"),
    FV_PROBE_FIELD("local1", "One before", "", "weight on the token before"),
    FV_PROBE_FIELD("local2", "Two before", "", "weight on the second before"),
    FV_PROBE_FIELD("local3", "Three before", "", "weight on the third before"),
    {0},
};

static fv_status begin(fv_probing *p)
{
    fv_layer *layer = NULL;

    FV_TRY(fv_layer_new("attn_indicators", &layer));
    p->own = layer;
    return FV_OK;
}

static void drop(fv_probing *p)
{
    fv_layer_free(p->own);
}

static fv_status hear(fv_probing *p, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    float y[INDICATORS];
    fv_named_tensor in = {.name = "a"}, out = {.name = "y"};
    fv_tensor maps;

    (void)stats;
    if (picked->rows != p->tokens || picked->keys != p->tokens)
        return fv_fail(FV_E_SHAPE,
                       "attn_indicators: layer %lld: expected a map of %lld tokens at once, got %lld rows "
                       "and %lld keys",
                       (long long)layer, (long long)p->tokens, (long long)picked->rows, (long long)picked->keys);
    FV_TRY(fv_picked_weights(p->ctx, picked, &maps));
    in.tensor = fv_reshaped(&maps, FV_DIMS(picked->heads, picked->rows, picked->keys));
    FV_TRY(fv_tensor_wrap(&out.tensor, y, FV_F32, FV_DIMS(INDICATORS)));
    FV_TRY(fv_layer_forward(p->ctx, p->own, &(fv_layer_args){.inputs = 1, .input = &in, .outputs = 1, .output = &out}));
    for (int n = 0; n < INDICATORS; n++)
        fv_probing_set(p, n, layer, 0, (double)y[n]);
    return FV_OK;
}

const fv_probe fv_probe_attn_indicators = {
    .name = "attn_indicators",
    .title = "Indicators of attention maps",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .finds =
        "of a layer's whole maps: -sum a ln a, Frobenius norm, standard deviation between heads, weight of key 0, and "
        "of the keys 0 to 3 before a query",
    .cost = "maps of heads * tokens * tokens weights, of one layer at a time",
    .options = options,
    .options_size = sizeof(fv_probe_common),
    .fields = fields,
    .wants = FV_PROBE_BY_LAYER | FV_PROBE_WHOLE,
    .begin = begin,
    .hear = hear,
    .drop = drop,
};
