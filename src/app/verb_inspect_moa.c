/* fovea inspect moa: how far each head has to see. */
#include "app/flags.h"
#include "app/inspect.h"
#include "app/spans.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *out;
    cli_ints lengths, depths;
    int64_t answer, longest, judge, step, per_layer;
    double density;
    int precision;
};

#define AT(field) offsetof(struct values, field)

enum { LEAST_LENGTH = 256 /* of a text with a fact, a question and an answer */ };

static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), false, "the text that facts are hidden in (otherwise the GPL version 3 as Debian carries it)"),
    {.name = "lengths",
     .kind = CLI_INTS,
     .offset = AT(lengths),
     .argument = "1024,2048",
     .initial = "1024,2048,4096",
     .min = LEAST_LENGTH,
     .max = 1 << 20,
     .group = "What",
     .help = "tokens of the texts that are looked at, multiples of 64"},
    FLAG_DEPTHS(AT(depths), "10,50,90", "where a fact stands, in percent of the text; a text for each"),
    {.name = "answer",
     .kind = CLI_INT,
     .offset = AT(answer),
     .argument = "N",
     .initial = "0",
     .min = 0,
     .max = 1 << 16,
     .help = "take the loss of the last N tokens of the text itself; 0: of the answer that names the fact"},
    {.name = "density",
     .kind = CLI_NUMBER,
     .offset = AT(density),
     .argument = "P",
     .initial = "0.5",
     .min = 0.01,
     .max = 1,
     .help = "share of the keys that the heads hold together, at every length"},
    {.name = "longest",
     .kind = CLI_INT,
     .offset = AT(longest),
     .argument = "N",
     .initial = "0",
     .min = 0,
     .max = 1 << 24,
     .help = "tokens of a request that the density holds for too; 0: twice the longest text"},
    {.name = "judge",
     .kind = CLI_INT,
     .offset = AT(judge),
     .argument = "N",
     .initial = "0",
     .min = 0,
     .max = 1 << 20,
     .help = "tokens of further texts that choose among the best plans, a multiple of 64; 0: the same texts choose"},
    {.name = "per-layer",
     .kind = CLI_INT,
     .offset = AT(per_layer),
     .argument = "N",
     .initial = "2",
     .min = 1,
     .max = 1024,
     .help = "different spans in a layer"},
    {.name = "step",
     .kind = CLI_INT,
     .offset = AT(step),
     .argument = "N",
     .initial = "0",
     .min = 0,
     .max = 1 << 20,
     .help = "tokens between the alphas to choose from; 0: an eighth of the longest text, at most 1024"},
    FLAG_PRECISION(AT(precision)),
    {.name = "out",
     .kind = CLI_FILE,
     .offset = AT(out),
     .argument = "FILE",
     .group = "Output",
     .help = "the plan, for --cache moa:plan=FILE"},
    CLI_END,
};

static json_t *numbers(const double *x, int count)
{
    json_t *array = json_array();

    for (int n = 0; n < count; n++)
        app_append(array, app_number(x[n]));
    return array;
}

static fv_status print_spans_json(const spans *r)
{
    json_t *root = json_object(), *lengths = json_array();

    for (int n = 0; n < r->lengths; n++)
        app_append(lengths, json_integer(r->length[n]));
    app_put(root, "alphas", spans_json(r, false));
    app_put(root, "betas", spans_json(r, true));
    app_put(root, "lengths", lengths);
    app_put(root, "density", numbers(r->density, r->lengths));
    app_put(root, "loss", numbers(r->loss, r->profiled));
    app_put(root, "judged", r->judged > 0 ? app_number(r->judged) : json_null());
    app_put(root, "rules", json_integer(r->rules));
    app_put(root, "plans", json_integer(r->plans));
    return app_json_print(root);
}

static fv_status print_spans(const spans *r)
{
    bool left[2 + FV_SPAN_LENGTHS] = {false, true};
    app_table table = {.columns = 2 + r->lengths, .left = left};

    app_table_cell(&table, "LAYER");
    app_table_cell(&table, "SPAN OF EACH KEY-VALUE HEAD");
    for (int n = 0; n < r->lengths; n++)
        app_table_cell(&table, "MEAN AT %lld", (long long)r->length[n]);
    for (int64_t l = 0; l < r->acted; l++) {
        const int32_t *chosen = r->chosen + l * r->heads;
        char text[512] = "";
        size_t used = 0;
        for (int64_t g = 0; g < r->heads && used < sizeof text - 48; g++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%g%+gN", g ? ", " : "",
                                     r->rule[chosen[g]].alpha, r->rule[chosen[g]].beta);
        app_table_cell(&table, "%lld", (long long)r->layer[l]);
        app_table_cell(&table, "%s", text);
        for (int n = 0; n < r->lengths; n++) {
            double sum = 0;
            for (int64_t g = 0; g < r->heads; g++)
                sum += fv_span_density(&r->rule[chosen[g]], r->length[n]) / (double)r->heads;
            app_table_cell(&table, "%.0f %%", 100 * sum);
        }
    }
    FV_TRY(app_table_print(&table, stdout));
    printf("\nN: tokens of a request, prompt and answer. One of the %lld best plans among %lld spans;",
           (long long)r->plans, (long long)r->rules);
    for (int n = 0; n < r->lengths; n++)
        printf("%s %.3g of the keys at %lld tokens", n ? "," : "", r->density[n], (long long)r->length[n]);
    printf(".\n");
    return FV_OK;
}

static fv_status check_length(const char *flag, int64_t length, const struct values *values, const fv_model_info *info)
{
    if (length < LEAST_LENGTH || length % FV_SPAN_BLOCK != 0)
        return fv_fail(FV_E_USAGE, "--%s: expected multiples of %d from %d on, got %lld", flag, FV_SPAN_BLOCK,
                       LEAST_LENGTH, (long long)length);
    if (length > info->context)
        return fv_fail(FV_E_USAGE, "--%s: expected at most %lld, the tokens this model was trained for, got %lld", flag,
                       (long long)info->context, (long long)length);
    if (values->answer >= length)
        return fv_fail(FV_E_USAGE, "--answer: expected less than --%s, %lld, got %lld", flag, (long long)length,
                       (long long)values->answer);
    return FV_OK;
}

static fv_status check_lengths(const struct values *values, const fv_model_info *info)
{
    if (values->lengths.count > SPANS_LENGTHS)
        return fv_fail(FV_E_USAGE, "--lengths: expected at most %d, got %d", SPANS_LENGTHS, values->lengths.count);
    for (int n = 0; n < values->lengths.count; n++)
        FV_TRY(check_length("lengths", values->lengths.items[n], values, info));
    return values->judge > 0 ? check_length("judge", values->judge, values, info) : FV_OK;
}

static fv_status inspect_moa(struct app *app, const void *data, fv_model *model, const fv_model_info *info)
{
    const struct values *values = data;
    spans_task task = {.needle = {.model = model,
                                  .info = info,
                                  .precision = flag_precision(values->precision),
                                  .lengths = &values->lengths,
                                  .depths = &values->depths},
                       .answer = values->answer,
                       .longest = values->longest,
                       .judge = values->judge,
                       .step = values->step,
                       .per_layer = values->per_layer,
                       .density = values->density};
    spans result = {0};
    char *text;
    fv_status status;

    FV_TRY(check_lengths(values, info));
    FV_TRY(app_text_read(values->file ? values->file : NEEDLE_TEXT, &text, &task.needle.text_length));
    task.needle.text = text;
    status = spans_measure(app, &task, &result);
    if (status == FV_OK && values->out) status = spans_write(&result, values->out);
    if (status == FV_OK) status = values->common.json ? print_spans_json(&result) : print_spans(&result);
    spans_free(&result);
    fv_free(text);
    return status;
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;

    return inspect_with_model(
        app, &(inspect_task){values->model, values->out, flag_precision(values->precision), inspect_moa}, values);
}

const cli_verb verb_inspect_moa = {
    .name = "inspect moa",
    .summary = "how far each head has to see, as a plan for moa",
    .about =
        "Hides facts in a text, and measures by gradients how much the loss of the answer that names them would change "
        "if a head did not see a block of keys. Then gives each key-value head a span that grows with the request, "
        "alpha + beta N, so that little is lost while all heads together hold no more than a share of the keys.",
    .example = "  fovea inspect moa -m model.gguf -f book.txt --density 0.25 --out spans.json\n"
               "  fovea run -m model.gguf -f book.txt -p Who --cache moa:plan=spans.json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
