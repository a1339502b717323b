/* Tokens in another order, in which those that belong together are neighbours: rows are laid out in it, and what comes
 * of them is put back. */
#ifndef FV_ORDER_H
#define FV_ORDER_H

#include "attention/mechanism.h"

typedef struct fv_order {
    fv_tensor order, place; /* [1|B,1|H,N] i32: the token at a place, the place of a token */
} fv_order;

/* Tokens by rising key, of equal ones the first first.  keys [batches,heads,N] of 0..bound-1; start [batches * heads,
 * bound + 1], NULL where it is not asked for: the places of each key. */
fv_status fv_order_by_key(fv_ctx *ctx, const int32_t *keys, int64_t batches, int64_t heads, int64_t tokens,
                          int64_t bound, fv_order *order, int64_t *start);

/* Tokens of a row-major grid of 1 to 3 axes along a curve that fills it (J. Cerveny's generalised Hilbert curve), or
 * tile by tile, the last ones on an axis perhaps smaller; tokens behind the grid stay where they are. */
fv_status fv_order_curve(fv_ctx *ctx, const fv_tuple *grid, int64_t tokens, fv_order *order);
fv_status fv_order_tiles(fv_ctx *ctx, const fv_tuple *grid, const int64_t tile[3], int64_t tokens, fv_order *order);

/* Tokens by cluster: `clusters` centres, at first the features of as many tokens at even distances, four times moved to
 * the mean of the tokens that are nearest; ties to the lower centre.  features [B,1,n,C] f32; tokens from n on stay
 * where they are. */
fv_status fv_order_clusters(fv_ctx *ctx, const fv_tensor *features, int64_t clusters, int64_t tokens, fv_order *order);

/* A frame around an image of size[0] x size[1] tokens, whose first cell is `first` in it, both row-major: the tokens of
 * its cells, -1 for those beside the image, [1,1,cells] i32. */
fv_status fv_order_frame(fv_ctx *ctx, const int64_t size[2], const int64_t first[2], const int64_t frame[2],
                         fv_tensor *index);

/* Rows index[r] of x [B,Hx,N,C], of any type, zeros for -1, for index [1|B,1|Hx,R] or [R] (order->order: rows by
 * place): f32 [B,Hx,R,C], in scratch memory. */
fv_status fv_order_rows(fv_ctx *ctx, const fv_tensor *index, const fv_tensor *x, fv_tensor *out);
/* A call with q, k and v laid out in an order, for which nothing is kept, and room for its o and lse; and these put
 * back where they belong.  With an absent order it is the call itself. */
fv_status fv_order_call(fv_ctx *ctx, const fv_order *order, const fv_call *call, fv_call *laid);
fv_status fv_order_call_back(fv_ctx *ctx, const fv_order *order, const fv_call *laid, const fv_call *call);
/* Rows by place [B,H,N,C], or numbers [B,H,N], contiguous, back to their tokens. */
fv_status fv_order_back(fv_ctx *ctx, const fv_order *order, const fv_tensor *x, const fv_tensor *out);

#endif
