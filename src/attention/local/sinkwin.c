/* A sliding window with attention sinks: the first tokens stay visible for good.  One width for all heads, or one per
 * key-value head (arXiv 2309.17453; in blocks as in arXiv 2410.01485; per head as in arXiv 2406.14909). */
#include "attention/mechanism.h"

struct sinkwin {
    fv_list sink, window;
    int64_t block;
};

static const fv_option options[] = {
    FV_LIST(struct sinkwin, sink, "4", 0, INT32_MAX, "first tokens that stay visible; one, or one per key-value head"),
    FV_LIST(struct sinkwin, window, "1024", 1, INT32_MAX,
            "latest tokens, the query's own included; one, or one per key-value head"),
    FV_INT(struct sinkwin, block, 1, 1, INT32_MAX, "sink and window count blocks of this many tokens"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct sinkwin *o = values;

    if (o->sink.count == 1 || o->window.count == 1 || o->sink.count == o->window.count) return FV_OK;
    return fv_fail(FV_E_USAGE, "sinkwin: option 'sink' has %d items and 'window' has %d: expected one or as many",
                   o->sink.count, o->window.count);
}

static fv_status accept(fv_call *call)
{
    const struct sinkwin *o = call->options;
    int64_t count = fv_max(o->sink.count, o->window.count);

    if (count == 1 || count == call->key_heads) return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "sinkwin: options 'sink' and 'window': expected one item per key-value head (%lld), got %lld",
                   (long long)call->key_heads, (long long)count);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct sinkwin *o = call->options;
    int heads = (int)fv_max(o->sink.count, o->window.count);
    int64_t *sink, *window;

    (void)attend;
    plan_->window = (fv_window){.sink = o->sink.items[0] * o->block, .window = o->window.items[0], .block = o->block};
    if (heads == 1) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, sink, heads));
    FV_TRY(FV_SCRATCH(ctx, window, heads));
    for (int h = 0; h < heads; h++) {
        sink[h] = o->sink.items[h % o->sink.count] * o->block; /* a plan counts sinks in tokens */
        window[h] = o->window.items[h % o->window.count];
    }
    plan_->window.heads = heads;
    plan_->window.head_sink = sink;
    plan_->window.head_window = window;
    return FV_OK;
}

const fv_mechanism fv_mechanism_sinkwin = {
    .name = "sinkwin",
    .title = "Attention sinks and a sliding window",
    .paper = "arXiv 2309.17453, 2410.01485, 2406.14909",
    .sheet = 52,
    .family = FV_STATIC_SPARSE,
    .traits = FV_CAUSAL | FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "with block b: j is visible iff j <= p and (j div b < sink, or p div b - j div b < window)",
    .cost = "each query reads at most (sink + window) * block keys",
    .options = options,
    .options_size = sizeof(struct sinkwin),
    .check = check,
    .accept = accept,
    .plan = plan,
};
