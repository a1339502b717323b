/* Builds the lists of a plan, block by block. */
#include "attention/lists.h"

#include <stdlib.h>
#include <string.h>

fv_status fv_lists_begin(fv_ctx *ctx, fv_list_builder *builder, const fv_list_shape *shape)
{
    fv_list_builder *b = builder;

    *b = (fv_list_builder){.ctx = ctx,
                           .query_block = shape->query_block,
                           .key_block = shape->key_block,
                           .offset = shape->offset,
                           .queries = shape->queries,
                           .keys = shape->keys,
                           .batches = fv_max(shape->batches, 1),
                           .heads = fv_max(shape->heads, 1),
                           .row = -1};
    if (b->query_block < 1 || b->key_block < 1 || b->queries < 0 || b->keys < 0)
        b->status =
            fv_fail(FV_E_ARGUMENT, "lists: query block %lld, key block %lld, %lld queries, %lld keys",
                    (long long)b->query_block, (long long)b->key_block, (long long)b->queries, (long long)b->keys);
    FV_TRY(b->status);
    if (b->queries > 0)
        b->groups = fv_floor_div(b->offset + b->queries - 1, b->query_block) - fv_lists_first_block(b) + 1;
    b->key_start = shape->key_start;
    b->key_blocks = shape->key_start ? shape->key_blocks : fv_ceil_div(b->keys, b->key_block);
    if (b->key_blocks > INT32_MAX)
        b->status = fv_fail(FV_E_SHAPE, "lists: %lld key blocks are more than %d", (long long)b->key_blocks, INT32_MAX);
    FV_TRY(b->status);
    if (!fv_mul_i64(b->batches, b->heads, &b->rows) || !fv_mul_i64(b->rows, b->groups, &b->rows))
        b->status = fv_fail(FV_E_MEMORY, "lists: the number of rows overflows");
    FV_TRY(b->status);
    b->status = FV_SCRATCH(ctx, b->row_start, b->rows + 1);
    if (b->status == FV_OK) b->row_start[0] = 0;
    return b->status;
}

int64_t fv_lists_first_block(const fv_list_builder *builder)
{
    return fv_floor_div(builder->offset, builder->query_block);
}

static int ascending(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return (x > y) - (x < y);
}

/* Sorts the current row and removes repeats; rows mostly come in order. */
static void close_row(fv_list_builder *b)
{
    int32_t *row = b->entry + b->row_first;
    int64_t count = b->entries - b->row_first, kept = 0, n = 1;

    if (b->row < 0) return;
    while (n < count && row[n - 1] < row[n])
        n++;
    if (n < count) {
        qsort(row, (size_t)count, sizeof *row, ascending);
        for (n = 0; n < count; n++)
            if (kept == 0 || row[n] != row[kept - 1]) row[kept++] = row[n];
        b->entries = b->row_first + kept;
    }
    b->row_start[b->row + 1] = b->entries;
}

void fv_lists_row(fv_list_builder *b)
{
    if (b->status != FV_OK) return;
    close_row(b);
    if (++b->row >= b->rows) {
        b->status = fv_fail(FV_E_ARGUMENT, "lists: more than %lld rows were begun", (long long)b->rows);
        return;
    }
    b->row_first = b->entries;
}

/* Room for `more` entries; the arena has no way to grow a piece, so each size is twice the last. */
static bool room(fv_list_builder *b, int64_t more)
{
    int64_t capacity = fv_max(b->capacity, 1024);
    int32_t *entry;

    if (b->status == FV_OK && b->row < 0) b->status = fv_fail(FV_E_ARGUMENT, "lists: an entry before the first row");
    if (b->status != FV_OK) return false;
    if (b->capacity - b->entries >= more) return true;
    while (capacity - b->entries < more)
        if (!fv_mul_i64(capacity, 2, &capacity)) capacity = b->entries + more;
    b->status = FV_SCRATCH(b->ctx, entry, capacity);
    if (b->status != FV_OK) return false;
    if (b->entries > 0) memcpy(entry, b->entry, (size_t)b->entries * sizeof *entry);
    b->entry = entry;
    b->capacity = capacity;
    return true;
}

void fv_lists_add(fv_list_builder *b, int64_t key_block)
{
    if (key_block < 0 || key_block >= b->key_blocks || !room(b, 1)) return;
    b->entry[b->entries++] = (int32_t)key_block;
}

void fv_lists_add_range(fv_list_builder *b, int64_t from, int64_t to)
{
    from = fv_max(from, 0);
    to = fv_min(to, b->key_blocks);
    if (from >= to || !room(b, to - from)) return;
    for (int64_t block = from; block < to; block++)
        b->entry[b->entries++] = (int32_t)block;
}

void fv_lists_add_every(fv_list_builder *b, int64_t from, int64_t to, int64_t step)
{
    for (int64_t block = from < 0 ? from + fv_ceil_div(-from, step) * step : from; block < to; block += step)
        fv_lists_add(b, block);
}

fv_status fv_lists_end(fv_list_builder *b, fv_plan *plan)
{
    int64_t *query_start = NULL;

    FV_TRY(b->status);
    close_row(b);
    if (b->row + 1 != b->rows)
        return fv_fail(FV_E_ARGUMENT, "lists: expected %lld rows, got %lld", (long long)b->rows,
                       (long long)(b->row + 1));
    if (b->groups > 0 && b->offset != fv_lists_first_block(b) * b->query_block) { /* the first block is cut */
        FV_TRY(FV_SCRATCH(b->ctx, query_start, b->groups + 1));
        for (int64_t g = 0; g <= b->groups; g++)
            query_start[g] = fv_clamp((fv_lists_first_block(b) + g) * b->query_block - b->offset, 0, b->queries);
    }
    plan->lists = (fv_lists){.query_block = b->query_block,
                             .key_block = b->key_block,
                             .groups = b->groups,
                             .key_blocks = b->key_blocks,
                             .key_start = b->key_start,
                             .query_start = query_start,
                             .batch_stride = b->batches > 1 ? b->heads * b->groups : 0,
                             .head_stride = b->heads > 1 ? b->groups : 0,
                             .heads = b->heads,
                             .row_start = b->row_start,
                             .entry = b->entry};
    return FV_OK;
}
