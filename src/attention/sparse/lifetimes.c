/* Lists of blocks of keys that come and go. */
#include "attention/sparse/core.h"

enum { ROWS = 64 /* queries of a list */ };

/* Lists of ROWS queries of each plane (batch and head), which name in ascending order the blocks that some of them
 * reads; the words of a tile say which of them do where not all do. */
struct living {
    const fv_call *call;
    const fv_lifetimes *of;
    int64_t groups, blocks;
    int32_t *alive;      /* [planes,blocks] */
    int64_t *row_start;  /* [planes * groups + 1], at first the length of each list behind its place */
    int64_t *tile_start; /* [planes + 1], at first the tiles of each plane behind its place */
    int32_t *entry;      /* NULL: only counted */
    int32_t *tile;
    uint64_t *tiles;
};

/* Which queries of a group, of which there are `rows` from position p on, read block c. */
static uint64_t readers(const struct living *l, int64_t plane, int64_t c, int64_t p, int64_t rows)
{
    int64_t block = l->of->block, gone = l->of->gone[plane * l->blocks + c], next = (c + 1) * block, r = 0;
    uint64_t bits = 0;

    for (r = fv_max(c * block - p, 0); r < rows && p + r < next; r++)
        bits |= (uint64_t)(l->of->own[plane * l->call->keys + p + r] != 0) << r;
    rows = fv_min(rows, gone - p);
    return r < rows ? bits | (UINT64_MAX >> (64 - (rows - r)) << r) : bits;
}

/* Adds block c, which `bits` of the queries read, to the list at `at`; causality hides it from the first `early`. */
static void add_living(const struct living *l, int64_t c, uint64_t bits, int64_t early, int64_t rows, int64_t at,
                       int64_t *tiles)
{
    int64_t block = l->of->block;
    uint64_t hidden = early > 0 ? UINT64_MAX >> (64 - fv_min(early, rows)) : 0;
    bool all = (bits | hidden) == UINT64_MAX >> (64 - rows);

    if (l->entry) {
        l->entry[at] = (int32_t)c;
        l->tile[at] = all ? 0 : (int32_t)*tiles + 1;
        for (int64_t bit = 0; !all && bit < ROWS * block; bit++)
            l->tiles[*tiles * block + bit / 64] |= (bits >> bit / block & 1) << bit % 64;
    }
    *tiles += !all;
}

static void list_living(void *user, int64_t plane, int thread)
{
    const struct living *l = user;
    const fv_call *call = l->call;
    int64_t block = l->of->block, next = 0, count = 0, tiles = l->entry ? l->tile_start[plane] : 0;
    int32_t *alive = l->alive + plane * l->blocks;

    (void)thread;
    for (int64_t g = 0; g < l->groups; g++) {
        int64_t first = g * ROWS, skip = fv_max(-call->offset - first, 0), end = fv_min(first + ROWS, call->queries);
        int64_t p = call->offset + first, last = call->offset + end - 1, left = 0;
        int64_t from = l->entry ? l->row_start[plane * l->groups + g] : 0, at = from;
        for (; next * block <= last; next++)
            alive[count++] = (int32_t)next;
        for (int64_t n = 0; n < count; n++) {
            int64_t c = alive[n];
            uint64_t bits = skip < end - first ? readers(l, plane, c, p + skip, end - first - skip) << skip : 0;
            if (bits || l->of->dead) add_living(l, c, bits, c * block - p, end - first, at++, &tiles);
            if (l->of->gone[plane * l->blocks + c] > last || (c + 1) * block > last + 1 || l->of->dead)
                alive[left++] = alive[n];
        }
        count = left;
        if (!l->entry) l->row_start[plane * l->groups + g + 1] = at - from;
    }
    if (!l->entry) l->tile_start[plane + 1] = tiles;
}

fv_status fv_lifetimes_plan(fv_ctx *ctx, const fv_call *call, const fv_lifetimes *lifetimes, fv_plan *plan)
{
    int64_t planes = call->batch * lifetimes->heads;
    struct living l = {.call = call,
                       .of = lifetimes,
                       .groups = fv_ceil_div(call->queries, ROWS),
                       .blocks = fv_ceil_div(call->keys, lifetimes->block)};
    int64_t rows = planes * l.groups;

    FV_TRY(FV_SCRATCH(ctx, l.alive, planes * l.blocks));
    FV_TRY(FV_SCRATCH(ctx, l.row_start, rows + 1));
    FV_TRY(FV_SCRATCH(ctx, l.tile_start, planes + 1));
    fv_run(ctx, planes, list_living, &l);
    l.row_start[0] = l.tile_start[0] = 0;
    for (int64_t r = 0; r < rows; r++)
        l.row_start[r + 1] += l.row_start[r];
    for (int64_t p = 0; p < planes; p++)
        l.tile_start[p + 1] += l.tile_start[p];
    FV_TRY(FV_SCRATCH(ctx, l.entry, l.row_start[rows] + 1)); /* never none: it would only be counted */
    FV_TRY(FV_SCRATCH(ctx, l.tile, l.row_start[rows] + 1));
    FV_TRY(FV_SCRATCH(ctx, l.tiles, l.tile_start[planes] * lifetimes->block));
    memset(l.tiles, 0, (size_t)(l.tile_start[planes] * lifetimes->block) * sizeof *l.tiles);
    fv_run(ctx, planes, list_living, &l);
    plan->lists = (fv_lists){.query_block = ROWS,
                             .key_block = lifetimes->block,
                             .groups = l.groups,
                             .key_blocks = l.blocks,
                             .batch_stride = call->batch > 1 ? lifetimes->heads * l.groups : 0,
                             .head_stride = lifetimes->heads > 1 ? l.groups : 0,
                             .heads = lifetimes->heads,
                             .row_start = l.row_start,
                             .entry = l.entry,
                             .tile = l.tile_start[planes] > 0 ? l.tile : NULL,
                             .tiles = l.tiles,
                             .tile_words = lifetimes->block};
    return FV_OK;
}
