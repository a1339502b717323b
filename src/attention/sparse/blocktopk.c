/* Block top-k (Kinetics): each query reads the sinks, the newest keys, and the blocks between whose mean key its group
 * likes best.  arXiv 2506.05333; every row as a decoding step. */
#include "attention/sparse/core.h"

struct blocktopk {
    int64_t block, top, local, sink;
    int agg;
};

enum { AGG_MEAN, AGG_MAX };
static const char *const aggregates[] = {"mean", "max", NULL};

static const fv_option options[] = {
    FV_INT(struct blocktopk, block, 16, 1, INT32_MAX, "keys of a block"),
    FV_INT(struct blocktopk, top, 64, 1, INT32_MAX, "blocks that a query reads"),
    FV_INT(struct blocktopk, local, 64, 0, INT32_MAX, "newest keys, always read; up to block - 1 more are"),
    FV_INT(struct blocktopk, sink, 4, 0, INT32_MAX, "first keys, always read"),
    FV_ENUM(struct blocktopk, agg, "mean", aggregates, "of the scores of a group's heads"),
    FV_OPTIONS_END,
};

static int64_t blocks_of(const struct blocktopk *o, int64_t keys)
{
    return fv_max(keys - o->sink, 0) / o->block;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct blocktopk *o = call->options;

    return fv_kept_means(call, kind, o->sink, o->block, keys, width);
}

/* The largest score of a group's heads. */
static fv_status choose_by_largest(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const fv_chooser *c = user;
    fv_tensor most;

    FV_TRY(fv_pool_heads(ctx, FV_POOL_MAX, scores, c->choice->heads, &most));
    return fv_choose(ctx, c->call, c->choice, from, &most);
}

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    const struct blocktopk *o = call->options;
    int64_t blocks = blocks_of(o, call->keys - o->local);
    fv_tensor means, q;

    *choice = (fv_choice){
        .block = o->block, .init = o->sink > 0, .first = o->sink, .tail = o->local, .heads = call->key_heads};
    FV_TRY(fv_choice_new(ctx, call, fv_min(o->top, blocks), choice));
    if (blocks == 0) return FV_OK;
    FV_TRY(fv_keep_means(ctx, call, o->sink, o->block, blocks_of(o, call->keys), &means));
    means = fv_slice(&means, 2, 0, blocks);
    if (o->agg == AGG_MAX)
        return fv_score_blocks(ctx, call, &call->q, &means, o->sink, o->block, 1, choose_by_largest,
                               &(fv_chooser){call, choice});
    FV_TRY(fv_pool_heads(ctx, FV_POOL_MEAN, &call->q, call->key_heads, &q));
    return fv_choose_by_product(ctx, call, choice, &q, &means);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    return fv_choice_forward(ctx, call, choose);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    return fv_choice_map(ctx, call, choose, pairs);
}

const fv_mechanism fv_mechanism_blocktopk = {
    .name = "blocktopk",
    .title = "Block top-k (Kinetics)",
    .paper = "arXiv 2506.05333",
    .sheet = 68,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula =
        "n = p + 1 keys: the first sink, the top blocks by (mean q of the group).mean(k) of the "
        "floor((n - local - sink) / block) blocks behind them, and all keys behind those; softmax over their union",
    .cost = "each query reads at most sink + local + block (top + 1) - 1 keys; scores cost 2 N (N / block) D flops for "
            "each key-value head",
    .options = options,
    .options_size = sizeof(struct blocktopk),
    .kept = kept,
    .forward = forward,
    .counts = true,
    .map = map,
};
