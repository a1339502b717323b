/* fovea inspect: probes by name. */
#include <string.h>

#include "app/flags.h"
#include "app/inspect.h"
#include "app/listen.h"
#include "app/page.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "models/session.h"

extern const app_probe probe_hylra, probe_influence;

static const app_probe *const own[] = {&probe_hylra, &probe_influence};
enum { OWN = sizeof own / sizeof *own };

bool app_probe_at(int index, app_probe *probe)
{
    *probe = index < OWN ? *own[index] : (app_probe){.what = fv_probes[index - OWN]};
    return probe->what != NULL;
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

/* ---- probes that were asked for ---------------------------------------------------------------------------------- */

/* A probe with its options, which are freed if they are its own. */
struct asked {
    app_probe probe;
    const void *options;
    void *own;
    fv_probing *probing; /* of a probe that listens */
};

struct job {
    struct app *app;
    const char *model, *file, *report;
    fv_precision precision;
    int count, listening;
    struct asked *asked;
    fv_probing *probing; /* [listening] */
    app_prompt prompt;   /* that those read */
    fv_text page;
};

static bool is_alone(const struct asked *asked)
{
    return asked->probe.alone && asked->probe.alone(asked->options);
}

static fv_status check(struct job *job)
{
    for (int n = 0; n < job->count; n++) {
        const struct asked *asked = &job->asked[n];
        const fv_probe *what = asked->probe.what;
        if (what->check) FV_TRY(what->check(asked->options));
        if (!asked->probe.run) {
            const char *out = ((const fv_probe_common *)asked->options)->out;
            FV_TRY(app_file_try(*out ? out : NULL));
            job->listening++;
        }
        if (is_alone(asked)) continue;
        if (!job->model) return fv_fail(FV_E_USAGE, "-m MODEL is missing: probe '%s' looks into one", what->name);
        if (!job->file) return fv_fail(FV_E_USAGE, "-f FILE is missing: probe '%s' reads a text", what->name);
    }
    return app_file_try(job->report);
}

/* What those found who listen to one reading of the text. */
static fv_status listen_all(struct job *job, const probe_task *task)
{
    int place = 0;

    if (job->listening == 0) return FV_OK;
    FV_TRY(FV_ZALLOC(job->probing, job->listening));
    for (int n = 0; n < job->count; n++) {
        struct asked *asked = &job->asked[n];
        if (asked->probe.run) continue;
        asked->probing = &job->probing[place++];
        asked->probing->probe = asked->probe.what;
        asked->probing->options = asked->options;
    }
    FV_TRY(app_prompt_make(task->model, task->file, NULL, true, &job->prompt));
    return listen_read(task, job->probing, job->listening, &job->prompt);
}

static fv_status tell(const struct job *job, const struct asked *asked, const probe_task *task, json_t **object)
{
    if (!asked->probing) return asked->probe.run(task, asked->options, object);
    FV_TRY(listen_write(asked->probing));
    if (task->page) listen_page(task->page, task, asked->probing, &job->prompt);
    if (!object) return listen_print(task, asked->probing, &job->prompt);
    *object = listen_object(task, asked->probing, &job->prompt);
    return FV_OK;
}

static fv_status tell_one(const struct job *job, const struct asked *asked, const probe_task *task, json_t *found)
{
    json_t *object = NULL;

    if (job->count > 1 && !found) printf("%s%s\n\n", asked == job->asked ? "" : "\n", asked->probe.what->name);
    FV_TRY(tell(job, asked, task, found ? &object : NULL));
    if (found) app_append(found, object);
    return FV_OK;
}

/* One probe's object stands by itself. */
static fv_status print_json(json_t *found)
{
    json_t *root;

    if (json_array_size(found) == 1) {
        root = json_incref(json_array_get(found, 0));
        json_decref(found);
    } else {
        root = json_object();
        app_put(root, "probes", found);
    }
    return app_json_print(root);
}

static void escape(fv_text *out, const char *words)
{
    page_escape(out, words, strlen(words));
}

/* "Layers 0 to 4, 6 to 10 have a window of their own, of 512 tokens." */
static void write_windows(fv_text *out, const fv_model *model)
{
    int64_t layers = model->sizes.layers, end;
    bool any = false;

    for (int64_t l = 0; l < layers; l = end) {
        for (end = l + 1; end < layers && model->layers[end].window == model->layers[l].window;)
            end++;
        if (model->layers[l].window == 0) continue;
        fv_text_printf(out, any ? ", " : " Layers ");
        fv_text_printf(out, end > l + 1 ? "%lld to %lld" : "%lld", (long long)l, (long long)end - 1);
        any = true;
    }
    if (any) fv_text_printf(out, " have a window of their own, of %lld tokens.", (long long)model->sizes.window);
}

static void begin_page(struct job *job, const fv_model *model, const fv_model_info *info)
{
    fv_text *out = &job->page;
    const char *slash = job->file ? strrchr(job->file, '/') : NULL;

    page_begin(out, "fovea inspect");
    if (!model) {
        fv_text_printf(out, "<h1>Probes</h1><p>fovea %s.</p>\n", fv_version());
        return;
    }
    fv_text_printf(out, "<h1>");
    escape(out, *info->name ? info->name : job->model);
    fv_text_printf(out, " reads ");
    escape(out, slash ? slash + 1 : job->file);
    fv_text_printf(out, "</h1>\n<p>%lld layers, %lld query and %lld key-value heads.", (long long)info->layers,
                   (long long)info->query_heads, (long long)info->key_heads);
    write_windows(out, model);
    fv_text_printf(out,
                   " In a map each row is a layer, the first on top, and each column a head; the numbers are under "
                   "the pointer. %s, fovea %s.</p>\n",
                   fv_ctx_backend(job->app->ctx), fv_version());
}

static fv_status run_all(struct job *job)
{
    json_t *found = job->app->common->json ? json_array() : NULL;
    fv_model *model = NULL;
    fv_model_info info = {0};
    probe_task task = {
        .app = job->app, .precision = job->precision, .page = job->report ? &job->page : NULL, .file = job->file};
    fv_status status = FV_OK;
    bool any = false;

    for (int n = 0; n < job->count; n++)
        any |= !is_alone(&job->asked[n]);
    if (any) status = app_model_open(job->model, &model, &info);
    task.model = model;
    task.info = &info;
    if (status == FV_OK) status = listen_all(job, &task);
    if (status == FV_OK && job->report) begin_page(job, model, &info);
    for (int n = 0; n < job->count && status == FV_OK; n++) {
        const probe_task none = {.app = job->app, .precision = job->precision, .page = task.page};
        status = tell_one(job, &job->asked[n], is_alone(&job->asked[n]) ? &none : &task, found);
    }
    fv_probing_free(job->probing, job->probing ? job->listening : 0);
    fv_model_close(model);
    if (status == FV_OK && job->report) status = page_write(&job->page, job->report);
    if (status == FV_OK && found) return print_json(found);
    json_decref(found);
    return status;
}

static fv_status run_checked(struct job *job)
{
    FV_TRY(check(job));
    FV_TRY(app_begin(job->app, job->precision));
    fv_status status = run_all(job);
    app_prompt_free(&job->prompt);
    fv_text_free(&job->page);
    fv_free(job->probing);
    return status;
}

/* ---- verbs ------------------------------------------------------------------------------------------------------- */

/* clang-format off */
#define AT(field) offsetof(probe_values, field)
#define FLAGS                                                                                                          \
    {.name = "model", .letter = 'm', .kind = CLI_FILE, .offset = AT(model), .argument = "MODEL", .group = "Input",     \
     .help = "GGUF file"},                                                                                             \
    FLAG_FILE(AT(file), false, "the text to read"), FLAG_PRECISION(AT(precision)),                                     \
    {.name = "report", .kind = CLI_FILE, .offset = AT(report), .argument = "FILE.html", .group = "Output",             \
     .help = "pictures of what was found, in one HTML file that needs nothing else"}
/* clang-format on */

const cli_flag probe_flags[] = {FLAGS, CLI_END};

static struct job job_of(struct app *app, const probe_values *values)
{
    return (struct job){.app = app,
                        .model = values->model,
                        .file = values->file,
                        .report = values->report,
                        .precision = flag_precision(values->precision)};
}

fv_status probe_run(struct app *app, const void *values)
{
    struct asked asked = {.options = (const char *)values + app->verb->options_offset};
    struct job job = job_of(app, values);

    for (int n = 0; n < OWN; n++)
        if (own[n]->what->options == app->verb->options) asked.probe = *own[n];
    job.count = 1;
    job.asked = &asked;
    return run_checked(&job);
}

struct values {
    probe_values common;
    cli_texts probes;
};

static const cli_flag flags[] = {
    FLAGS,
    {.name = "probe",
     .kind = CLI_TEXTS,
     .offset = offsetof(struct values, probes),
     .argument = "SPEC",
     .group = "What",
     .help = "a probe with its options ('fovea list probe' has their names, 'fovea show NAME' their options)"},
    CLI_END,
};

static const char *name_at(const void *user, int index)
{
    app_probe probe;

    (void)user;
    return app_probe_at(index, &probe) ? probe.what->name : NULL;
}

static fv_status read_spec(const char *text, struct asked *asked)
{
    fv_spec spec;
    app_probe probe;
    int count = 0;
    const char *near;

    FV_TRY(fv_spec_parse(&spec, text));
    for (; app_probe_at(count, &probe); count++)
        if (strcmp(probe.what->name, fv_spec_name(&spec)) == 0) asked->probe = probe;
    if (!asked->probe.what) {
        near = fv_nearest(fv_spec_name(&spec), count, name_at, NULL);
        return fv_fail(FV_E_USAGE, "probe '%s' is not known%s%s%s ('fovea list probe' has all)", fv_spec_name(&spec),
                       near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    FV_TRY(fv_zalloc(&asked->own, 1, asked->probe.what->options_size));
    asked->options = asked->own;
    return fv_options_parse(asked->probe.what->options, &spec, asked->own);
}

static fv_status read_specs(const struct values *values, struct job *job)
{
    const cli_common *common = &values->common.common;
    int count = common->operands + values->probes.count;

    if (count == 0) return cli_missing("--probe SPEC", "it says what to look at ('fovea list probe' has all)");
    FV_TRY(FV_ZALLOC(job->asked, count));
    for (; job->count < count; job->count++) {
        int n = job->count;
        FV_TRY(read_spec(n < common->operands ? common->operand[n] : values->probes.items[n - common->operands],
                         &job->asked[n]));
    }
    return FV_OK;
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    struct job job = job_of(app, &values->common);
    fv_status status = read_specs(values, &job);

    if (status == FV_OK) status = run_checked(&job);
    for (int n = 0; job.asked && n < values->common.common.operands + values->probes.count; n++)
        fv_free(job.asked[n].own);
    fv_free(job.asked);
    return status;
}

const cli_verb verb_inspect = {
    .name = "inspect",
    .summary = "what a model does inside, by probes",
    .operands = "[NAME]",
    .operands_max = 1,
    .about =
        "Runs probes: NAME is one of them, each --probe another. Those that look at attention while a text is read "
        "share "
        "one reading of it, in memory that does not grow with pairs. With --json one probe gives an object, several "
        "give {\"probes\":[objects]}.",
    .example =
        "  fovea inspect -m model.gguf -f book.txt --probe entropy --probe sink_mass --probe top_keys --report "
        "book.html\n"
        "  fovea inspect -m model.gguf -f book.txt --probe hylra:keep=1024,out=plan.json --probe attn_influence\n"
        "  fovea inspect --probe hylra:overlap=overlap.npy,rollback=0+1,changes=8 --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
