/* Tiles of attention: the rows of a plan's tile (for all heads that share keys) against FV_KEY_TILE keys at a time.
 * Blocks of keys of which much is seen are tiles of their own where their panels are held (panels.h), and so are those
 * of a grid's strips; of others the keys that are seen are packed together, so work is proportional to the plan. */
#ifndef FV_TILES_H
#define FV_TILES_H

#include "ops/cpu/panels.h"
#include "ops/plan.h"

/* What a call's tiles have in common. */
typedef struct fv_tiles_source {
    const struct fv_kernels *kernels;
    fv_tensor q, k;
    const fv_logits *logits;
    const int32_t *key_head;
    const fv_plan_view *view;
    bool slopes;                  /* wanted: d logit / d scaled product */
    const fv_panel_store *panels; /* NULL: keys only, as floats, and tiles in ascending order of keys */
    bool
        fixed; /* each block of keys is a tile, and no rows are few: a row's sums do not depend on the rows beside it */
} fv_tiles_source;

enum {
    FV_FEW_ROWS = 8,   /* up to which keys are multiplied where they lie */
    FV_TERM_ROWS = 16, /* whose bias is put together at a time */
};

/* A thread's place in a walk.  Row r stands for head tile.h + r / tile.rows and the tile's row r % tile.rows. */
typedef struct fv_tiles {
    const fv_tiles_source *source;
    fv_plan_tile tile;
    fv_plan_runs runs;
    int rows; /* tile.rows * view.share */
    int step; /* rows that are multiplied together: at most the kernels' tile_rows, on a grid whole lines of a patch */
    int64_t b, key_head;
    /* the current key tile */
    int count;
    int64_t key[FV_KEY_TILE];
    uint64_t bits[FV_TILE]; /* visible keys of a row of the plan's tile */
    uint64_t common;        /* keys that every row sees; while a tile is packed they are not in bits */
    uint64_t seen;          /* by any row */
    uint64_t *part_seen;    /* by the rows from n * step on; of a tile that is not whole */
    bool whole;             /* every row sees every key */
    bool biased;
    bool deferred; /* set by the caller: it calls fv_tiles_products and fv_tiles_terms for the logits */
    float *bias;   /* [FV_TILE, FV_KEY_TILE] of list entries, if biased */
    float *logits; /* [rows, FV_KEY_TILE]; undefined where bits are 0, and where they are deferred */
    bool capped;   /* the softmax applies the soft-cap, as */
    struct fv_cap cap;
    float *terms;        /* [FV_TERM_ROWS, FV_KEY_TILE], where a bias has to be put together */
    float *slopes;       /* the same, if wanted and not all 1 */
    fv_panels panels;    /* of the tile's keys */
    float *q;            /* [rows, q_row], scaled, padded with 0 */
    float *query_panels; /* q for the micro-kernel */
    int64_t q_row;
    float *staging, *keys, *values; /* rows on their way, panels of packed keys */
    fv_panel_store own;             /* the source's panels, or keys only */
    /* the block of keys that a walk is in: keys of its runs, those that every row sees, and bits of the others */
    struct {
        int64_t block;
        uint64_t keys, common, bits[FV_TILE];
        bool mixed, biased; /* bits, bias are in use */
        float *bias;
    } open;
    /* packed keys that wait while a block is the tile */
    struct {
        int count;
        uint64_t common, bits[FV_TILE];
        bool biased;
        int64_t key[FV_KEY_TILE];
    } waiting;
} fv_tiles;

/* Whether keys are multiplied where they lie. */
static inline bool fv_tiles_few(const fv_tiles *t)
{
    return t->rows <= FV_FEW_ROWS && !t->source->fixed;
}

/* Whether blocks of keys are those of the strips of a grid. */
static inline bool fv_tiles_on_strip(const fv_tiles *t)
{
    return t->own.strips && !fv_tiles_few(t);
}

/* Query heads that can be taken together, and rows of a plan tile to go with them. */
int64_t fv_tiles_share(const fv_plan *plan, int64_t heads, int64_t key_heads, const int32_t *key_head,
                       int64_t *tile_rows);

/* Items *first..*end - 1 of a view hold the rows of the n-th (over batches) group of `share` heads. */
void fv_tiles_group(const fv_plan_view *view, int64_t n, int64_t *first, int64_t *end);

/* Scratch memory for one thread; `width` is the widest row ever staged. */
fv_status fv_tiles_new(fv_ctx *ctx, const fv_tiles_source *source, int64_t width, fv_tiles *tiles);

/* Takes up the rows in tiles->tile: queries are loaded, runs begin. */
void fv_tiles_begin(fv_tiles *tiles);

/* How many of the keys, which ascend, follow each other from the first on. */
int fv_tiles_stretch(const int64_t *key, int count);

/* Plain products of few rows with the tile's keys where they lie: bound by the bytes of the keys. */
void fv_tiles_dots(fv_tiles *tiles);

/* The lowest `count` bits. */
static inline uint64_t fv_first_bits(int count)
{
    return count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
}

/* Adds the biases of row r of the walk and `count` keys to its logits s. */
void fv_tiles_add_bias(const fv_tiles *tiles, int r, const int64_t *key, int count, float *s);

/* The same of gradients: adds those of row r's logits, d, to the biases'. */
void fv_tiles_add_bias_gradients(const fv_tiles *tiles, const fv_attend_grads *grads, int r, const float *d);

/* How many of the keys stand side by side at their places `across`, in one row if there are rows (`down`, or NULL). */
int fv_tiles_placed(const int32_t *across, const int32_t *down, const int64_t *key, int count);

/* Plain products of the rows from n * step on, of which there are up to `step`, into s [step, FV_KEY_TILE]; parts that
 * none of the rows sees are left out. */
void fv_tiles_products(const fv_tiles *tiles, int n, float *s);

/* All that is added to plain products or bends them, and slopes if wanted. */
void fv_tiles_transform(fv_tiles *tiles);

/* What the softmax of row r, and of up to `most` rows from it on, has to add to products; how many that holds for. */
int fv_tiles_terms(const fv_tiles *tiles, int r, int most, struct fv_softmax_step *step);

/* Walks the keys from..to-1 that the rows which the caller has put into tiles->tile see, calling `visit` with logits
 * filled in. */
typedef void fv_tiles_fn(void *user, fv_tiles *tiles);
void fv_tiles_walk_rows(fv_tiles *tiles, int64_t from, int64_t to, fv_tiles_fn *visit, void *user);

/* Logits become exp(logit - lse), 0 where nothing is seen: lse[r] of a row, or by_key [B,H,M] if that is present. */
void fv_tiles_normalise(fv_tiles *tiles, const float *lse, const fv_tensor *by_key);

/* The rows of t [B,Hkv,M,D] that the current tile holds, as f32 with `row` floats between them: in place if they lie
 * so, else in `staging` (whose padding stays as it is). */
const float *fv_tiles_rows(const fv_tiles *tiles, const fv_tensor *t, int64_t padded, float *staging, int64_t *row);

/* Keys of the tile that some row of [n * step, (n + 1) * step) sees. */
static inline uint64_t fv_tiles_seen(const fv_tiles *tiles, int n)
{
    return tiles->whole ? tiles->seen : tiles->part_seen[n];
}

#endif
