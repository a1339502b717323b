/* What a layer is.  A descriptor has tables of what it reads and writes, and one function that composes mechanisms and
 * primitives; the framework (layer.c) checks calls against the tables and derives the backward pass from the tape. */
#ifndef FV_LAYER_H
#define FV_LAYER_H

#include "attention/mechanism.h"
#include "fovea/layer.h"

/* What it is good for, and the kind it is listed under. */
typedef enum fv_layer_kind {
    FV_KIND_LAYER = 0, /* a block with weights */
    FV_KIND_OPERATOR,  /* a step of one, without weights */
    FV_KIND_REDUCER,   /* fewer tokens come out */
    FV_KIND_STEER,     /* changes what a generating model's attention looks at */
    FV_KIND_PROBE,     /* measures */
    FV_KIND_POLICY,    /* decides */
} fv_layer_kind;

enum {
    FV_LAYER_DIFFERENTIABLE = 1 << 0, /* checked by the conformance suite */
};

enum { FV_LAYER_TENSORS = 32 }; /* most entries of a table */

/* A call as layers see it: checked.  Tensors stand in the order of the tables; absent ones have no data, f32 ones are
 * contiguous. */
typedef struct fv_layer_call {
    const struct fv_layer_type *type;
    const void *options;
    fv_tensor in[FV_LAYER_TENSORS], param[FV_LAYER_TENSORS], out[FV_LAYER_TENSORS];
    fv_named_sizes sizes;
    fv_text *plan; /* of a policy: takes what it decides as a layer plan SPEC; NULL: nobody asks */
} fv_layer_call;

typedef struct fv_layer_type {
    const char *name, *title, *paper; /* paper: "arXiv 2105.14039" */
    int sheet;
    fv_layer_kind kind;
    unsigned traits;
    const char *formula, *cost; /* plain text */
    const fv_option *options;
    size_t options_size;
    /* End with a NULL name.  Names in shapes stand for one size throughout a call, inputs first. */
    const fv_param *inputs, *params, *outputs;

    /* Refuses options that contradict one another (FV_E_USAGE); once, when the SPEC is read. */
    fv_status (*check)(const void *options);
    /* Sizes of names that options fix, alone or with sizes of the call (fv_size_of); -1: another name. */
    int64_t (*size)(const fv_layer_call *call, const char *name);
    /* Refuses shapes (FV_E_SHAPE) that fit their texts, and tensors that need one another (FV_E_USAGE). */
    fv_status (*accept)(const fv_layer_call *call);
    /* Computes call->out, those that are present. */
    fv_status (*forward)(fv_ctx *ctx, const fv_layer_call *call);
} fv_layer_type;

/* Every layer, NULL-ended (registry.c). */
extern const fv_layer_type *const fv_layer_types[];
const fv_layer_type *fv_layer_type_find(const char *name); /* NULL: none */

const fv_layer_type *fv_layer_type_of(const fv_layer *layer);
/* Checks names alone, before any tensor is there: unknown ones, and missing ones that are needed; not those of params
 * if more of them will come.  FV_E_USAGE. */
fv_status fv_layer_names(const fv_layer *layer, const fv_layer_args *args, bool more_params);
/* fv_layer_forward; `plan` takes the layer plan that a policy decides on (others leave it empty). */
fv_status fv_layer_decide(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args, fv_text *plan);

/* ---- steps that layers share (steps.c) --------------------------------------------------------------------------- */

/* Refuses heads that do not divide channels, a size of the call by its name; and heads of keys (Hkv) that do not divide
 * those of queries (H).  FV_E_SHAPE. */
fv_status fv_layer_check_heads(const fv_layer_call *call, int64_t heads, const char *channels);
fv_status fv_layer_check_groups(const fv_layer_call *call);

/* out [..,n] = x [..,k] weight^T + bias; x contiguous.  A bias may be absent; an `out` without data is made, in scratch
 * memory. */
fv_status fv_layer_linear(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                          fv_tensor *out);
/* Layer norm over the last dim, in scratch memory; weight and bias may be absent. */
fv_status fv_layer_norm(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias, float epsilon,
                        fv_tensor *out);
/* An elementwise function of x alone, or of x and y of one shape.  x is not read any more: where no tape records, *out
 * takes its memory. */
fv_status fv_layer_map(fv_ctx *ctx, fv_map op, const fv_tensor *x, const fv_tensor *y, fv_tensor *out);
/* x [..,N,H*D], contiguous, as [B,H,N,D], leading dims as one. */
fv_tensor fv_layer_heads(const fv_tensor *x, int64_t heads);
/* The heads of x weight^T + bias, in scratch memory; x contiguous, a bias may be absent or NULL. */
fv_status fv_layer_project(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                           int64_t heads, fv_tensor *out);
/* A mechanism by its SPEC. */
fv_status fv_layer_attend(fv_ctx *ctx, const fv_attention_args *args, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Layer norms are of this epsilon unless a definition says otherwise. */
#define FV_LAYER_EPSILON 1e-6f

#endif
