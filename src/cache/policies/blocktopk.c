/* Block top-k (Kinetics): a step reads the sinks, the newest rows, and those blocks of the rows between whose mean key
 * the mean of the group's queries likes best.  Every row is kept. */
#include "cache/block_means.h"
#include "cache/selection.h"

struct blocktopk {
    int64_t block, top, sink, local, dense_layers;
};

static const fv_option options[] = {
    FV_INT(struct blocktopk, block, 16, 1, INT32_MAX, "rows of a block"),
    FV_INT(struct blocktopk, top, 64, 1, INT32_MAX, "blocks that a step reads"),
    FV_INT(struct blocktopk, sink, 4, 0, INT32_MAX, "first rows, always read"),
    FV_INT(struct blocktopk, local, 64, 0, INT32_MAX, "newest rows, always read; up to block - 1 more are"),
    FV_INT(struct blocktopk, dense_layers, 1, 0, INT32_MAX, "first layers that read everything"),
    FV_OPTIONS_END,
};

struct layer {
    fv_block_means means;
    fv_chosen chosen;
};

static bool is_dense(const fv_policy_layer *layer)
{
    const struct blocktopk *o = layer->use->options;

    return layer->place < o->dense_layers;
}

/* mean [Hkv,1,D] of the queries of each group. */
static fv_status mean_query(fv_ctx *ctx, const fv_policy_layer *layer, const fv_tensor *q, fv_tensor *mean)
{
    int64_t heads = layer->rows->options.heads, dim = q->dims[3], group = q->dims[1] / heads;

    FV_TRY(fv_tensor_new(ctx, mean, FV_F32, FV_DIMS(heads, 1, dim)));
    for (int64_t g = 0; g < heads; g++)
        for (int64_t d = 0; d < dim; d++) {
            double sum = 0;
            for (int64_t h = g * group; h < (g + 1) * group; h++)
                sum += (double)*(const float *)fv_at(q, 0, h, 0, d);
            ((float *)mean->data)[g * dim + d] = (float)(sum / (double)group);
        }
    return FV_OK;
}

/* Sinks, blocks, and what lies behind them, as blocks that lists are made of. */
static void set_edges(const struct blocktopk *o, int64_t rows, int64_t blocks, int64_t *edge)
{
    edge[0] = 0;
    for (int64_t b = 0; b <= blocks; b++)
        edge[1 + b] = o->sink + b * o->block;
    edge[2 + blocks] = rows;
}

static fv_status choose(fv_ctx *ctx, fv_policy_layer *layer, const fv_tensor *q, int64_t rows, int64_t blocks)
{
    const struct blocktopk *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t heads = layer->rows->options.heads;
    fv_tensor mean, scores, index;

    FV_TRY(mean_query(ctx, layer, q, &mean));
    FV_TRY(fv_block_means_scores(ctx, &own->means, &mean, blocks, &scores));
    scores = fv_reshaped(&scores, FV_DIMS(heads, blocks));
    FV_TRY(fv_best_blocks(ctx, &scores, o->top, &index));
    FV_TRY(fv_chosen_begin_blocks(&own->chosen, heads, blocks + 2, o->top + 2));
    set_edges(o, rows, blocks, own->chosen.edge);
    for (int64_t g = 0; g < heads; g++) {
        const int32_t *best = (const int32_t *)index.data + g * o->top;
        fv_chosen_next(&own->chosen);
        FV_TRY(fv_chosen_add_block(&own->chosen, 0));
        for (int64_t n = 0; n < o->top && best[n] >= 0; n++)
            FV_TRY(fv_chosen_add_block(&own->chosen, 1 + best[n]));
        FV_TRY(fv_chosen_add_block(&own->chosen, 1 + blocks));
    }
    return FV_OK;
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    const struct blocktopk *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t rows = fv_rows_count(layer->rows, 0);

    (void)head;
    fv_chosen_all(&own->chosen);
    if (is_dense(layer)) return FV_OK;
    FV_TRY(fv_block_means_take(ctx, &own->means, layer->rows, o->sink, o->block));
    if (call->prompt || rows <= o->sink + o->local + o->block * o->top) return FV_OK;
    FV_TRY(choose(ctx, layer, &call->q, rows, (rows - o->local - o->sink) / o->block));
    fv_chosen_plan(&own->chosen, rows, plan);
    return FV_OK;
}

static fv_status read(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args)
{
    const struct layer *own = layer->state;

    (void)call;
    return fv_chosen_read(ctx, &own->chosen, layer->rows, args, NULL);
}

static void drop(fv_policy_layer *layer)
{
    struct layer *own = layer->state;

    fv_block_means_free(&own->means);
    fv_chosen_free(&own->chosen);
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct layer *own = layer->state;

    return fv_block_means_bytes(&own->means) + fv_chosen_bytes(&own->chosen);
}

static const int32_t *selected(const fv_policy_layer *layer, int64_t head, int64_t *count)
{
    const struct layer *own = layer->state;

    return fv_chosen_list(&own->chosen, head, count);
}

const fv_policy fv_policy_blocktopk = {
    .name = "blocktopk",
    .title = "Block top-k (Kinetics)",
    .paper = "arXiv 2506.05333",
    .sheet = 68,
    .traits = FV_POLICY_SCORES | FV_POLICY_SELECTS,
    .keeps =
        "all rows; a step reads the sinks, the `top` blocks with the largest (mean query of the group) . (mean key), "
        "and the newest `local` to local + block - 1 rows",
    .cost = "a step reads sink + local + block (top + 1) - 1 rows of a key-value head at most, and a mean key for each "
            "block; 4 D bytes a block",
    .sweep = "top=BLOCKS",
    .options = options,
    .options_size = sizeof(struct blocktopk),
    .layer_bytes = sizeof(struct layer),
    .plan = plan,
    .read = read,
    .drop = drop,
    .state_bytes = state_bytes,
    .selected = selected,
};
