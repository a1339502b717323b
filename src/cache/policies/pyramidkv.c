/* PyramidKV: SnapKV with more rows in lower layers and fewer in upper ones. */
#include "cache/layer_budgets.h"
#include "cache/window_scores.h"

struct pyramidkv {
    int64_t budget, window, kernel, beta;
    int pool, per;
};

static const fv_option options[] = {
    FV_INT(struct pyramidkv, budget, 1024, 2, INT32_MAX, "rows kept of a prompt in the mean over layers"),
    FV_INT(struct pyramidkv, window, 32, 1, INT32_MAX, "last rows, always kept, whose queries score the others"),
    FV_INT(struct pyramidkv, kernel, 5, 1, 4095, "rows that a score is smoothed over; odd"),
    FV_ENUM(struct pyramidkv, pool, "avg", fv_smoothings, "how: their mean, or the largest"),
    FV_ENUM(struct pyramidkv, per, "kv", fv_window_lists, "one list for each key-value head, or for the layer"),
    FV_INT(struct pyramidkv, beta, 20, 1, INT32_MAX, "the last layer chooses (budget - window) / beta rows"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct pyramidkv *o = values;

    return fv_window_check("pyramidkv", o->budget, o->window, o->kernel);
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct pyramidkv *o = layer->use->options;

    (void)ctx;
    return fv_window_note(layer->state, layer, call, o->window);
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    const struct pyramidkv *o = layer->use->options;
    const fv_window_vote vote = {
        .window = o->window, .kernel = o->kernel, .smoothing = (fv_smoothing)o->pool, .layer = o->per};
    int64_t budget = fv_pyramid_budget(o->budget, o->window, o->beta, prompt, layer->place, layer->use->layers);
    fv_status status = FV_OK;

    if (prompt > o->budget) status = fv_window_act(ctx, layer, layer->state, &vote, budget);
    fv_window_drop(layer);
    return status;
}

const fv_policy fv_policy_pyramidkv = {
    .name = "pyramidkv",
    .title = "SnapKV, with fewer rows in upper layers (PyramidKV)",
    .paper = "arXiv 2406.02069",
    .traits = FV_POLICY_SCORES | FV_POLICY_PER_HEAD | FV_POLICY_ONCE,
    .keeps = "as snapkv, from 2m - m/beta chosen rows in the first layer down to m/beta in the last, m = budget - "
             "window",
    .cost = "budget rows a key-value head in the mean over layers; else as snapkv",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct pyramidkv),
    .layer_bytes = sizeof(fv_window_queries),
    .check = check,
    .after = after,
    .act = act,
    .drop = fv_window_drop,
    .state_bytes = fv_window_state_bytes,
};
