/* A mask that multiplies the weights behind the softmax, with no new normalisation: the soft causal mask of iLLaMA,
 * arXiv 2404.06773. */
#include "attention/mechanism.h"

struct postmask {
    double alpha;
};

enum { MASK };

static const fv_option options[] = {
    FV_FLOAT(struct postmask, alpha, 0, 0, 1, "what the mask leaves of a hidden weight; 1: all, dense attention"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_FIXED("mask", "[1|B, 1|H, N, N]", "factors of 0 to 1, in place of those of a causal mask"),
    {0},
};

static fv_status accept(fv_call *call)
{
    const fv_tensor *mask = &call->param[MASK];
    const int64_t *dims = mask->dims;

    for (int64_t row = 0; fv_present(mask) && row < dims[0] * dims[1] * dims[2]; row++)
        for (int64_t j = 0; j < dims[3]; j++) {
            float value = *(float *)fv_at(mask, row / dims[2] / dims[1], row / dims[2] % dims[1], row % dims[2], j);
            if (!(value >= 0 && value <= 1))
                return fv_fail(FV_E_FORMAT, "postmask: param 'mask': expected factors of 0 to 1, got %g",
                               (double)value);
        }
    return FV_OK;
}

/* Factors as a bias: their logarithms, so that the masked part is a softmax of its own. */
static fv_status log_mask(fv_ctx *ctx, const fv_call *call, fv_tensor *bias)
{
    return fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_LOG, .x = call->param[MASK]}, bias);
}

/* What a part of the keys has of all weights, scaled: by the log-sum-exp of all, factor exp(part - whole), or of the
 * other part, factor / (1 + exp(other - part)), the sigmoid. */
static fv_status share(fv_ctx *ctx, float factor, const fv_tensor *part, fv_map op, const fv_tensor *other,
                       fv_tensor *out)
{
    fv_tensor difference, ratio;

    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = *part, .y = *other}, &difference));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = op, .x = difference}, &ratio));
    return fv_mapped(ctx, &(fv_map_args){.x = ratio, .alpha = factor}, out);
}

/* o = alpha o_all + (1 - alpha) exp(lse_masked - lse_all) o_masked. */
static fv_status by_factors(fv_ctx *ctx, const fv_call *call)
{
    const struct postmask *o = call->options;
    fv_attend_args all = {.q = call->q, .k = call->k, .v = call->v, .lse = call->lse, .logits = fv_call_logits(call)};
    fv_attend_args masked = all;
    fv_merge_args merge = {.parts = 2, .o = call->o};
    float *alpha;

    FV_TRY(log_mask(ctx, call, &masked.logits.bias));
    FV_TRY(FV_SCRATCH(ctx, alpha, 1));
    *alpha = (float)o->alpha;
    for (int p = 0; p < 2; p++) {
        fv_attend_args *part = p ? &masked : &all;
        if (p || !fv_present(&call->lse)) FV_TRY(fv_tensor_new(ctx, &part->lse, FV_F32, 3, call->o.dims));
        FV_TRY(fv_tensor_new(ctx, &part->o, FV_F32, 4, call->o.dims));
        FV_TRY(fv_attend(ctx, part));
        merge.o_part[p] = part->o;
    }
    merge.weight[0] =
        (fv_tensor){.data = alpha, .dtype = FV_F32, .rank = 3, .dims = {call->batch, call->query_heads, call->queries}};
    FV_TRY(share(ctx, (float)(1 - o->alpha), &masked.lse, FV_MAP_EXP, &all.lse, &merge.weight[1]));
    return fv_merge(ctx, &merge);
}

/* lse = ln(exp(seen) + exp(behind)) = seen + ln(1 + exp(behind - seen)) */
static fv_status add_up(fv_ctx *ctx, const fv_tensor *seen, const fv_tensor *behind, const fv_tensor *lse)
{
    fv_tensor difference, more;

    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = *behind, .y = *seen}, &difference));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SOFTPLUS, .x = difference}, &more));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *seen, .y = more, .out = *lse});
}

/* Every query reads the keys up to its own, and those behind it, whose weights count alpha: nothing of their values
 * where that is 0. */
static fv_status by_halves(fv_ctx *ctx, const fv_call *call)
{
    float alpha = (float)((const struct postmask *)call->options)->alpha;
    fv_plan plans[2] = {{.causal = true}, {0}};
    fv_attend_args part[2];
    fv_merge_args merge = {.parts = alpha > 0 ? 2 : 1, .o = call->o};
    int32_t *from, *to;

    FV_TRY(FV_SCRATCH(ctx, from, call->queries));
    FV_TRY(FV_SCRATCH(ctx, to, call->queries));
    for (int64_t i = 0; i < call->queries; i++)
        from[i] = (int32_t)(i + 1), to[i] = (int32_t)call->keys;
    plans[1].key_from = from;
    plans[1].key_to = to;
    for (int p = 0; p < 2; p++) {
        part[p] = fv_call_attend(call, &plans[p]);
        if (p == merge.parts) part[p].v = fv_slice(&call->v, 3, 0, fv_min(call->value_dim, 1));
        FV_TRY(fv_tensor_new(ctx, &part[p].o, FV_F32,
                             FV_DIMS(call->batch, call->query_heads, call->queries, part[p].v.dims[3])));
        FV_TRY(fv_tensor_new(ctx, &part[p].lse, FV_F32, 3, call->o.dims));
        FV_TRY(fv_attend(ctx, &part[p]));
        merge.o_part[p] = part[p].o;
    }
    FV_TRY(share(ctx, 1, &part[0].lse, FV_MAP_SIGMOID, &part[1].lse, &merge.weight[0]));
    if (alpha > 0) FV_TRY(share(ctx, alpha, &part[1].lse, FV_MAP_SIGMOID, &part[0].lse, &merge.weight[1]));
    if (fv_present(&call->lse)) FV_TRY(add_up(ctx, &part[0].lse, &part[1].lse, &call->lse));
    return fv_merge(ctx, &merge);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    fv_attend_args all = fv_call_attend(call, NULL);

    if (((const struct postmask *)call->options)->alpha == 1) return fv_attend(ctx, &all);
    return fv_present(&call->param[MASK]) ? by_factors(ctx, call) : by_halves(ctx, call);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx, (void)call, (void)pairs; /* every pair, in the denominator at least */
    return FV_OK;
}

const fv_mechanism fv_mechanism_postmask = {
    .name = "postmask",
    .title = "Mask behind the softmax (iLLaMA)",
    .paper = "arXiv 2404.06773",
    .sheet = 145,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula = "o_i = sum_j softmax_j(scale q_i.k_j) (alpha + (1 - alpha) C_ij) v_j; C_ij = 1 for j <= i, else 0",
    .cost = "as dense; twice that with a mask of its own",
    .options = options,
    .options_size = sizeof(struct postmask),
    .params = params,
    .accept = accept,
    .forward = forward,
    .map = map,
};
