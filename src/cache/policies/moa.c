/* Mixture of attention spans: a plan file gives each head a span that grows with the request, alpha + beta N, in which
 * it keeps the first rows and the last ones.  Prompts are read in blocks of 64, steps by tokens. */
#include "cache/block_rule.h"
#include "cache/plan_file.h"

struct moa {
    char plan[FV_TEXT_MAX];
    int64_t sink, max_new;
};

enum { BLOCK = 64, LEAST = 128 };

static const fv_option options[] = {
    FV_WORDS(struct moa, plan, NULL, "JSON file: {\"alphas\":[[..]],\"betas\":[[..]]}, a row for every layer"),
    FV_INT(struct moa, sink, 64, 0, INT32_MAX, "first rows, part of every span"),
    FV_INT(struct moa, max_new, 1024, 0, INT32_MAX, "tokens to be written, for which spans make room"),
    FV_OPTIONS_END,
};

/* ---- the plan file ----------------------------------------------------------------------------------------------- */

/* [layers of the model, query heads]; where the file counts key-value heads, each stands for its whole group. */
struct spans {
    double *alpha, *beta;
};

/* Row l of an array as a number for each query head; *columns: how many the file has. */
static fv_status read_row(const char *path, const char *key, const json_t *array, const fv_cache_model *model,
                          int64_t l, double limit, double *out, int64_t *columns)
{
    int64_t heads = model->query_heads;
    const json_t *row;
    char where[64];

    FV_TRY(fv_plan_file_row(path, key, array, l, 1, INT32_MAX, &row));
    *columns = (int64_t)json_array_size(row);
    if (*columns != heads && *columns != model->key_heads)
        return fv_fail(FV_E_FORMAT,
                       "%s: %s[%lld]: expected an item for each of %lld key-value or %lld query heads, "
                       "got %lld",
                       path, key, (long long)l, (long long)model->key_heads, (long long)heads, (long long)*columns);
    snprintf(where, sizeof where, "%s[%lld]", key, (long long)l);
    for (int64_t h = 0; h < heads; h++)
        FV_TRY(fv_plan_file_number(path, where, row, h * *columns / heads, -limit, limit, &out[h]));
    return FV_OK;
}

static fv_status read_plan(const char *path, const json_t *root, const fv_cache_model *model, struct spans *spans)
{
    const json_t *alphas, *betas;
    int64_t of_alpha, of_beta;

    FV_TRY(fv_plan_file_array(path, root, "alphas", model->layers, &alphas));
    FV_TRY(fv_plan_file_array(path, root, "betas", model->layers, &betas));
    for (int64_t l = 0; l < model->layers; l++) {
        int64_t at = l * model->query_heads;
        FV_TRY(read_row(path, "alphas", alphas, model, l, 1e9, spans->alpha + at, &of_alpha));
        FV_TRY(read_row(path, "betas", betas, model, l, 1e3, spans->beta + at, &of_beta));
        if (of_alpha != of_beta)
            return fv_fail(FV_E_FORMAT, "%s: betas[%lld]: expected as many items as alphas[%lld] has, %lld, got %lld",
                           path, (long long)l, (long long)l, (long long)of_alpha, (long long)of_beta);
    }
    return FV_OK;
}

static fv_status open(fv_policy_use *use)
{
    const struct moa *o = use->options;
    int64_t count = use->model->layers * use->model->query_heads;
    struct spans *spans;
    json_t *root;
    fv_status status;

    FV_TRY(FV_ZALLOC(spans, 1));
    use->plan = spans;
    FV_TRY(FV_ALLOC(spans->alpha, count));
    FV_TRY(FV_ALLOC(spans->beta, count));
    FV_TRY(fv_plan_file_open(o->plan, &root));
    status = read_plan(o->plan, root, use->model, spans);
    json_decref(root);
    return status;
}

static void close(fv_policy_use *use)
{
    struct spans *spans = use->plan;

    if (!spans) return;
    fv_free(spans->alpha);
    fv_free(spans->beta);
    fv_free(spans);
}

/* ---- spans ------------------------------------------------------------------------------------------------------- */

/* min(trunc(alpha + beta N), N), at least 128, in whole blocks. */
static int64_t rounded(double span, int64_t total)
{
    int64_t tokens = fv_min((int64_t)span, total);

    return fv_ceil_div(fv_max(tokens, LEAST), BLOCK) * BLOCK;
}

/* Of a request of `total` tokens; a key-value head has the largest of its group. */
static int64_t span_of(const fv_policy_use *use, int64_t l, int64_t head, int64_t total)
{
    const struct spans *spans = use->plan;
    int64_t group = use->model->query_heads / use->model->key_heads, most = 0;

    for (int64_t h = head * group; h < (head + 1) * group; h++) {
        int64_t at = l * use->model->query_heads + h;
        most = fv_max(most, rounded(spans->alpha[at] + spans->beta[at] * (double)total, total));
    }
    return most;
}

static int64_t total_of(const fv_policy_use *use, const fv_policy_call *call)
{
    const struct moa *o = use->options;

    return call->prompt_tokens + o->max_new;
}

static bool alike(const fv_policy_layer *layer)
{
    const struct spans *spans = layer->use->plan;
    int64_t heads = layer->use->model->query_heads, at = layer->layer * heads;

    for (int64_t h = 1; h < heads; h++)
        if (spans->alpha[at + h] != spans->alpha[at] || spans->beta[at + h] != spans->beta[at]) return false;
    return true;
}

/* ---- what is seen, what stays ------------------------------------------------------------------------------------ */

/* Spans that are all sinks have no window, which a plan's window cannot say. */
static fv_status show_sinks(fv_ctx *ctx, const fv_rows *rows, int64_t head, int64_t sink, int64_t queries,
                            fv_plan *plan)
{
    int32_t *from, *to;

    FV_TRY(FV_SCRATCH(ctx, from, queries));
    FV_TRY(FV_SCRATCH(ctx, to, queries));
    for (int64_t i = 0; i < queries; i++) {
        from[i] = 0;
        to[i] = (int32_t)fv_rows_below(rows, head, sink);
    }
    plan->key_from = from;
    plan->key_to = to;
    return FV_OK;
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    const struct moa *o = layer->use->options;
    int64_t total = total_of(layer->use, call), span = span_of(layer->use, layer->layer, fv_max(head, 0), total);
    int64_t sink = fv_min(span, o->sink), block = call->prompt ? BLOCK : 1;
    int64_t sinks = sink / block * block, window = (span - sink) / block;

    if (call->prompt && span >= total) return FV_OK; /* a head that sees everything */
    if (window == 0) return show_sinks(ctx, layer->rows, fv_max(head, 0), sinks, call->queries, plan);
    plan->window = (fv_window){.sink = sinks, .window = window, .block = block};
    return FV_OK;
}

/* What the steps that follow may see. */
static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct moa *o = layer->use->options;
    int64_t last = call->offset + call->queries - 1;

    (void)ctx;
    for (int64_t g = 0; g < layer->rows->options.heads; g++) {
        int64_t span = span_of(layer->use, layer->layer, g, total_of(layer->use, call)), sink = fv_min(span, o->sink);
        FV_TRY(fv_rows_forget(layer->rows, g, sink, last - (span - sink) + 1));
    }
    return FV_OK;
}

/* Spans are monotonic in the request's length, so one of the ends is the widest. */
static int64_t bound(const fv_policy_use *use, int64_t place)
{
    const struct moa *o = use->options;
    const struct spans *spans = use->plan;
    int64_t most = 0, longest = use->model->context + o->max_new;

    for (int64_t h = 0; h < use->model->query_heads; h++) {
        int64_t at = use->layer[place] * use->model->query_heads + h;
        most = fv_max(most, rounded(spans->alpha[at] + spans->beta[at] * (double)longest, longest));
        most = fv_max(most, rounded(spans->alpha[at] + spans->beta[at] * (double)o->max_new, longest));
    }
    return most;
}

const fv_policy fv_policy_moa = {
    .name = "moa",
    .title = "A span for each head (MoA)",
    .paper = "arXiv 2406.14909",
    .sheet = 78,
    .traits = FV_POLICY_POSITION | FV_POLICY_PER_HEAD | FV_POLICY_BOUNDED,
    .keeps =
        "with N = prompt + max_new, S = 64 ceil(max(min(trunc(alpha + beta N), N), 128) / 64) and s = min(S, sink): "
        "j < s or p - j < S - s; a prompt reads in blocks of 64: J < s div 64 or P - J < (S - s) div 64",
    .cost = "S rows a layer and key-value head, fixed when the prompt begins",
    .options = options,
    .options_size = sizeof(struct moa),
    .open = open,
    .close = close,
    .alike = alike,
    .plan = plan,
    .after = after,
    .bound = bound,
};
