/* Whether attention's logits explode: their largest magnitude, and how sharp its rows are.  arXiv 2505.15548. */
#include <math.h>

#include "layers/layer.h"

struct growth {
    bool causal;
    double scale;
};

static const fv_option options[] = {
    FV_BOOL(struct growth, causal, 1, "a query sees keys up to its own position"),
    FV_FLOAT(struct growth, scale, 0, 0, 1e30, "of the logits; 0: D^-1/2"),
    FV_OPTIONS_END,
};

enum { Q, K };
static const fv_param inputs[] = {
    FV_PARAM_NEEDED("q", "[B, H, N, D]", "queries, as they go into attention"),
    FV_PARAM_NEEDED("k", "[B, Hkv, N, D]", "keys"),
    {0},
};
static const fv_param params[] = {{0}};
static const fv_param outputs[] = {
    FV_PARAM("y", "[B, H, 2]", "the largest magnitude of a logit that a query sees; the mean entropy of rows, in nats"),
    {0},
};

/* Over the rows x [B,H,N]. */
static fv_status pool(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *x, const fv_tensor *out)
{
    const int64_t *d = x->dims;

    return fv_pool_rows(
        ctx,
        &(fv_pool_args){.kind = kind, .x = fv_reshaped(x, FV_DIMS(d[0], d[1], d[2], 1)), .out = *out, .block = d[2]});
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct growth *o = call->options;
    const int64_t *d = call->in[Q].dims, strides[] = {2 * d[1], 2, 1, 1};
    fv_plan plan = {.causal = o->causal};
    fv_logits logits = {.scale = o->scale > 0 ? (float)o->scale : 1 / sqrtf((float)d[3])};
    fv_tensor most, lse, entropy;
    fv_tensor growth = fv_view(&call->out[0], FV_DIMS(d[0], d[1], 1, 1), strides, 0);
    fv_tensor sharpness = fv_view(&call->out[0], FV_DIMS(d[0], d[1], 1, 1), strides, 1);

    FV_TRY(fv_tensor_new(ctx, &most, FV_F32, 3, d));
    FV_TRY(fv_tensor_new(ctx, &lse, FV_F32, 3, d));
    FV_TRY(fv_tensor_new(ctx, &entropy, FV_F32, 3, d));
    FV_TRY(fv_largest_logits(
        ctx, &(fv_attend_args){.q = call->in[Q], .k = call->in[K], .plan = &plan, .logits = logits, .lse = lse},
        &most));
    FV_TRY(fv_attend_stats(
        ctx, &(fv_stats_args){
                 .q = call->in[Q], .k = call->in[K], .lse = lse, .plan = &plan, .logits = logits, .entropy = entropy}));
    FV_TRY(pool(ctx, FV_POOL_MAX, &most, &growth));
    return pool(ctx, FV_POOL_MEAN, &entropy, &sharpness);
}

const fv_layer_type fv_layer_logit_growth = {
    .name = "logit_growth",
    .title = "Growth of attention's logits (stability probe)",
    .paper = "arXiv 2505.15548",
    .sheet = 149,
    .kind = FV_KIND_PROBE,
    .formula = "y = max |scale q_i.k_j| over visible pairs; mean over rows of -sum p ln p, p = softmax(scale q_i.k_j)",
    .cost = "6 D flops a pair, in memory that grows with N alone",
    .options = options,
    .options_size = sizeof(struct growth),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .accept = fv_layer_check_groups,
    .forward = forward,
};
