/* Mixture of Block Attention: every query reads its own block and the past blocks whose mean keys agree with it best.
 * The base of arXiv 2506.23858 (MoBA, arXiv 2502.13189), causal. */
#include "attention/sparse/moba.h"

#include "attention/sparse/core.h"

static const fv_option options[] = {
    FV_INT(struct moba, block, 512, 1, INT32_MAX, "tokens in a block"),
    FV_INT(struct moba, top, 3, 1, INT32_MAX, "blocks a query reads, its own included"),
    FV_OPTIONS_END,
};

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    return fv_kept_means(call, kind, 0, ((const struct moba *)call->options)->block, keys, width);
}

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    const struct moba *o = call->options;
    int64_t blocks = fv_max(call->offset + call->queries - 1, 0) / o->block; /* that lie before some query's own */
    int64_t chosen = fv_min(o->top - 1, blocks);
    fv_tensor means;

    *choice = (fv_choice){.block = o->block, .tail = 1, .heads = call->query_heads};
    FV_TRY(fv_choice_new(ctx, call, chosen, choice));
    if (chosen == 0) return FV_OK;
    FV_TRY(fv_keep_means(ctx, call, 0, o->block, blocks, &means));
    return fv_choose_by_product(ctx, call, choice, &call->q, &means);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    return fv_choice_forward(ctx, call, choose);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    return fv_choice_map(ctx, call, choose, pairs);
}

const fv_mechanism fv_mechanism_moba = {
    .name = "moba",
    .title = "Mixture of Block Attention",
    .paper = "arXiv 2502.13189, 2506.23858",
    .sheet = 20,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula =
        "score of block c for query q: q.mean(k in c); softmax over the keys j <= p of the query's own block and "
        "the top - 1 past blocks of highest score, for each query head; ties go to the lower block",
    .cost = "each query reads at most top * block keys; scores cost 2 N (N / block) D flops a head",
    .options = options,
    .options_size = sizeof(struct moba),
    .kept = kept,
    .forward = forward,
    .counts = true,
    .map = map,
};
