/* Between the files of dhsa: its options and lists (dhsa.c), the choice by chunks (dhsa_chunks.c), by columns and
 * diagonals (dhsa_lines.c), and where chunks begin (dhsa_boundaries.c). */
#ifndef FV_DHSA_H
#define FV_DHSA_H

#include <float.h>

#include "attention/mechanism.h"

enum { FV_DHSA_AVG_NORM, FV_DHSA_AVG, FV_DHSA_MAX };
enum { FV_DHSA_BY_CHUNKS, FV_DHSA_BY_LINES };

struct fv_dhsa {
    int64_t block, budget, local, global, instruction, chunk, half_width, reach;
    double threshold, vertical, density;
    int pool, score;
    bool strict;
};

enum {
    FV_DHSA_BOUNDARIES,
    FV_DHSA_LOGITS,
    FV_DHSA_NORM_WEIGHT,
    FV_DHSA_NORM_BIAS,
    FV_DHSA_QKV_WEIGHT,
    FV_DHSA_QKV_BIAS,
    FV_DHSA_OUT_WEIGHT,
    FV_DHSA_OUT_BIAS,
    FV_DHSA_FC1_WEIGHT,
    FV_DHSA_FC1_BIAS,
    FV_DHSA_FC2_WEIGHT,
    FV_DHSA_FC2_BIAS,
    FV_DHSA_PARAMS,
};

/* Boundary number n of those given; whether any part of the network is. */
int64_t fv_dhsa_boundary(const fv_call *call, int64_t n);
bool fv_dhsa_has_network(const fv_call *call);

/* ---- lists ------------------------------------------------------------------------------------------------------ */

/* Groups of a call's rows that share lists.  Those of one query block read what the block chose; the rows before `from`
 * and from `to` on are groups that read everything. */
struct fv_dhsa_groups {
    int64_t first, blocks, *start; /* query blocks, as fv_cut_queries has them */
    int64_t from, to;
    int64_t listed, count, *block, *query_start; /* listed: groups with a block; [count] their block, or -1 */
    int64_t granule, *row_start;                 /* keys of an entry; [B * count + 1] */
    int32_t *entry;
};

/* Keys up to the end of query block i. */
int64_t fv_dhsa_keys(const fv_call *call, const struct fv_dhsa_groups *groups, int64_t i);

/* Chunks that a block reads where columns and diagonals choose. */
int64_t fv_dhsa_target(const fv_call *call);

/* Makes a list of all that there is, which is right for rows that read everything and for blocks that can. */
void fv_dhsa_list_all(const struct fv_dhsa_groups *groups, int64_t row);

/* Fill the lists of groups that have a block. */
fv_status fv_dhsa_choose_by_chunks(fv_ctx *ctx, const fv_call *call, const struct fv_dhsa_groups *groups);
fv_status fv_dhsa_choose_by_lines(fv_ctx *ctx, const fv_call *call, const struct fv_dhsa_groups *groups);

/* Means of equal chunks stay as they are once those are whole. */
int64_t fv_dhsa_kept(const fv_call *call, int kind, int64_t keys, int64_t *width);

/* A score that can be ordered: what is no number is the least. */
static inline float fv_dhsa_ordered(float score)
{
    return score >= -FLT_MAX ? score : -FLT_MAX;
}

/* ---- boundaries ------------------------------------------------------------------------------------------------- */

enum { FV_DHSA_HEADS = 4, FV_DHSA_HIDDEN = 256 }; /* of the network */

/* logits [B,M] of the gaps behind each key, by the network in the params of a call: attention among the `reach` keys on
 * either side (zeros beyond the ends), a norm, their means l and r, and two layers over [l, r, |l - r|, l r, cos(l,
 * r)]. An absent norm changes nothing, an absent bias is 0. */
fv_status fv_dhsa_predict(fv_ctx *ctx, const fv_call *call, fv_tensor *logits);

typedef struct fv_dhsa_suppression {
    double threshold;
    int64_t half_width, reach; /* gaps that close to an accepted one, the first reach - 1 and the last reach are out */
    int64_t forced;            /* boundary that is accepted first, and counted; not above 0: none */
    int64_t most;
} fv_dhsa_suppression;

/* Accepts gaps by falling logit, ties to the lower one.  Boundaries 0 < .. < M in *start, chunks between them in
 * *chunks. */
fv_status fv_dhsa_suppress(fv_ctx *ctx, const fv_dhsa_suppression *rule, const fv_tensor *logits, int64_t *chunks,
                           const int64_t **start);

#endif
