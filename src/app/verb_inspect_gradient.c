/* fovea inspect moa, fovea inspect attn_influence: probes that need gradients. */
#include <math.h>

#include "app/flags.h"
#include "app/influence.h"
#include "app/inspect.h"
#include "app/spans.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "base/npy.h"

struct values {
    cli_common common;
    const char *model, *file, *out;
    cli_ints lengths, depths;
    int64_t answer, longest, judge, step, per_layer, tokens, block;
    double density;
    int precision;
};

#define AT(field) offsetof(struct values, field)

enum { LEAST_LENGTH = 256 /* of a text with a fact, a question and an answer */ };

/* ---- spans of heads --------------------------------------------------------------------------------------------- */

static const cli_flag moa_flags[] = {
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

static fv_status run(struct app *app, const struct values *values, inspect_fn *work)
{
    return inspect_with_model(app, &(inspect_task){values->model, values->out, flag_precision(values->precision), work},
                              values);
}

static fv_status run_moa(struct app *app, const void *data)
{
    return run(app, data, inspect_moa);
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
    .flags = moa_flags,
    .size = sizeof(struct values),
    .run = run_moa,
};

/* ---- influence -------------------------------------------------------------------------------------------------- */

static const cli_flag influence_flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), true, "the text to read"),
    {.name = "tokens",
     .kind = CLI_INT,
     .offset = AT(tokens),
     .argument = "N",
     .initial = "512",
     .min = 2,
     .max = 1 << 20,
     .help = "so many first tokens of it"},
    {.name = "answer",
     .kind = CLI_INT,
     .offset = AT(answer),
     .argument = "N",
     .initial = "32",
     .min = 1,
     .max = 1 << 16,
     .group = "What",
     .help = "the loss is that of the last N of them"},
    {.name = "block",
     .kind = CLI_INT,
     .offset = AT(block),
     .argument = "N",
     .initial = "64",
     .min = 1,
     .max = 1 << 16,
     .help = "queries and keys that are added up; 1: every pair by itself"},
    FLAG_PRECISION(AT(precision)),
    {.name = "out",
     .kind = CLI_FILE,
     .offset = AT(out),
     .argument = "FILE.npy",
     .group = "Output",
     .help = "[layers, key-value heads, blocks, blocks] f32"},
    CLI_END,
};

/* Of a head: all influence, and the shares of the first block of keys and of each block's own. */
struct totals {
    double total, first, diagonal;
};

static struct totals totals_of(const attention_influence *r, int64_t head)
{
    const double *sum = r->sum + head * r->blocks * r->blocks;
    struct totals t = {0};

    for (int64_t i = 0; i < r->blocks; i++)
        for (int64_t j = 0; j <= i; j++) {
            t.total += sum[i * r->blocks + j];
            if (j == 0) t.first += sum[i * r->blocks];
            if (j == i) t.diagonal += sum[i * r->blocks + i];
        }
    if (t.total > 0) {
        t.first /= t.total;
        t.diagonal /= t.total;
    }
    return t;
}

static fv_status print_influence_json(const attention_influence *r)
{
    json_t *root = json_object(), *layers = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        json_t *layer = json_object(), *total = json_array(), *first = json_array(), *diagonal = json_array();
        for (int64_t g = 0; g < r->heads; g++) {
            struct totals t = totals_of(r, l * r->heads + g);
            app_append(total, app_number(t.total));
            app_append(first, app_number(t.first));
            app_append(diagonal, app_number(t.diagonal));
        }
        app_put(layer, "layer", json_integer(l));
        app_put(layer, "total", total);
        app_put(layer, "first_block", first);
        app_put(layer, "diagonal", diagonal);
        app_append(layers, layer);
    }
    app_put(root, "probe", json_string("attn_influence"));
    app_put(root, "loss", app_number(r->loss));
    app_put(root, "layers", layers);
    return app_json_print(root);
}

static fv_status print_influence(const attention_influence *r)
{
    static const bool left[5] = {false, false, false, false, false};
    app_table table = {.columns = 5, .left = left};

    app_table_cell(&table, "LAYER");
    app_table_cell(&table, "HEAD");
    app_table_cell(&table, "INFLUENCE");
    app_table_cell(&table, "FIRST BLOCK");
    app_table_cell(&table, "OWN BLOCK");
    for (int64_t h = 0; h < r->layers * r->heads; h++) {
        struct totals t = totals_of(r, h);
        app_table_cell(&table, "%lld", (long long)(h / r->heads));
        app_table_cell(&table, "%lld", (long long)(h % r->heads));
        app_table_cell(&table, t.total > 0 ? "%.4g" : "its own window", t.total);
        app_table_cell(&table, t.total > 0 ? "%.0f %%" : "-", 100 * t.first);
        app_table_cell(&table, t.total > 0 ? "%.0f %%" : "-", 100 * t.diagonal);
    }
    FV_TRY(app_table_print(&table, stdout));
    printf("\nLoss %.4g. INFLUENCE: how much it would change, to first order, summed over every pair taken alone.\n",
           r->loss);
    return FV_OK;
}

static fv_status write_influence(const attention_influence *r, const char *path)
{
    int64_t dims[] = {r->layers, r->heads, r->blocks, r->blocks}, count = dims[0] * dims[1] * dims[2] * dims[3];
    fv_tensor t;
    float *sum;
    fv_status status;

    FV_TRY(FV_ALLOC(sum, count));
    for (int64_t i = 0; i < count; i++)
        sum[i] = (float)r->sum[i];
    status = fv_tensor_wrap(&t, sum, FV_F32, 4, dims);
    if (status == FV_OK) status = fv_npy_write(path, &t);
    fv_free(sum);
    return status;
}

static fv_status measure_influence(struct app *app, const struct values *values, const app_prompt *prompt,
                                   const fv_model *model, attention_influence *result)
{
    influence_task task;
    fv_status status;

    if (prompt->count < values->tokens)
        return fv_fail(FV_E_SHAPE, "%s: has %lld tokens, --tokens asks for %lld", values->file,
                       (long long)prompt->count, (long long)values->tokens);
    FV_TRY(influence_begin(app, model, values->tokens, values->block, true, flag_precision(values->precision), &task,
                           result));
    status = influence_add(app, &task, result, prompt->ids, values->tokens, values->answer);
    app_progress_end();
    if (status == FV_OK) return influence_end(&task, result);
    influence_drop(&task);
    return status;
}

static fv_status inspect_influence(struct app *app, const void *data, fv_model *model, const fv_model_info *info)
{
    const struct values *values = data;
    attention_influence result = {0};
    app_prompt prompt;
    fv_status status;

    if (values->tokens > info->context)
        return fv_fail(FV_E_USAGE, "--tokens: expected at most %lld, the tokens this model was trained for, got %lld",
                       (long long)info->context, (long long)values->tokens);
    if (values->answer >= values->tokens)
        return fv_fail(FV_E_USAGE, "--answer: expected less than --tokens, %lld, got %lld", (long long)values->tokens,
                       (long long)values->answer);
    FV_TRY(app_prompt_make(model, values->file, NULL, true, &prompt));
    status = measure_influence(app, values, &prompt, model, &result);
    app_prompt_free(&prompt);
    if (status == FV_OK && values->out) status = write_influence(&result, values->out);
    if (status == FV_OK) status = values->common.json ? print_influence_json(&result) : print_influence(&result);
    influence_free(&result);
    return status;
}

static fv_status run_influence(struct app *app, const void *data)
{
    return run(app, data, inspect_influence);
}

const cli_verb verb_inspect_influence = {
    .name = "inspect attn_influence",
    .summary = "how much a loss depends on each block of each head's attention",
    .about = "Reads a text, walks the gradient of the loss of its last tokens back through the model, and adds up by "
             "blocks of queries and keys how much the loss would change if a pair did not see each other.",
    .example = "  fovea inspect attn_influence -m model.gguf -f book.txt --tokens 2048 --out influence.npy\n",
    .flags = influence_flags,
    .size = sizeof(struct values),
    .run = run_influence,
};
