/* Between the files of the framework, and for those who look at a call's pairs. */
#ifndef FV_ATTENTION_INTERNAL_H
#define FV_ATTENTION_INTERNAL_H

#include "attention/mechanism.h"

struct fv_attention {
    const fv_mechanism *mechanism;
    void *options;
};

int64_t fv_call_state_width(const fv_mechanism *mechanism, const fv_call *call);

/* The plan of a mechanism that has one, and what goes with it into attend. */
fv_status fv_call_plan(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_plan *plan,
                       fv_attend_args *attend);

/* Whether it is a token of a model that is decoded over all keys. */
bool fv_call_reads_all(const fv_mechanism *mechanism, const fv_call *call);

/* The pairs of a call, from scratch memory.  FV_E_USAGE where the mechanism has no such set. */
fv_status fv_call_pairs(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_pairs *pairs);

/* What row i of a set of pairs reads, for a head of `heads` query heads: row[key], not zero where the pair is there. */
void fv_pairs_row(const fv_pairs *pairs, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t keys, uint8_t *row);
/* The query that row i stands for. */
int64_t fv_pairs_query(const fv_pairs *pairs, int64_t b, int64_t h, int64_t i);

/* Pairs that dense attention with the same causality has. */
double fv_call_dense_pairs(const fv_call *call);

/* Work of a call, with the pairs that it counted itself, if it did; scratch memory. */
fv_status fv_call_measure(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, const double *counted,
                          fv_work *work);

#endif
