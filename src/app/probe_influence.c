/* fovea inspect attn_influence: how much a loss depends on each block of each head's attention. */
#include <math.h>

#include "app/heat.h"
#include "app/influence.h"
#include "app/probes.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "base/npy.h"

struct influence {
    int64_t tokens, answer, block;
    bool absolute;
    char out[FV_TEXT_MAX];
};

static const fv_option options[] = {
    FV_INT(struct influence, tokens, 512, 2, 1 << 20, "so many first tokens of the text, all of a shorter one"),
    FV_INT(struct influence, answer, 32, 1, 1 << 16, "the loss is that of the last so many of them"),
    FV_INT(struct influence, block, 64, 1, 1 << 16, "queries and keys that are added up; 1: every pair by itself"),
    FV_BOOL(struct influence, absolute, 1, "0: with its sign"),
    FV_WORDS(struct influence, out, "", "[layers,key-value heads,blocks,blocks] f32 in a .npy file"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct influence *o = values;

    if (o->answer >= o->tokens)
        return fv_fail(FV_E_USAGE, "answer: expected less than tokens, %lld, got %lld", (long long)o->tokens,
                       (long long)o->answer);
    return o->out[0] ? app_file_try(o->out) : FV_OK;
}

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

static json_t *object_of(const attention_influence *r, int64_t tokens)
{
    json_t *root = json_object(), *layers = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        json_t *layer = json_object(), *total = json_array(), *first = json_array(), *diagonal = json_array();
        json_t *heads = json_array();
        for (int64_t g = 0; g < r->heads; g++) {
            struct totals t = totals_of(r, l * r->heads + g);
            app_append(total, app_number(t.total));
            app_append(first, app_number(t.first));
            app_append(diagonal, app_number(t.diagonal));
            json_t *head = json_object();
            app_put(head, "head", json_integer(g));
            app_put(head, "total", app_number(t.total));
            app_put(head, "first_block", app_number(t.first));
            app_put(head, "diagonal", app_number(t.diagonal));
            app_append(heads, head);
        }
        app_put(layer, "layer", json_integer(l));
        app_put(layer, "total", total);
        app_put(layer, "first_block", first);
        app_put(layer, "diagonal", diagonal);
        app_put(layer, "heads", heads);
        app_append(layers, layer);
    }
    app_put(root, "probe", json_string("attn_influence"));
    app_put(root, "tokens", json_integer(tokens));
    app_put(root, "loss", app_number(r->loss));
    app_put(root, "layers", layers);
    return root;
}

static fv_status print(const attention_influence *r)
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

/* Numbers of key-value heads; none where a layer has a window of its own. */
static void draw(fv_text *out, const attention_influence *r, const char *title, const char *help, double *value,
                 const char *(*words)(double))
{
    for (int64_t n = 0; n < r->layers * r->heads; n++)
        if (!(totals_of(r, n).total > 0)) value[n] = NAN;
    heat_draw(out, &(heat_map){.title = title,
                               .help = help,
                               .row = "layer",
                               .column = "key-value head",
                               .axes = "layers down, key-value heads across",
                               .rows = r->layers,
                               .columns = r->heads,
                               .value = value,
                               .words = words});
}

static const char *power(double value)
{
    return app_words("%.3g", pow(10, value));
}

static const char *percent(double value)
{
    return app_words("%.0f %%", 100 * value);
}

static void write_page(fv_text *out, const attention_influence *r, const struct influence *o, int64_t tokens)
{
    int64_t count = r->layers * r->heads;
    double *total = NULL, *first, *diagonal;

    if (out->status == FV_OK) out->status = FV_ALLOC(total, 3 * count);
    if (out->status != FV_OK) return;
    first = total + count;
    diagonal = first + count;
    for (int64_t n = 0; n < count; n++) {
        struct totals t = totals_of(r, n);
        total[n] = log10(fmax(t.total, 1e-30));
        first[n] = t.first;
        diagonal[n] = t.diagonal;
    }
    fv_text_printf(
        out,
        "<h2>Attention influence</h2><p><code>attn_influence</code> over the first %lld tokens: how much the "
        "loss of the last %lld, %.3g, would change, to first order, if a query and a key did not see each "
        "other; summed over all pairs, each taken alone.</p><div class=\"grid\">\n",
        (long long)tokens, (long long)o->answer, r->loss);
    draw(out, r, "Influence", "of all pairs of a head; colours go by powers of ten", total, power);
    draw(out, r, "In the first block", "share of that which the text's first keys have", first, percent);
    draw(out, r, "In the own block", "share of that which keys near the query have", diagonal, percent);
    fv_text_printf(out, "</div>\n");
    fv_free(total);
}

static fv_status write_file(const attention_influence *r, const char *path)
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

static fv_status measure(const probe_task *task, const struct influence *o, const app_prompt *prompt, int64_t tokens,
                         attention_influence *result)
{
    influence_task own;
    fv_status status;

    if (tokens <= o->answer)
        return fv_fail(FV_E_SHAPE, "%s: has %lld tokens, attn_influence needs more than its 'answer', %lld", task->file,
                       (long long)tokens, (long long)o->answer);
    FV_TRY(influence_begin(task->app, task->model, tokens, o->block, o->absolute, task->precision, &own, result));
    status = influence_add(task->app, &own, result, prompt->ids, tokens, o->answer);
    app_progress_end();
    if (status == FV_OK) return influence_end(&own, result);
    influence_drop(&own);
    return status;
}

static fv_status run(const probe_task *task, const void *values, json_t **object)
{
    const struct influence *o = values;
    attention_influence result = {0};
    app_prompt prompt;
    int64_t tokens;
    fv_status status;

    if (o->tokens > task->info->context)
        return fv_fail(FV_E_USAGE, "tokens: expected at most %lld, which this model was trained for, got %lld",
                       (long long)task->info->context, (long long)o->tokens);
    FV_TRY(app_prompt_make(task->model, task->file, NULL, true, &prompt));
    tokens = fv_min(prompt.count, o->tokens);
    status = measure(task, o, &prompt, tokens, &result);
    app_prompt_free(&prompt);
    if (status == FV_OK && o->out[0]) status = write_file(&result, o->out);
    if (status == FV_OK && task->page) write_page(task->page, &result, o, tokens);
    if (status == FV_OK && object) *object = object_of(&result, tokens);
    if (status == FV_OK && !object) status = print(&result);
    influence_free(&result);
    return status;
}

static const fv_probe what = {
    .name = "attn_influence",
    .title = "Attention influence (MoA)",
    .paper = "arXiv 2406.14909",
    .sheet = 78,
    .finds =
        "with A the weights and G = d loss / d A, the sum over blocks of |A (G - sum G A) / (1 - A)|: how much the "
        "loss of the text's end would change if a pair did not see each other",
    .cost = "one reading of the text and one walk back",
    .options = options,
    .options_size = sizeof(struct influence),
    .check = check,
};

const app_probe probe_influence = {.what = &what, .run = run};

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

struct values {
    probe_values probe;
    struct influence options;
};

const cli_verb verb_inspect_influence = {
    .name = "inspect attn_influence",
    .summary = "how much a loss depends on each block of each head's attention",
    .about = "Reads a text, walks the gradient of the loss of its last tokens back through the model, and adds up by "
             "blocks of queries and keys how much the loss would change if a pair did not see each other.",
    .example = "  fovea inspect attn_influence -m model.gguf -f book.txt --tokens 2048 --out influence.npy\n",
    .flags = probe_flags,
    .options = options,
    .options_offset = offsetof(struct values, options),
    .size = sizeof(struct values),
    .run = probe_run,
};
