/* Between the files of Combiner. */
#ifndef FV_COMBINER_H
#define FV_COMBINER_H

#include "attention/mechanism.h"

struct combiner {
    int form, pool, row_summary;
    int64_t segment;
    bool span_bias, own_span;
};

enum { COMBINER_FIXED, COMBINER_LOGN, COMBINER_MIXTURE, COMBINER_ROWMAJOR };
enum { COMBINER_WSUM, COMBINER_NONE, COMBINER_PROJ };
enum { COMBINER_X, COMBINER_W1, COMBINER_W2, COMBINER_NORM_WEIGHT, COMBINER_NORM_BIAS };

/* A call, or the part of it that reads one key head of one batch: that is computed at a time.  Kept queries and
 * summaries [B,Hkv,R,group * each] have those of every query head of a group side by side.  A summary is its key and
 * value one after the other, once or, of mixtures, for three directions. */
typedef struct fv_combiner {
    fv_call call; /* keys and values in f32 */
    const struct combiner *options;
    int64_t length, group; /* tokens of a segment or row; query heads of a key head */
    fv_tensor queries, summaries;
} fv_combiner;

/* Rows of x [1,heads,R,C]: `across` apart from one attention to the next, and within one `step` apart. */
typedef struct fv_strided {
    const fv_tensor *x;
    int64_t first, across, step;
} fv_strided;

/* `count` attentions of so many queries over so many keys, of one key head. */
typedef struct fv_combiner_block {
    int64_t count, queries, keys;
    fv_strided q, k, v, o, lse; /* lse.x, [1,heads,R,1], NULL: not asked for */
    const fv_plan *plan;
    fv_logits logits;
} fv_combiner_block;
fv_status fv_combiner_attend(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *block);

/* Channels from..from+width-1 of those of each head in rows [1,1,R,group * each], as [1,group,R,width]. */
fv_tensor fv_combiner_channels(const fv_combiner *c, const fv_tensor *rows, int64_t from, int64_t width);
/* The scaled queries of all tokens so far, of a key head. */
fv_tensor fv_combiner_queries(const fv_combiner *c);
/* ln of so many counts as a bias, [count, 1, 1, keys], the same for all keys; absent without span_bias. */
fv_status fv_combiner_bias(fv_ctx *ctx, const fv_combiner *c, const double *counts, int64_t count, int64_t keys,
                           fv_tensor *bias);

/* ---- tokens as a grid of rows ------------------------------------------------------------------------------------ */

/* Numbers in a summary, of each head. */
int64_t fv_combiner_width(const fv_call *call, const struct combiner *o);
/* Summaries of a key head from row `from` on; with row_summary=proj their keys are those of all heads, made at last. */
fv_status fv_combiner_axial_make(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out);
fv_status fv_combiner_project(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out);
/* Results of a key head; `row`: who reads which tokens of the own row. */
fv_status fv_combiner_axial_attend(fv_ctx *ctx, const fv_combiner *c, const fv_plan *row);

#endif
