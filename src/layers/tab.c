/* The token aggregation block of CATANet, as it runs after training: centres stay as they are.  arXiv 2503.06896.
 *
 * Where the definition leaves it open: fc1, the depthwise convolution and fc2 have biases and the 1x1 convolution has
 * none, as in the authors' code; norms have the epsilon of all layers here (the authors': 1e-5). */
#include "layers/layer.h"

struct tab {
    int64_t heads, group;
    fv_tuple size;
};

static const fv_option options[] = {
    FV_INT(struct tab, heads, 4, 1, INT32_MAX, "of both attentions; they divide C and Cq"),
    FV_INT(struct tab, group, 128, 1, INT32_MAX, "tokens that follow each other in sorted order"),
    FV_SIDES(struct tab, size, "HxW", NULL, 1, INT32_MAX, "height and width of the image that the tokens are"),
    FV_OPTIONS_END,
};

static const fv_param inputs[] = {
    FV_PARAM_NEEDED("x", "[B, N, C]", "tokens, row by row of the image"),
    {0},
};

enum {
    NORM_WEIGHT,
    NORM_BIAS,
    CENTRES,
    Q_WEIGHT,
    K_WEIGHT,
    V_WEIGHT,
    CENTRE_K_WEIGHT,
    CENTRE_V_WEIGHT,
    PROJ_WEIGHT,
    CONV_WEIGHT,
    FFN_NORM_WEIGHT,
    FFN_NORM_BIAS,
    FC1_WEIGHT,
    FC1_BIAS,
    DW_WEIGHT,
    DW_BIAS,
    FC2_WEIGHT,
    FC2_BIAS,
};
static const fv_param params[] = {
    FV_PARAM("norm_weight", "[C]", "of the norm before attention (1)"),
    FV_PARAM("norm_bias", "[C]", "(0)"),
    FV_PARAM_NEEDED_FIXED("centres", "[K, C]", "that assign tokens by cosine, and are read by all"),
    FV_PARAM_NEEDED("q_weight", "[Cq, C]", "of queries"),
    FV_PARAM_NEEDED("k_weight", "[Cq, C]", "of keys"),
    FV_PARAM_NEEDED("v_weight", "[C, C]", "of values"),
    FV_PARAM_NEEDED("centre_k_weight", "[Cq, C]", "of the centres' keys"),
    FV_PARAM_NEEDED("centre_v_weight", "[C, C]", "of their values"),
    FV_PARAM_NEEDED("proj_weight", "[C, C]", "of the result of attention"),
    FV_PARAM_NEEDED("conv_weight", "[C, C]", "of the 1x1 convolution behind it"),
    FV_PARAM("ffn.norm_weight", "[C]", "of the norm before the feed-forward network (1)"),
    FV_PARAM("ffn.norm_bias", "[C]", "(0)"),
    FV_PARAM_NEEDED("ffn.fc1_weight", "[F, C]", "of its first layer"),
    FV_PARAM("ffn.fc1_bias", "[F]", "(0)"),
    FV_PARAM_NEEDED("ffn.dw_weight", "[F, 5, 5]", "of its depthwise convolution"),
    FV_PARAM("ffn.dw_bias", "[F]", "(0)"),
    FV_PARAM_NEEDED("ffn.fc2_weight", "[C, F]", "of its second layer"),
    FV_PARAM("ffn.fc2_bias", "[C]", "(0)"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("y", "[B, N, C]", "the tokens behind the block"),
    {0},
};

static fv_status check(const void *values)
{
    const struct tab *o = values;
    int64_t tokens;

    if (!fv_mul_i64(o->size.items[0], o->size.items[1], &tokens))
        return fv_fail(FV_E_USAGE, "tab: size: an image of more than 2^63 tokens");
    return FV_OK;
}

static int64_t size(const fv_layer_call *call, const char *name)
{
    const struct tab *o = call->options;

    return strcmp(name, "N") == 0 ? o->size.items[0] * o->size.items[1] : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    int64_t heads = ((const struct tab *)call->options)->heads;

    FV_TRY(fv_layer_check_heads(call, heads, "C"));
    return fv_layer_check_heads(call, heads, "Cq");
}

/* A row for each centre [K,E], as [H,K,D]. */
static fv_tensor centre_heads(const fv_tensor *x, int64_t heads)
{
    int64_t K = x->dims[0], E = x->dims[1];

    return fv_view(x, FV_DIMS(heads, K, E / heads), (const int64_t[]){E / heads, E, 1}, 0);
}

/* Both attentions, heads joined [B,N,C]. */
static fv_status attend(fv_ctx *ctx, const fv_layer_call *call, const fv_tensor *x, fv_tensor *o)
{
    const struct tab *t = call->options;
    const fv_tensor *w = call->param;
    fv_tensor centre_k = {0}, centre_v = {0};
    fv_attention_args args = {.params = 4};
    fv_mark mark;

    FV_TRY(fv_tensor_new(ctx, o, FV_F32, 3, x->dims));
    mark = fv_scratch_mark(ctx);
    FV_TRY(fv_layer_project(ctx, x, &w[Q_WEIGHT], NULL, t->heads, &args.q));
    FV_TRY(fv_layer_project(ctx, x, &w[K_WEIGHT], NULL, t->heads, &args.k));
    FV_TRY(fv_layer_project(ctx, x, &w[V_WEIGHT], NULL, t->heads, &args.v));
    FV_TRY(fv_layer_linear(ctx, &w[CENTRES], &w[CENTRE_K_WEIGHT], NULL, &centre_k));
    FV_TRY(fv_layer_linear(ctx, &w[CENTRES], &w[CENTRE_V_WEIGHT], NULL, &centre_v));
    args.o = fv_layer_heads(o, t->heads);
    args.param = (const fv_named_tensor[]){{"features", *x},
                                           {"centres", w[CENTRES]},
                                           {"centre_k", centre_heads(&centre_k, t->heads)},
                                           {"centre_v", centre_heads(&centre_v, t->heads)}};
    FV_TRY(fv_layer_attend(ctx, &args, "tab:group=%lld", (long long)t->group));
    fv_scratch_release(ctx, mark);
    return FV_OK;
}

/* x [B,N,F] as an image [B,F,H,W]. */
static fv_tensor as_image(const fv_layer_call *call, const fv_tensor *x)
{
    const int64_t *grid = ((const struct tab *)call->options)->size.items, *s = x->strides;

    return fv_view(x, FV_DIMS(x->dims[0], x->dims[2], grid[0], grid[1]),
                   (const int64_t[]){s[0], s[2], grid[1] * s[1], s[1]}, 0);
}

/* fc2(u + GELU(depthwise convolution of u)), u = GELU(fc1 x). */
static fv_status feed_forward(fv_ctx *ctx, const fv_layer_call *call, const fv_tensor *x, fv_tensor *y)
{
    const fv_tensor *w = call->param;
    int64_t F = w[FC1_WEIGHT].dims[0];
    fv_tensor wide = {0}, u, local, bent, sum;
    fv_conv2d_args conv = {
        .weight = fv_reshaped(&w[DW_WEIGHT], FV_DIMS(F, 1, 5, 5)), .bias = w[DW_BIAS], .padding = 2, .groups = F};

    FV_TRY(fv_layer_linear(ctx, x, &w[FC1_WEIGHT], &w[FC1_BIAS], &wide));
    FV_TRY(fv_layer_map(ctx, FV_MAP_GELU, &wide, NULL, &u));
    FV_TRY(fv_tensor_new(ctx, &local, FV_F32, 3, u.dims));
    conv.x = as_image(call, &u);
    conv.out = as_image(call, &local);
    FV_TRY(fv_conv2d(ctx, &conv));
    FV_TRY(fv_layer_map(ctx, FV_MAP_GELU, &local, NULL, &bent));
    FV_TRY(fv_layer_map(ctx, FV_MAP_ADD, &u, &bent, &sum));
    return fv_layer_linear(ctx, &sum, &w[FC2_WEIGHT], &w[FC2_BIAS], y);
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const fv_tensor *x = &call->in[0], *w = call->param;
    fv_tensor normed, o, projected = {0}, mixed = {0}, middle, part = {0};

    FV_TRY(fv_layer_norm(ctx, x, &w[NORM_WEIGHT], &w[NORM_BIAS], FV_LAYER_EPSILON, &normed));
    FV_TRY(attend(ctx, call, &normed, &o));
    FV_TRY(fv_layer_linear(ctx, &o, &w[PROJ_WEIGHT], NULL, &projected));
    FV_TRY(fv_layer_linear(ctx, &projected, &w[CONV_WEIGHT], NULL, &mixed));
    FV_TRY(fv_layer_map(ctx, FV_MAP_ADD, &mixed, x, &middle));
    FV_TRY(fv_layer_norm(ctx, &middle, &w[FFN_NORM_WEIGHT], &w[FFN_NORM_BIAS], FV_LAYER_EPSILON, &normed));
    FV_TRY(feed_forward(ctx, call, &normed, &part));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = middle, .y = part, .out = call->out[0]});
}

const fv_layer_type fv_layer_tab = {
    .name = "tab",
    .title = "Token aggregation block (CATANet)",
    .paper = "arXiv 2503.06896",
    .sheet = 117,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "x += Wconv Wproj (attention in groups of tokens sorted by centre + attention to the centres) of LN(x); "
               "y = x + fc2(u + GELU(DWConv5x5 u)), u = GELU(fc1 LN(x))",
    .cost = "2 K C flops a token to sort; each reads 2 group keys and K centres; 4 F (C + 12.5) for the network",
    .options = options,
    .options_size = sizeof(struct tab),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
};
