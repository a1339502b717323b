/* Which keys each head of each layer read: the weights of some decode steps, summed in bins along the document. */
#ifndef APP_READS_H
#define APP_READS_H

#include "models/session.h"

enum { APP_READS_BINS = 128 };

typedef struct app_reads {
    int64_t layers, heads, keys; /* bins cover positions 0..keys-1 */
    int64_t steps;               /* decode steps seen */
    float *weight;  /* [layers, heads, BINS]: sum over steps of the probability on the bin; < 0: the bin was
                       never visible */
    bool *state;    /* [layers]: a recurrent state instead of keys */
    double seconds; /* spent looking, to be left out of timings */
} app_reads;

fv_status app_reads_new(app_reads *reads, int64_t layers, int64_t heads, int64_t keys);
void app_reads_free(app_reads *reads);

/* Looks at one attention call of a decode step (what a listener is told at FV_POINT_ATTEND). */
fv_status app_reads_look(app_reads *reads, fv_ctx *ctx, const fv_look *look);

#endif
