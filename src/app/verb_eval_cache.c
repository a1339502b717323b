/* fovea eval cache: memory, speed, distance and found facts of every cache policy, over budgets. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "app/budgets.h"
#include "app/flags.h"
#include "app/frontier.h"
#include "app/needle.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "cache/policy.h"

struct values {
    cli_common common;
    const char *model, *file, *report, *only;
    cli_texts with;
    cli_ints percents, lengths, depths;
    int64_t score, context, needles;
    int precision;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), true, "the document: it is read, its end is scored, and facts are hidden in it"),
    FLAG_CONTEXT(AT(context)),
    {.name = "percent",
     .kind = CLI_INTS,
     .offset = AT(percents),
     .argument = "50,25",
     .initial = "50,25,10,5",
     .min = 1,
     .max = 100,
     .group = "What",
     .help = "budgets of each policy, in percent of the document's rows"},
    {.name = "only",
     .kind = CLI_TEXT,
     .offset = AT(only),
     .argument = "NAME,NAME",
     .help = "these policies only (otherwise all that need no plan file)"},
    {.name = "with",
     .kind = CLI_SPECS,
     .offset = AT(with),
     .argument = "SPEC",
     .help = "a further --cache SPEC, such as one with a plan file"},
    FLAG_SCORE(AT(score), "256"),
    {.name = "lengths",
     .kind = CLI_INTS,
     .offset = AT(lengths),
     .argument = "1024,4096",
     .min = 64,
     .max = 1 << 24,
     .help = "tokens of the prompts that facts are hidden in (otherwise as many as the document has)"},
    FLAG_DEPTHS(AT(depths), "10,50,90", "where facts stand, in percent of the text"),
    {.name = "needles",
     .kind = CLI_INT,
     .offset = AT(needles),
     .argument = "K",
     .initial = "1",
     .min = 1,
     .max = 20,
     .help = "facts in a text"},
    FLAG_PRECISION(AT(precision)),
    {.name = "report",
     .kind = CLI_FILE,
     .offset = AT(report),
     .argument = "FILE.html",
     .group = "Output",
     .help = "one self-contained page with the curves"},
    CLI_END,
};

/* ---- set-ups ---------------------------------------------------------------------------------------------------- */

struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    comparison result;
    app_prompt prompt;
    char **specs; /* [runs], run 0 is dense: NULL */
    int64_t room;
    frontier frontier;
    char lengths[256]; /* of needles, in words */
};

static const char *const typed[] = {"full:k=q8_0,v=q8_0", "full:k=q8_0,v=q4_0", "full:k=q4_0,v=q4_0"};
enum { TYPED = sizeof typed / sizeof *typed };

static fv_status add_spec(struct job *job, const char *spec)
{
    comparison *c = &job->result;

    if (c->runs >= job->room) return FV_OK; /* counted before */
    FV_TRY(FV_ALLOC(job->specs[c->runs], (int64_t)strlen(spec) + 1));
    strcpy(job->specs[c->runs], spec);
    c->run[c->runs].spec = c->run[c->runs].cache = job->specs[c->runs];
    c->runs++;
    return FV_OK;
}

static fv_status check_names(const char *list)
{
    char name[64];

    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',') {
        const fv_policy *policy;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, ","), at);
        FV_TRY(fv_policy_named(name, &policy));
        if (!policy->sweep && strcmp(name, "full") != 0)
            return fv_fail(FV_E_USAGE, "--only: '%s' has no budget of its own; give it by --with", name);
    }
    return FV_OK;
}

static fv_status make_setups(struct job *job, int64_t rows)
{
    const struct values *values = job->values;
    comparison *c = &job->result;

    job->room = 1 + TYPED + values->with.count;
    for (int p = 0; fv_policies[p]; p++)
        job->room += values->percents.count;
    FV_TRY(FV_ZALLOC(c->run, job->room));
    FV_TRY(FV_ZALLOC(job->specs, job->room));
    c->run[c->runs++].spec = "full";
    for (int t = 0; t < TYPED && (!values->only || budget_named(values->only, "full")); t++)
        if (c->info.head_dim % 32 == 0) FV_TRY(add_spec(job, typed[t]));
    for (int p = 0; fv_policies[p]; p++) {
        if (!fv_policies[p]->sweep || (values->only && !budget_named(values->only, fv_policies[p]->name))) continue;
        for (int i = 0; i < values->percents.count; i++) {
            char spec[BUDGET_SPEC];
            budget_policy_spec(fv_policies[p], values->percents.items[i], rows, spec);
            FV_TRY(add_spec(job, spec));
        }
    }
    for (int w = 0; w < values->with.count; w++)
        FV_TRY(add_spec(job, values->with.items[w]));
    return FV_OK;
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

static fv_status print_json(const frontier *f)
{
    json_t *root = json_object(), *rows = json_array();

    app_put(root, "model", json_string(f->comparison->model_path));
    app_put(root, "document_tokens", json_integer(f->comparison->document_tokens));
    app_put(root, "scored_tokens", json_integer(f->comparison->scored_tokens));
    app_put(root, "needle_lengths", json_string(f->lengths));
    app_put(root, "rows", rows);
    for (int r = 0; r < f->count; r++) {
        const compare_run *run = f->row[r].run;
        json_t *object = json_object();
        app_put(object, "spec", json_string(run->spec));
        app_put(object, "policy", json_string(f->row[r].policy));
        app_put(object, "kv_bytes", json_integer((json_int_t)run->kv_bytes));
        app_put(object, "peak_kv_bytes", json_integer((json_int_t)run->peak_bytes));
        app_put(object, "kv_committed_bytes", json_integer((json_int_t)run->committed_bytes));
        app_put(object, "prefill_tokens_per_second", app_number(run->prefill_rate));
        app_put(object, "decode_tokens_per_second", app_number(run->decode_rate));
        app_put(object, "density", app_number(run->density));
        app_put(object, "kl", app_number(run->kl));
        app_put(object, "top1", app_number(run->top1));
        app_put(object, "perplexity", app_number(run->perplexity));
        app_put(object, "needle", app_number(f->row[r].needle));
        app_put(object, "frontier", json_boolean(f->row[r].best));
        app_append(rows, object);
    }
    return app_json_print(root);
}

static fv_status print_table(const frontier *f)
{
    static const bool left[9] = {true};
    static const char *const heads[] = {"SET-UP", "MEMORY", "PEAK", "READ", "WRITE", "KL", "TOP-1", "PPL", "FACTS"};
    app_table table = {.columns = 9, .left = left};

    for (int i = 0; i < 9; i++)
        app_table_cell(&table, "%s", heads[i]);
    for (int r = 0; r < f->count; r++) {
        const compare_run *run = f->row[r].run;
        app_table_cell(&table, "%.70s", run->spec);
        app_table_cell(&table, "%s%s", app_bytes_text(run->kv_bytes), f->row[r].best ? "*" : " ");
        app_table_cell(&table, "%s", app_bytes_text(run->peak_bytes));
        app_table_cell(&table, "%.0f", run->prefill_rate);
        app_table_cell(&table, "%.1f", run->decode_rate);
        if (r)
            app_table_cell(&table, "%.2g%s", run->kl, f->row[r].best ? "*" : " ");
        else
            app_table_cell(&table, "- ");
        app_table_cell(&table, "%.3f", run->top1);
        app_table_cell(&table, "%.2f", run->perplexity);
        app_table_cell(&table, "%.0f %%", 100 * f->row[r].needle);
    }
    printf("\n%s, %lld tokens of document, the last %lld scored; facts in texts of %s tokens.\n",
           f->comparison->info.name, (long long)f->comparison->document_tokens, (long long)f->comparison->scored_tokens,
           f->lengths);
    printf(
        "* no other has less memory and is as close.  READ and WRITE in tokens a second; KL in nats from dense.\n\n");
    return app_table_print(&table, stdout);
}

/* ---- the verb --------------------------------------------------------------------------------------------------- */

/* Rows of one name stand together; the name is the policy's, or the whole SPEC of a layer plan. */
static fv_status name_rows(struct job *job)
{
    frontier *f = &job->frontier;
    comparison *c = &job->result;

    f->comparison = c;
    FV_TRY(FV_ZALLOC(f->row, c->runs));
    for (int r = 0; r < c->runs; r++) {
        const fv_policy *policy;
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(c->run[r].spec, ":"), c->run[r].spec);
        policy = fv_policy_find(name);
        f->row[r] = (frontier_row){.policy = policy ? policy->name : c->run[r].spec, .run = &c->run[r]};
    }
    f->count = c->runs;
    return FV_OK;
}

static fv_status find_facts(struct job *job)
{
    const struct values *values = job->values;
    comparison *c = &job->result;
    cli_ints lengths = values->lengths;
    char *text = job->lengths;
    needle_task task = {.model = job->model,
                        .info = &c->info,
                        .precision = flag_precision(values->precision),
                        .needles = values->needles,
                        .seed = (uint64_t)values->common.seed,
                        .lengths = &lengths,
                        .depths = &values->depths};
    int64_t own = fv_max(c->document_tokens, 64);
    char *document;
    size_t used = 0;
    fv_status status = FV_OK;

    if (lengths.count == 0) lengths = (cli_ints){.count = 1, .items = &own};
    for (int l = 0; l < lengths.count && used < sizeof job->lengths - 24; l++)
        used += (size_t)snprintf(text + used, sizeof job->lengths - used, "%s%lld", l ? ", " : "",
                                 (long long)lengths.items[l]);
    job->frontier.lengths = text;
    FV_TRY(app_text_read(values->file, &document, &task.text_length));
    task.text = document;
    for (int r = 0; r < c->runs && status == FV_OK; r++) {
        app_say(job->app, "facts under %s", c->run[r].spec);
        task.cache = c->run[r].cache;
        status = needle_score(job->app, &task, &job->frontier.row[r].needle);
    }
    fv_free(document);
    return status;
}

static fv_status eval_cache(struct job *job)
{
    const struct values *values = job->values;
    comparison *c = &job->result;
    compare_task task = {.prompt = &job->prompt,
                         .context = values->context,
                         .score = values->score,
                         .precision = flag_precision(values->precision)};

    FV_TRY(check_names(values->only));
    FV_TRY(app_file_try(values->report));
    FV_TRY(app_begin(job->app, task.precision));
    FV_TRY(app_model_open(values->model, &job->model, &c->info));
    task.model = job->model;
    c->model_path = values->model;
    c->file = values->file;
    FV_TRY(app_prompt_make(job->model, values->file, NULL, true, &job->prompt));
    FV_TRY(make_setups(job, job->prompt.count));
    FV_TRY(compare_all(job->app, &task, c));
    FV_TRY(name_rows(job));
    FV_TRY(find_facts(job));
    frontier_mark(&job->frontier);
    FV_TRY(values->common.json ? print_json(&job->frontier) : print_table(&job->frontier));
    if (!values->report) return FV_OK;
    FV_TRY(frontier_report(values->report, &job->frontier));
    app_say(job->app, "\nreport: %s", values->report);
    return FV_OK;
}

static fv_status run(struct app *app, const void *data)
{
    struct job job = {.app = app, .values = data};
    fv_status status = eval_cache(&job);

    for (int64_t i = 0; job.specs && i < job.room; i++)
        fv_free(job.specs[i]);
    fv_free(job.specs);
    fv_free(job.frontier.row);
    comparison_free(&job.result);
    app_prompt_free(&job.prompt);
    fv_model_close(job.model);
    return status;
}

const cli_verb verb_eval_cache = {
    .name = "eval cache",
    .summary = "what each cache policy keeps and loses, over budgets",
    .about =
        "Reads a document under every cache policy at several budgets, as 'compare' does, and asks for facts hidden "
        "in it, as 'eval needle' does: memory, speed, distance from dense, and found facts side by side. "
        "Perplexity hardly moves while facts are lost, so look at both.",
    .example = "  fovea eval cache -m model.gguf -f report.txt --report cache.html\n"
               "  fovea eval cache -m model.gguf -f report.txt --only snapkv,sinkring --percent 20,10 --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
