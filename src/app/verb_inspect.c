/* fovea inspect: what a model does inside, and plan files made of it. */
#include <string.h>

#include "app/flags.h"
#include "app/inspect.h"
#include "app/layer_reuse.h"
#include "app/retrieval.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *out;
    cli_ints lengths, depths;
    int64_t voters, cap;
    int64_t tokens, steps, chunk, keep, sink, recent;
    double sparsity, changes;
    int merge;
    int precision;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag srh_flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), false, "the text that facts are hidden in (otherwise the GPL version 3 as Debian carries it)"),
    {.name = "lengths",
     .kind = CLI_INTS,
     .offset = AT(lengths),
     .argument = "1024,4096",
     .initial = "512,1024,2048,4096",
     .min = 64,
     .max = 1 << 24,
     .group = "What",
     .help = "tokens of the prompts"},
    FLAG_DEPTHS(AT(depths), "0,11,22,33,44,56,67,78,89,100", "where the fact stands, in percent of the text"),
    {.name = "voters",
     .kind = CLI_INT,
     .offset = AT(voters),
     .argument = "F",
     .initial = "4",
     .min = 1,
     .max = 1024,
     .help = "heads of a layer that go into the plan"},
    {.name = "cap",
     .kind = CLI_INT,
     .offset = AT(cap),
     .argument = "C",
     .initial = "32",
     .min = 9,
     .max = 1 << 20,
     .help = "rows a layer keeps while its error is measured"},
    FLAG_PRECISION(AT(precision)),
    {.name = "out",
     .kind = CLI_FILE,
     .offset = AT(out),
     .argument = "FILE",
     .group = "Output",
     .help = "the plan, for --cache compresskv:plan=FILE; also measures what layers lose"},
    CLI_END,
};

static json_t *scores(const retrieval *r, const double *score)
{
    json_t *layers = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        json_t *row = json_array();
        for (int64_t h = 0; h < r->heads; h++)
            app_append(row, app_number(score[l * r->heads + h]));
        app_append(layers, row);
    }
    return layers;
}

static fv_status print_json(const retrieval *r, bool errors)
{
    json_t *root = json_object(), *importance = json_array();

    app_put(root, "srh", scores(r, r->srh));
    app_put(root, "trh", scores(r, r->trh));
    app_put(root, "runs", json_integer(r->runs));
    app_put(root, "counted", json_integer(r->counted));
    for (int64_t l = 0; l < r->layers; l++)
        app_append(importance, app_number(r->importance[l]));
    app_put(root, "importance", errors ? importance : json_null());
    if (!errors) json_decref(importance);
    return app_json_print(root);
}

/* Each layer's best heads by both scores. */
static fv_status print_table(const retrieval *r, int64_t voters, bool errors)
{
    static const bool left[4] = {false, true, true, false};
    app_table table = {.columns = errors ? 4 : 3, .left = left};
    int64_t count = fv_min(voters, r->heads), *head;

    FV_TRY(FV_ALLOC(head, count));
    app_table_cell(&table, "LAYER");
    app_table_cell(&table, "SEMANTIC: head (mass)");
    app_table_cell(&table, "TRADITIONAL: head (hits)");
    if (errors) app_table_cell(&table, "SHARE OF ERROR");
    for (int64_t l = 0; l < r->layers; l++) {
        app_table_cell(&table, "%lld", (long long)l);
        for (int kind = 0; kind < 2; kind++) {
            const double *score = kind ? r->trh : r->srh;
            char text[512] = "";
            size_t used = 0;
            retrieval_voters(r, score, l, count, head);
            for (int64_t n = 0; n < count && used < sizeof text - 32; n++)
                used += (size_t)snprintf(text + used, sizeof text - used, "%s%lld (%.2f)", n ? " " : "",
                                         (long long)head[n], score[l * r->heads + head[n]]);
            app_table_cell(&table, "%s", text);
        }
        if (errors) app_table_cell(&table, "%.3f", r->importance[l]);
    }
    fv_free(head);
    printf("%d of %d answers named the fact.\n\n", r->counted, r->runs);
    return app_table_print(&table, stdout);
}

static fv_status inspect_srh(struct app *app, const void *data, fv_model *model, const fv_model_info *info)
{
    const struct values *values = data;
    retrieval_task task = {.needle = {.model = model,
                                      .info = info,
                                      .precision = flag_precision(values->precision),
                                      .needles = 1,
                                      .lengths = &values->lengths,
                                      .depths = &values->depths},
                           .voters = values->voters,
                           .cap = values->cap,
                           .errors = values->out != NULL};
    retrieval result = {0};
    char *text;
    fv_status status;

    FV_TRY(app_text_read(values->file ? values->file : NEEDLE_TEXT, &text, &task.needle.text_length));
    task.needle.text = text;
    status = retrieval_measure(app, &task, &result);
    if (status == FV_OK && values->out)
        status = retrieval_write(&result, values->voters, result.importance, values->out);
    if (status == FV_OK)
        status =
            values->common.json ? print_json(&result, task.errors) : print_table(&result, values->voters, task.errors);
    retrieval_free(&result);
    fv_free(text);
    return status;
}

fv_status inspect_with_model(struct app *app, const inspect_task *task, const void *values)
{
    fv_model *model = NULL;
    fv_model_info info;
    fv_status status;

    FV_TRY(app_file_try(task->out));
    FV_TRY(app_begin(app, task->precision));
    status = app_model_open(task->model, &model, &info);
    if (status == FV_OK) status = task->work(app, values, model, &info);
    fv_model_close(model);
    return status;
}

static fv_status run(struct app *app, const struct values *values, inspect_fn *work)
{
    return inspect_with_model(app, &(inspect_task){values->model, values->out, flag_precision(values->precision), work},
                              values);
}

static fv_status run_srh(struct app *app, const void *data)
{
    return run(app, data, inspect_srh);
}

const cli_verb verb_inspect_srh = {
    .name = "inspect srh",
    .summary = "which heads read a fact while the answer repeats it, as a plan for compresskv",
    .about =
        "Hides facts in a text, lets the model answer, and adds up each head's attention on the fact over the steps "
        "that wrote a token of it (semantic retrieval heads), and how often its largest weight lay on that very "
        "token (traditional ones). With --out, also measures how much each layer's output suffers when it keeps "
        "few rows, and writes the plan file of --cache compresskv.",
    .example = "  fovea inspect srh -m model.gguf -f book.txt --out plan.json\n"
               "  fovea run -m model.gguf -f book.txt -p Who --cache compresskv:budget=512,plan=plan.json\n",
    .flags = srh_flags,
    .size = sizeof(struct values),
    .run = run_srh,
};

/* ---- which layers choose alike ----------------------------------------------------------------------------------- */

static const cli_flag hylra_flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), true, "the text to read"),
    {.name = "tokens",
     .kind = CLI_INT,
     .offset = AT(tokens),
     .argument = "T",
     .initial = "0",
     .min = 0,
     .max = 1 << 24,
     .help = "most tokens of it; 0: as many as the model was trained for"},
    {.name = "steps",
     .kind = CLI_INT,
     .offset = AT(steps),
     .argument = "S",
     .initial = "32",
     .min = 1,
     .max = 1 << 16,
     .group = "What",
     .help = "tokens at the end that are fed one at a time and looked at"},
    {.name = "chunk",
     .kind = CLI_INT,
     .offset = AT(chunk),
     .argument = "C",
     .initial = "64",
     .min = 1,
     .max = 1 << 20,
     .help = "tokens in a chunk"},
    {.name = "keep",
     .kind = CLI_INT,
     .offset = AT(keep),
     .argument = "K",
     .initial = "2048",
     .min = 1,
     .max = 1 << 24,
     .help = "tokens that a layer reads"},
    {.name = "sink",
     .kind = CLI_INT,
     .offset = AT(sink),
     .argument = "N",
     .initial = "64",
     .min = 0,
     .max = 1 << 24,
     .help = "first tokens, always read"},
    {.name = "recent",
     .kind = CLI_INT,
     .offset = AT(recent),
     .argument = "N",
     .initial = "512",
     .min = 0,
     .max = 1 << 24,
     .help = "last tokens, always read"},
    {.name = "sparsity",
     .kind = CLI_NUMBER,
     .offset = AT(sparsity),
     .argument = "P",
     .initial = "0.9",
     .min = 0,
     .max = 1,
     .help = "share of layers that do not read everything"},
    {.name = "changes",
     .kind = CLI_NUMBER,
     .offset = AT(changes),
     .argument = "P",
     .initial = "0.3",
     .min = 0,
     .max = 1,
     .help = "share of those that may choose for themselves"},
    {.name = "merge",
     .kind = CLI_CHOICE,
     .offset = AT(merge),
     .argument = "HOW",
     .initial = "min",
     .choices = (const char *const[]){"min", "mean", NULL},
     .help = "how the overlaps of heads become one"},
    FLAG_PRECISION(AT(precision)),
    {.name = "out",
     .kind = CLI_FILE,
     .offset = AT(out),
     .argument = "FILE",
     .group = "Output",
     .help = "the plan, for --cache hylra:plan=FILE"},
    CLI_END,
};

static fv_status print_reuse_json(const layer_reuse *r)
{
    json_t *root = json_object(), *plan = json_array(), *full = json_array(), *spread = json_array();
    json_t *overlap = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        json_t *row = json_array();
        app_append(plan, json_integer(r->plan[l]));
        if (r->full[l]) app_append(full, json_integer(l));
        app_append(spread, r->spread[l] < 0 ? json_null() : app_number(r->spread[l]));
        for (int64_t m = 0; m < r->layers; m++)
            app_append(row, app_number(r->overlap[l * r->layers + m]));
        app_append(overlap, row);
    }
    app_put(root, "plan", plan);
    app_put(root, "full", full);
    app_put(root, "ratio90", spread);
    app_put(root, "overlap", overlap);
    app_put(root, "sources", json_integer(r->sources));
    return app_json_print(root);
}

static fv_status print_reuse(const layer_reuse *r)
{
    static const bool left[4] = {false, false, true, false};
    app_table table = {.columns = 4, .left = left};

    app_table_cell(&table, "LAYER");
    app_table_cell(&table, "CHUNKS FOR 90 %%");
    app_table_cell(&table, "READS");
    app_table_cell(&table, "OVERLAP");
    for (int64_t l = 0; l < r->layers; l++) {
        int64_t source = r->plan[l];
        app_table_cell(&table, "%lld", (long long)l);
        if (r->spread[l] < 0) {
            app_table_cell(&table, "-");
            app_table_cell(&table, "its own window");
            app_table_cell(&table, "-");
            continue;
        }
        app_table_cell(&table, "%.1f %%", 100 * r->spread[l]);
        if (source < 0)
            app_table_cell(&table, r->full[l] ? "everything" : "its own choice");
        else
            app_table_cell(&table, "what layer %lld chose", (long long)source);
        if (source < 0)
            app_table_cell(&table, "-");
        else
            app_table_cell(&table, "%.2f", r->overlap[source * r->layers + l]);
    }
    return app_table_print(&table, stdout);
}

static fv_status reuse_of(struct app *app, const struct values *values, const layer_reuse_task *task)
{
    layer_reuse result;
    fv_status status = layer_reuse_measure(app, task, &result);

    if (status == FV_OK && values->out) status = layer_reuse_write(&result, task, values->out);
    if (status == FV_OK) status = values->common.json ? print_reuse_json(&result) : print_reuse(&result);
    layer_reuse_free(&result);
    return status;
}

static fv_status inspect_hylra(struct app *app, const void *data, fv_model *model, const fv_model_info *info)
{
    const struct values *values = data;
    layer_reuse_task task = {.model = model,
                             .info = info,
                             .steps = values->steps,
                             .chunk = values->chunk,
                             .keep = values->keep,
                             .sink = values->sink,
                             .recent = values->recent,
                             .sparsity = values->sparsity,
                             .changes = values->changes,
                             .merge_mean = values->merge == 1,
                             .precision = flag_precision(values->precision)};
    int64_t most = values->tokens > 0 ? fv_min(values->tokens, info->context) : info->context;
    app_prompt prompt;
    fv_status status;

    FV_TRY(app_prompt_make(model, values->file, NULL, true, &prompt));
    task.ids = prompt.ids;
    task.count = fv_min(prompt.count, most);
    if (task.count <= values->steps)
        status = fv_fail(FV_E_SHAPE, "%s: %lld tokens are too few to look at the last %lld", values->file,
                         (long long)task.count, (long long)values->steps);
    else
        status = reuse_of(app, values, &task);
    app_prompt_free(&prompt);
    return status;
}

static fv_status run_hylra(struct app *app, const void *data)
{
    return run(app, data, inspect_hylra);
}

const cli_verb verb_inspect_hylra = {
    .name = "inspect hylra",
    .summary = "which layers attend to the same chunks of a text, as a plan for hylra",
    .about =
        "Reads a text, and looks at the attention of its last tokens, fed one at a time: how many chunks hold 90 % of "
        "a layer's attention, and how far layers would choose the same ones. Those most spread read everything; for "
        "the others a plan says who chooses and who reads what a layer below chose.",
    .example = "  fovea inspect hylra -m model.gguf -f book.txt --out plan.json\n"
               "  fovea run -m model.gguf -f other.txt -p Who --cache hylra:plan=plan.json\n",
    .flags = hylra_flags,
    .size = sizeof(struct values),
    .run = run_hylra,
};
