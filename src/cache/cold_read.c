/* How cold rows are read: the tokens that are wanted are brought once, for all heads, and then copied to where each
 * head wants them. */
#include "cache/cold.h"

#include <string.h>

#include "base/context.h"
#include "cache/channels.h"
#include "cache/cold_inside.h"
#include "cache/rows_inside.h"
#include "ops/ops.h"

struct reading {
    const fv_rows *rows;
    const fv_cold *cold;
    int64_t head, heads, count;
    const int32_t *const *place; /* NULL: 0 .. count-1 */
    int64_t wanted;              /* cold tokens, at ascending positions */
    int32_t *position;           /* [wanted] */
    int32_t *slot;               /* [cold->count] where among them */
    const char **row[2];         /* [wanted] keys and values of all heads as stored, or codes of both */
    int32_t *block;              /* [wanted] of codes; -1: as stored */
    fv_tensor out[2];            /* absent: not wanted */
};

static bool lists_differ(const struct reading *r)
{
    for (int64_t h = 1; r->place && h < r->heads; h++)
        if (r->place[h] != r->place[0]) return true;
    return false;
}

/* Which cold tokens some head wants. */
static fv_status list_wanted(fv_ctx *ctx, struct reading *r)
{
    int64_t cold = r->cold->count, lists = lists_differ(r) ? r->heads : 1;
    bool *marked;

    FV_TRY(FV_SCRATCH(ctx, marked, cold));
    FV_TRY(FV_SCRATCH(ctx, r->slot, cold));
    FV_TRY(FV_SCRATCH(ctx, r->position, cold));
    memset(marked, r->place == NULL, (size_t)cold * sizeof *marked);
    for (int64_t h = 0; r->place && h < lists; h++)
        for (int64_t i = 0; i < r->count && r->place[h][i] < cold; i++)
            marked[r->place[h][i]] = true;
    for (int64_t p = 0; p < fv_min(cold, r->place ? cold : r->count); p++) {
        if (!marked[p]) continue;
        r->slot[p] = (int32_t)r->wanted;
        r->position[r->wanted++] = (int32_t)p;
    }
    return FV_OK;
}

/* ---- rows that are computed again -------------------------------------------------------------------------------- */

/* Stores k or v [n, heads * dim] as the rows are stored. */
static fv_status store(fv_ctx *ctx, const fv_rows *rows, int which, const fv_tensor *from, char *to)
{
    const fv_rows_side *side = &rows->side[which];
    int64_t n = from->dims[0], heads = rows->options.heads, dim = side->dim;
    fv_tensor out;

    FV_TRY(fv_tensor_wrap(&out, to, side->type, FV_DIMS(n, heads * dim)));
    if (fv_dtype_block(side->type) == 1)
        return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *from, .out = out});
    for (int64_t g = 0; g < heads; g++)
        FV_TRY(fv_quantize_rows(
            ctx, &(fv_quantize_args){.x = fv_slice(from, 1, g * dim, dim), .out = fv_slice(&out, 1, g * dim, dim)}));
    return FV_OK;
}

/* Those of the first `count` wanted tokens that few or many rows made. */
static fv_status compute_some(fv_ctx *ctx, struct reading *r, int64_t count, bool few)
{
    const fv_cold *cold = r->cold;
    const fv_cold_options *o = &cold->options;
    int64_t width = cold->width, n = 0;
    fv_tensor input, side[2];
    int32_t *position, *slot;
    char *stored;

    FV_TRY(FV_SCRATCH(ctx, position, count));
    FV_TRY(FV_SCRATCH(ctx, slot, count));
    for (int64_t w = 0; w < count; w++) {
        if (cold->few[r->position[w]] != few) continue;
        position[n] = r->position[w];
        slot[n++] = (int32_t)w;
    }
    if (n == 0) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &input, FV_F32, FV_DIMS(n, width)));
    for (int64_t i = 0; i < n; i++)
        memcpy((float *)input.data + i * width, fv_cold_input(cold, position[i]), (size_t)width * sizeof(float));
    FV_TRY(o->project(ctx, o->user, o->layer, &input, position, few, &side[0], &side[1]));
    for (int which = 0; which < 2; which++) {
        size_t bytes = fv_cold_side(r->rows, which);
        FV_TRY(fv_arena_alloc(ctx->arena, (void **)&stored, n, bytes));
        FV_TRY(store(ctx, r->rows, which, &side[which], stored));
        for (int64_t i = 0; i < n; i++)
            r->row[which][slot[i]] = stored + (size_t)i * bytes;
    }
    return FV_OK;
}

/* ---- rows that lie somewhere ------------------------------------------------------------------------------------- */

/* Where the wanted tokens from `from` on lie: codes in memory at once; of the others, the first of which is
 * returned, records [wanted]. */
static int64_t look_up(struct reading *r, int64_t from, fv_record *records)
{
    const fv_cold *cold = r->cold;
    int64_t b = 0, in_file = 0;

    for (int64_t w = from; w < r->wanted; w++) {
        int64_t p = r->position[w];
        const struct cold_block *block = NULL;
        if (cold->options.packed) {
            while (cold->block[b].from + cold->block[b].count <= p)
                b++;
            block = &cold->block[b];
            r->block[w] = (int32_t)b;
        }
        r->row[0][w] = NULL;
        if (block && block->q)
            r->row[0][w] = (const char *)block->q + (p - block->from) * cold->channels;
        else
            records[in_file++] = cold->records[p - cold->options.computed];
    }
    return in_file;
}

/* What was read ahead, if it is what is wanted: tokens first .. first+count-1 of those wanted. */
static const char *read_ahead(const struct reading *r, const int32_t *position, int64_t count)
{
    const fv_cold *cold = r->cold;

    if (!cold->ahead || cold->ahead_count != count ||
        memcmp(cold->ahead_position, position, (size_t)count * sizeof *position) != 0)
        return NULL;
    return fv_read_ahead_wait(cold->options.file, cold->ahead);
}

/* Positions of the wanted tokens that lie in the file. */
static int64_t positions_in_file(const struct reading *r, int64_t from, int32_t *position)
{
    int64_t n = 0;

    for (int64_t w = from; w < r->wanted; w++)
        if (!r->row[0][w]) position[n++] = r->position[w];
    return n;
}

static fv_status fetch(fv_ctx *ctx, struct reading *r, int64_t from)
{
    const fv_cold *cold = r->cold;
    int64_t left = r->wanted - from, in_file;
    fv_record *records;
    int32_t *position;
    const char *bytes;
    void *memory;

    if (left == 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, records, left));
    FV_TRY(FV_SCRATCH(ctx, position, left));
    in_file = look_up(r, from, records);
    if (in_file > 0) {
        bytes = read_ahead(r, position, positions_in_file(r, from, position));
        if (!bytes) {
            FV_TRY(fv_arena_alloc(ctx->arena, &memory, in_file, cold->record));
            FV_TRY(fv_offload_read(cold->options.file, records, cold->record, in_file, memory));
            bytes = memory;
        }
        for (int64_t w = from; w < r->wanted; w++) {
            if (r->row[0][w]) continue;
            r->row[0][w] = bytes;
            bytes += cold->record;
        }
    }
    for (int64_t w = from; w < r->wanted && !cold->options.packed; w++)
        r->row[1][w] = r->row[0][w] + fv_cold_side(r->rows, 0);
    return FV_OK;
}

/* Where each wanted token's row lies, once it is brought. */
static fv_status bring(fv_ctx *ctx, struct reading *r)
{
    int64_t again = 0;

    for (int side = 0; side < 2; side++)
        FV_TRY(FV_SCRATCH(ctx, r->row[side], r->wanted));
    FV_TRY(FV_SCRATCH(ctx, r->block, r->wanted));
    for (int64_t w = 0; w < r->wanted; w++)
        r->block[w] = -1;
    while (again < r->wanted && r->position[again] < r->cold->options.computed)
        again++;
    FV_TRY(compute_some(ctx, r, again, true));
    FV_TRY(compute_some(ctx, r, again, false));
    return fetch(ctx, r, again);
}

/* ---- to each head ------------------------------------------------------------------------------------------------ */

static int64_t place_of(const struct reading *r, int64_t h, int64_t i)
{
    return r->place ? r->place[h][i] : i;
}

/* Rows of a head as they are stored; places of codes are left open. */
static void copy_item(void *user, int64_t item, int thread)
{
    const struct reading *r = user;
    int64_t which = item / r->heads, h = item % r->heads, g = r->head + h, cold = r->cold->count;
    size_t bytes = r->rows->side[which].row_bytes;
    char *out = (char *)r->out[which].data + (size_t)(h * r->count) * bytes;

    (void)thread;
    for (int64_t i = 0, run; i < r->count; i += run, out += (size_t)run * bytes) {
        int64_t p = place_of(r, h, i);
        run = 1;
        if (p < cold) {
            int32_t w = r->slot[p];
            if (r->block[w] < 0) memcpy(out, r->row[which][w] + (size_t)g * bytes, bytes);
            continue;
        }
        while (i + run < r->count && place_of(r, h, i + run) == p + run)
            run++;
        memcpy(out, fv_row_at(r->rows, (int)which, g, r->rows->head[g].first + p - cold), (size_t)run * bytes);
    }
}

/* Codes of a head, as f32. */
static void unpack_item(void *user, int64_t item, int thread)
{
    const struct reading *r = user;
    int64_t which = item / r->heads, h = item % r->heads, g = r->head + h, dim = r->rows->side[which].dim;
    int64_t channel = which ? r->rows->options.heads * r->rows->side[0].dim + g * dim : g * dim;
    float *out = (float *)r->out[which].data + h * r->count * dim;

    (void)thread;
    for (int64_t i = 0; i < r->count; i++, out += dim) {
        int64_t p = place_of(r, h, i);
        int32_t w = p < r->cold->count ? r->slot[p] : -1;
        if (w < 0 || r->block[w] < 0) continue;
        const struct cold_block *block = &r->cold->block[r->block[w]];
        fv_channels_unpack((const uint8_t *)r->row[0][w] + channel, block->scale + channel, block->zero + channel, dim,
                           out);
    }
}

/* What is stored, for all places that are. */
static fv_status copy_rows(fv_ctx *ctx, struct reading *r, bool values)
{
    int sides = values ? 2 : 1;

    for (int which = 0; which < sides; which++)
        FV_TRY(fv_tensor_new(ctx, &r->out[which], r->rows->side[which].type,
                             FV_DIMS(1, r->heads, r->count, r->rows->side[which].dim)));
    fv_run(ctx, sides * r->heads, copy_item, r);
    return FV_OK;
}

static fv_status as_f32(fv_ctx *ctx, struct reading *r, bool values)
{
    int sides = values ? 2 : 1;

    for (int which = 0; which < sides; which++) {
        fv_tensor stored = r->out[which];
        FV_TRY(fv_tensor_new(ctx, &r->out[which], FV_F32, 4, stored.dims));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = stored, .out = r->out[which]}));
    }
    fv_run(ctx, sides * r->heads, unpack_item, r);
    return FV_OK;
}

fv_status fv_cold_read(fv_ctx *ctx, fv_rows *rows, int64_t head, int64_t heads, const int32_t *const *place,
                       int64_t count, fv_tensor *keys, fv_tensor *values)
{
    struct reading r = {.rows = rows, .cold = rows->cold, .head = head, .heads = heads, .count = count, .place = place};
    fv_status status = list_wanted(ctx, &r);

    if (status == FV_OK) status = bring(ctx, &r);
    if (status == FV_OK) status = copy_rows(ctx, &r, values != NULL);
    if (status == FV_OK && rows->cold->options.packed) status = as_f32(ctx, &r, values != NULL);
    if (r.wanted > 0) fv_cold_stop_ahead(rows->cold);
    *keys = r.out[0];
    if (values) *values = r.out[1];
    return status;
}

/* ---- ahead ------------------------------------------------------------------------------------------------------- */

static fv_status begin_ahead(fv_ctx *ctx, fv_cold *cold, struct reading *r)
{
    int64_t from = 0, in_file;
    fv_record *records;

    FV_TRY(list_wanted(ctx, r));
    while (from < r->wanted && r->position[from] < cold->options.computed)
        from++;
    FV_TRY(FV_SCRATCH(ctx, records, r->wanted));
    FV_TRY(FV_SCRATCH(ctx, r->row[0], r->wanted));
    FV_TRY(FV_SCRATCH(ctx, r->block, r->wanted));
    in_file = look_up(r, from, records);
    if (in_file == 0) return FV_OK;
    FV_TRY(FV_GROW(cold->ahead_position, cold->ahead_room, in_file));
    FV_TRY(fv_read_ahead_begin(cold->options.file, records, cold->record, in_file, &cold->ahead));
    cold->ahead_count = positions_in_file(r, from, cold->ahead_position);
    return FV_OK;
}

void fv_cold_ahead(fv_ctx *ctx, fv_rows *rows, const int32_t *const *place, int64_t count)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct reading r = {.rows = rows, .cold = rows->cold, .heads = rows->options.heads, .count = count, .place = place};

    if (!rows->cold || rows->cold->recorded == 0) return;
    fv_cold_stop_ahead(rows->cold);
    (void)begin_ahead(ctx, rows->cold, &r);
    fv_scratch_release(ctx, mark);
}

/* ---- as 8 bits will hold them ------------------------------------------------------------------------------------ */

static void round_block(float *rows, int64_t count, int64_t dim, float *scale, int32_t *zero, uint8_t *q)
{
    fv_channels_pack(rows, count, dim, scale, zero, q);
    for (int64_t i = 0; i < count; i++)
        fv_channels_unpack(q + i * dim, scale, zero, dim, rows + i * dim);
}

fv_status fv_cold_keys(fv_ctx *ctx, fv_rows *rows, int64_t count, fv_tensor *keys)
{
    const fv_cold *cold = rows->cold;
    int64_t dim = rows->options.key_dim, all = fv_cold_all(rows);
    int32_t *zero;
    uint8_t *q;
    float *scale;

    FV_TRY(FV_SCRATCH(ctx, scale, dim));
    FV_TRY(FV_SCRATCH(ctx, zero, dim));
    FV_TRY(FV_SCRATCH(ctx, q, FV_COLD_BLOCK * dim));
    FV_TRY(fv_cold_read(ctx, rows, 0, rows->options.heads, NULL, all, keys, NULL));
    for (int64_t b = cold->packed; b < cold->blocks && cold->block[b].from < count; b++)
        for (int64_t g = 0; g < rows->options.heads; g++)
            round_block((float *)keys->data + (g * all + cold->block[b].from) * dim, cold->block[b].count, dim, scale,
                        zero, q);
    *keys = fv_slice(keys, 2, 0, count);
    return FV_OK;
}
