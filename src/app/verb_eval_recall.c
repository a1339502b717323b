/* fovea eval recall: the share of a model's attention that mechanisms read, against what they cost. */
#include <math.h>
#include <string.h>

#include "app/flags.h"
#include "app/recall.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "models/session.h"

struct values {
    cli_common common;
    const char *model, *file, *layers, *report;
    cli_texts attentions;
    int64_t context;
    int precision;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), true, "the text to read"),
    {.name = "ctx",
     .kind = CLI_INT,
     .offset = AT(context),
     .argument = "N",
     .initial = "2048",
     .min = 16,
     .max = 1 << 20,
     .help = "most tokens of it"},
    {.name = "attention",
     .letter = 'a',
     .kind = CLI_SPECS,
     .offset = AT(attentions),
     .argument = "SPEC",
     .group = "What",
     .help = "a mechanism (otherwise all that choose by content, over about 2 to 50 % of the pairs)"},
    {.name = "layers",
     .kind = CLI_TEXT,
     .offset = AT(layers),
     .argument = "0-3,29",
     .help = "these layers only (otherwise all without a window of their own)"},
    FLAG_PRECISION(AT(precision)),
    {.name = "report",
     .kind = CLI_FILE,
     .offset = AT(report),
     .argument = "FILE.html",
     .group = "Output",
     .help = "one self-contained page with the curves"},
    CLI_END,
};

struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    fv_model_info info;
    app_prompt prompt;
    recall result;
};

/* ---- set-ups ---------------------------------------------------------------------------------------------------- */

/* A range of a layer plan, or all without a window of their own. */
static fv_status choose_layers(struct job *job)
{
    recall *r = &job->result;
    fv_layer_plan plan = {0};
    char text[256];
    fv_status status = FV_OK;

    FV_TRY(FV_ALLOC(r->layer, job->info.layers));
    snprintf(text, sizeof text, "%.240s/dense", job->values->layers ? job->values->layers : "rest");
    if (fv_layer_plan_parse(&plan, text, (int)job->info.layers) != FV_OK)
        return fv_fail_in(FV_E_USAGE, "--layers '%s'", job->values->layers);
    for (int64_t l = 0; l < job->info.layers && status == FV_OK; l++) {
        int64_t window = job->model->layers[l].window;
        if (!fv_layer_plan_at(&plan, (int)l) || (window > 0 && !job->values->layers)) continue;
        r->layer[r->layers++] = l;
        if (window > 0)
            status =
                fv_fail(FV_E_USAGE, "--layers: layer %lld has a window of its own: expected one that sees everything",
                        (long long)l);
    }
    fv_layer_plan_free(&plan);
    return status;
}

static fv_status choose_setups(struct job *job)
{
    const cli_texts *given = &job->values->attentions;
    recall *r = &job->result;

    for (int i = 0; i < given->count; i++)
        FV_TRY(recall_add(r, given->items[i], RECALL_PLAN));
    if (given->count == 0) FV_TRY(recall_add_sweeps(r));
    return recall_add_bounds(r);
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

static void put_row(json_t *array, const recall_setup *setup, int64_t layer, const recall_row *row)
{
    json_t *object = json_object();

    app_put(object, "attention", json_string(setup->name));
    if (layer >= 0) app_put(object, "layer", json_integer(layer));
    app_put(object, "density", app_number(row->density));
    app_put(object, "recall", app_number(row->recall));
    if (setup->kind == RECALL_PLAN) app_put(object, "oracle", app_number(row->best));
    app_append(array, object);
}

static fv_status print_json(const struct job *job)
{
    const recall *r = &job->result;
    json_t *root = json_object(), *rows = json_array(), *means = json_array();

    app_put(root, "model", json_string(job->values->model));
    app_put(root, "tokens", json_integer(r->tokens));
    app_put(root, "rows", rows);
    app_put(root, "means", means);
    for (int64_t s = 0; s < r->setups; s++) {
        recall_row mean = recall_mean(r, s);
        if (r->setup[s].left_out) continue;
        for (int64_t l = 0; l < r->layers; l++)
            put_row(rows, &r->setup[s], r->layer[l], &r->row[s * r->layers + l]);
        put_row(means, &r->setup[s], -1, &mean);
    }
    return app_json_print(root);
}

static fv_status print_table(const struct job *job)
{
    static const bool left[5] = {true};
    const recall *r = &job->result;
    app_table table = {.columns = 5, .left = left};

    app_table_cell(&table, "ATTENTION");
    app_table_cell(&table, "DENSITY");
    app_table_cell(&table, "RECALL");
    app_table_cell(&table, "AT BEST");
    app_table_cell(&table, "LEAST (LAYER)");
    for (int64_t s = 0; s < r->setups; s++) {
        recall_row mean = recall_mean(r, s);
        int64_t least = 0;
        if (r->setup[s].left_out) continue;
        for (int64_t l = 1; l < r->layers; l++)
            if (r->row[s * r->layers + l].recall < r->row[s * r->layers + least].recall) least = l;
        app_table_cell(&table, "%.90s", r->setup[s].name);
        app_table_cell(&table, "%.3f", mean.density);
        app_table_cell(&table, "%.3f", mean.recall);
        app_table_cell(&table, isfinite(mean.best) ? "%.3f" : "-", mean.best);
        app_table_cell(&table, "%.3f (%lld)", r->row[s * r->layers + least].recall, (long long)r->layer[least]);
    }
    printf("\n%s, %lld tokens, %lld layers: the share of the model's own attention that lies on the pairs a mechanism "
           "reads\n(queries count by the keys they see); AT BEST: of as many keys for each query, those with most.\n\n",
           job->info.name, (long long)r->tokens, (long long)r->layers);
    return app_table_print(&table, stdout);
}

/* ---- the verb --------------------------------------------------------------------------------------------------- */

static fv_status eval_recall(struct job *job)
{
    const struct values *values = job->values;
    recall *r = &job->result;

    FV_TRY(app_file_try(values->report));
    FV_TRY(app_begin(job->app, flag_precision(values->precision)));
    FV_TRY(app_model_open(values->model, &job->model, &job->info));
    FV_TRY(choose_layers(job));
    FV_TRY(app_prompt_make(job->model, values->file, NULL, true, &job->prompt));
    r->model = job->model;
    r->precision = flag_precision(values->precision);
    r->ids = job->prompt.ids;
    r->tokens = fv_min(fv_min(job->prompt.count, values->context), job->info.context);
    FV_TRY(choose_setups(job));
    FV_TRY(recall_measure(job->app, r));
    FV_TRY(values->common.json ? print_json(job) : print_table(job));
    if (!values->report) return FV_OK;
    FV_TRY(recall_report(values->report, r, &job->info));
    app_say(job->app, "\nreport: %s", values->report);
    return FV_OK;
}

static fv_status run(struct app *app, const void *data)
{
    struct job job = {.app = app, .values = data};
    fv_status status = eval_recall(&job);

    recall_free(&job.result);
    app_prompt_free(&job.prompt);
    fv_model_close(job.model);
    return status;
}

const cli_verb verb_eval_recall = {
    .name = "eval recall",
    .summary = "how much of a model's attention mechanisms read, over density",
    .about =
        "Reads a text under dense attention, and asks of each mechanism which of the model's own queries and keys it "
        "would put together: the share of the attention that lies on these pairs (recall) against how many they are "
        "(density), layer by layer, as a mean over heads and queries. Queries count by the keys they see, in both, so "
        "that keys chosen by chance have a recall equal to their density. Rows 'random' and 'oracle' (each query's "
        "keys with most attention) are the bounds at 2, 5, 10, 20 and 50 %; beside each mechanism stands what the best "
        "choice of as many keys for each query would have.",
    .example = "  fovea eval recall -m model.gguf -f book.txt --report recall.html\n"
               "  fovea eval recall -m model.gguf -f book.txt -a moba:block=64,top=4 -a blocktopk:top=16 --layers 3-5 "
               "--json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
