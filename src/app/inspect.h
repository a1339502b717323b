/* What the probes of fovea inspect share. */
#ifndef APP_INSPECT_H
#define APP_INSPECT_H

#include "app/prompt.h"

typedef fv_status inspect_fn(struct app *app, const void *values, fv_model *model, const fv_model_info *info);
typedef struct inspect_task {
    const char *model, *out; /* out: a file to be written, NULL: none; tried before the work begins */
    fv_precision precision;
    inspect_fn *work;
} inspect_task;

/* Opens the model, and works. */
fv_status inspect_with_model(struct app *app, const inspect_task *task, const void *values);

#endif
