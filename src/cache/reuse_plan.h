/* HyLRA's plan (arXiv 2602.00777): which layers choose their own chunks, and which read those another one chose. */
#ifndef FV_REUSE_PLAN_H
#define FV_REUSE_PLAN_H

#include "base/status.h"

/* Each layer is its own source or keeps the source of the layer below.  overlap [layers, layers]: of i < j, the share
 * of layer j's choice that layer i's holds, 0 to 1, and 0 where either always reads everything.  A kept source gains
 * its overlap, an own choice 1; the plan's least gain is as large as can be, then (among what is kept on the way) the
 * sum of gains; with at most `most` sources.  Of equals fewer sources, then the nearer one.  plan [layers]: -1 for a
 * source, otherwise the layer whose choice is read.  FV_E_ARGUMENT (most < 1), FV_E_MEMORY. */
typedef struct fv_reuse_gains {
    double least, sum;
} fv_reuse_gains;
fv_status fv_reuse_plan(const double *overlap, int64_t layers, int64_t most, int64_t *plan, fv_reuse_gains *gains);

#endif
