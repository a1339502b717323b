/* Calls of the conformance cases: random inputs, the library's arguments, and the definition's results. */
#ifndef FV_TRIAL_H
#define FV_TRIAL_H

#include "attention/mechanism.h"
#include "sheets/sheets.h"
#include "support/cases.h"
#include "support/support.h"

enum { TRIAL_PARAMS = 8, TRIAL_OPTIONS = 16, TRIAL_VALUES = 8 };

struct trial {
    const conformance_case *c;
    char what[256];
    fv_ctx *ctx;
    fv_attention *attention;
    const fv_mechanism *mechanism;
    bool decode; /* the sheet computes steps by their own rule */
    float scale;
    double sheet_scale;
    fv_attention_args args;
    fv_named_tensor param[TRIAL_PARAMS];
    char names[TRIAL_PARAMS][32];
    sheet_call sheet;
    double *q, *k, *v, *data[TRIAL_PARAMS]; /* what the sheet reads */
    sheet_param sheet_params[TRIAL_PARAMS];
    sheet_option options[TRIAL_OPTIONS];
    double values[TRIAL_OPTIONS][TRIAL_VALUES];
    double tolerance;
};

bool trial_has(const struct trial *t, unsigned trait);
/* Whether the call is causal, be it by nature, flag or option. */
bool trial_is_causal(struct trial *t);

/* Draws inputs and computes the definition, so often that no choice hangs on less than f32 rounds. */
void trial_draw(struct trial *t);
/* Computes the definition again, from what its inputs are now. */
void trial_define(struct trial *t);

/* Calls `check` for every case on every device whose SPEC begins with trial_only. */
extern const char *trial_only;
void trial_for_all(void (*check)(struct trial *t), int threads);

/* A random tensor of x's shape; the numbers of a tensor as doubles, and zeros, both to be freed. */
fv_tensor trial_like(struct trial *t, const fv_tensor *x);
double *trial_doubled(const fv_tensor *t);
void *trial_zeros(int64_t count, size_t size);

/* A sheet's view of a SPEC: numbers, and places in lists of choices.  `values` are zeros; returns how many options. */
int trial_options(const char *text, const fv_option *table, sheet_option *options, double values[][TRIAL_VALUES]);

#define CHECK_OK(t, expression)                                                                                        \
    do {                                                                                                               \
        fv_status check_status_ = (expression);                                                                        \
        if (check_status_ != FV_OK) fail_msg("%s: %s", (t)->what, fv_error());                                         \
    } while (0)

#endif
