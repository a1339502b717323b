/* What policies that act on every step share: exact sums of attention weights by row, the rows a step reads, and a
 * query's weights. */
#ifndef FV_SELECTION_H
#define FV_SELECTION_H

#include "cache/policy.h"

/* ---- sums of weights by row ------------------------------------------------------------------------------------- */

/* Sums in units of 2^-38: additions and subtractions are exact, so that a sum does not depend on their order, and rows
 * that nobody has looked at are equal, not nearly so.  Good for 2^25 queries. */
typedef struct fv_row_sums {
    int64_t *sum;
    int64_t count, room;
} fv_row_sums;

/* Rows up to `count` are there; new ones have 0.  FV_E_MEMORY. */
fv_status fv_row_sums_grow(fv_row_sums *sums, int64_t count);
void fv_row_sums_free(fv_row_sums *sums);
/* Adds (or takes away) weights of rows from `row` on.  What is not a number counts as 0. */
void fv_row_sums_add(fv_row_sums *sums, int64_t row, const float *weight, int64_t count);
void fv_row_sums_subtract(fv_row_sums *sums, int64_t row, const float *weight, int64_t count);
static inline float fv_row_sum(const fv_row_sums *sums, int64_t row)
{
    return (float)sums->sum[row];
}

/* out[j] = sum of weight[h][j] over `heads` heads that lie `apart` floats apart: heads in order, in doubles. */
void fv_sum_heads(const float *weight, int64_t heads, int64_t apart, int64_t count, float *out);

/* ---- the rows a step reads -------------------------------------------------------------------------------------- */

/* Places of rows, ascending: one list for all key-value heads, or one for each; or everything (lists 0).  Where all
 * rows are held a place is a position.  Lists are of rows, or of blocks of rows that all lists share. */
typedef struct fv_chosen {
    int64_t lists;
    int32_t *place;
    int64_t *start; /* [lists + 1] into place */
    int64_t blocks; /* 0: lists are of rows */
    int64_t *edge;  /* [blocks + 1]: block b holds the rows edge[b] .. edge[b+1]-1 */
    int32_t *entry; /* blocks of each list */
    int64_t *first; /* [lists + 1] into entry */
    int64_t place_room, start_room, edge_room, entry_room, first_room;
} fv_chosen;

void fv_chosen_free(fv_chosen *chosen);
size_t fv_chosen_bytes(const fv_chosen *chosen);
static inline void fv_chosen_all(fv_chosen *chosen)
{
    chosen->lists = 0;
}

/* Starts anew, with room for `lists` lists of at most `most` places; then lists are filled one after the other.
 * FV_E_MEMORY: everything is read. */
fv_status fv_chosen_begin(fv_chosen *chosen, int64_t lists, int64_t most);
/* The same for lists of at most `most` of `blocks` blocks, whose edges the caller writes before it adds any. */
fv_status fv_chosen_begin_blocks(fv_chosen *chosen, int64_t lists, int64_t blocks, int64_t most);
void fv_chosen_next(fv_chosen *chosen);                              /* the next list */
void fv_chosen_add(fv_chosen *chosen, int64_t place, int64_t count); /* to the last one */
fv_status fv_chosen_add_block(fv_chosen *chosen, int64_t block);     /* FV_E_MEMORY */

/* The list of a key-value head; NULL: everything. */
const int32_t *fv_chosen_list(const fv_chosen *chosen, int64_t head, int64_t *count);

/* Says in a plan of `keys` keys what one query reads. */
void fv_chosen_plan(const fv_chosen *chosen, int64_t keys, fv_plan *plan);

/* Attends as args says (its plan holds the lists), one query of all heads, to the rows chosen.  Rows, and
 * blocks of few, are gathered first, since they cost more to ask for one by one; then `keys` (or NULL) receives the
 * gathered keys, [1,Hkv,count,D], if all lists are of one length (else it is absent); scratch memory.  Where args->k
 * and v are absent, lists are of rows, and some of those are cold. */
fv_status fv_chosen_read(fv_ctx *ctx, const fv_chosen *chosen, fv_rows *rows, const fv_attend_args *args,
                         fv_tensor *keys);
/* Begins to read those of the rows chosen that lie in a file and are cold; lists of one length. */
void fv_chosen_ahead(fv_ctx *ctx, const fv_chosen *chosen, fv_rows *rows);

/* ---- weights ----------------------------------------------------------------------------------------------------- */

/* weight [1,H,N,M], in scratch memory: softmax of the logits of q [1,H,N,D] over k [1,Hkv,M,D], in f32 whatever the
 * context's precision.  Query i sees the first `first` + i keys, at most M. */
fv_status fv_query_weights(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, const fv_logits *logits, int64_t first,
                           fv_tensor *weight);

/* sums [1,H,..,M], in scratch memory: what the queries of a call give each row that `heads` key-value heads from `head`
 * on hold (they are alike), the call's own rows included.  call->lse is needed. */
fv_status fv_call_weights(fv_ctx *ctx, fv_rows *rows, const fv_policy_call *call, int64_t head, int64_t heads,
                          fv_tensor *sums);

#endif
