/* LongGen: some layers keep everything, the others a fixed sparse part, the same while a prompt is read and after.
 * Layers are counted among those the policy acts on. */
#include "cache/block_rule.h"

struct layer_plan {
    int64_t n_full, budget, block;
    int full, pattern;
};

static const char *const placements[] = {"middle", "top", "bottom", "interleaved", NULL};
static const char *const patterns[] = {"sink", "stride", NULL};
enum { MIDDLE, TOP, BOTTOM, INTERLEAVED };
enum { SINK, STRIDE };

static const fv_option options[] = {
    FV_INT(struct layer_plan, n_full, -1, -1, INT32_MAX, "layers that keep everything; -1: (3 L + 4) div 8 of L"),
    FV_ENUM(struct layer_plan, full, "middle", placements,
            "where they are: in the middle, the last ones, the first ones, or spread evenly"),
    FV_ENUM(struct layer_plan, pattern, "sink", patterns,
            "what the others keep: the first block and a window, or a window and one in so many blocks per head"),
    FV_INT(struct layer_plan, budget, 2048, 1, INT32_MAX, "rows they keep, in whole blocks"),
    FV_INT(struct layer_plan, block, 64, 1, INT32_MAX, "tokens that are kept and dropped together"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct layer_plan *o = values;

    if (o->budget / 2 >= o->block) return FV_OK;
    return fv_fail(FV_E_USAGE, "layer_plan: option 'budget': expected two blocks of %lld or more, got %lld",
                   (long long)o->block, (long long)o->budget);
}

static int64_t full_layers(const fv_policy_use *use)
{
    const struct layer_plan *o = use->options;

    return o->n_full < 0 ? (3 * use->layers + 4) / 8 : o->n_full;
}

/* Interleaved: the layers are cut into n equal parts, and the middle one of each is full. */
static bool is_full(const fv_policy_use *use, int64_t place)
{
    const struct layer_plan *o = use->options;
    int64_t L = use->layers, n = full_layers(use), from = o->full == TOP ? L - n : o->full == BOTTOM ? 0 : (L - n) / 2;

    if (o->full != INTERLEAVED) return place >= from && place < from + n;
    for (int64_t m = 0; m < n; m++)
        if ((2 * m + 1) * L / (2 * n) == place) return true;
    return false;
}

/* Half of the budget is the window; the other half a share of all the blocks that the context can have. */
static fv_shards shards_of(const fv_policy_use *use)
{
    const struct layer_plan *o = use->options;
    int64_t half = o->budget / (2 * o->block);

    return (fv_shards){.block = o->block,
                       .local = half,
                       .stride = fv_max(fv_ceil_div(fv_ceil_div(use->model->context, o->block), half), 1)};
}

static fv_block_rule rule_of(const fv_policy_use *use, int64_t head)
{
    fv_shards shards = shards_of(use);

    return fv_shards_rule(&shards, use->model, head);
}

static int64_t window_of(const struct layer_plan *o)
{
    return o->budget / o->block - 1;
}

/* use->plan: for each place whether it is full. */
static fv_status open(fv_policy_use *use)
{
    const struct layer_plan *o = use->options;
    fv_shards shards = shards_of(use);
    bool *full;

    if (full_layers(use) > use->layers)
        return fv_fail(FV_E_USAGE, "layer_plan: option 'n_full': expected at most the %lld layers it acts on, got %lld",
                       (long long)use->layers, (long long)o->n_full);
    FV_TRY(FV_ALLOC(full, use->layers));
    use->plan = full;
    for (int64_t place = 0; place < use->layers; place++)
        full[place] = is_full(use, place);
    if (o->pattern == STRIDE && full_layers(use) < use->layers)
        fv_shards_warn(&shards, use->model, "layer_plan", use->model->key_heads, &use->warning);
    return FV_OK;
}

static void close(fv_policy_use *use)
{
    fv_free(use->plan);
}

static bool full_at(const fv_policy_layer *layer)
{
    const bool *full = layer->use->plan;

    return full[layer->place];
}

static bool alike(const fv_policy_layer *layer)
{
    const struct layer_plan *o = layer->use->options;

    return o->pattern == SINK || full_at(layer);
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    const struct layer_plan *o = layer->use->options;

    if (full_at(layer)) return FV_OK;
    if (o->pattern == STRIDE) {
        fv_block_rule rule = rule_of(layer->use, fv_max(head, 0));
        return fv_block_rule_plan(ctx, &rule, layer->rows, fv_max(head, 0), call, plan);
    }
    plan->window = (fv_window){.sink = o->block, .window = window_of(o), .block = o->block};
    return FV_OK;
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct layer_plan *o = layer->use->options;
    int64_t last = (call->offset + call->queries - 1) / o->block;

    (void)ctx;
    for (int64_t g = 0; g < layer->rows->options.heads && !full_at(layer); g++) {
        fv_block_rule rule = rule_of(layer->use, g);
        if (o->pattern == STRIDE)
            FV_TRY(fv_block_rule_trim(&rule, layer->rows, g, call));
        else
            FV_TRY(fv_rows_forget(layer->rows, g, o->block, (last - window_of(o) + 1) * o->block));
    }
    return FV_OK;
}

static int64_t bound(const fv_policy_use *use, int64_t place)
{
    const struct layer_plan *o = use->options;
    const bool *full = use->plan;
    fv_block_rule rule = rule_of(use, 0);

    if (full[place]) return INT64_MAX;
    return o->pattern == STRIDE ? fv_block_rule_bound(&rule, use->model->context) : o->budget / o->block * o->block;
}

const fv_policy fv_policy_layer_plan = {
    .name = "layer_plan",
    .title = "Full layers among sparse ones (LongGen)",
    .paper = "arXiv 2410.01485",
    .sheet = 52,
    .traits = FV_POLICY_POSITION | FV_POLICY_PER_HEAD | FV_POLICY_BOUNDED | FV_POLICY_CHUNKS,
    .keeps = "n_full of L layers all rows; the others, with P = p div block and J = j div block, sink: J < 1 or P - J "
             "< budget div block - 1; stride: as shard, with local = budget div (2 block) and stride = the blocks of "
             "the context / local",
    .cost = "budget rows a key-value head in L - n_full layers, everything in the others",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct layer_plan),
    .check = check,
    .open = open,
    .close = close,
    .alike = alike,
    .plan = plan,
    .after = after,
    .bound = bound,
};
