/* Layers by name: whole blocks with their weights, built on mechanisms and primitives. */
#ifndef FOVEA_LAYER_H
#define FOVEA_LAYER_H

#include "fovea/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A layer with its options set, made from a SPEC such as "hcam:chunk=16,top=4". */
typedef struct fv_layer fv_layer;

/* FV_E_USAGE for an unknown name (with the nearest one), option or value. */
FV_API fv_status fv_layer_new(const char *spec, fv_layer **layer);
FV_API void fv_layer_free(fv_layer *layer);
FV_API const char *fv_layer_name(const fv_layer *layer);

/* Tensors by the names that `fovea show` lists, in any order and of any strides: inputs and params are read, outputs
 * written.  Floats are f32; integers are what the list says.  Outputs that are not here are not computed where that
 * saves work.  A param that is left out has its default: a bias 0, a norm's weight 1. */
typedef struct fv_layer_args {
    int inputs;
    const fv_named_tensor *input;
    int params;
    const fv_named_tensor *param;
    int outputs;
    const fv_named_tensor *output;
} fv_layer_args;

/* The shape of an output for these inputs and params: a contiguous tensor without data.  Outputs of args are ignored.
 * FV_E_USAGE for an unknown or missing name, FV_E_SHAPE, FV_E_DTYPE. */
FV_API fv_status fv_layer_output(const fv_layer *layer, const fv_layer_args *args, const char *name, fv_tensor *shape);

/* Computes the outputs.  The same errors, and FV_E_USAGE if no output is asked for. */
FV_API fv_status fv_layer_forward(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args);

/* Gradients for those of outputs (read; of outputs that are left out they are 0), written to those of inputs and
 * params that are given here. */
typedef struct fv_layer_grads {
    int outputs;
    const fv_named_tensor *d_output;
    int inputs;
    const fv_named_tensor *d_input;
    int params;
    const fv_named_tensor *d_param;
} fv_layer_grads;

/* Forward (args may ask for any outputs, or none), then gradients.  FV_E_USAGE for what has none. */
FV_API fv_status fv_layer_backward(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args,
                                   const fv_layer_grads *grads);

#ifdef __cplusplus
}
#endif
#endif
