/* fovea show NAME --plan: a mechanism's pairs to look at. */
#ifndef APP_SHOW_PLAN_H
#define APP_SHOW_PLAN_H

#include "app/app.h"

struct show_values {
    cli_common common;
    bool plan;
    int64_t size, layer, head;
    const char *svg, *png, *model, *file;
};

fv_status show_plan(struct app *app, const struct show_values *values);

#endif
