/* SPECs: `name:option=value,option=value`, and layer plans `0-3,29/dense;rest/nsa:top=16`. */
#ifndef FV_SPEC_H
#define FV_SPEC_H

#include "base/status.h"

enum { FV_SPEC_OPTIONS = 48, FV_SPEC_TEXT = 4096 };

typedef struct fv_assignment {
    const char *name, *value; /* into the spec's own text */
} fv_assignment;

typedef struct fv_spec {
    char text[FV_SPEC_TEXT]; /* cut into words */
    int name;                /* offsets into text */
    int count;
    struct {
        int name, value;
    } at[FV_SPEC_OPTIONS];
} fv_spec;

/* FV_E_USAGE for an empty name, a missing '=', a repeated option, odd characters, or too long a text. */
fv_status fv_spec_parse(fv_spec *spec, const char *text);
const char *fv_spec_name(const fv_spec *spec);
fv_assignment fv_spec_option(const fv_spec *spec, int index);

/* Which SPEC each layer has.  A bare SPEC is a plan of one part that covers the layers asked for (see `bare`). */
typedef struct fv_layer_plan {
    bool bare; /* a SPEC without ranges */
    int parts;
    fv_spec *specs;  /* [parts] */
    int *layer_part; /* [layers], -1: not named */
    int layers;
} fv_layer_plan;

/* Parses a SPEC or a layer plan for a model of `layers` layers.  FV_E_USAGE: a range outside 0..layers-1, a layer
 * named twice, `rest` not last or twice, or a bad SPEC; FV_E_MEMORY. */
fv_status fv_layer_plan_parse(fv_layer_plan *plan, const char *text, int layers);
void fv_layer_plan_free(fv_layer_plan *plan);
const fv_spec *fv_layer_plan_at(const fv_layer_plan *plan, int layer); /* NULL: not named */

#endif
