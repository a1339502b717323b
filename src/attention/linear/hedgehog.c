/* Hedgehog: linear attention over trained feature maps that mimic softmax.  arXiv 2402.04347. */
#include "attention/mechanism.h"

struct hedgehog {
    int map;
    bool half;
    double eps;
};

enum { MAP_SOFTMAX, MAP_EXP, MAP_RELU, MAP_ELU };
enum { Q_WEIGHT, K_WEIGHT, Q_BIAS, K_BIAS };

static const char *const maps[] = {"softmax", "exp", "relu", "elu", NULL};

static const fv_option options[] = {
    FV_ENUM(struct hedgehog, map, "softmax", maps, "the activation; elu is elu(y) + 1, exp is not shifted"),
    FV_BOOL(struct hedgehog, half, 0, "softmax and exp: only the positive half of the features"),
    FV_FLOAT(struct hedgehog, eps, 1e-12, 1e-30, 1, "the least a feature, and a denominator, may be"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("q_weight", "[H, D, F]", "map of queries (identity)"),
    FV_PARAM("k_weight", "[H, D, F]", "map of keys (identity)"),
    FV_PARAM("q_bias", "[H, F]", "added behind q_weight (0)"),
    FV_PARAM("k_bias", "[H, F]", "added behind k_weight (0)"),
    {0},
};

/* Without a weight the map is the identity, so that F = D; with both it is free. */
static int64_t size(const void *values, const fv_call *call, const char *name)
{
    (void)values;
    (void)name;
    return fv_present(&call->param[Q_WEIGHT]) && fv_present(&call->param[K_WEIGHT]) ? -1 : call->head_dim;
}

static bool two_halves(const struct hedgehog *o)
{
    return !o->half && (o->map == MAP_SOFTMAX || o->map == MAP_EXP);
}

static int64_t state_width(const fv_call *call)
{
    const fv_tensor *weight = &call->param[K_WEIGHT];
    int64_t width = fv_present(weight) ? weight->dims[2] : call->head_dim;

    return two_halves(call->options) ? 2 * width : width;
}

/* y = x W + b with one map per query head: x [B,Hx,N,D] -> y [B,H,N,F]. */
static fv_status project(fv_ctx *ctx, int64_t heads, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                         fv_tensor *y)
{
    fv_tensor wide, b;

    *y = *x;
    if (fv_present(weight) || fv_present(bias)) FV_TRY(fv_repeat_heads(ctx, x, heads, y));
    if (fv_present(weight)) {
        wide = *y;
        FV_TRY(fv_tensor_new(ctx, y, FV_F32, FV_DIMS(x->dims[0], heads, x->dims[2], weight->dims[2])));
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = wide, .b = *weight, .c = *y}));
    }
    if (!fv_present(bias)) return FV_OK;
    b = fv_expanded(bias, 1);
    return fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *y, .y = b}, y);
}

/* One half of the features: the activation of sign * y, floored. */
static fv_status activate(fv_ctx *ctx, const struct hedgehog *o, const fv_tensor *y, float sign, const fv_tensor *out)
{
    static const fv_map pointwise[] = {[MAP_EXP] = FV_MAP_EXP, [MAP_RELU] = FV_MAP_RELU, [MAP_ELU] = FV_MAP_ELU1};
    fv_tensor raw, turned = *y;

    if (o->map == MAP_SOFTMAX) {
        FV_TRY(fv_tensor_new(ctx, &raw, FV_F32, 4, y->dims));
        FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = *y, .out = raw, .scale = sign}));
    } else {
        if (sign < 0) FV_TRY(fv_mapped(ctx, &(fv_map_args){.x = *y, .alpha = sign}, &turned));
        FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = pointwise[o->map], .x = turned}, &raw));
    }
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = raw, .out = *out, .alpha = (float)o->eps});
}

static fv_status features(fv_ctx *ctx, const fv_call *call, const fv_tensor *x, int weight, int bias, fv_tensor *out)
{
    const struct hedgehog *o = call->options;
    fv_tensor y, part;
    int64_t F;

    FV_TRY(project(ctx, call->query_heads, x, &call->param[weight], &call->param[bias], &y));
    F = y.dims[3];
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(y.dims[0], y.dims[1], y.dims[2], two_halves(o) ? 2 * F : F)));
    part = fv_slice(out, 3, 0, F);
    FV_TRY(activate(ctx, o, &y, 1, &part));
    if (!two_halves(o)) return FV_OK;
    part = fv_slice(out, 3, F, F);
    return activate(ctx, o, &y, -1, &part);
}

static fv_status scan(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan_)
{
    const struct hedgehog *o = call->options;

    FV_TRY(features(ctx, call, &call->q, Q_WEIGHT, Q_BIAS, &scan_->q));
    FV_TRY(features(ctx, call, &call->k, K_WEIGHT, K_BIAS, &scan_->k));
    if (scan_->k.dims[1] != call->key_heads) FV_TRY(fv_repeat_heads(ctx, &call->v, call->query_heads, &scan_->v));
    scan_->normalise = true;
    scan_->floor = (float)o->eps;
    return FV_OK;
}

const fv_mechanism fv_mechanism_hedgehog = {
    .name = "hedgehog",
    .title = "Hedgehog",
    .paper = "arXiv 2402.04347",
    .sheet = 66,
    .family = FV_LINEAR,
    .traits = FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_SCALE | FV_NO_LSE |
              FV_NO_MAP | FV_RECURRENT,
    .formula = "o_t = f(q_t)^T sum_u f(k_u) v_u^T / max(eps, f(q_t)^T sum_u f(k_u)), u <= t with --causal, "
               "f(x) = [map(xW + b), map(-xW - b)]",
    .cost = "2 (N + M) F Dv flops a head, F = 2 D features; a state of F (Dv + 1) numbers a head",
    .options = options,
    .options_size = sizeof(struct hedgehog),
    .params = params,
    .size = size,
    .scan = scan,
    .state_width = state_width,
};
