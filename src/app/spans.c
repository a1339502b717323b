#include "app/spans.h"

#include <math.h>
#include <string.h>

#include "app/influence.h"
#include "base/memory.h"
#include "models/model.h"

/* The losses of every rule at one length: [acted, heads, rules]. */
struct losses {
    struct app *app;
    const spans_task *task;
    spans *result;
    int done, all; /* texts */
};

/* ---- texts ------------------------------------------------------------------------------------------------------ */

static void say(struct losses *l, int64_t length)
{
    app_say(l->app, "text %d of %d, %lld tokens", ++l->done, l->all, (long long)length);
}

/* The text's own first tokens. */
static fv_status add_text(struct losses *l, influence_task *task, attention_influence *influence)
{
    const needle_task *n = &l->task->needle;
    app_prompt prompt;
    fv_status status;

    FV_TRY(app_prompt_from(n->model, n->text, n->text_length, NULL, true, &prompt));
    say(l, task->length);
    if (prompt.count < task->length)
        status = fv_fail(FV_E_SHAPE, "the text has %lld tokens, too few to look at %lld", (long long)prompt.count,
                         (long long)task->length);
    else
        status = influence_add(l->app, task, influence, prompt.ids, task->length, l->task->answer);
    app_prompt_free(&prompt);
    return status;
}

/* A prompt with a fact in it, and the fact as its answer. */
static fv_status add_fact(struct losses *l, influence_task *task, attention_influence *influence, int fact,
                          int64_t depth)
{
    const needle_task *n = &l->task->needle;
    const needle_fact *told = &needle_told[fact];
    const needle_facts hidden = {1, &told->sentence, told->question, told->lead};
    const char *answer = told->sentence + (n->info->has_chat_template ? 0 : strlen(told->lead));
    app_prompt prompt = {0};
    int32_t *ids, *all = NULL;
    int64_t count;
    fv_status status;

    FV_TRY(fv_model_tokenize(n->model, answer, strlen(answer), 0, &ids, &count));
    status = needle_prompt(n, task->length - count, depth, &hidden, &prompt);
    if (status == FV_OK) status = FV_ALLOC(all, prompt.count + count);
    if (status == FV_OK) {
        memcpy(all, prompt.ids, (size_t)prompt.count * sizeof *all);
        memcpy(all + prompt.count, ids, (size_t)count * sizeof *all);
        say(l, task->length);
        status = influence_add(l->app, task, influence, all, prompt.count + count, count);
    }
    fv_free(all);
    fv_release(ids);
    app_prompt_free(&prompt);
    return status;
}

static fv_status add_texts(struct losses *l, influence_task *task, attention_influence *influence)
{
    const cli_ints *depths = l->task->needle.depths;

    if (l->task->answer > 0) return add_text(l, task, influence);
    for (int d = 0; d < depths->count; d++)
        FV_TRY(add_fact(l, task, influence, d % NEEDLE_TOLD, depths->items[d]));
    return FV_OK;
}

static fv_status measure_length(struct losses *l, int64_t length, double *loss)
{
    const spans *r = l->result;
    influence_task task;
    attention_influence influence;
    fv_status status;

    FV_TRY(influence_begin(l->app, l->task->needle.model, length, FV_SPAN_BLOCK, true, l->task->needle.precision, &task,
                           &influence));
    status = add_texts(l, &task, &influence);
    app_progress_end();
    if (status == FV_OK)
        status = influence_end(&task, &influence);
    else
        influence_drop(&task);
    for (int64_t h = 0; status == FV_OK && h < r->acted * r->heads; h++) {
        int64_t cells = influence.blocks * influence.blocks;
        const double *sum = influence.sum + (r->layer[h / r->heads] * r->heads + h % r->heads) * cells;
        for (int64_t n = 0; n < r->rules; n++)
            loss[h * r->rules + n] = fv_span_loss(&r->rule[n], length, sum);
    }
    influence_free(&influence);
    return status;
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

static double loss_of(const spans *r, const double *loss, const int32_t *rule)
{
    double sum = 0;

    for (int64_t h = 0; h < r->acted * r->heads; h++)
        sum += loss[h * r->rules + rule[h]];
    return sum;
}

/* Losses of a plan at all profiled lengths, each in parts of the least that any plan has there. */
static double mean_loss(const spans *r, const fv_span_plan *plans, int64_t count, int64_t at)
{
    double sum = 0;

    for (int n = 0; n < r->profiled; n++) {
        double least = INFINITY;
        for (int64_t p = 0; p < count; p++)
            least = fmin(least, plans[p].loss[n]);
        sum += least > 0 ? plans[at].loss[n] / least : 0;
    }
    return sum;
}

/* judge: losses at the length that judges; NULL: the lengths together do. */
static void choose(spans *r, const fv_span_plan *plans, int64_t count, const double *judge)
{
    int64_t best = 0;
    double least = INFINITY;

    for (int64_t p = 0; p < count; p++) {
        double loss = judge ? loss_of(r, judge, plans[p].rule) : mean_loss(r, plans, count, p);
        if (loss >= least) continue;
        least = loss;
        best = p;
    }
    r->plans = count;
    r->judged = judge ? least : 0;
    memcpy(r->chosen, plans[best].rule, (size_t)(r->acted * r->heads) * sizeof *r->chosen);
    memcpy(r->loss, plans[best].loss, sizeof r->loss);
    memcpy(r->density, plans[best].density, sizeof r->density);
}

static fv_status solve(struct app *app, const spans_task *task, spans *r, const double *loss, const double *judge)
{
    fv_span_task t = {.layers = r->acted,
                      .heads = r->heads,
                      .per_layer = task->per_layer,
                      .density = task->density,
                      .profiled = r->profiled,
                      .lengths = r->lengths,
                      .rules = r->rules,
                      .rule = r->rule,
                      .loss = loss};
    fv_span_plan *plans;
    int64_t count;

    memcpy(t.length, r->length, sizeof t.length);
    fv_status status = fv_span_frontier(app->ctx, &t, &plans, &count);
    app_progress_end();
    FV_TRY(status);
    choose(r, plans, count, judge);
    fv_span_free(plans, count);
    return FV_OK;
}

static fv_status begin(const spans_task *task, spans *r)
{
    const fv_model *model = task->needle.model;
    const cli_ints *lengths = task->needle.lengths;
    int64_t shortest = INT64_MAX, profiled = 0, longest;

    r->layers = model->sizes.layers;
    r->heads = model->sizes.key_heads;
    FV_TRY(FV_ALLOC(r->layer, r->layers));
    for (int64_t l = 0; l < r->layers; l++)
        if (model->layers[l].window == 0) r->layer[r->acted++] = l;
    if (r->acted == 0) return fv_fail(FV_E_UNSUPPORTED, "every layer of this model has a window of its own");
    for (int n = 0; n < lengths->count; n++) {
        r->length[r->lengths++] = lengths->items[n];
        shortest = fv_min(shortest, lengths->items[n]);
        profiled = fv_max(profiled, lengths->items[n]);
    }
    r->profiled = r->lengths;
    longest = task->longest > 0 ? fv_max(task->longest, profiled) : 2 * profiled;
    if (longest > profiled) r->length[r->lengths++] = longest;
    int64_t step = task->step > 0 ? task->step : fv_clamp(profiled / 8, FV_SPAN_BLOCK, 1024);
    r->rules = fv_span_rules(shortest, profiled, longest, step, NULL);
    if (r->rules < 1 || r->rules > SPANS_RULES)
        return fv_fail(FV_E_USAGE,
                       "--step: %lld tokens between alphas give %lld spans to choose from; expected 1 to %d",
                       (long long)step, (long long)r->rules, SPANS_RULES);
    FV_TRY(FV_ALLOC(r->rule, r->rules));
    fv_span_rules(shortest, profiled, longest, step, r->rule);
    return FV_ALLOC(r->chosen, r->acted * r->heads);
}

fv_status spans_measure(struct app *app, const spans_task *task, spans *result)
{
    struct losses l = {.app = app, .task = task, .result = result};
    double *loss = NULL, *judge = NULL;
    fv_status status = begin(task, result);
    int64_t cells = result->acted * result->heads * result->rules;

    l.all = (result->profiled + (task->judge > 0)) * (task->answer > 0 ? 1 : task->needle.depths->count);
    if (status == FV_OK) status = FV_ALLOC(loss, result->profiled * cells);
    if (status == FV_OK) status = FV_ALLOC(judge, cells);
    for (int n = 0; n < result->profiled && status == FV_OK; n++)
        status = measure_length(&l, result->length[n], loss + n * cells);
    if (status == FV_OK && task->judge > 0) status = measure_length(&l, task->judge, judge);
    if (status == FV_OK) status = solve(app, task, result, loss, task->judge > 0 ? judge : NULL);
    fv_free(loss);
    fv_free(judge);
    return status;
}

void spans_free(spans *r)
{
    fv_free(r->layer);
    fv_free(r->rule);
    fv_free(r->chosen);
    *r = (spans){0};
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

json_t *spans_json(const spans *r, bool betas)
{
    static const fv_span_rule all = {0, 1};
    json_t *rows = json_array();

    for (int64_t l = 0, acted = 0; l < r->layers; l++) {
        bool acts = acted < r->acted && r->layer[acted] == l;
        json_t *row = json_array();
        for (int64_t g = 0; g < r->heads; g++) {
            const fv_span_rule *rule = acts ? &r->rule[r->chosen[acted * r->heads + g]] : &all;
            app_append(row, app_number(betas ? rule->beta : rule->alpha));
        }
        app_append(rows, row);
        acted += acts;
    }
    return rows;
}

fv_status spans_write(const spans *r, const char *path)
{
    json_t *root = json_object();

    app_put(root, "alphas", spans_json(r, false));
    app_put(root, "betas", spans_json(r, true));
    return app_json_write(root, path);
}
