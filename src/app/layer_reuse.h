/* HyLRA's probe (arXiv 2602.00777): how spread each layer's attention is over chunks of the text, and how far layers
 * choose the same chunks; and the plan made of it. */
#ifndef APP_LAYER_REUSE_H
#define APP_LAYER_REUSE_H

#include "app/prompt.h"
#include "base/options.h"

typedef struct layer_reuse_task {
    const fv_model *model;
    const fv_model_info *info;
    const int32_t *ids; /* a text: the first count - steps tokens are read, the rest fed one at a time */
    int64_t count, steps;
    int64_t chunk, keep, sink, recent; /* tokens */
    double sparsity, change;
    int64_t changes;     /* sources at most; 0: as sparsity and change say */
    bool merge_mean;     /* overlaps of heads: their mean, not the least of them */
    bool full_as_source; /* layers that read everything may be read from */
    fv_precision precision;
} layer_reuse_task;

typedef struct layer_reuse {
    int64_t layers;
    double *spread;  /* [layers]: share of chunks that hold 90 % of the attention; NAN where a window is read; NULL: not
                        measured */
    double *overlap; /* [layers, layers] */
    bool *full;      /* [layers]: reads everything */
    int64_t *plan;   /* [layers]: -1 or the layer whose chunks are read */
    int64_t sources; /* at most */
    double least, sum; /* of the plan's gains: overlaps of what is read, 1 for a source */
} layer_reuse;

/* FV_E_SHAPE: the text is shorter than what would be kept of it. */
fv_status layer_reuse_measure(struct app *app, const layer_reuse_task *task, layer_reuse *result);

/* The same from overlaps in a file [layers, layers], for layers that read everything: of the task only the choice of a
 * plan counts.  FV_E_SHAPE, FV_E_FORMAT, FV_E_USAGE: no such layer. */
fv_status layer_reuse_from(const char *path, const fv_list *full, const layer_reuse_task *task, layer_reuse *result);

void layer_reuse_free(layer_reuse *result);
/* The plan file; of a text, with the model's name and what was looked at. */
fv_status layer_reuse_write(const layer_reuse *result, const layer_reuse_task *task, const char *path);

#endif
