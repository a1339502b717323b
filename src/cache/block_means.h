/* Mean keys of blocks of rows, kept as rows come: what selections by blocks compare a query with.  Rows stay where they
 * are (nothing is dropped), and are read as they are stored. */
#ifndef FV_BLOCK_MEANS_H
#define FV_BLOCK_MEANS_H

#include "cache/rows.h"

typedef struct fv_block_means {
    int64_t rows;   /* taken so far, those before the first block included */
    float *mean;    /* [blocks, heads, D] */
    double *sum;    /* [heads, D] of the last block, which is not whole yet */
    int64_t room;   /* floats of mean */
    int64_t blocks; /* whole ones, and the last if it has rows */
    int64_t heads, dim;
} fv_block_means;

/* Takes the rows that have come since: block b holds rows first + b * block and so on.  Scratch memory; FV_E_MEMORY. */
fv_status fv_block_means_take(fv_ctx *ctx, fv_block_means *means, const fv_rows *rows, int64_t first, int64_t block);
void fv_block_means_free(fv_block_means *means);
size_t fv_block_means_bytes(const fv_block_means *means);

/* scores [Hkv,N,blocks] = q [Hkv,N,D] times the means of the first `blocks` blocks; scratch memory. */
fv_status fv_block_means_scores(fv_ctx *ctx, const fv_block_means *means, const fv_tensor *q, int64_t blocks,
                                fv_tensor *scores);

/* index [heads, count] i32, ascending, -1 behind the last: the `count` largest of scores [heads,blocks]; of equals the
 * lower. */
fv_status fv_best_blocks(fv_ctx *ctx, const fv_tensor *scores, int64_t count, fv_tensor *index);

/* Rows of places from .. from+count-1 of all heads as f32 [heads,count,D], in scratch memory. */
fv_status fv_rows_keys(fv_ctx *ctx, const fv_rows *rows, int64_t from, int64_t count, fv_tensor *keys);

#endif
