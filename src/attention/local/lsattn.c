/* Long-short attention: most heads read a short window, the last few everything.  arXiv 2505.15548. */
#include "attention/mechanism.h"

struct lsattn {
    bool causal;
    int64_t window, global;
};

static const fv_option options[] = {
    FV_BOOL(struct lsattn, causal, 1, "nothing behind the query"),
    FV_INT(struct lsattn, window, 100, 1, INT32_MAX,
           "latest tokens of a local head, the query's own included; with causal=0 half of them lie behind it"),
    FV_INT(struct lsattn, global, 1, 0, INT32_MAX, "last query heads, which read everything"),
    FV_OPTIONS_END,
};

static fv_status accept(fv_call *call)
{
    const struct lsattn *o = call->options;

    if (call->causal && !o->causal)
        return fv_fail(FV_E_USAGE, "lsattn: option 'causal': expected 1 of a causal call, got 0");
    call->causal = o->causal;
    if (o->global <= call->query_heads) return FV_OK;
    return fv_fail(FV_E_SHAPE, "lsattn: option 'global': expected at most the query heads, %lld, got %lld",
                   (long long)call->query_heads, (long long)o->global);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct lsattn *o = call->options;
    int64_t H = call->query_heads, near = o->causal ? o->window : (o->window - 1) / 2 + 1, *sink, *window;

    (void)attend;
    plan_->window.window = near;
    FV_TRY(FV_SCRATCH(ctx, sink, H));
    FV_TRY(FV_SCRATCH(ctx, window, H));
    for (int64_t h = 0; h < H; h++) {
        sink[h] = 0;
        window[h] = h < H - o->global ? near : call->keys + call->queries;
    }
    plan_->window.heads = (int)H;
    plan_->window.head_sink = sink;
    plan_->window.head_window = window;
    return FV_OK;
}

const fv_mechanism fv_mechanism_lsattn = {
    .name = "lsattn",
    .title = "Long-short attention",
    .paper = "arXiv 2505.15548",
    .sheet = 149,
    .family = FV_STATIC_SPARSE,
    .traits = FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "head h < H - global sees j <= p iff p - j < window (causal=0: iff |p - j| <= (window - 1) div 2), the "
               "others every j <= p",
    .cost = "(global N / 2 + (H - global) window) / H keys a query",
    .options = options,
    .options_size = sizeof(struct lsattn),
    .accept = accept,
    .plan = plan,
};
