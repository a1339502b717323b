/* Lists of single keys: by group of queries, or with a set of its own for each query. */
#include "attention/sparse/core.h"

/* ---- by group of queries --------------------------------------------------------------------------------------- */

fv_status fv_key_lists_new(fv_ctx *ctx, const fv_call *call, int64_t heads, int64_t block, int64_t room,
                           fv_key_lists *lists)
{
    *lists = (fv_key_lists){.block = block, .heads = heads, .room = room, .first = call->offset / block};
    FV_TRY(fv_cut_queries(ctx, call, block, &lists->groups, &lists->query_start));
    lists->lists = call->batch * heads * lists->groups;
    FV_TRY(FV_SCRATCH(ctx, lists->count, lists->lists));
    FV_TRY(FV_SCRATCH(ctx, lists->entry, lists->lists * room));
    memset(lists->count, 0, (size_t)lists->lists * sizeof *lists->count);
    return FV_OK;
}

fv_status fv_key_lists_plan(fv_ctx *ctx, const fv_call *call, const fv_key_lists *lists, fv_plan *plan)
{
    int64_t *row_start;

    FV_TRY(FV_SCRATCH(ctx, row_start, lists->lists + 1));
    row_start[0] = 0;
    for (int64_t r = 0; r < lists->lists; r++) {
        memmove(lists->entry + row_start[r], lists->entry + r * lists->room,
                (size_t)lists->count[r] * sizeof *lists->entry);
        row_start[r + 1] = row_start[r] + lists->count[r];
    }
    plan->lists = (fv_lists){.query_block = lists->block,
                             .key_block = 1,
                             .groups = lists->groups,
                             .key_blocks = call->keys,
                             .query_start = lists->query_start,
                             .batch_stride = lists->heads * lists->groups,
                             .head_stride = lists->heads > 1 ? lists->groups : 0,
                             .heads = lists->heads,
                             .row_start = row_start,
                             .entry = lists->entry};
    return FV_OK;
}

/* ---- by query -------------------------------------------------------------------------------------------------- */

fv_status fv_key_bits_new(fv_ctx *ctx, const fv_call *call, fv_key_bits *bits)
{
    int64_t count;

    *bits = (fv_key_bits){.batch = call->batch,
                          .heads = call->query_heads,
                          .queries = call->queries,
                          .keys = call->keys,
                          .groups = fv_ceil_div(call->queries, FV_TILE),
                          .blocks = fv_ceil_div(call->keys, FV_TILE)};
    count = bits->batch * bits->heads * bits->groups * bits->blocks * FV_TILE;
    FV_TRY(FV_SCRATCH(ctx, bits->word, count));
    memset(bits->word, 0, (size_t)count * sizeof *bits->word);
    return FV_OK;
}

/* The words of row i of a (batch, head); the next block's stands FV_TILE words on. */
static uint64_t *row_words(const fv_key_bits *bits, int64_t plane, int64_t i)
{
    return bits->word + (plane * bits->groups + i / FV_TILE) * bits->blocks * FV_TILE + i % FV_TILE;
}

struct adding {
    const fv_key_bits *bits;
    int64_t from;
    const fv_tensor *index;
};

static void add_row(void *user, int64_t row, int thread)
{
    const struct adding *a = user;
    int64_t n = a->index->dims[2], most = a->index->dims[3];
    const int32_t *index = (int32_t *)a->index->data + row * most;
    uint64_t *word = row_words(a->bits, row / n, a->from + row % n);

    (void)thread;
    for (int64_t k = 0; k < most && index[k] >= 0;) { /* they ascend, and words lie apart */
        int64_t block = index[k] / FV_TILE;
        uint64_t keys = 0;
        for (; k < most && index[k] >= block * FV_TILE && index[k] < (block + 1) * FV_TILE; k++)
            keys |= (uint64_t)1 << index[k] % FV_TILE;
        word[block * FV_TILE] |= keys;
    }
}

void fv_key_bits_add(fv_ctx *ctx, const fv_key_bits *bits, int64_t from, const fv_tensor *index)
{
    struct adding adding = {bits, from, index};

    fv_run(ctx, bits->batch * bits->heads * index->dims[2], add_row, &adding);
}

void fv_key_bits_set(const fv_key_bits *bits, int64_t b, int64_t h, int64_t i, bool all)
{
    uint64_t *word = row_words(bits, b * bits->heads + h, i);

    for (int64_t block = 0; block < bits->blocks; block++)
        word[block * FV_TILE] = all ? fv_plan_interval(0, bits->keys, block * FV_TILE, FV_TILE) : 0;
}

fv_status fv_key_bits_plan(fv_ctx *ctx, const fv_key_bits *bits, fv_plan *plan)
{
    int64_t rows = bits->batch * bits->heads * bits->groups, entries = 0, *row_start;
    int32_t *entry, *tile;

    FV_TRY(FV_SCRATCH(ctx, row_start, rows + 1));
    FV_TRY(FV_SCRATCH(ctx, entry, rows * bits->blocks));
    FV_TRY(FV_SCRATCH(ctx, tile, rows * bits->blocks));
    for (int64_t n = 0; n < rows * bits->blocks; n++) {
        const uint64_t *word = bits->word + n * FV_TILE;
        uint64_t seen = 0;
        if (n % bits->blocks == 0) row_start[n / bits->blocks] = entries;
        for (int r = 0; r < FV_TILE; r++)
            seen |= word[r];
        if (!seen) continue;
        entry[entries] = (int32_t)(n % bits->blocks);
        tile[entries++] = (int32_t)(1 + n);
    }
    row_start[rows] = entries;
    plan->lists = (fv_lists){.query_block = FV_TILE,
                             .key_block = FV_TILE,
                             .groups = bits->groups,
                             .key_blocks = bits->blocks,
                             .batch_stride = bits->heads * bits->groups,
                             .head_stride = bits->groups,
                             .heads = bits->heads,
                             .row_start = row_start,
                             .entry = entry,
                             .tile = tile,
                             .tiles = bits->word,
                             .tile_words = FV_TILE};
    return FV_OK;
}
