/* Tiles of attention: the rows of a plan's tile (for all heads that share keys) against FV_KEY_TILE keys at a time.
 * Runs shorter than a tile are packed together, so work is proportional to the plan. */
#ifndef FV_TILES_H
#define FV_TILES_H

#include "ops/cpu/kernels.h"
#include "ops/plan.h"

/* What a call's tiles have in common. */
typedef struct fv_tiles_source {
    const struct fv_kernels *kernels;
    fv_tensor q, k;
    const fv_logits *logits;
    const int32_t *key_head;
    const fv_plan_view *view;
    bool slopes; /* wanted: d logit / d scaled product */
} fv_tiles_source;

/* A thread's place in a walk.  Row r stands for head tile.h + r / tile.rows and the tile's row r % tile.rows. */
typedef struct fv_tiles {
    const fv_tiles_source *source;
    fv_plan_tile tile;
    fv_plan_runs runs;
    int rows; /* tile.rows * view.share */
    int64_t b, key_head;
    /* the current key tile */
    int count;
    int64_t key[FV_KEY_TILE];
    uint64_t bits[FV_TILE]; /* visible keys of a row of the plan's tile */
    bool biased;
    float *bias;    /* [FV_TILE, FV_KEY_TILE] of list entries, if biased */
    float *logits;  /* [rows, FV_KEY_TILE]; undefined where bits are 0 */
    float *slopes;  /* the same, if wanted and not all 1 */
    float *q;       /* [rows, D], scaled */
    float *panels;  /* q for the micro-kernel */
    float *keys;    /* [D, FV_KEY_TILE] */
    float *staging; /* [FV_KEY_TILE, widest] rows on their way */
} fv_tiles;

/* Query heads that can be taken together, and rows of a plan tile to go with them. */
int64_t fv_tiles_share(const fv_plan *plan, int64_t heads, int64_t key_heads, const int32_t *key_head,
                       int64_t *tile_rows);

/* Scratch memory for one thread; `width` is the widest row ever staged. */
fv_status fv_tiles_new(fv_ctx *ctx, const fv_tiles_source *source, int64_t width, fv_tiles *tiles);

/* Walks the keys from..to-1 that item sees, calling `visit` with logits filled in. */
typedef void fv_tiles_fn(void *user, fv_tiles *tiles);
void fv_tiles_walk(fv_tiles *tiles, int64_t item, int64_t from, int64_t to, fv_tiles_fn *visit, void *user);
/* The same for rows the caller has put into tiles->tile. */
void fv_tiles_walk_rows(fv_tiles *tiles, int64_t from, int64_t to, fv_tiles_fn *visit, void *user);

/* Logits become exp(logit - lse), 0 where nothing is seen: lse[r] of a row, or by_key [B,H,M] if that is present. */
void fv_tiles_normalise(fv_tiles *tiles, const float *lse, const fv_tensor *by_key);

/* Items *first..*end - 1 of a view hold the rows of the n-th (over batches) group of `share` heads. */
void fv_tiles_group(const fv_plan_view *view, int64_t n, int64_t *first, int64_t *end);

/* The rows of t [B,Hkv,M,D] that the current tile holds, as f32 with `row` floats between them: in place if they lie
 * so, else in `staging` (whose padding stays as it is). */
const float *fv_tiles_rows(const fv_tiles *tiles, const fv_tensor *t, int64_t padded, float *staging, int64_t *row);

/* Whether some row of [from, from + count) sees a key of the tile. */
bool fv_tiles_any(const fv_tiles *tiles, int from, int count);

#endif
