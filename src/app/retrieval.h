/* Retrieval heads (CompressKV, arXiv 2508.02401): which heads read a fact when the answer repeats it, and how much each
 * layer's output suffers when few rows are kept. */
#ifndef APP_RETRIEVAL_H
#define APP_RETRIEVAL_H

#include "app/needle.h"
#include "models/session.h"

typedef struct retrieval {
    int64_t layers, heads;
    int runs, counted;  /* prompts, and those whose answers named the fact */
    double *srh, *trh;  /* [layers, heads]: means over the counted runs */
    double *importance; /* [layers]: share of the error of evicting, sum 1; 0 where nothing is evicted */
} retrieval;

typedef struct retrieval_task {
    needle_task needle; /* text, lengths, depths, precision, seed */
    int64_t voters;     /* heads of a layer that vote */
    int64_t cap;        /* rows that layers keep while their error is measured */
    bool errors;        /* importance is wanted */
} retrieval_task;

fv_status retrieval_measure(struct app *app, const retrieval_task *task, retrieval *result);
void retrieval_free(retrieval *result);

/* The best `voters` heads of a layer, ties to the lower one. */
void retrieval_voters(const retrieval *result, const double *score, int64_t layer, int64_t voters, int64_t *head);

/* {"heads":[[ids]..],"importance":[..]} in a file; importance NULL: the same for all layers. */
fv_status retrieval_write(const retrieval *result, int64_t voters, const double *importance, const char *path);

#endif
