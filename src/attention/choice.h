/* Which key blocks each query chose, and attention over them. */
#ifndef FV_CHOICE_H
#define FV_CHOICE_H

#include "attention/mechanism.h"

/* A query in block `own` = position / block reads the first `init` blocks, the `local` blocks that end with its own,
 * and those it chose among the ones between. */
typedef struct fv_choice {
    int64_t block, init, local;
    int64_t heads;   /* that choose: H, or Hkv where a group chooses together */
    fv_tensor index; /* [B,heads,N,K] i32, block - init, -1 behind the last */
} fv_choice;

/* Room for K choices of each query of a call. */
fv_status fv_choice_new(fv_ctx *ctx, const fv_call *call, int64_t chosen, fv_choice *choice);

/* Chooses the best for queries from .. from+n-1: scores [B,heads,n,blocks] f32; ties go to the lower block. */
fv_status fv_choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice, int64_t from, const fv_tensor *scores);

/* Lists of every query, in scratch memory. */
fv_status fv_choice_plan(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan);

/* Softmax attention of call->q over the chosen blocks of k and v (causal), to o [B,H,N,Dv] and lse [B,H,N] (or absent).
 * by_block: the loops are turned round.  Each key block is read once for all queries that chose it, each (query, block)
 * has a partial result of its own, and these are merged (arXiv 2508.18224).  The result is the same. */
fv_status fv_choice_attend(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, bool by_block, const fv_tensor *q,
                           const fv_tensor *k, const fv_tensor *o, const fv_tensor *lse);

#endif
