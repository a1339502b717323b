/* Plans from the keys of each query: blocks of pairs as bits, equal ones stored once. */
#include <string.h>

#include "attention/lists.h"
#include "ops/plan.h"

/* One group of queries at a time: `word` holds a word for each block of keys and query of the group. */
struct fv_key_row {
    fv_ctx *ctx;
    int64_t keys, blocks;
    int64_t i;      /* query within its group */
    uint64_t *word; /* [blocks, FV_TILE] */
    bool *touched;  /* [blocks] */

    uint64_t *tiles; /* kept, FV_TILE words each */
    int64_t tile_count, tile_room;
    int32_t *slot; /* hash table: a tile's number + 1; 0: free */
    int64_t slots;
};

void fv_key_row_add(fv_key_row *row, int64_t from, int64_t to)
{
    from = fv_max(from, 0);
    to = fv_min(to, row->keys);
    for (int64_t b = from / FV_TILE; b * FV_TILE < to; b++) {
        row->word[b * FV_TILE + row->i] |= fv_plan_interval(from, to, b * FV_TILE, FV_TILE);
        row->touched[b] = true;
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

static uint64_t hash(const uint64_t *word)
{
    uint64_t h = 0;

    for (int r = 0; r < FV_TILE; r++)
        h = (h ^ word[r]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    return h;
}

/* The place of a tile in the table: that of its equal, or a free one. */
static int32_t *place(const fv_key_row *row, const uint64_t *word)
{
    uint64_t n = hash(word);

    for (;; n++) {
        int32_t *slot = &row->slot[n & (uint64_t)(row->slots - 1)];
        if (*slot == 0 || memcmp(row->tiles + (*slot - 1) * FV_TILE, word, FV_TILE * sizeof *word) == 0) return slot;
    }
}

/* The arena has no way to grow a piece: each is twice the last. */
static fv_status grow(fv_key_row *row)
{
    uint64_t *tiles = row->tiles;

    row->tile_room = fv_max(2 * row->tile_room, 64);
    row->slots = 4 * row->tile_room;
    if (row->tile_room > INT32_MAX / 4) return fv_fail(FV_E_MEMORY, "lists: too many different blocks of pairs");
    FV_TRY(FV_SCRATCH(row->ctx, row->tiles, row->tile_room * FV_TILE));
    FV_TRY(FV_SCRATCH(row->ctx, row->slot, row->slots));
    memset(row->slot, 0, (size_t)row->slots * sizeof *row->slot);
    if (row->tile_count > 0) memcpy(row->tiles, tiles, (size_t)row->tile_count * FV_TILE * sizeof *tiles);
    for (int64_t t = 0; t < row->tile_count; t++)
        *place(row, row->tiles + t * FV_TILE) = (int32_t)(t + 1);
    return FV_OK;
}

/* 0: every pair of the first `rows` queries; otherwise the tile's number + 1. */
static fv_status keep_tile(fv_key_row *row, int64_t block, int64_t rows, int32_t *tile)
{
    const uint64_t *word = row->word + block * FV_TILE, all = fv_plan_interval(0, row->keys, block * FV_TILE, FV_TILE);
    int64_t full = 0;
    int32_t *slot;

    while (full < rows && word[full] == all)
        full++;
    *tile = 0;
    if (full == rows) return FV_OK;
    if (row->tile_count == row->tile_room) FV_TRY(grow(row));
    slot = place(row, word);
    if (*slot == 0) {
        memcpy(row->tiles + row->tile_count * FV_TILE, word, FV_TILE * sizeof *word);
        *slot = (int32_t)++row->tile_count;
    }
    *tile = *slot;
    return FV_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* Entries of one list, which grow as tiles do. */
struct entries {
    int32_t *entry, *tile;
    int64_t count, room;
};

static fv_status make_room(fv_ctx *ctx, struct entries *e, int64_t more)
{
    struct entries old = *e;

    if (e->room - e->count >= more) return FV_OK;
    e->room = 2 * fv_max(e->room, more);
    FV_TRY(FV_SCRATCH(ctx, e->entry, e->room));
    FV_TRY(FV_SCRATCH(ctx, e->tile, e->room));
    if (e->count == 0) return FV_OK;
    memcpy(e->entry, old.entry, (size_t)e->count * sizeof *e->entry);
    memcpy(e->tile, old.tile, (size_t)e->count * sizeof *e->tile);
    return FV_OK;
}

static fv_status close_group(fv_key_row *row, int64_t rows, struct entries *e)
{
    FV_TRY(make_room(row->ctx, e, row->blocks));
    for (int64_t b = 0; b < row->blocks; b++) {
        if (!row->touched[b]) continue;
        FV_TRY(keep_tile(row, b, rows, &e->tile[e->count]));
        e->entry[e->count++] = (int32_t)b;
        row->touched[b] = false;
        memset(row->word + b * FV_TILE, 0, FV_TILE * sizeof *row->word);
    }
    return FV_OK;
}

fv_status fv_key_rows_plan(fv_ctx *ctx, int64_t heads, int64_t queries, int64_t keys, fv_key_row_fn *fill,
                           const void *user, fv_plan *plan)
{
    fv_key_row row = {.ctx = ctx, .keys = keys, .blocks = fv_ceil_div(keys, FV_TILE)};
    int64_t groups = fv_ceil_div(queries, FV_TILE), *row_start;
    struct entries e = {0};

    FV_TRY(FV_SCRATCH(ctx, row.word, row.blocks * FV_TILE));
    FV_TRY(FV_SCRATCH(ctx, row.touched, row.blocks));
    FV_TRY(FV_SCRATCH(ctx, row_start, heads * groups + 1));
    memset(row.word, 0, (size_t)(row.blocks * FV_TILE) * sizeof *row.word);
    memset(row.touched, 0, (size_t)row.blocks * sizeof *row.touched);
    for (int64_t r = 0; r < heads * groups; r++) {
        int64_t first = r % groups * FV_TILE, rows = fv_min(FV_TILE, queries - first);
        row_start[r] = e.count;
        for (row.i = 0; row.i < rows; row.i++)
            fill(user, r / groups, first + row.i, &row);
        FV_TRY(close_group(&row, rows, &e));
        FV_TRY(fv_ctx_check(ctx));
    }
    row_start[heads * groups] = e.count;
    plan->lists = (fv_lists){.query_block = FV_TILE,
                             .key_block = FV_TILE,
                             .groups = groups,
                             .key_blocks = row.blocks,
                             .head_stride = heads > 1 ? groups : 0,
                             .heads = heads,
                             .row_start = row_start,
                             .entry = e.entry,
                             .tile = e.tile,
                             .tiles = row.tiles,
                             .tile_words = FV_TILE};
    return FV_OK;
}
