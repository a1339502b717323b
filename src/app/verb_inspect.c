/* fovea inspect: probes by name. */
#include <string.h>

#include "app/flags.h"
#include "app/inspect.h"
#include "app/probes.h"
#include "app/verbs.h"
#include "base/memory.h"

extern const app_probe probe_hylra, probe_influence;

const app_probe *const app_probes[] = {&probe_hylra, &probe_influence, NULL};

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
    const app_probe *probe;
    const void *options;
    void *own;
};

struct job {
    struct app *app;
    const char *model, *file;
    fv_precision precision;
    int count;
    struct asked *asked;
};

static bool is_alone(const struct asked *asked)
{
    return asked->probe->alone && asked->probe->alone(asked->options);
}

static fv_status check(const struct job *job)
{
    for (int n = 0; n < job->count; n++) {
        const struct asked *asked = &job->asked[n];
        if (asked->probe->check) FV_TRY(asked->probe->check(asked->options));
        if (is_alone(asked)) continue;
        if (!job->model)
            return fv_fail(FV_E_USAGE, "-m MODEL is missing: probe '%s' looks into one", asked->probe->name);
        if (!job->file) return fv_fail(FV_E_USAGE, "-f FILE is missing: probe '%s' reads a text", asked->probe->name);
    }
    return FV_OK;
}

static fv_status run_one(const struct job *job, const struct asked *asked, const probe_task *task, json_t *found)
{
    json_t *object = NULL;

    if (job->count > 1 && !found) printf("%s%s\n\n", asked == job->asked ? "" : "\n", asked->probe->name);
    FV_TRY(asked->probe->run(task, asked->options, found ? &object : NULL));
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

static fv_status run_all(const struct job *job)
{
    json_t *found = job->app->common->json ? json_array() : NULL;
    fv_model *model = NULL;
    fv_model_info info;
    fv_status status = FV_OK;
    bool any = false;

    for (int n = 0; n < job->count; n++)
        any |= !is_alone(&job->asked[n]);
    if (any) status = app_model_open(job->model, &model, &info);
    for (int n = 0; n < job->count && status == FV_OK; n++) {
        bool alone = is_alone(&job->asked[n]);
        status = run_one(job, &job->asked[n],
                         &(probe_task){.app = job->app,
                                       .model = alone ? NULL : model,
                                       .info = alone ? NULL : &info,
                                       .file = alone ? NULL : job->file,
                                       .precision = job->precision},
                         found);
    }
    fv_model_close(model);
    if (status == FV_OK && found) return print_json(found);
    json_decref(found);
    return status;
}

static fv_status run_checked(const struct job *job)
{
    FV_TRY(check(job));
    FV_TRY(app_begin(job->app, job->precision));
    return run_all(job);
}

/* ---- verbs ------------------------------------------------------------------------------------------------------- */

/* clang-format off */
#define AT(field) offsetof(probe_values, field)
#define FLAGS                                                                                                          \
    {.name = "model", .letter = 'm', .kind = CLI_FILE, .offset = AT(model), .argument = "MODEL", .group = "Input",     \
     .help = "GGUF file"},                                                                                             \
    FLAG_FILE(AT(file), false, "the text to read"), FLAG_PRECISION(AT(precision))
/* clang-format on */

const cli_flag probe_flags[] = {FLAGS, CLI_END};

static struct job job_of(struct app *app, const probe_values *values)
{
    return (struct job){
        .app = app, .model = values->model, .file = values->file, .precision = flag_precision(values->precision)};
}

fv_status probe_run(struct app *app, const void *values)
{
    struct asked asked = {.options = (const char *)values + app->verb->options_offset};
    struct job job = job_of(app, values);

    for (int n = 0; app_probes[n]; n++)
        if (app_probes[n]->options == app->verb->options) asked.probe = app_probes[n];
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
    (void)user;
    return app_probes[index]->name;
}

static fv_status read_spec(const char *text, struct asked *asked)
{
    fv_spec spec;
    int count = 0;
    const char *near;

    FV_TRY(fv_spec_parse(&spec, text));
    for (; app_probes[count]; count++)
        if (strcmp(app_probes[count]->name, fv_spec_name(&spec)) == 0) asked->probe = app_probes[count];
    if (!asked->probe) {
        near = fv_nearest(fv_spec_name(&spec), count, name_at, NULL);
        return fv_fail(FV_E_USAGE, "probe '%s' is not known%s%s%s ('fovea list probe' has all)", fv_spec_name(&spec),
                       near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    FV_TRY(fv_zalloc(&asked->own, 1, asked->probe->options_size));
    asked->options = asked->own;
    return fv_options_parse(asked->probe->options, &spec, asked->own);
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
        "Runs probes, one after the other: NAME is one of them, each --probe another. With --json one probe gives an "
        "object, several give {\"probes\":[objects]}.",
    .example =
        "  fovea inspect -m model.gguf -f book.txt --probe hylra:keep=1024,out=plan.json --probe attn_influence\n"
        "  fovea inspect --probe hylra:overlap=overlap.npy,rollback=0+1,changes=8 --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
