/* Heavy hitters (H2O): of each key-value head the newest rows, and those of the older ones that have drawn most
 * attention so far.
 *
 * A row's score is the sum, over all queries so far and the query heads of its group, of their weight on it: column
 * sums of a prompt's chunks, and a step's weights over the rows held.  A row that is dropped takes its score along. */
#include "cache/selection.h"

struct h2o {
    int64_t budget, recent;
};

static const fv_option options[] = {
    FV_INT(struct h2o, budget, 1024, 1, INT32_MAX, "rows of a key-value head, the newest ones included"),
    FV_INT(struct h2o, recent, -1, -1, INT32_MAX, "newest rows, always kept; -1: half the budget"),
    FV_OPTIONS_END,
};

struct layer {
    fv_row_sums *score; /* [key-value heads], a sum for each row held, in their order */
};

static int64_t recent_of(const struct h2o *o)
{
    return o->recent < 0 ? o->budget / 2 : o->recent;
}

static fv_status check(const void *values)
{
    const struct h2o *o = values;

    if (o->recent < o->budget) return FV_OK;
    return fv_fail(FV_E_USAGE, "h2o: option 'recent': expected fewer rows than the budget of %lld, got %lld",
                   (long long)o->budget, (long long)o->recent);
}

/* Scores of the rows that have come since. */
static fv_status grow(fv_policy_layer *layer)
{
    struct layer *own = layer->state;
    int64_t heads = layer->rows->options.heads;

    if (!own->score) FV_TRY(FV_ZALLOC(own->score, heads));
    for (int64_t g = 0; g < heads; g++)
        FV_TRY(fv_row_sums_grow(&own->score[g], fv_rows_count(layer->rows, g)));
    return FV_OK;
}

/* Adds column sums [heads of the group, rows] to the scores of head g. */
static fv_status add(fv_ctx *ctx, fv_policy_layer *layer, int64_t g, const fv_tensor *sums)
{
    struct layer *own = layer->state;
    int64_t rows = fv_rows_count(layer->rows, g);
    float *sum;

    FV_TRY(FV_SCRATCH(ctx, sum, rows));
    fv_sum_heads(sums->data, sums->dims[1], rows, rows, sum);
    fv_row_sums_add(&own->score[g], 0, sum, rows);
    return FV_OK;
}

/* What the call's queries give the rows of `heads` heads from g on, which are alike. */
static fv_status score(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t g, int64_t heads)
{
    int64_t group = call->q.dims[1] / layer->rows->options.heads;
    fv_tensor sums;

    FV_TRY(fv_call_weights(ctx, layer->rows, call, g, heads, &sums));
    for (int64_t n = 0; n < heads; n++) {
        fv_tensor own = fv_slice(&sums, 1, n * group, group);
        FV_TRY(add(ctx, layer, g + n, &own));
    }
    return FV_OK;
}

struct scoring {
    fv_policy_layer *layer;
    const fv_policy_call *call;
};

static fv_status score_head(fv_ctx *ctx, void *user, int64_t g)
{
    const struct scoring *s = user;

    return score(ctx, s->layer, s->call, g, 1);
}

/* The older row of the lowest score; of equals the last. */
static int64_t lowest(const fv_row_sums *score, int64_t older)
{
    int64_t least = 0;

    for (int64_t j = 1; j < older; j++)
        if (score->sum[j] <= score->sum[least]) least = j;
    return least;
}

static fv_status erase(fv_policy_layer *layer, int64_t g, int64_t row)
{
    struct layer *own = layer->state;
    fv_row_sums *score = &own->score[g];

    FV_TRY(fv_rows_erase(layer->rows, g, row, 1));
    memmove(score->sum + row, score->sum + row + 1, (size_t)(score->count - row - 1) * sizeof *score->sum);
    score->count--;
    return FV_OK;
}

/* Keeps the newest rows and the best of the `older` ones. */
static fv_status keep(fv_ctx *ctx, fv_policy_layer *layer, int64_t g, int64_t older, int64_t recent)
{
    const struct h2o *o = layer->use->options;
    struct layer *own = layer->state;
    fv_row_sums *score = &own->score[g];
    int64_t best = o->budget - recent;
    fv_tensor scores, index, count;
    int32_t *place;

    FV_TRY(FV_SCRATCH(ctx, place, o->budget));
    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(1, older)));
    FV_TRY(fv_tensor_wrap(&index, place, FV_I32, FV_DIMS(1, best)));
    FV_TRY(fv_tensor_new(ctx, &count, FV_I32, FV_DIMS(1)));
    for (int64_t j = 0; j < older; j++)
        ((float *)scores.data)[j] = fv_row_sum(score, j);
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = scores, .index = index, .count = count}));
    for (int64_t n = 0; n < recent; n++)
        place[best + n] = (int32_t)(older + n);
    FV_TRY(fv_rows_keep(layer->rows, g, place, o->budget));
    for (int64_t n = 0; n < o->budget; n++)
        score->sum[n] = score->sum[place[n]];
    score->count = o->budget;
    return FV_OK;
}

/* Down to the budget: one row after each step, many after a prompt. */
static fv_status evict(fv_ctx *ctx, fv_policy_layer *layer)
{
    const struct h2o *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t recent = recent_of(o);

    for (int64_t g = 0; g < layer->rows->options.heads; g++) {
        int64_t rows = fv_rows_count(layer->rows, g);
        if (rows == o->budget + 1)
            FV_TRY(erase(layer, g, lowest(&own->score[g], rows - recent)));
        else if (rows > o->budget)
            FV_TRY(keep(ctx, layer, g, rows - recent, recent));
    }
    return FV_OK;
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    struct scoring scoring = {layer, call};
    int64_t heads = layer->rows->options.heads;

    FV_TRY(grow(layer));
    if (fv_rows_alike(layer->rows))
        FV_TRY(score(ctx, layer, call, 0, heads));
    else if (call->queries == 1 && fv_ctx_threads(ctx) > 1)
        FV_TRY(fv_run_apart(ctx, heads, score_head, &scoring));
    else
        for (int64_t g = 0; g < heads; g++)
            FV_TRY(score(ctx, layer, call, g, 1));
    return call->prompt ? FV_OK : evict(ctx, layer);
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    (void)prompt;
    return evict(ctx, layer);
}

static void drop(fv_policy_layer *layer)
{
    struct layer *own = layer->state;

    for (int64_t g = 0; own->score && g < layer->rows->options.heads; g++)
        fv_row_sums_free(&own->score[g]);
    fv_free(own->score);
    own->score = NULL;
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct layer *own = layer->state;
    size_t bytes = 0;

    for (int64_t g = 0; own->score && g < layer->rows->options.heads; g++)
        bytes += sizeof *own->score + (size_t)own->score[g].room * sizeof *own->score[g].sum;
    return bytes;
}

const fv_policy fv_policy_h2o = {
    .name = "h2o",
    .title = "Heavy hitters and recent rows (H2O)",
    .paper = "arXiv 2306.14048",
    .traits = FV_POLICY_SCORES | FV_POLICY_PER_HEAD | FV_POLICY_ONCE | FV_POLICY_LSE,
    .keeps = "the newest `recent` rows, and of the older ones those with the largest sum of weights over all queries",
    .cost = "budget rows a layer and key-value head, after each step; 8 bytes a row; a prompt's weights are formed "
            "twice, a step reads the keys twice",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct h2o),
    .layer_bytes = sizeof(struct layer),
    .check = check,
    .after = after,
    .act = act,
    .drop = drop,
    .state_bytes = state_bytes,
};
