/* How kernels see a plan: tiles of query rows, runs of keys, words of visibility.  Whatever a plan is made of (causal,
 * windows, sinks, grids, intervals, segments, lifetimes, lists with bit tiles), a kernel reads only these, and what no
 * row of a tile can see never reaches it, so work is proportional to the plan.
 *
 *   fv_plan_open(ctx, plan, batch, heads, share, tile_rows, queries, keys, &view);       once a call
 *   for item in 0..view.items-1 (in parallel):
 *       fv_plan_tile_at(&view, item, &tile);                    batch, first head, rows
 *       fv_plan_runs_begin(&runs, &view, &tile);                `runs` is the caller's, about 8 KB: no allocation
 *       while (fv_plan_runs_next(&runs, &run))                  ascending keys
 *           for pieces of up to 64 keys of the run:
 *               if (!run.whole) fv_plan_bits(&runs, &run, key, count, bits);
 */
#ifndef FV_PLAN_H
#define FV_PLAN_H

#include "ops/ops.h"

enum { FV_TILE = 64 };

/* Checks what a caller put into a plan (NULL is fine) against the sizes of a call: ranges, ascending starts, entries
 * within the key blocks, bit tiles within the table.  `slots` is the number of o's rows where lists gather queries
 * (each batch and head must have at most that many).  `heads` query heads.  FV_E_ARGUMENT, FV_E_SHAPE. */
fv_status fv_plan_check(const fv_plan *plan, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                        int64_t slots);

/* Whether every `group` consecutive query heads (of a key-value head, say) see the same pairs. */
bool fv_plan_heads_share(const fv_plan *plan, int64_t heads, int64_t group);

/* Whether rows of o are slots; and how many slots head h of batch b has. */
bool fv_plan_gathers(const fv_plan *plan);
int64_t fv_plan_slots(const fv_plan *plan, int64_t heads, int64_t b, int64_t h);

/* Sinks and window of a head (window 0: no limit). */
void fv_plan_window(const fv_plan *plan, int64_t heads, int64_t h, int64_t *sink, int64_t *window);

/* Position of key j. */
static inline int64_t fv_plan_key_position(const fv_plan *plan, int64_t j)
{
    return plan->key_position ? plan->key_position[j] : j;
}

/* The list entry that shows row i key j, for its bias: an index into lists.entry, -1 if there is none. */
int64_t fv_plan_entry(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t j);

/* Some queries of an axis of the grid, all of one residue by its dilation; counted in steps of the dilation. */
typedef struct fv_plan_patch {
    int64_t residue, from, to;
    int64_t low, high; /* cells that their windows reach */
} fv_plan_patch;

typedef struct fv_plan_view {
    const fv_plan *plan; /* never NULL */
    int64_t batch, heads, share, queries, keys;
    int64_t tile_rows;
    int64_t items;       /* tiles over all batches and groups of `share` heads; tiles of a group are consecutive */
    int64_t classes;     /* ways rows are cut: 1, or one for each (batch, list head) where lists gather queries */
    int64_t *class_tile; /* [classes + 1] first cut of a class */
    int64_t *item_first; /* [batch * heads / share + 1] first item; NULL if classes == 1 */
    int64_t *cut_row;    /* [cuts] first row */
    int32_t *cut_rows;   /* [cuts] */
    const fv_plan_patch
        *patch[3]; /* of each axis of the grid; a tile is a patch on each.  NULL: rows follow each other */
    int64_t patches[3];
    int64_t strips;        /* of the grid; 0: none are laid out */
    int64_t *strip_first;  /* [strips + 1] first key block of a strip */
    int32_t *strip_key;    /* [strip_first[strips], FV_TILE] the keys of blocks */
    int32_t *strip_keys;   /* [strip_first[strips]] how many */
    bool positions_ascend; /* key positions ascend, so intervals of them are intervals of keys */
    bool segments_ascend;  /* the same for key segments */
    bool by_pair;          /* some part can only be asked key by key, */
    bool by_position;      /* and that is nothing but whether its position has come */
    int64_t grid_keys;     /* keys on the grid */
} fv_plan_view;

/* `share`: query heads taken together (1, or a group for which fv_plan_heads_share holds); tile_rows 1..FV_TILE.
 * Takes scratch memory.  The plan (NULL: everything is visible) has been checked. */
fv_status fv_plan_open(fv_ctx *ctx, const fv_plan *plan, int64_t batch, int64_t heads, int64_t share, int64_t tile_rows,
                       int64_t queries, int64_t keys, fv_plan_view *view);

/* Rows of a tile.  Without gathered queries row and query are the same.  A kernel may also fill in rows of its own
 * choice, in any order (queries from fv_plan_query). */
typedef struct fv_plan_tile {
    int64_t b, h;           /* batch; first of the `share` heads */
    int rows;               /* 1..tile_rows */
    int64_t row[FV_TILE];   /* of o and lse */
    int64_t query[FV_TILE]; /* of q; its position is query + plan->offset */
    /* of a view's own tiles on a grid: the patch on each axis, and rows on the last of them (else 0) */
    int64_t patch[3];
    int line;
} fv_plan_tile;

void fv_plan_tile_at(const fv_plan_view *view, int64_t item, fv_plan_tile *tile);
int64_t fv_plan_query(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t row);

/* Cuts the grid into patches, where all its cells are queries, and lays out strips. */
fv_status fv_plan_cut_patches(fv_ctx *ctx, fv_plan_view *view);
void fv_plan_patch_at(const fv_plan_view *view, int64_t cut, fv_plan_tile *tile);

/* Queries of an axis of the grid, the cell of query n, and the cell at which groups of a stride begin. */
static inline int64_t fv_grid_queries(const fv_grid *grid, int a)
{
    return grid->query_count[a] > 0 ? grid->query_count[a] : grid->dims[a];
}

static inline int64_t fv_grid_cell(const fv_grid *grid, int a, int64_t n)
{
    return grid->query_count[a] > 0 ? grid->query_first[a] + n * fv_max(grid->query_step[a], 1) : n;
}

static inline int64_t fv_grid_origin(const fv_grid *grid, int a)
{
    return grid->query_count[a] > 0 ? grid->stride_first[a] : 0;
}

/* Keys [*from, *to) of an axis that a query in its cell i sees, all in steps of the dilation from the residue. */
void fv_plan_axis(const fv_grid *grid, int a, int64_t residue, int64_t i, int64_t *from, int64_t *to);

/* The keys of a block of a strip; how many (fewer than FV_TILE only at the strip's end).  They ascend. */
int fv_plan_strip_keys(const fv_plan_view *view, int64_t block, int64_t key[FV_TILE]);

/* Tiles of FV_TILE rows and FV_TILE keys that a kernel computes for one head: keys that no row of a tile sees are left
 * out, and the others taken together, or, on a grid, in the blocks of its strips.  Scratch memory is given back. */
fv_status fv_plan_tiles(fv_ctx *ctx, const fv_plan *plan, int64_t queries, int64_t keys, int64_t *tiles);

/* What the rows of a tile see of their strip: nothing but blocks [block, end), and there the bits of fv_plan_bits. */
typedef struct fv_plan_strip {
    int64_t block, end, first; /* first: of the strip */
    /* each axis: what a row sees of a strip's keys recurs with the axis' period */
    const fv_plan_patch *patch[3];
    int sides[3];
    int64_t from[3][FV_TILE], to[3][FV_TILE], period[3];
} fv_plan_strip;

void fv_plan_strip_of(const fv_plan_view *view, const fv_plan_tile *tile, fv_plan_strip *strip);
void fv_plan_strip_bits(const fv_plan_strip *strip, int64_t block, uint64_t bits[FV_TILE]);

/* Bits of the keys from..to-1 in a word that begins at `key` and has `count` bits. */
static inline uint64_t fv_plan_interval(int64_t from, int64_t to, int64_t key, int64_t count)
{
    int64_t a = fv_max(from - key, 0), b = fv_min(to - key, count);

    return a < b ? (b >= 64 ? UINT64_MAX : ((uint64_t)1 << b) - 1) & ~(((uint64_t)1 << a) - 1) : 0;
}

typedef struct fv_plan_run {
    int64_t key, count;
    uint64_t rows;     /* bit r: row r of the tile may see keys of the run; other rows see none of them */
    bool whole;        /* every row in `rows` sees every key */
    const float *bias; /* [FV_TILE] per row, to be added to the logits; NULL: none.  Valid until the next run. */
} fv_plan_run;

/* Keys from..to-1, wholly visible or not; and where a list group's entries are read. */
typedef struct fv_plan_span {
    int64_t from, to;
    bool whole;
} fv_plan_span;

typedef struct fv_plan_runs {
    const fv_plan_view *view;
    const fv_plan_tile *tile;
    uint64_t live; /* rows that may see something */
    /* per row: position, and keys [sink_from, sink_to) and [from, to) that intervals show */
    int64_t position[FV_TILE], sink_from[FV_TILE], sink_to[FV_TILE], from[FV_TILE], to[FV_TILE];
    int64_t sink, window, earliest;     /* earliest position of a live row */
    const int32_t *slot_from, *slot_to; /* of the tile's batch and head; NULL */
    fv_plan_span span[2 * FV_TILE + 4]; /* their union over the rows, cut where all rows see everything */
    int spans, at_span;
    /* grid: real coordinates a row sees on each axis; bounding box, and the box every row sees whole */
    int64_t low[3][FV_TILE], high[3][FV_TILE];
    int64_t box_low[3], box_high[3], inner_low[3], inner_high[3], line[3];
    int part;
    /* lists: one cursor per query group of the tile */
    int groups;
    int64_t cursor[FV_TILE], end[FV_TILE];
    int32_t next[FV_TILE];
    uint64_t group_rows[FV_TILE];
    int32_t row_in_group[FV_TILE], bit_tile[FV_TILE];
    float bias[FV_TILE];
    bool has_tiles;
    bool single; /* one group and single keys, about which nothing else is said */
    bool stored; /* the same of blocks with bit tiles: words of a block are as they are stored */
    /* what the lists, the grid or the whole range of keys propose next */
    bool more;
    int64_t key, key_end;
    int64_t block_start; /* of the key block, where bit tiles are read */
    uint64_t rows;
    bool whole;
    fv_plan_span ahead; /* grid: the part after it */
} fv_plan_runs;

void fv_plan_runs_begin(fv_plan_runs *runs, const fv_plan_view *view, const fv_plan_tile *tile);
bool fv_plan_runs_next(fv_plan_runs *runs, fv_plan_run *run);

/* A faster way for lists of single keys: takes `count` <= FV_TILE keys at once if the next ones are keys that all rows
 * see and lie in at least `spread` places; how many: `count`, or 0 where only fv_plan_runs_next can say what comes. */
int fv_plan_runs_keys(fv_plan_runs *runs, int count, int64_t spread, int64_t *key);

/* The same for keys that lie close together: takes all that follow in one block of FV_TILE keys, as bits of it; 0 where
 * only fv_plan_runs_next can say what comes. */
uint64_t fv_plan_runs_block(fv_plan_runs *runs, int64_t *block);

/* Of such lists up to `count` keys that come after those taken, to be asked for early; how many. */
int fv_plan_runs_ahead(const fv_plan_runs *runs, int count, int64_t *key);

/* bits[r] bit j: row r of the tile sees key + j, for j < count <= 64 keys of the current run; 0 for rows the run has
 * not. */
void fv_plan_bits(const fv_plan_runs *runs, const fv_plan_run *run, int64_t key, int count, uint64_t bits[FV_TILE]);

#endif
