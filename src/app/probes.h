/* Probes: what fovea inspect finds out about a model, or about tensors, by name. */
#ifndef APP_PROBES_H
#define APP_PROBES_H

#include "app/prompt.h"
#include "hooks/probe.h"

typedef struct probe_task {
    struct app *app;
    const fv_model *model; /* NULL for a probe that needs none */
    const fv_model_info *info;
    const char *file; /* the text */
    fv_precision precision;
    fv_text *page; /* a report, to which a section is added; NULL: none is wanted */
} probe_task;

/* Those that listen to a reading of the text (hooks/probe.h), which all of a command share, have nothing but `what`. */
typedef struct app_probe {
    const fv_probe *what;
    /* Whether these options need neither a model nor a text; NULL: they always do. */
    bool (*alone)(const void *options);
    /* Finds it: as an object, or as words on standard output where `object` is NULL. */
    fv_status (*run)(const probe_task *task, const void *options, json_t **object);
} app_probe;

/* Every probe in turn; false behind the last (verb_inspect.c). */
bool app_probe_at(int index, app_probe *probe);

/* Verbs of one probe each: their values begin with these, their options are the probe's. */
typedef struct probe_values {
    cli_common common;
    const char *model, *file, *report;
    int precision;
} probe_values;

extern const cli_flag probe_flags[];
fv_status probe_run(struct app *app, const void *values);

#endif
