/* Probes: what fovea inspect finds out about a model, or about tensors, by name. */
#ifndef APP_PROBES_H
#define APP_PROBES_H

#include "app/prompt.h"
#include "base/options.h"

typedef struct probe_task {
    struct app *app;
    const fv_model *model; /* NULL for a probe that needs none */
    const fv_model_info *info;
    const char *file; /* the text */
    fv_precision precision;
} probe_task;

typedef struct app_probe {
    const char *name, *title, *paper;
    int sheet;
    const char *finds, *cost; /* plain text */
    const fv_option *options;
    size_t options_size;

    /* Refuses options that contradict one another, and files that cannot be written; before any work. */
    fv_status (*check)(const void *options);
    /* Whether these options need neither a model nor a text; NULL: they always do. */
    bool (*alone)(const void *options);
    /* Finds it: as an object, or as words on standard output where `object` is NULL. */
    fv_status (*run)(const probe_task *task, const void *options, json_t **object);
} app_probe;

/* Every probe, NULL-ended (verb_inspect.c). */
extern const app_probe *const app_probes[];

/* Verbs of one probe each: their values begin with these, their options are the probe's. */
typedef struct probe_values {
    cli_common common;
    const char *model, *file;
    int precision;
} probe_values;

extern const cli_flag probe_flags[];
fv_status probe_run(struct app *app, const void *values);

#endif
