/* Building the lists of a plan, block by block. */
#ifndef FV_LISTS_H
#define FV_LISTS_H

#include "ops/ops.h"

/* A builder of static lists shared by batch and heads, or of one (batch, head) after another.  Usage:
 *   fv_lists_begin(ctx, &builder, ...);  for each group in order: fv_lists_row; fv_lists_add...;  fv_lists_end(...,
 * plan). Adds outside 0..key_blocks-1 are dropped, repeats removed, order does not matter; failures are kept until the
 * end. */
typedef struct fv_list_builder {
    fv_ctx *ctx;
    int64_t query_block, key_block, offset, queries, keys;
    int64_t groups, key_blocks;
    const int64_t *key_start;
    int64_t batches, heads; /* lists are made for: 1 or B; 1, Hkv or H */
    int64_t row, row_first, rows;
    int64_t *row_start;
    int32_t *entry;
    int64_t entries, capacity;
    fv_status status;
} fv_list_builder;

typedef struct fv_list_shape {
    int64_t query_block, key_block;
    int64_t batches, heads; /* 0 means 1 */
    int64_t queries, keys, offset;
    const int64_t *key_start; /* [key_blocks + 1] where blocks are not all of one length */
    int64_t key_blocks;       /* then */
    /* Query groups are cut at multiples of query_block of the POSITION (so a chunk starts inside a block when offset is
     * no multiple); group 0 holds position `offset`. */
} fv_list_shape;

fv_status fv_lists_begin(fv_ctx *ctx, fv_list_builder *builder, const fv_list_shape *shape);
/* Position block (position / query_block) of group 0. */
int64_t fv_lists_first_block(const fv_list_builder *builder);
/* Starts the next group's list (groups of one head, then the next head, then the next batch). */
void fv_lists_row(fv_list_builder *builder);
void fv_lists_add(fv_list_builder *builder, int64_t key_block);
void fv_lists_add_range(fv_list_builder *builder, int64_t from, int64_t to);               /* to exclusive */
void fv_lists_add_every(fv_list_builder *builder, int64_t from, int64_t to, int64_t step); /* from, from + step .. */
/* Sorts, removes repeats, and hands the lists to the plan (scratch memory of ctx). */
fv_status fv_lists_end(fv_list_builder *builder, fv_plan *plan);

/* ---- key by key -------------------------------------------------------------------------------------------------- */

/* The keys of one query, while `fill` adds them: intervals from .. to-1, in any order; what lies outside 0..keys-1 is
 * dropped, repeats do not matter. */
typedef struct fv_key_row fv_key_row;
void fv_key_row_add(fv_key_row *row, int64_t from, int64_t to);
typedef void fv_key_row_fn(const void *user, int64_t head, int64_t i, fv_key_row *row);

/* The plan in which query i (of 0..queries-1) of each of `heads` heads (1: all alike) sees exactly the keys that `fill`
 * adds: blocks of FV_TILE queries and keys, equal ones stored once (scratch memory of ctx). */
fv_status fv_key_rows_plan(fv_ctx *ctx, int64_t heads, int64_t queries, int64_t keys, fv_key_row_fn *fill,
                           const void *user, fv_plan *plan);

#endif
