/* fovea inspect hylra: which layers choose alike, and a plan of who chooses for whom. */
#include <math.h>

#include "app/heat.h"
#include "app/layer_reuse.h"
#include "app/probes.h"
#include "app/verbs.h"
#include "base/memory.h"

struct hylra {
    int64_t tokens, steps, chunk, keep, sink, recent, changes;
    double sparsity, change;
    int merge;
    bool full_as_source;
    fv_list rollback;
    char overlap[FV_TEXT_MAX], out[FV_TEXT_MAX];
};

enum { MERGE_MIN, MERGE_MEAN };
static const char *const merges[] = {"min", "mean", NULL};

static const fv_option options[] = {
    FV_INT(struct hylra, tokens, 0, 0, 1 << 24, "most tokens of the text; 0: as many as the model was trained for"),
    FV_INT(struct hylra, steps, 32, 1, 1 << 16, "tokens at the end that are fed one at a time and looked at"),
    FV_INT(struct hylra, chunk, 64, 1, 1 << 20, "tokens in a chunk"),
    FV_INT(struct hylra, keep, 2048, 1, 1 << 24, "tokens that a layer reads"),
    FV_INT(struct hylra, sink, 64, 0, 1 << 24, "first tokens, always read"),
    FV_INT(struct hylra, recent, 512, 0, 1 << 24, "last tokens, always read"),
    FV_FLOAT(struct hylra, sparsity, 0.9, 0, 1, "share of layers that do not read everything"),
    FV_FLOAT(struct hylra, change, 0.3, 0, 1, "share of those that may choose for themselves"),
    FV_INT(struct hylra, changes, 0, 0, FV_LIST_MAX,
           "layers that choose or read everything, at most; 0: as sparsity and change say"),
    FV_ENUM(struct hylra, merge, "min", merges, "how the overlaps of heads become one"),
    FV_BOOL(struct hylra, full_as_source, 0,
            "1: a layer that reads everything may be read from (no policy does so yet)"),
    FV_WORDS(struct hylra, out, "", "the plan, for --cache hylra:plan=FILE"),
    FV_WORDS(struct hylra, overlap, "", "overlaps [layers,layers] in a .npy file, to plan from without a model"),
    FV_LIST(struct hylra, rollback, "-1", -1, FV_LIST_MAX - 1, "then: layers that read everything; -1: none"),
    FV_OPTIONS_END,
};

static bool alone(const void *values)
{
    return ((const struct hylra *)values)->overlap[0] != 0;
}

static fv_status check(const void *values)
{
    const struct hylra *o = values;

    if (!alone(o) && (o->rollback.count > 1 || o->rollback.items[0] >= 0))
        return fv_fail(FV_E_USAGE, "hylra: option 'rollback' goes with 'overlap': otherwise the text says which layers "
                                   "read everything");
    return o->out[0] ? app_file_try(o->out) : FV_OK;
}

/* ---- what it says ------------------------------------------------------------------------------------------------ */

static json_t *object_of(const layer_reuse *r)
{
    json_t *root = json_object(), *plan = json_array(), *full = json_array(), *spread = json_array();
    json_t *overlap = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        json_t *row = json_array();
        app_append(plan, json_integer(r->plan[l]));
        if (r->full[l]) app_append(full, json_integer(l));
        if (r->spread) app_append(spread, app_number(r->spread[l]));
        for (int64_t m = 0; m < r->layers; m++)
            app_append(row, app_number(r->overlap[l * r->layers + m]));
        app_append(overlap, row);
    }
    app_put(root, "probe", json_string("hylra"));
    app_put(root, "layers", json_integer(r->layers));
    app_put(root, "ratio90", r->spread ? json_incref(spread) : json_null());
    app_put(root, "overlap", overlap);
    app_put(root, "full", full);
    app_put(root, "changes_allowed", json_integer(r->sources));
    app_put(root, "plan", plan);
    app_put(root, "min", app_number(r->least));
    app_put(root, "sum", app_number(r->sum));
    json_decref(spread);
    return root;
}

static fv_status print(const layer_reuse *r)
{
    static const bool left[4] = {false, false, true, false};
    app_table table = {.columns = 4, .left = left};

    app_table_cell(&table, "LAYER");
    app_table_cell(&table, "CHUNKS FOR 90 %%");
    app_table_cell(&table, "READS");
    app_table_cell(&table, "OVERLAP");
    for (int64_t l = 0; l < r->layers; l++) {
        int64_t source = r->plan[l];
        bool window = r->spread && isnan(r->spread[l]);
        app_table_cell(&table, "%lld", (long long)l);
        app_table_cell(&table, r->spread && !window ? "%.1f %%" : "-", r->spread ? 100 * r->spread[l] : 0);
        if (source >= 0)
            app_table_cell(&table, "what layer %lld chose", (long long)source);
        else
            app_table_cell(&table, "%s", window ? "its own window" : r->full[l] ? "everything" : "its own choice");
        app_table_cell(&table, source >= 0 ? "%.2f" : "-", source >= 0 ? r->overlap[source * r->layers + l] : 0);
    }
    FV_TRY(app_table_print(&table, stdout));
    printf("\nAt most %lld layers choose or read everything; the least overlap is %.3f, all together (1 for those) "
           "%.3f.\n",
           (long long)r->sources, r->least, r->sum);
    return FV_OK;
}

static const char *two_digits(double value)
{
    return app_words("%.2f", value);
}

static void write_page(fv_text *out, const layer_reuse *r)
{
    double *value = NULL;

    if (out->status == FV_OK) out->status = FV_ALLOC(value, r->layers * r->layers);
    if (out->status != FV_OK) return;
    for (int64_t n = 0; n < r->layers * r->layers; n++)
        value[n] = n / r->layers < n % r->layers ? r->overlap[n] : NAN;
    fv_text_printf(out,
                   "<h2>Which layers choose alike</h2><p><code>hylra</code>: at most %lld layers choose or read "
                   "everything; the least overlap of a plan is %.3f.</p><div class=\"grid\">\n",
                   (long long)r->sources, r->least);
    heat_draw(out, &(heat_map){.title = "Overlap",
                               .help = "how much of a layer's best chunks the best ones of a layer below hold",
                               .row = "layer below",
                               .column = "layer",
                               .axes = "who reads across, whose choice down",
                               .rows = r->layers,
                               .columns = r->layers,
                               .value = value,
                               .words = two_digits});
    fv_text_printf(out, "</div>\n");
    fv_free(value);
}

/* ---- the probe --------------------------------------------------------------------------------------------------- */

static fv_status measure(const probe_task *task, const struct hylra *o, layer_reuse_task *reuse, layer_reuse *result)
{
    int64_t most = o->tokens > 0 ? fv_min(o->tokens, task->info->context) : task->info->context;
    app_prompt prompt;
    fv_status status;

    FV_TRY(app_prompt_make(task->model, task->file, NULL, true, &prompt));
    reuse->ids = prompt.ids;
    reuse->count = fv_min(prompt.count, most);
    if (reuse->count <= o->steps)
        status = fv_fail(FV_E_SHAPE, "%s: %lld tokens are too few to look at the last %lld", task->file,
                         (long long)reuse->count, (long long)o->steps);
    else
        status = layer_reuse_measure(task->app, reuse, result);
    app_prompt_free(&prompt);
    return status;
}

static fv_status run(const probe_task *task, const void *values, json_t **object)
{
    const struct hylra *o = values;
    layer_reuse_task reuse = {.model = task->model,
                              .info = task->info,
                              .steps = o->steps,
                              .chunk = o->chunk,
                              .keep = o->keep,
                              .sink = o->sink,
                              .recent = o->recent,
                              .sparsity = o->sparsity,
                              .change = o->change,
                              .changes = o->changes,
                              .merge_mean = o->merge == MERGE_MEAN,
                              .full_as_source = o->full_as_source,
                              .precision = task->precision};
    layer_reuse result = {0};
    fv_status status =
        alone(o) ? layer_reuse_from(o->overlap, &o->rollback, &reuse, &result) : measure(task, o, &reuse, &result);

    if (status == FV_OK && o->out[0]) status = layer_reuse_write(&result, &reuse, o->out);
    if (status == FV_OK && task->page) write_page(task->page, &result);
    if (status == FV_OK && object) *object = object_of(&result);
    if (status == FV_OK && !object) status = print(&result);
    layer_reuse_free(&result);
    return status;
}

static const fv_probe what = {
    .name = "hylra",
    .title = "Which layers choose alike (HyLRA)",
    .paper = "arXiv 2602.00777",
    .sheet = 47,
    .finds = "the share of chunks that hold 90 % of a layer's attention in single steps, how much of one layer's best "
             "chunks another one's hold, and a plan: who reads everything, who chooses, who reads what a layer below "
             "chose, with the largest least overlap",
    .cost = "one reading of the text, and steps tokens fed one at a time",
    .options = options,
    .options_size = sizeof(struct hylra),
    .check = check,
};

const app_probe probe_hylra = {.what = &what, .alone = alone, .run = run};

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

struct values {
    probe_values probe;
    struct hylra options;
};

const cli_verb verb_inspect_hylra = {
    .name = "inspect hylra",
    .summary = "which layers attend to the same chunks of a text, as a plan for hylra",
    .about =
        "Reads a text, and looks at the attention of its last tokens, fed one at a time: how many chunks hold 90 % of "
        "a layer's attention, and how far layers would choose the same ones. Those most spread read everything; for "
        "the others a plan says who chooses and who reads what a layer below chose.",
    .example = "  fovea inspect hylra -m model.gguf -f book.txt --out plan.json\n"
               "  fovea run -m model.gguf -f other.txt -p Who --cache hylra:plan=plan.json\n",
    .flags = probe_flags,
    .options = options,
    .options_offset = offsetof(struct values, options),
    .size = sizeof(struct values),
    .run = probe_run,
};
