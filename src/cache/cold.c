/* How rows become cold. */
#include "cache/cold.h"

#include <string.h>

#include "base/context.h"
#include "cache/channels.h"
#include "cache/cold_inside.h"
#include "cache/rows_inside.h"

enum { AT_ONCE = 256 /* rows that are written together */ };

fv_status fv_cold_new(fv_rows *rows, const fv_cold_options *options)
{
    const fv_rows_options *o = &rows->options;
    fv_cold *cold;

    FV_TRY(FV_ZALLOC(cold, 1));
    cold->options = *options;
    cold->channels = o->heads * (o->key_dim + o->value_dim);
    cold->record = options->packed ? (size_t)cold->channels : fv_cold_side(rows, 0) + fv_cold_side(rows, 1);
    if (options->file) fv_offload_hold(options->file);
    rows->cold = cold;
    return FV_OK;
}

void fv_cold_stop_ahead(struct fv_cold *cold)
{
    fv_read_ahead_end(cold->options.file, cold->ahead);
    cold->ahead = NULL;
    cold->ahead_count = 0;
}

void fv_cold_free(fv_rows *rows)
{
    fv_cold *cold = rows->cold;

    if (!cold) return;
    fv_cold_stop_ahead(cold);
    for (int64_t b = 0; b < cold->packed; b++) {
        fv_free(cold->block[b].memory);
        fv_free(cold->block[b].q);
    }
    if (cold->options.file) fv_offload_forget(cold->options.file, cold->records, cold->record, cold->recorded);
    fv_offload_drop(cold->options.file);
    fv_free(cold->ahead_position);
    fv_free(cold->records);
    fv_free(cold->block);
    for (int64_t i = 0; i < cold->inputs; i++)
        fv_free(cold->input[i]);
    fv_free(cold->input);
    fv_free(cold->few);
    fv_free(cold);
    rows->cold = NULL;
}

int64_t fv_cold_count(const fv_rows *rows)
{
    return rows->cold ? rows->cold->count : 0;
}

size_t fv_cold_used(const fv_rows *rows)
{
    return rows->cold ? rows->cold->used : 0;
}

size_t fv_cold_host(const fv_rows *rows)
{
    return rows->cold ? rows->cold->host : 0;
}

size_t fv_cold_input_bytes(const fv_rows *rows)
{
    const fv_cold *cold = rows->cold;

    if (!cold) return 0;
    return (size_t)(cold->inputs * FV_COLD_BLOCK * cold->width) * sizeof(float) +
           (size_t)cold->input_room * sizeof *cold->input + (size_t)cold->few_room * sizeof *cold->few;
}

/* ---- rows that are computed again -------------------------------------------------------------------------------- */

static fv_status grow_inputs(fv_cold *cold, int64_t rows)
{
    FV_TRY(FV_GROW(cold->few, cold->few_room, rows));
    FV_TRY(FV_GROW(cold->input, cold->input_room, fv_ceil_div(rows, FV_COLD_BLOCK)));
    for (; cold->inputs * FV_COLD_BLOCK < rows; cold->inputs++)
        FV_TRY(FV_ALLOC(cold->input[cold->inputs], FV_COLD_BLOCK * cold->width));
    return FV_OK;
}

fv_status fv_cold_note(fv_rows *rows, int64_t position, const fv_tensor *input, bool few)
{
    fv_cold *cold = rows->cold;
    int64_t count = fv_min(input->dims[0], cold->options.computed - position), width = input->dims[1];

    if (count <= 0 || position != cold->noted) return FV_OK;
    cold->width = width;
    FV_TRY(grow_inputs(cold, position + count));
    for (int64_t i = 0; i < count; i++) {
        memcpy(fv_cold_input(cold, position + i), (const float *)input->data + i * input->strides[0],
               (size_t)width * sizeof(float));
        cold->few[position + i] = few;
    }
    cold->noted = position + count;
    return FV_OK;
}

/* The rows before `to` are cold from now on. */
static void leave(fv_rows *rows, int64_t to)
{
    fv_rows_leave(rows, to - rows->cold->count);
    rows->cold->count = to;
}

fv_status fv_cold_drop(fv_rows *rows, int64_t to)
{
    to = fv_min(to, rows->cold->noted);
    if (to > rows->cold->count) leave(rows, to);
    return FV_OK;
}

/* ---- 8 bits ------------------------------------------------------------------------------------------------------ */

static int64_t end_of(const fv_cold *cold)
{
    const struct cold_block *last = cold->blocks > 0 ? &cold->block[cold->blocks - 1] : NULL;

    return last ? last->from + last->count : cold->options.computed;
}

/* Cuts whole blocks out of the first n rows, and what is left behind them if `all` are wanted. */
static fv_status cut(fv_cold *cold, int64_t n, bool all)
{
    for (int64_t from; (from = end_of(cold)) < n;) {
        int64_t count = fv_min(FV_COLD_BLOCK, n - from);
        if (count < FV_COLD_BLOCK && !all) break;
        FV_TRY(FV_GROW(cold->block, cold->block_room, cold->blocks + 1));
        cold->block[cold->blocks++] = (struct cold_block){.from = from, .count = count};
    }
    return FV_OK;
}

fv_status fv_cold_cut(fv_rows *rows)
{
    return rows->cold->options.packed ? cut(rows->cold, fv_cold_all(rows), true) : FV_OK;
}

/* Rows of a block, from memory: [count, channels]. */
static void load_block(const fv_rows *rows, const struct cold_block *block, float *out)
{
    for (int64_t i = 0; i < block->count; i++)
        for (int side = 0; side < 2; side++)
            for (int64_t g = 0; g < rows->options.heads; g++, out += rows->side[side].dim)
                fv_rows_load(rows, side, fv_row_at(rows, side, g, rows->head[g].first + i), out);
}

static fv_status pack_block(fv_ctx *ctx, fv_rows *rows, struct cold_block *block)
{
    fv_cold *cold = rows->cold;
    int64_t channels = cold->channels;
    float *loaded;

    FV_TRY(FV_SCRATCH(ctx, loaded, block->count * channels));
    FV_TRY(fv_alloc(&block->memory, channels, sizeof *block->scale + sizeof *block->zero));
    if (FV_ALLOC(block->q, block->count * channels) != FV_OK) {
        fv_free(block->memory);
        block->memory = NULL;
        return FV_E_MEMORY;
    }
    block->scale = block->memory;
    block->zero = (int32_t *)(block->scale + channels);
    load_block(rows, block, loaded);
    fv_channels_pack(loaded, block->count, channels, block->scale, block->zero, block->q);
    cold->used += (size_t)channels * (sizeof *block->scale + sizeof *block->zero) + (size_t)(block->count * channels);
    return FV_OK;
}

fv_status fv_cold_pack(fv_ctx *ctx, fv_rows *rows, int64_t to)
{
    fv_cold *cold = rows->cold;

    FV_TRY(cut(cold, fv_cold_all(rows), false));
    while (cold->packed < cold->blocks) {
        struct cold_block *block = &cold->block[cold->packed];
        fv_mark mark = fv_scratch_mark(ctx);
        if (block->from != cold->count || block->from + block->count > to) break;
        FV_TRY(pack_block(ctx, rows, block));
        fv_scratch_release(ctx, mark);
        cold->packed++;
        leave(rows, block->from + block->count);
    }
    return FV_OK;
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static fv_status write_records(fv_cold *cold, const void *bytes, int64_t count)
{
    FV_TRY(FV_GROW(cold->records, cold->record_room, cold->recorded + count));
    FV_TRY(fv_offload_write(cold->options.file, bytes, cold->record, count, cold->records + cold->recorded));
    cold->recorded += count;
    cold->host += (size_t)count * cold->record;
    return FV_OK;
}

/* Rows in memory as they are stored: [count, heads] keys, then values, of each token. */
static void load_stored(const fv_rows *rows, int64_t count, char *out)
{
    for (int64_t i = 0; i < count; i++)
        for (int side = 0; side < 2; side++)
            for (int64_t g = 0; g < rows->options.heads; g++, out += rows->side[side].row_bytes)
                memcpy(out, fv_row_at(rows, side, g, rows->head[g].first + i), rows->side[side].row_bytes);
}

static fv_status write_rows(fv_ctx *ctx, fv_rows *rows, int64_t to)
{
    fv_cold *cold = rows->cold;
    char *bytes;

    if (to <= cold->count || cold->count < cold->options.computed) return FV_OK;
    FV_TRY(fv_arena_alloc(ctx->arena, (void **)&bytes, fv_min(AT_ONCE, to - cold->count), cold->record));
    while (cold->count < to) {
        int64_t count = fv_min(AT_ONCE, to - cold->count);
        load_stored(rows, count, bytes);
        FV_TRY(write_records(cold, bytes, count));
        leave(rows, cold->count + count);
    }
    return FV_OK;
}

static fv_status write_blocks(fv_cold *cold, int64_t to)
{
    for (; cold->written < cold->packed; cold->written++) {
        struct cold_block *block = &cold->block[cold->written];
        if (block->from + block->count > to) break;
        FV_TRY(write_records(cold, block->q, block->count));
        fv_free(block->q);
        block->q = NULL;
        cold->used -= (size_t)(block->count * cold->channels);
    }
    return FV_OK;
}

fv_status fv_cold_write(fv_ctx *ctx, fv_rows *rows, int64_t to)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status;

    if (!rows->cold->options.file) return FV_OK;
    status = rows->cold->options.packed ? write_blocks(rows->cold, to) : write_rows(ctx, rows, to);
    fv_scratch_release(ctx, mark);
    return status;
}

/* ---- going back -------------------------------------------------------------------------------------------------- */

fv_status fv_cold_truncate(fv_rows *rows, int64_t length)
{
    fv_cold *cold = rows->cold;
    int64_t kept;

    if (!cold) return FV_OK;
    if (cold->options.packed && length < fv_cold_all(rows))
        return fv_fail(FV_E_ARGUMENT,
                       "going back to %lld tokens: rows in 8 bits are made of blocks that later tokens belong to",
                       (long long)length);
    fv_cold_stop_ahead(cold);
    cold->noted = fv_min(cold->noted, length);
    if (length >= cold->count) return FV_OK;
    kept = fv_max(length - cold->options.computed, 0);
    if (kept < cold->recorded) {
        fv_offload_forget(cold->options.file, cold->records + kept, cold->record, cold->recorded - kept);
        cold->host -= (size_t)(cold->recorded - kept) * cold->record;
        cold->recorded = kept;
    }
    for (int64_t g = 0; g < rows->options.heads; g++)
        rows->head[g].first -= cold->count - length;
    cold->count = length;
    return FV_OK;
}
