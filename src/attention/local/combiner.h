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

/* A call, its tensors split by key head: [B,Hkv,heads,rows,C], where keys and values have one head and lse one channel.
 * A summary is a row of the summaries: for every head its key and value one after the other, once or, of mixtures, for
 * three directions. */
typedef struct fv_combiner {
    const fv_call *call;
    const struct combiner *options;
    int64_t length, group; /* tokens of a segment or row; query heads of a key head */
    fv_tensor q, k, v, summaries;
    int64_t plane;       /* the batch and key head that is computed */
    fv_merge_args merge; /* its parts so far */
} fv_combiner;

/* Rows of such a tensor: `across` apart from one attention to the next, and within one `step` apart. */
typedef struct fv_strided {
    const fv_tensor *x;
    int64_t first, across, step;
} fv_strided;

/* `count` attentions of so many queries over so many keys. */
typedef struct fv_combiner_block {
    int64_t count, queries, keys;
    fv_strided q, k, v, o, lse; /* lse.x NULL: not asked for */
    const fv_plan *plan;
    fv_logits logits;
} fv_combiner_block;
fv_status fv_combiner_attend(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *block);     /* in its plane */
fv_status fv_combiner_attend_all(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *block); /* in all */

/* Channels from..from+width-1 of those of each head in rows [B,Hkv,R,group * each]. */
fv_tensor fv_combiner_channels(const fv_combiner *c, const fv_tensor *rows, int64_t from, int64_t width);
/* The scaled queries of all tokens so far. */
fv_status fv_combiner_queries(fv_ctx *ctx, const fv_combiner *c, fv_tensor *q);
/* A part of the plane's joint softmax, in which nothing is seen yet. */
fv_status fv_combiner_part(fv_ctx *ctx, fv_combiner *c, fv_tensor *o, fv_tensor *lse);
/* ln of so many counts as a bias, [count, 1, 1, keys], the same for all keys; absent without span_bias. */
fv_status fv_combiner_bias(fv_ctx *ctx, const fv_combiner *c, const double *counts, int64_t count, int64_t keys,
                           fv_tensor *bias);

/* ---- tokens as a grid of rows ------------------------------------------------------------------------------------ */

/* Numbers in a summary, of each head. */
int64_t fv_combiner_axial_width(const fv_call *call, const struct combiner *o);
fv_status fv_combiner_axial_make(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out);
/* All parts but the own row. */
fv_status fv_combiner_axial_parts(fv_ctx *ctx, fv_combiner *c);

#endif
