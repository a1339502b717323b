/* The terms a row of merge combines: the parts at its place, or the slots that name it. */
#ifndef FV_MERGE_H
#define FV_MERGE_H

#include "ops/ops.h"

typedef struct fv_merge_term {
    int part;
    int64_t row; /* in that part */
} fv_merge_term;

/* Rows r count over batches, heads and o's rows. */
static inline int64_t fv_merge_terms(const fv_merge_args *a, int64_t r)
{
    return a->slot ? a->slot_start[r + 1] - a->slot_start[r] : a->parts;
}

static inline fv_merge_term fv_merge_term_at(const fv_merge_args *a, int64_t r, int64_t n)
{
    int64_t row = r % a->o.dims[2];

    return a->slot ? (fv_merge_term){0, a->slot[a->slot_start[r] + n]} : (fv_merge_term){(int)n, row};
}

#endif
