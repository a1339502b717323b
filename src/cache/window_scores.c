/* The cost is that of a chunk of `window` queries, twice: once for the log-sum-exp, once for the sums of columns. */
#include "cache/window_scores.h"

#include <math.h>

const char *const fv_smoothings[] = {"avg", "max", NULL}, *const fv_window_lists[] = {"kv", "layer", NULL};

/* ---- the last queries of a prompt -------------------------------------------------------------------------------- */

static int64_t group_of(const fv_policy_layer *layer)
{
    return layer->use->model->query_heads / layer->use->model->key_heads;
}

fv_status fv_window_note(fv_window_queries *window, const fv_policy_layer *layer, const fv_policy_call *call,
                         int64_t count)
{
    const fv_cache_model *m = layer->use->model;
    int64_t width = m->query_heads * m->key_dim, from, floats = 0;

    if (!call->prompt) return FV_OK;
    if (!window->q) {
        window->room = fv_min(count, m->context);
        if (!fv_mul_i64(window->room, width, &floats))
            return fv_fail(FV_E_MEMORY, "a window of %lld queries is more than memory can hold", (long long)count);
        FV_TRY(FV_ALLOC(window->q, floats));
    }
    if (call->offset != window->next) window->count = 0;
    from = fv_max(call->queries - window->room, 0);
    for (int64_t i = from; i < call->queries; i++)
        for (int64_t h = 0; h < m->query_heads; h++)
            memcpy(window->q + (call->offset + i) % window->room * width + h * m->key_dim, fv_at(&call->q, 0, h, i, 0),
                   (size_t)m->key_dim * sizeof(float));
    window->next = call->offset + call->queries;
    window->count = fv_min(window->count + call->queries, window->room);
    window->scale = call->logits.scale;
    window->softcap = call->logits.softcap;
    return FV_OK;
}

void fv_window_drop(fv_policy_layer *layer)
{
    fv_window_queries *window = layer->state;

    fv_free(window->q);
    *window = (fv_window_queries){0};
}

size_t fv_window_state_bytes(const fv_policy_layer *layer)
{
    const fv_cache_model *m = layer->use->model;
    const fv_window_queries *window = layer->state;

    return (size_t)(window->room * m->query_heads * m->key_dim) * sizeof(float);
}

/* The last `count` queries of the asked heads, in the order of their positions: [1, heads, count, D]. */
static fv_status gather_queries(fv_ctx *ctx, const fv_policy_layer *layer, const fv_window_queries *window,
                                const int32_t *voter, int64_t first, int64_t heads, int64_t count, fv_tensor *q)
{
    const fv_cache_model *m = layer->use->model;
    int64_t D = m->key_dim;

    FV_TRY(fv_tensor_new(ctx, q, FV_F32, FV_DIMS(1, heads, count, D)));
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < count; i++) {
            int64_t at = (window->next - count + i) % window->room;
            int64_t row = at * m->query_heads + (voter ? voter[h] : first + h);
            memcpy(fv_at(q, 0, h, i, 0), window->q + row * D, (size_t)D * sizeof(float));
        }
    return FV_OK;
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

void fv_smooth(fv_smoothing how, int64_t kernel, const float *x, int64_t count, float *out)
{
    for (int64_t j = 0; j < count; j++) {
        int64_t from = fv_max(j - kernel / 2, 0), to = fv_min(j + kernel / 2 + 1, count);
        double sum = 0;
        float most = x[j];
        for (int64_t i = from; i < to; i++) {
            sum += (double)x[i];
            if (x[i] > most) most = x[i];
        }
        out[j] = how == FV_SMOOTH_MAX ? most : (float)(sum / (double)kernel);
    }
}

/* sums [1, heads, rows]: of the window's weights. */
static fv_status sum_columns(fv_ctx *ctx, const fv_window_queries *window, const fv_tensor *q, const fv_tensor *k,
                             const fv_tensor *v, const fv_plan *plan, const int32_t *key_head, fv_tensor *sums)
{
    const fv_logits logits = {.scale = window->scale, .softcap = window->softcap};
    int64_t heads = q->dims[1], queries = q->dims[2];
    fv_attend_args attend = {.q = *q, .k = *k, .v = *v, .plan = plan, .logits = logits, .key_head = key_head};
    fv_stats_args stats = {.q = *q, .k = *k, .plan = plan, .logits = logits, .key_head = key_head};

    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, FV_DIMS(1, heads, queries, v->dims[3])));
    FV_TRY(fv_tensor_new(ctx, &attend.lse, FV_F32, FV_DIMS(1, heads, queries)));
    FV_TRY(fv_tensor_new(ctx, sums, FV_F32, FV_DIMS(1, heads, k->dims[2])));
    FV_TRY(fv_attend(ctx, &attend));
    stats.lse = attend.lse;
    stats.column_sum = *sums;
    return fv_attend_stats(ctx, &stats);
}

fv_status fv_window_scores(fv_ctx *ctx, const fv_policy_layer *layer, const fv_window_queries *window,
                           const fv_window_vote *vote, int64_t key_head, int64_t key_heads, int64_t columns,
                           float **rows)
{
    int64_t group = group_of(layer), heads = vote->voter ? vote->voters : key_heads * group;
    int64_t queries = fv_min(window->count, vote->window);
    fv_plan plan = {.causal = true, .offset = window->next - queries};
    fv_precision before = ctx->precision;
    int32_t *owner = NULL;
    fv_tensor q, k, v, sums;
    fv_status status;

    FV_TRY(FV_SCRATCH(ctx, *rows, heads * columns));
    FV_TRY(gather_queries(ctx, layer, window, vote->voter, key_head * group, heads, queries, &q));
    if (vote->voter) FV_TRY(FV_SCRATCH(ctx, owner, heads));
    for (int64_t h = 0; h < heads && owner; h++)
        owner[h] = (int32_t)(vote->voter[h] / group);
    fv_rows_view(layer->rows, key_head, key_heads, &k, &v);
    if (!fv_rows_complete(layer->rows, key_head)) plan.key_position = fv_rows_positions(layer->rows, key_head);
    ctx->precision = FV_PRECISION_F32; /* a decision is made once: no bf16 products in it */
    status = sum_columns(ctx, window, &q, &k, &v, &plan, owner, &sums);
    ctx->precision = before;
    FV_TRY(status);
    for (int64_t h = 0; h < heads; h++)
        fv_smooth(vote->smoothing, vote->kernel, fv_at(&sums, 0, h, 0, 0), columns, *rows + h * columns);
    return FV_OK;
}

void fv_window_mean(const float *rows, int64_t count, int64_t columns, float *mean)
{
    for (int64_t j = 0; j < columns; j++) {
        double sum = 0;
        for (int64_t r = 0; r < count; r++)
            sum += (double)rows[r * columns + j];
        mean[j] = (float)(sum / (double)count);
    }
}

/* ---- what is kept ------------------------------------------------------------------------------------------------ */

fv_status fv_window_top(fv_ctx *ctx, const float *scores, int64_t columns, int64_t count, int32_t *place)
{
    fv_select_args args = {0};
    float *known;

    if (count <= 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, known, columns));
    for (int64_t j = 0; j < columns; j++)
        known[j] = isfinite(scores[j]) ? scores[j] : 0; /* weights of a broken model */
    FV_TRY(fv_tensor_wrap(&args.scores, known, FV_F32, FV_DIMS(1, columns)));
    FV_TRY(fv_tensor_wrap(&args.index, place, FV_I32, FV_DIMS(1, count)));
    return fv_select(ctx, &args);
}

/* The best rows by their mean score and the last ones, for key-value heads that keep the same. */
static fv_status keep_best(fv_ctx *ctx, fv_rows *rows, int64_t key_head, int64_t key_heads, const float *votes,
                           int64_t voters, const fv_window_vote *vote, int64_t budget)
{
    int64_t columns = fv_rows_count(rows, key_head) - vote->window, chosen = budget - vote->window;
    int32_t *keep;
    float *mean;

    FV_TRY(FV_SCRATCH(ctx, keep, budget));
    FV_TRY(FV_SCRATCH(ctx, mean, columns));
    fv_window_mean(votes, voters, columns, mean);
    FV_TRY(fv_window_top(ctx, mean, columns, chosen, keep));
    for (int64_t i = 0; i < vote->window; i++)
        keep[chosen + i] = (int32_t)(columns + i);
    for (int64_t g = key_head; g < key_head + key_heads; g++)
        FV_TRY(fv_rows_keep(rows, g, keep, budget));
    return FV_OK;
}

fv_status fv_window_each(fv_ctx *ctx, fv_policy_layer *layer, fv_window_act_fn *act, const void *user)
{
    int64_t heads = layer->rows->options.heads, together = fv_rows_alike(layer->rows) ? heads : 1;
    fv_status status = FV_OK;

    for (int64_t g = 0; g < heads && status == FV_OK; g += together) {
        fv_mark mark = fv_scratch_mark(ctx);
        status = act(ctx, layer, g, together, user);
        fv_scratch_release(ctx, mark);
    }
    return status;
}

struct choice {
    const fv_window_queries *window;
    const fv_window_vote *vote;
    int64_t budget;
};

static fv_status choose(fv_ctx *ctx, fv_policy_layer *layer, int64_t key_head, int64_t key_heads, const void *user)
{
    const struct choice *c = user;
    int64_t columns = fv_rows_count(layer->rows, key_head) - c->vote->window, group = group_of(layer);
    float *rows;

    if (columns + c->vote->window <= c->budget) return FV_OK;
    FV_TRY(fv_window_scores(ctx, layer, c->window, c->vote, key_head, key_heads, columns, &rows));
    if (c->vote->layer)
        return keep_best(ctx, layer->rows, key_head, key_heads, rows,
                         c->vote->voter ? c->vote->voters : key_heads * group, c->vote, c->budget);
    for (int64_t g = 0; g < key_heads; g++)
        FV_TRY(keep_best(ctx, layer->rows, key_head + g, 1, rows + g * group * columns, group, c->vote, c->budget));
    return FV_OK;
}

fv_status fv_window_act(fv_ctx *ctx, fv_policy_layer *layer, const fv_window_queries *window,
                        const fv_window_vote *vote, int64_t budget)
{
    return fv_window_each(ctx, layer, choose, &(struct choice){window, vote, budget});
}

fv_status fv_window_check(const char *policy, int64_t budget, int64_t window, int64_t kernel)
{
    if (kernel % 2 == 0)
        return fv_fail(FV_E_USAGE, "%s: option 'kernel': expected an odd number, got %lld", policy, (long long)kernel);
    if (window >= budget)
        return fv_fail(FV_E_USAGE, "%s: expected a budget of more rows than the window of %lld, got %lld", policy,
                       (long long)window, (long long)budget);
    return FV_OK;
}
