/* SnapKV: at the end of a prompt, the rows its last `window` queries look at most, and the window itself. */
#include "cache/window_scores.h"

struct snapkv {
    int64_t budget, window, kernel;
    int pool, per;
};

static const fv_option options[] = {
    FV_INT(struct snapkv, budget, 1024, 2, INT32_MAX, "rows kept of a prompt, the window included"),
    FV_INT(struct snapkv, window, 32, 1, INT32_MAX, "last rows, always kept, whose queries score the others"),
    FV_INT(struct snapkv, kernel, 5, 1, 4095, "rows that a score is smoothed over; odd"),
    FV_ENUM(struct snapkv, pool, "avg", fv_smoothings, "how: their mean, or the largest"),
    FV_ENUM(struct snapkv, per, "kv", fv_window_lists, "one list for each key-value head, or for the layer"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct snapkv *o = values;

    return fv_window_check("snapkv", o->budget, o->window, o->kernel);
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct snapkv *o = layer->use->options;

    (void)ctx;
    return fv_window_note(layer->state, layer, call, o->window);
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    const struct snapkv *o = layer->use->options;
    const fv_window_vote vote = {
        .window = o->window, .kernel = o->kernel, .smoothing = (fv_smoothing)o->pool, .layer = o->per};
    fv_status status = fv_window_act(ctx, layer, layer->state, &vote, o->budget);

    (void)prompt;
    fv_window_drop(layer);
    return status;
}

const fv_policy fv_policy_snapkv = {
    .name = "snapkv",
    .title = "What the last queries look at (SnapKV)",
    .paper = "arXiv 2404.14469",
    .traits = FV_POLICY_SCORES | FV_POLICY_PER_HEAD | FV_POLICY_ONCE,
    .keeps = "the last `window` rows, and the budget - window that their queries look at most",
    .cost = "budget rows a layer and key-value head behind a prompt; H window T D once, as much as a chunk of `window` "
            "queries twice",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct snapkv),
    .layer_bytes = sizeof(fv_window_queries),
    .check = check,
    .after = after,
    .act = act,
    .drop = fv_window_drop,
    .state_bytes = fv_window_state_bytes,
};
