/* Gated block top-k (Sparse Sparse Attention): each query reads its own block and those whose mean keys have most
 * weight in softmaxes over the blocks complete so far, summed over its group; what it reads passes a gate.  arXiv
 * 2511.20102. */
#include "attention/sparse/core.h"

struct blocktopk_gated {
    int64_t block, top, init, local;
};

enum { GATE };

static const fv_option options[] = {
    FV_INT(struct blocktopk_gated, block, 16, 1, INT32_MAX, "tokens in a block"),
    FV_INT(struct blocktopk_gated, top, 16, 1, INT32_MAX, "blocks a query reads, first and local ones included"),
    FV_INT(struct blocktopk_gated, init, 0, 0, INT32_MAX, "first blocks, always read"),
    FV_INT(struct blocktopk_gated, local, 1, 1, INT32_MAX, "blocks up to the query's own, always read"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("gate", "[B, H, N]", "logits of the gates of the output (none)"),
    {0},
};

static fv_status check(const void *values)
{
    const struct blocktopk_gated *o = values;

    if (o->top >= o->init + o->local) return FV_OK;
    return fv_fail(FV_E_USAGE, "blocktopk_gated: option 'top': expected at least init + local = %lld, got %lld",
                   (long long)(o->init + o->local), (long long)o->top);
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    return fv_kept_means(call, kind, 0, ((const struct blocktopk_gated *)call->options)->block, keys, width);
}

/* scores [B,H,n,C] become weights among the blocks that end at or before each query; those of a group add up. */
static fv_status choose_by_weight(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const fv_chooser *c = user;
    const fv_call *call = c->call;
    int64_t n = scores->dims[2], blocks = scores->dims[3], rows = call->batch * call->query_heads * n, *valid;
    int64_t init = fv_min(c->choice->init, blocks);
    fv_tensor sums;

    FV_TRY(FV_SCRATCH(ctx, valid, rows));
    for (int64_t row = 0; row < rows; row++)
        valid[row] = fv_max(call->offset + from + row % n + 1, 0) / c->choice->block;
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = *scores, .out = *scores, .valid = valid}));
    FV_TRY(fv_pool_heads(ctx, FV_POOL_SUM, scores, call->key_heads, &sums));
    sums = fv_slice(&sums, 3, init, blocks - init);
    return fv_choose(ctx, call, c->choice, from, &sums);
}

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    const struct blocktopk_gated *o = call->options;
    fv_tensor means;

    FV_TRY(fv_choice_between(ctx, call, o->block, o->top, o->init, o->local, choice));
    if (choice->index.dims[3] == 0) return FV_OK;
    FV_TRY(fv_keep_means(ctx, call, 0, o->block, call->keys / o->block, &means));
    return fv_score_blocks(ctx, call, &call->q, &means, 0, o->block, call->scale, choose_by_weight,
                           &(fv_chooser){call, choice});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const fv_tensor *logits = &call->param[GATE];
    fv_call open = *call;
    fv_tensor gate;

    if (!fv_present(logits)) return fv_choice_forward(ctx, call, choose);
    FV_TRY(fv_tensor_new(ctx, &open.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_choice_forward(ctx, &open, choose));
    FV_TRY(fv_tensor_new(ctx, &gate, FV_F32, FV_DIMS(call->batch, call->query_heads, call->queries, 1)));
    FV_TRY(
        fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SIGMOID, .x = *logits, .out = fv_reshaped(&gate, 3, gate.dims)}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = open.o, .y = gate, .out = call->o});
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    return fv_choice_map(ctx, call, choose, pairs);
}

const fv_mechanism fv_mechanism_blocktopk_gated = {
    .name = "blocktopk_gated",
    .title = "Gated block top-k (SSA)",
    .paper = "arXiv 2511.20102",
    .sheet = 127,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "weight of block c for query q: the sum over the group's heads of softmax over complete blocks of "
               "scale q.mean(k in c); o = sigmoid(gate) softmax over the keys j <= p of the first init, the last local "
               "and the blocks of most weight between them, top in all",
    .cost = "each query reads at most top * block keys; scores cost 2 N (N / block) D flops a head",
    .options = options,
    .options_size = sizeof(struct blocktopk_gated),
    .params = params,
    .check = check,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .map = map,
};
