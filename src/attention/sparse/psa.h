/* Between the two files of pyramid sparse attention: which level each pair of blocks is read at (psa_levels.c), and
 * reading (psa.c). */
#ifndef FV_PSA_H
#define FV_PSA_H

#include "attention/mechanism.h"

enum { PSA_LEVELS = 4 }; /* keys by themselves, and means of 2, 4 and 8 */
enum { PSA_AUTO, PSA_TOPK, PSA_BOUND, PSA_ENERGY };
enum { PSA_SAMPLE, PSA_ANTIDIAGONAL, PSA_STRIDE = 16 };
enum { PSA_IMPORTANCE, PSA_GIVEN };

struct psa {
    int64_t block_q, block_k, tile, sample, text;
    int mode, estimate, order;
    double min_full;
    fv_floats bounds, widths, sim_cap;
    bool round, log_bias;
    fv_tuple grid;
};

/* Blocks of a call.  Those of queries are cut by position where it is causal, else from the first query on. */
struct psa_blocks {
    int64_t offset, first, queries, keys; /* first: number of the first query block; how many there are */
};
void psa_blocks_of(const fv_call *call, struct psa_blocks *blocks);

/* level [B,H,query blocks,key blocks]: keys that are read as one, 0: the block is not read.  q and k may be in an
 * order of their own. */
fv_status psa_levels(fv_ctx *ctx, const fv_call *call, const struct psa_blocks *blocks, uint8_t *level);

#endif
