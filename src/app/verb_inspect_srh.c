/* fovea inspect srh: which heads read a fact while an answer repeats it. */
#include <string.h>

#include "app/flags.h"
#include "app/inspect.h"
#include "app/retrieval.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *out;
    cli_ints lengths, depths;
    int64_t voters, cap;
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

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;

    return inspect_with_model(
        app, &(inspect_task){values->model, values->out, flag_precision(values->precision), inspect_srh}, values);
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
    .run = run,
};
