/* CompressKV: as SnapKV, but only some heads of a layer vote (a plan file names them: those that find things in a
 * text), all key-value heads of a layer keep the same rows, and layers keep rows in proportion to what their loss does
 * to the model. */
#include <math.h>

#include "cache/layer_budgets.h"
#include "cache/plan_file.h"
#include "cache/window_scores.h"

struct compresskv {
    int64_t budget, window, kernel;
    int pool, heads, layer_budget;
    char plan[FV_TEXT_MAX];
};

static const char *const voters[] = {"srh", "all", NULL};
static const char *const budgets[] = {"error", "uniform", NULL};
enum { VOTERS_PLAN, VOTERS_ALL };
enum { BUDGETS_ERROR, BUDGETS_UNIFORM };

static const fv_option options[] = {
    FV_INT(struct compresskv, budget, 1024, 2, INT32_MAX, "rows kept of a prompt in the mean over layers"),
    FV_INT(struct compresskv, window, 8, 1, INT32_MAX, "last rows, always kept, whose queries score the others"),
    FV_INT(struct compresskv, kernel, 5, 1, 4095, "rows that a score is smoothed over; odd"),
    FV_ENUM(struct compresskv, pool, "avg", fv_smoothings, "how: their mean, or the largest"),
    FV_WORDS(struct compresskv, plan, "", "file of heads and importance; without, all vote and layers are equal"),
    FV_ENUM(struct compresskv, heads, "srh", voters, "which vote: the plan's, or all"),
    FV_ENUM(struct compresskv, layer_budget, "error", budgets, "by the plan's importance, or the same for all layers"),
    FV_OPTIONS_END,
};

/* For each layer the policy acts on. */
struct plan {
    int64_t *budget;
    int32_t *voter; /* [layers, H] ascending; NULL: all vote */
    int64_t *voters;
};

static bool by_error(const struct compresskv *o)
{
    return o->plan[0] && o->layer_budget == BUDGETS_ERROR;
}

static fv_status check(const void *values)
{
    const struct compresskv *o = values;

    FV_TRY(fv_window_check("compresskv", o->budget, o->window, o->kernel));
    if (!by_error(o)) return FV_OK;
    if (o->budget <= FV_LEAST_LAYER_BUDGET)
        return fv_fail(FV_E_USAGE, "compresskv: layer_budget=error: expected a budget of more than %d rows, got %lld",
                       FV_LEAST_LAYER_BUDGET, (long long)o->budget);
    if (o->window >= FV_LEAST_LAYER_BUDGET)
        return fv_fail(FV_E_USAGE, "compresskv: layer_budget=error: expected a window of less than %d rows, got %lld",
                       FV_LEAST_LAYER_BUDGET, (long long)o->window);
    return FV_OK;
}

/* ---- plan files -------------------------------------------------------------------------------------------------- */

/* One layer's heads, into voter[0..H) ascending. */
static fv_status read_heads(const char *path, const json_t *list, int64_t layer, int64_t heads, bool needed,
                            int32_t *voter, int64_t *count)
{
    const json_t *row;
    char where[64];

    FV_TRY(fv_plan_file_row(path, "heads", list, layer, needed ? 1 : 0, heads, &row));
    snprintf(where, sizeof where, "heads[%lld]", (long long)layer);
    *count = 0;
    for (int64_t i = 0; i < (int64_t)json_array_size(row); i++) {
        int64_t id, at = *count;
        FV_TRY(fv_plan_file_integer(path, where, row, i, 0, heads - 1, &id));
        while (at > 0 && voter[at - 1] > id)
            at--;
        if (at > 0 && voter[at - 1] == id)
            return fv_fail(FV_E_FORMAT, "%s: %s: head %lld is named twice", path, where, (long long)id);
        memmove(voter + at + 1, voter + at, (size_t)(*count - at) * sizeof *voter);
        voter[at] = (int32_t)id;
        (*count)++;
    }
    return FV_OK;
}

/* Lists of all layers are checked; those of layers that the policy leaves alone may be empty and are forgotten. */
static fv_status read_voters(const fv_policy_use *use, const char *path, const json_t *root, struct plan *plan)
{
    const fv_cache_model *m = use->model;
    const json_t *list;
    int64_t place = 0;

    FV_TRY(fv_plan_file_array(path, root, "heads", m->layers, &list));
    FV_TRY(FV_ALLOC(plan->voters, use->layers + 1));
    FV_TRY(FV_ALLOC(plan->voter, (use->layers + 1) * m->query_heads)); /* one more to read what is forgotten */
    for (int64_t l = 0; l < m->layers; l++) {
        bool acts = place < use->layers && use->layer[place] == l;
        int64_t at = acts ? place : use->layers;
        FV_TRY(read_heads(path, list, l, m->query_heads, acts, plan->voter + at * m->query_heads, &plan->voters[at]));
        place += acts;
    }
    return FV_OK;
}

/* The layers acted on share what is theirs. */
static fv_status read_importance(const fv_policy_use *use, const char *path, const json_t *root, double *importance)
{
    const json_t *list;
    double sum = 0, own = 0;
    int64_t place = 0;

    FV_TRY(fv_plan_file_array(path, root, "importance", use->model->layers, &list));
    for (int64_t l = 0; l < use->model->layers; l++) {
        double number;
        FV_TRY(fv_plan_file_number(path, "importance", list, l, 0, 1, &number));
        sum += number;
        if (place == use->layers || use->layer[place] != l) continue;
        own += number;
        importance[place++] = number;
    }
    if (fabs(sum - 1) > 1e-3) return fv_fail(FV_E_FORMAT, "%s: 'importance': expected a sum of 1, got %g", path, sum);
    for (int64_t p = 0; p < use->layers && use->layers < use->model->layers; p++)
        importance[p] = own > 0 ? importance[p] / own : 1 / (double)use->layers;
    return FV_OK;
}

static fv_status read_budgets(const fv_policy_use *use, const char *path, const json_t *root, struct plan *plan)
{
    const struct compresskv *o = use->options;
    double *importance;
    fv_status status;

    FV_TRY(FV_ALLOC(importance, use->layers));
    status = read_importance(use, path, root, importance);
    if (status == FV_OK) fv_error_budgets(o->budget, importance, use->layers, plan->budget);
    fv_free(importance);
    return status;
}

/* What the options leave aside may be missing, but not be wrong. */
static fv_status read_plan(const fv_policy_use *use, const json_t *root, struct plan *plan)
{
    const struct compresskv *o = use->options;

    if (o->heads == VOTERS_PLAN || json_object_get(root, "heads")) FV_TRY(read_voters(use, o->plan, root, plan));
    if (o->layer_budget == BUDGETS_ERROR || json_object_get(root, "importance"))
        FV_TRY(read_budgets(use, o->plan, root, plan));
    for (int64_t p = 0; p < use->layers && !by_error(o); p++)
        plan->budget[p] = o->budget;
    return FV_OK;
}

static fv_status open(fv_policy_use *use)
{
    const struct compresskv *o = use->options;
    struct plan *plan;
    json_t *root;
    fv_status status;

    FV_TRY(FV_ZALLOC(plan, 1));
    use->plan = plan;
    FV_TRY(FV_ALLOC(plan->budget, use->layers));
    for (int64_t p = 0; p < use->layers; p++)
        plan->budget[p] = o->budget;
    if (!o->plan[0]) return FV_OK;
    FV_TRY(fv_plan_file_open(o->plan, &root));
    status = read_plan(use, root, plan);
    json_decref(root);
    return status;
}

static void close(fv_policy_use *use)
{
    struct plan *plan = use->plan;

    if (!plan) return;
    fv_free(plan->budget);
    fv_free(plan->voter);
    fv_free(plan->voters);
    fv_free(plan);
}

/* ---- acting ------------------------------------------------------------------------------------------------------ */

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct compresskv *o = layer->use->options;

    (void)ctx;
    return fv_window_note(layer->state, layer, call, o->window);
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    const struct compresskv *o = layer->use->options;
    const struct plan *plan = layer->use->plan;
    fv_window_vote vote = {.window = o->window, .kernel = o->kernel, .smoothing = (fv_smoothing)o->pool, .layer = true};
    fv_status status = FV_OK;

    if (plan->voter && o->heads == VOTERS_PLAN) {
        vote.voter = plan->voter + layer->place * layer->use->model->query_heads;
        vote.voters = plan->voters[layer->place];
    }
    if (prompt > o->budget) status = fv_window_act(ctx, layer, layer->state, &vote, plan->budget[layer->place]);
    fv_window_drop(layer);
    return status;
}

const fv_policy fv_policy_compresskv = {
    .name = "compresskv",
    .title = "What retrieval heads look at (CompressKV)",
    .paper = "arXiv 2508.02401",
    .sheet = 151,
    .traits = FV_POLICY_SCORES | FV_POLICY_ONCE,
    .keeps = "the last `window` rows, and those that a layer's voters look at most; one list a layer, budgets by "
             "importance",
    .cost = "budget rows a key-value head in the mean over layers; voters window T D once a layer",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct compresskv),
    .layer_bytes = sizeof(fv_window_queries),
    .check = check,
    .open = open,
    .close = close,
    .after = after,
    .act = act,
    .drop = fv_window_drop,
    .state_bytes = fv_window_state_bytes,
};
