/* Attention whose queries and keys are made of something else than the layer's input: of one fixed stream that all
 * batches share (fixedmap), or of the raw embeddings of the tokens (staticqk).  arXiv 2510.11602. */
#include "layers/layer.h"

struct separate {
    int64_t heads;
    bool causal;
    double rope_base;
};

static const fv_option options[] = {
    FV_INT_REQUIRED(struct separate, heads, 1, INT32_MAX, "they divide C"),
    FV_BOOL(struct separate, causal, 1, "a token reads those up to its own position"),
    FV_FLOAT(struct separate, rope_base, 0, 0, 1e12,
             "of the rotation of queries and keys, in halves (paper: 10000); 0: none"),
    FV_OPTIONS_END,
};

enum { X, S };
static const fv_param fixed_inputs[] = {
    FV_PARAM_NEEDED("x", "[B, N, C]", "tokens, of which values are made"),
    FV_PARAM_NEEDED("s", "[L, C]", "the fixed stream, whose first N rows make queries and keys for every batch"),
    {0},
};
static const fv_param static_inputs[] = {
    FV_PARAM_NEEDED("x", "[B, N, C]", "tokens, of which values are made"),
    FV_PARAM_NEEDED("s", "[B, N, C]", "what queries and keys are made of: the embeddings of the same tokens"),
    {0},
};

enum { Q_WEIGHT, K_WEIGHT, V_WEIGHT, O_WEIGHT };
static const fv_param params[] = {
    FV_PARAM_NEEDED("q_weight", "[C, C]", "of queries"),
    FV_PARAM_NEEDED("k_weight", "[C, C]", "of keys"),
    FV_PARAM_NEEDED("v_weight", "[C, C]", "of values"),
    FV_PARAM_NEEDED("o_weight", "[C, C]", "of the result"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("y", "[B, N, C]", "what the tokens read"),
    {0},
};

static fv_status accept(const fv_layer_call *call)
{
    const struct separate *o = call->options;
    int64_t C = fv_size_of(&call->sizes, "C");

    FV_TRY(fv_layer_check_heads(call, o->heads, "C"));
    if (o->rope_base > 0 && C / o->heads % 2 != 0)
        return fv_fail(FV_E_SHAPE, "%s: rope_base: expected an even number of channels in a head, got %lld",
                       call->type->name, (long long)(C / o->heads));
    return FV_OK;
}

static fv_status accept_fixed(const fv_layer_call *call)
{
    int64_t N = fv_size_of(&call->sizes, "N"), L = fv_size_of(&call->sizes, "L");

    if (L < N)
        return fv_fail(FV_E_SHAPE,
                       "fixedmap: input 's': expected at least as many rows as there are tokens, %lld, got %lld",
                       (long long)N, (long long)L);
    return accept(call);
}

/* Queries or keys [B|1,H,N,D] of a source [B|1,N,C]. */
static fv_status make_rows(fv_ctx *ctx, const struct separate *o, const fv_tensor *source, const fv_tensor *weight,
                           fv_tensor *heads)
{
    fv_rope_args rope = {.base = (float)o->rope_base};
    fv_tensor turned;

    FV_TRY(fv_layer_project(ctx, source, weight, NULL, o->heads, heads));
    if (o->rope_base == 0) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &turned, FV_F32, 3, source->dims));
    rope.x = *heads;
    rope.out = *heads = fv_layer_heads(&turned, o->heads);
    return fv_rope(ctx, &rope);
}

/* The source of queries and keys, [B|1,N,C]. */
static fv_tensor source_of(const fv_layer_call *call)
{
    const fv_tensor *s = &call->in[S];
    int64_t N = call->in[X].dims[1], C = call->in[X].dims[2];
    fv_tensor prefix;

    if (s->rank == 3) return *s;
    prefix = fv_slice(s, 0, 0, N);
    return fv_reshaped(&prefix, FV_DIMS(1, N, C));
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct separate *p = call->options;
    const fv_tensor *x = &call->in[X], *w = call->param;
    fv_tensor source = source_of(call), o, y = call->out[0];
    fv_attention_args args = {.causal = p->causal};

    FV_TRY(make_rows(ctx, p, &source, &w[Q_WEIGHT], &args.q));
    FV_TRY(make_rows(ctx, p, &source, &w[K_WEIGHT], &args.k));
    FV_TRY(fv_layer_project(ctx, x, &w[V_WEIGHT], NULL, p->heads, &args.v));
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, 3, x->dims));
    args.o = fv_layer_heads(&o, p->heads);
    FV_TRY(fv_layer_attend(ctx, &args, "%s", call->type->name));
    return fv_layer_linear(ctx, &o, &w[O_WEIGHT], NULL, &y);
}

const fv_layer_type fv_layer_fixedmap = {
    .name = "fixedmap",
    .title = "Layer whose attention maps come from a fixed stream",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "y = softmax((s Wq^T)(s Wk^T)^T D^-1/2) (x Wv^T) Wo^T, one map for every batch",
    .cost =
        "4 N C^2 flops for queries and keys, 4 B N C^2 for values and result, 2 N^2 C (1 + B) for attention, half of "
        "it if causal",
    .options = options,
    .options_size = sizeof(struct separate),
    .inputs = fixed_inputs,
    .params = params,
    .outputs = outputs,
    .accept = accept_fixed,
    .forward = forward,
};

const fv_layer_type fv_layer_staticqk = {
    .name = "staticqk",
    .title = "Layer whose queries and keys come from the embeddings",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "y = softmax((s Wq^T)(s Wk^T)^T D^-1/2) (x Wv^T) Wo^T",
    .cost = "8 B N C^2 flops for what is projected, 4 B N^2 C for attention, half of it if causal",
    .options = options,
    .options_size = sizeof(struct separate),
    .inputs = static_inputs,
    .params = params,
    .outputs = outputs,
    .accept = accept,
    .forward = forward,
};
