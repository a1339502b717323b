/* The exchange between the tokens of a group and its latents: fit_read adds to latents what they read of their group's
 * tokens, fit_write to tokens what they read of their group's latents, or the group's before.  FIT, arXiv 2305.12689.
 */
#include "layers/layer.h"

struct fit {
    int64_t heads;
    bool shift; /* of fit_write alone */
};

static const fv_option read_options[] = {
    FV_INT_REQUIRED(struct fit, heads, 1, INT32_MAX, "they divide E; in the paper the fewer of latents' and tokens'"),
    FV_OPTIONS_END,
};
static const fv_option write_options[] = {
    FV_INT_REQUIRED(struct fit, heads, 1, INT32_MAX, "they divide E; in the paper the fewer of latents' and tokens'"),
    FV_BOOL(struct fit, shift, 0, "a group reads the latents of the one before, the first reads zeros: stays causal"),
    FV_OPTIONS_END,
};

enum { OWN, OTHER };
static const fv_param read_inputs[] = {
    FV_PARAM_NEEDED("z", "[B, t, m, dl]", "latents of each group"),
    FV_PARAM_NEEDED("x", "[B, t, n, dx]", "tokens of each group"),
    {0},
};
static const fv_param write_inputs[] = {
    FV_PARAM_NEEDED("x", "[B, t, n, dx]", "tokens of each group"),
    FV_PARAM_NEEDED("z", "[B, t, m, dl]", "latents of each group"),
    {0},
};

enum {
    Q_WEIGHT,
    K_WEIGHT,
    V_WEIGHT,
    O_WEIGHT,
    Q_BIAS,
    K_BIAS,
    V_BIAS,
    O_BIAS,
    Q_NORM_WEIGHT,
    Q_NORM_BIAS,
    KV_NORM_WEIGHT,
    KV_NORM_BIAS
};
#define PARAMS(own, other)                                                                                             \
    {                                                                                                                  \
        FV_PARAM_NEEDED("q_weight", "[E, " own "]", "of what asks; E is the paper's smaller of dl and dx"),            \
            FV_PARAM_NEEDED("k_weight", "[E, " other "]", "of keys"),                                                  \
            FV_PARAM_NEEDED("v_weight", "[E, " other "]", "of values"),                                                \
            FV_PARAM_NEEDED("o_weight", "[" own ", E]", "of the result"), FV_PARAM("q_bias", "[E]", "(0)"),            \
            FV_PARAM("k_bias", "[E]", "(0)"), FV_PARAM("v_bias", "[E]", "(0)"),                                        \
            FV_PARAM("o_bias", "[" own "]", "(0)"),                                                                    \
            FV_PARAM("q_norm_weight", "[" own "]", "of the norm of what asks (1)"),                                    \
            FV_PARAM("q_norm_bias", "[" own "]", "(0)"),                                                               \
            FV_PARAM("kv_norm_weight", "[" other "]", "of the norm of what is read (1)"),                              \
            FV_PARAM("kv_norm_bias", "[" other "]", "(0)"), {0},                                                       \
    }
static const fv_param read_params[] = PARAMS("dl", "dx");
static const fv_param write_params[] = PARAMS("dx", "dl");

static const fv_param read_outputs[] = {
    FV_PARAM("z", "[B, t, m, dl]", "latents that have read"),
    {0},
};
static const fv_param write_outputs[] = {
    FV_PARAM("x", "[B, t, n, dx]", "tokens that have read"),
    {0},
};

static fv_status accept(const fv_layer_call *call)
{
    return fv_layer_check_heads(call, ((const struct fit *)call->options)->heads, "E");
}

/* x [B,t,m,d]: each group has those of the one before it, the first zeros. */
static fv_status shift_groups(fv_ctx *ctx, fv_tensor *x)
{
    const fv_tensor from = *x;
    const int64_t *d = from.dims;
    fv_tensor before;

    FV_TRY(fv_tensor_new(ctx, &before, FV_I32, FV_DIMS(d[1])));
    for (int64_t g = 0; g < d[1]; g++)
        ((int32_t *)before.data)[g] = (int32_t)g - 1;
    FV_TRY(fv_tensor_new(ctx, x, FV_F32, 4, d));
    return fv_gather(ctx, &(fv_gather_args){.x = fv_reshaped(&from, FV_DIMS(d[0], d[1], d[2] * d[3])),
                                            .index = before,
                                            .out = fv_reshaped(x, FV_DIMS(d[0], d[1], d[2] * d[3]))});
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct fit *f = call->options;
    const fv_tensor *w = call->param;
    const int64_t *d = call->in[OWN].dims;
    fv_tensor own, other, from = call->in[OTHER], o, read = {0};
    fv_attention_args args = {0};

    if (f->shift) FV_TRY(shift_groups(ctx, &from));
    FV_TRY(fv_layer_norm(ctx, &call->in[OWN], &w[Q_NORM_WEIGHT], &w[Q_NORM_BIAS], FV_LAYER_EPSILON, &own));
    FV_TRY(fv_layer_norm(ctx, &from, &w[KV_NORM_WEIGHT], &w[KV_NORM_BIAS], FV_LAYER_EPSILON, &other));
    FV_TRY(fv_layer_project(ctx, &own, &w[Q_WEIGHT], &w[Q_BIAS], f->heads, &args.q));
    FV_TRY(fv_layer_project(ctx, &other, &w[K_WEIGHT], &w[K_BIAS], f->heads, &args.k));
    FV_TRY(fv_layer_project(ctx, &other, &w[V_WEIGHT], &w[V_BIAS], f->heads, &args.v));
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, FV_DIMS(d[0], d[1], d[2], w[Q_WEIGHT].dims[0])));
    args.o = fv_layer_heads(&o, f->heads);
    FV_TRY(fv_layer_attend(ctx, &args, "dense"));
    FV_TRY(fv_layer_linear(ctx, &o, &w[O_WEIGHT], &w[O_BIAS], &read));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = call->in[OWN], .y = read, .out = call->out[0]});
}

const fv_layer_type fv_layer_fit_read = {
    .name = "fit_read",
    .title = "Latents read the tokens of their group (FIT)",
    .paper = "arXiv 2305.12689",
    .sheet = 137,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "z += MHA(q = LN(z), kv = LN'(x)) within each group",
    .cost = "4 n dx E flops a group for keys and values, 4 m dl E for queries and result, 4 m n E for attention",
    .options = read_options,
    .options_size = sizeof(struct fit),
    .inputs = read_inputs,
    .params = read_params,
    .outputs = read_outputs,
    .accept = accept,
    .forward = forward,
};

const fv_layer_type fv_layer_fit_write = {
    .name = "fit_write",
    .title = "Tokens read the latents of their group (FIT)",
    .paper = "arXiv 2305.12689",
    .sheet = 137,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "x += MHA(q = LN(x), kv = LN'(z)) within each group; shift=1: z of the group before",
    .cost = "4 m dl E flops a group for keys and values, 4 n dx E for queries and result, 4 m n E for attention",
    .options = write_options,
    .options_size = sizeof(struct fit),
    .inputs = write_inputs,
    .params = write_params,
    .outputs = write_outputs,
    .accept = accept,
    .forward = forward,
};
