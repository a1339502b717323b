/* The naive definition of each layer: plain loops, double precision, nothing shared with src/ (as sheets.h for
 * mechanisms).  tests/layers holds the library against these. */
#ifndef FV_LAYER_SHEETS_H
#define FV_LAYER_SHEETS_H

#include "sheets/sheets.h"

/* One call: inputs and params under their names, absent ones left out. */
typedef struct layer_sheet_call {
    int options;
    const sheet_option *option;
    int tensors;
    const sheet_param *tensor;
    int outputs;
    const sheet_param *output; /* name, shape, and data, which is written */

    int64_t *selection; /* what was chosen, as ids in an order of its own: written, or read if it is frozen */
    bool frozen;
} layer_sheet_call;

typedef struct layer_sheet {
    const char *name;
    void (*forward)(layer_sheet_call *call);
} layer_sheet;

/* clang-format off */
#define LAYER_SHEETS(add) \
    add(hcam) \
    add(tab) \
    add(mlpmix) \
    add(fixedmap) \
    add(staticqk) \
    add(lepe) \
    add(na_qk) \
    add(na_av) \
    add(fit_read) \
    add(fit_write) \
    add(logit_growth) \
    add(attn_indicators) \
    add(attn_influence) \
    add(stm_dpc) \
    add(tile_search) \
    add(cross_override) \

#define DECLARE_LAYER_SHEET(name) extern const layer_sheet layer_sheet_##name;
/* clang-format on */

LAYER_SHEETS(DECLARE_LAYER_SHEET)

const layer_sheet *layer_sheet_find(const char *name); /* NULL: none */

/* ---- what they share --------------------------------------------------------------------------------------------- */

double layer_number(const layer_sheet_call *call, const char *name, int index, double otherwise);
int64_t layer_integer(const layer_sheet_call *call, const char *name, int index, int64_t otherwise);
const sheet_param *layer_tensor(const layer_sheet_call *call, const char *name); /* NULL: absent */
double *layer_output(const layer_sheet_call *call, const char *name);            /* NULL: not wanted */

/* y [n] = W x + b: the named weight [n,k] and bias [n] (absent or NULL: 0). */
void layer_linear(const layer_sheet_call *call, const char *weight, const char *bias, const double *x, double *y);
/* y [n] = the layer norm of x with the named weight (absent: 1) and bias (absent: 0). */
void layer_norm(const layer_sheet_call *call, const char *weight, const char *bias, double epsilon, int64_t n,
                const double *x, double *y);
double layer_gelu(double x);

#endif
