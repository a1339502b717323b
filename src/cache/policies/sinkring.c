/* StreamingLLM: the first `sink` rows and the last `window` ones.  A row that leaves the window is dropped for good.
 *
 * rope=cache counts positions within the cache once it is full: sinks are read as if they stood right before the
 * window.  Keys stay as they were rotated; the query is rotated a second time for the sinks, and the two parts are
 * merged by their log-sum-exp. */
#include "cache/block_rule.h"

struct sinkring {
    int64_t sink, window, budget;
    int rope, prefill;
};

static const char *const ropes[] = {"true", "cache", NULL};
static const char *const prefills[] = {"window", "dense", NULL};
enum { ROPE_TRUE, ROPE_CACHE };
enum { PREFILL_WINDOW, PREFILL_DENSE };

static const fv_option options[] = {
    FV_INT(struct sinkring, sink, 4, 0, INT32_MAX, "first rows, always kept"),
    FV_INT(struct sinkring, window, 1020, 1, INT32_MAX, "last rows, the newest one included"),
    FV_INT(struct sinkring, budget, 0, 0, INT32_MAX, "rows in all: the window is budget - sink; 0: window says it"),
    FV_ENUM(struct sinkring, rope, "true", ropes, "distances as in the text, or as in the cache"),
    FV_ENUM(struct sinkring, prefill, "window", prefills, "what a prompt's tokens see: as decode does, or everything"),
    FV_OPTIONS_END,
};

static int64_t window_of(const struct sinkring *o)
{
    return o->budget > 0 ? o->budget - o->sink : o->window;
}
static fv_status check(const void *values)
{
    const struct sinkring *o = values;

    if (o->budget > 0 && o->budget <= o->sink)
        return fv_fail(FV_E_USAGE, "sinkring: expected a budget of more rows than the %lld sinks, got %lld",
                       (long long)o->sink, (long long)o->budget);
    if (o->rope == ROPE_CACHE && o->prefill == PREFILL_DENSE)
        return fv_fail(FV_E_USAGE,
                       "sinkring: rope=cache does not go with prefill=dense, whose tokens see true distances");
    return FV_OK;
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    const struct sinkring *o = layer->use->options;

    (void)ctx;
    (void)head;
    if (!call->prompt || o->prefill == PREFILL_WINDOW)
        plan->window = (fv_window){.sink = o->sink, .window = window_of(o)};
    return FV_OK;
}

/* Two parts: sinks, for queries that stand no further than the cache is long, and the window. */
static fv_status read(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args)
{
    const struct sinkring *o = layer->use->options;
    int64_t sinks = fv_rows_below(layer->rows, 0, o->sink), keys = args->k.dims[2], n = call->queries;
    int64_t last = o->sink + window_of(o) - 1;
    fv_attend_args part[2] = {*args, *args};
    fv_plan plans[2] = {*args->plan, *args->plan};
    fv_rope_args turn;
    fv_merge_args merge = {.parts = 2, .o = args->o, .lse = args->lse};
    int32_t *back;

    if (o->rope == ROPE_TRUE || sinks == 0 || call->offset + n - 1 <= last) return fv_attend(ctx, args);
    FV_TRY(FV_SCRATCH(ctx, back, n));
    for (int64_t i = 0; i < n; i++)
        back[i] = (int32_t)(fv_min(call->offset + i, last) - (call->offset + i));
    turn = *call->rope;
    turn.x = args->q;
    turn.position = back;
    turn.magnitude = 1;
    FV_TRY(fv_tensor_new(ctx, &turn.out, FV_F32, 4, args->q.dims));
    FV_TRY(fv_rope(ctx, &turn));
    part[0].q = turn.out;
    for (int p = 0; p < 2; p++) {
        int64_t first = p ? sinks : 0, count = p ? keys - sinks : sinks;
        part[p].k = fv_slice(&args->k, 2, first, count);
        part[p].v = fv_slice(&args->v, 2, first, count);
        plans[p].key_position = fv_rows_positions(layer->rows, 0) + first;
        part[p].plan = &plans[p];
        FV_TRY(fv_tensor_new(ctx, &part[p].o, FV_F32, 4, args->o.dims));
        FV_TRY(fv_tensor_new(ctx, &part[p].lse, FV_F32, 3, args->o.dims));
        FV_TRY(fv_attend(ctx, &part[p]));
        merge.o_part[p] = part[p].o;
        merge.lse_part[p] = part[p].lse;
    }
    return fv_merge(ctx, &merge);
}

static fv_status trim(fv_policy_layer *layer, int64_t last)
{
    const struct sinkring *o = layer->use->options;

    for (int64_t g = 0; g < layer->rows->options.heads; g++)
        FV_TRY(fv_rows_forget(layer->rows, g, o->sink, last - window_of(o) + 1));
    return FV_OK;
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct sinkring *o = layer->use->options;

    (void)ctx;
    if (call->prompt && o->prefill != PREFILL_WINDOW) return FV_OK;
    return trim(layer, call->offset + call->queries - 1);
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    (void)ctx;
    return trim(layer, prompt - 1);
}

static int64_t bound(const fv_policy_use *use, int64_t place)
{
    const struct sinkring *o = use->options;

    (void)place;
    return o->prefill == PREFILL_DENSE ? INT64_MAX : o->sink + window_of(o);
}

const fv_policy fv_policy_sinkring = {
    .name = "sinkring",
    .title = "Sinks and a window (StreamingLLM)",
    .paper = "arXiv 2309.17453",
    .traits = FV_POLICY_POSITION | FV_POLICY_BOUNDED | FV_POLICY_CHUNKS,
    .keeps = "j < sink or p - j < window",
    .cost = "sink + window rows a layer and key-value head, whatever the length; a step moves the sinks by one row",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct sinkring),
    .check = check,
    .plan = plan,
    .read = read,
    .after = after,
    .act = act,
    .bound = bound,
};
