/* Calls of layers beside their naive definitions (sheets/layers.h): tensors by name, the library's arguments, and the
 * definition's results. */
#ifndef FV_LAYER_TRIAL_H
#define FV_LAYER_TRIAL_H

#include "layers/layer.h"
#include "sheets/layers.h"
#include "support/support.h"
#include "support/trial.h"

/* The calls that the conformance suite makes: "x=2x5x8 mask=2x5x3<2" draws tensors, whole numbers below 2. */
typedef struct layer_case {
    const char *spec, *tensors;
} layer_case;
extern const layer_case layer_cases[]; /* ends with a NULL spec */

enum { LAYER_SLOTS = 2 * FV_LAYER_TENSORS, LAYER_CHOICES = 4096 };

struct layer_trial {
    char what[512];
    fv_ctx *ctx;
    fv_layer *layer;
    const fv_layer_type *type;
    fv_named_tensor input[FV_LAYER_TENSORS], param[FV_LAYER_TENSORS], output[FV_LAYER_TENSORS];
    fv_layer_args args;
    char names[LAYER_SLOTS][32];
    layer_sheet_call sheet;
    sheet_param tensor[LAYER_SLOTS], result[FV_LAYER_TENSORS];
    sheet_option options[TRIAL_OPTIONS];
    double values[TRIAL_OPTIONS][TRIAL_VALUES];
    double tolerance;
};

/* A layer on a device, without tensors. */
struct layer_trial *layer_trial_open(const char *spec, const char *device, int threads);
void layer_trial_close(struct layer_trial *t);
/* Gives it a tensor of these numbers, or another in the place of one of its name; NULL: random ones of a size that
 * keeps products near 1, or with `below` whole ones. */
void layer_trial_give(struct layer_trial *t, const char *name, const double *data, int64_t below, int rank,
                      const int64_t *dims);
#define LAYER_DIMS(...)                                                                                                \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[])                                       \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }
/* The numbers of a tensor that was given, for the definition and, once they are taken over, for the library. */
double *layer_trial_data(struct layer_trial *t, const char *name);
void layer_trial_take_over(struct layer_trial *t);
/* Makes them 0. */
void layer_trial_zero(struct layer_trial *t, const char *name);
/* Tensors of a case, drawn so often that no choice hangs on less than f32 rounds. */
void layer_trial_draw(struct layer_trial *t, const char *tensors);

/* Such a layer on the CPU, drawn and computed. */
struct layer_trial *layer_trial_drawn(const char *spec, const char *tensors);

/* Makes room for outputs and computes the definition. */
void layer_trial_define(struct layer_trial *t);
/* The same, and the library's outputs, which must be equal. */
void layer_trial_forward(struct layer_trial *t);
/* Number n of an output of f32, as the library computed it. */
double layer_trial_at(const struct layer_trial *t, int output, int64_t n);

#endif
