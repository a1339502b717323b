#define _GNU_SOURCE
#include "cache/rows.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cold.h"
#include "cache/rows_inside.h"
#include "ops/blocks.h"
#include "ops/ops.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* of Linux 6.1; headers may be older */
#endif

enum {
    SLACK = 32 << 10, /* bytes of a span that may lie idle before they go back */
    HUGE = 2 << 20,   /* a huge page */
};

/* ---- address space ---------------------------------------------------------------------------------------------- */

static fv_status reserve(size_t bytes, void **memory)
{
    *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*memory != MAP_FAILED) return FV_OK;
    *memory = NULL;
    return fv_fail(FV_E_MEMORY, "a cache needs %zu bytes of address space: %s", bytes, strerror(errno));
}

/* Long spans of pages of its own begin on huge ones. */
static fv_status reserve_side(fv_rows *rows, int which, size_t all)
{
    fv_rows_side *side = &rows->side[which];
    void *memory;

    if (rows->map) return fv_map_reserve(rows, which, side->reserved, &side->memory);
    if (side->reserved < HUGE) {
        FV_TRY(reserve(all, &memory));
    } else {
        FV_TRY(reserve(all + HUGE, &memory));
        side->alignment = (HUGE - (uintptr_t)memory % HUGE) % HUGE;
    }
    side->memory = (char *)memory + side->alignment;
    return FV_OK;
}

/* A layer's part of a pool's tensor: [tokens, layers, heads, dim]. */
static fv_status make_part(fv_rows *rows, int which)
{
    const fv_rows_options *o = &rows->options;
    fv_rows_side *side = &rows->side[which];
    int64_t layers = fv_max(o->layers, 1);
    size_t token;

    if (!fv_mul_size((size_t)o->heads, side->row_bytes, &token) || !fv_mul_size((size_t)layers, token, &side->stride))
        return fv_fail(FV_E_MEMORY, "a cache of %lld layers is more than memory can hold", (long long)layers);
    if (o->beside) {
        fv_slab *slab = o->beside->side[which].slab;
        if (!slab || fv_slab_row_bytes(slab) != side->stride || o->beside->options.capacity != o->capacity)
            return fv_fail(FV_E_ARGUMENT,
                           "cache rows: layers of one tensor need the same heads, dims, types and tokens");
        side->slab = fv_slab_hold(slab);
    } else {
        FV_TRY(fv_slab_take(o->pages, side->stride, o->capacity, 0, &side->slab));
    }
    side->memory = fv_slab_memory(side->slab) + (size_t)o->layer * token;
    side->apart = side->row_bytes;
    return FV_OK;
}

/* Spans begin on pages, and lie whole blocks apart, since strides count elements. */
static fv_status make_side(fv_rows *rows, int which, fv_dtype type, int64_t dim)
{
    fv_rows_side *side = &rows->side[which];
    size_t block = fv_dtype_block_bytes(type), unit = rows->page, bytes, all;

    if (!fv_blocks_storable(type))
        return fv_fail(FV_E_DTYPE, "cache rows: expected f16, bf16, f32, q8_0 or q4_0, got %s", fv_dtype_name(type));
    if (dim % fv_dtype_block(type) != 0)
        return fv_fail(FV_E_SHAPE, "cache rows of %s: expected a head dim that %lld divides, got %lld",
                       fv_dtype_name(type), (long long)fv_dtype_block(type), (long long)dim);
    *side = (fv_rows_side){.type = type, .dim = dim};
    FV_TRY(fv_dtype_bytes(type, dim, &side->row_bytes));
    if (rows->options.pages) return make_part(rows, which);
    if (!fv_mul_size((size_t)rows->options.capacity, side->row_bytes, &bytes) || bytes > SIZE_MAX / 4)
        bytes = SIZE_MAX / 4;
    if (bytes >= HUGE && HUGE % rows->page == 0) unit = HUGE;
    for (size_t step = unit; unit % block != 0;)
        unit += step;
    if (!fv_mul_size((bytes + unit - 1) / unit * unit, (size_t)rows->options.heads, &all) || all > SIZE_MAX / 4)
        return fv_fail(FV_E_MEMORY, "a cache of %lld tokens is more than memory can hold",
                       (long long)rows->options.capacity);
    side->reserved = side->apart = (bytes + unit - 1) / unit * unit;
    side->stride = side->row_bytes;
    return reserve_side(rows, which, all);
}

static void free_side(const fv_rows *rows, fv_rows_side *side)
{
    size_t more = side->reserved < HUGE || rows->map ? 0 : HUGE;

    if (side->slab)
        fv_slab_drop(side->slab);
    else if (side->memory)
        munmap(side->memory - side->alignment, side->reserved * (size_t)rows->options.heads + more);
    *side = (fv_rows_side){0};
}

static size_t position_bytes(const fv_rows *rows)
{
    return (size_t)(rows->options.heads * rows->options.capacity) * sizeof *rows->position;
}

static fv_status make(fv_rows *rows)
{
    const fv_rows_options *o = &rows->options;
    size_t system = (size_t)sysconf(_SC_PAGESIZE);
    int64_t positions;
    void *memory;

    if (o->heads < 1 || o->capacity < 1 || o->capacity > INT32_MAX || !fv_mul_i64(o->heads, o->capacity, &positions) ||
        positions > INT64_MAX / 8)
        return fv_fail(FV_E_MEMORY, "a cache of %lld heads and %lld tokens is more than memory can hold",
                       (long long)o->heads, (long long)o->capacity);
    rows->page = (size_t)fv_max(o->page, (int64_t)system);
    rows->page = (rows->page + system - 1) / system * system;
    if (o->shared && !o->pages) FV_TRY(fv_map_new(rows));
    FV_TRY(make_side(rows, 0, o->key_type, o->key_dim));
    FV_TRY(make_side(rows, 1, o->value_type, o->value_dim));
    FV_TRY(reserve(position_bytes(rows), &memory));
    rows->position = memory;
    return FV_ZALLOC(rows->head, o->heads);
}

fv_status fv_rows_new(fv_rows *rows, const fv_rows_options *options)
{
    *rows = (fv_rows){.options = *options};
    fv_status status = make(rows);
    rows->options.beside = NULL; /* it may move */
    if (status != FV_OK) fv_rows_free(rows);
    return status;
}

void fv_rows_free(fv_rows *rows)
{
    fv_away_free(rows);
    fv_cold_free(rows);
    free_side(rows, &rows->side[0]);
    free_side(rows, &rows->side[1]);
    fv_map_free(rows);
    if (rows->position) munmap(rows->position, position_bytes(rows));
    fv_free(rows->head);
    *rows = (fv_rows){0};
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static void give_back(fv_rows *rows, int side, int64_t head, size_t begin, size_t end)
{
    if (end <= begin) return;
    if (rows->map)
        fv_map_give_back(rows, side, head, begin, end);
    else
        (void)madvise(fv_row_at(rows, side, head, 0) + begin, end - begin, MADV_DONTNEED);
}

static void release_head(fv_rows *rows, int64_t g)
{
    fv_rows_head *head = &rows->head[g];
    int64_t end = head->first + head->count;

    for (int side = 0; side < 2 && !rows->options.pages; side++) {
        size_t bytes = rows->side[side].row_bytes;
        size_t from = fv_page_down(rows, (size_t)head->first * bytes), to = fv_page_up(rows, (size_t)end * bytes);
        give_back(rows, side, g, fv_page_down(rows, (size_t)head->bottom * bytes), head->count > 0 ? from : to);
        give_back(rows, side, g, to, fv_page_up(rows, (size_t)head->top * bytes));
    }
    head->bottom = head->first;
    head->top = end;
}

/* A pool's tensor of this layer alone. */
static void shrink_parts(fv_rows *rows)
{
    int64_t top = 0;

    for (int64_t g = 0; g < rows->options.heads; g++)
        top = fv_max(top, rows->head[g].top);
    for (int side = 0; side < 2 && rows->options.layers <= 1; side++)
        if (rows->side[side].slab) fv_slab_shrink(rows->side[side].slab, top);
}

void fv_rows_release(fv_rows *rows)
{
    for (int64_t g = 0; rows->head && g < rows->options.heads; g++)
        release_head(rows, g);
    if (rows->head) shrink_parts(rows);
}

static void move_bytes(const fv_rows *rows, int side, int64_t g, int64_t from, int64_t to, int64_t count)
{
    const fv_rows_side *s = &rows->side[side];

    if (s->stride == s->row_bytes) {
        memmove(fv_row_at(rows, side, g, to), fv_row_at(rows, side, g, from), (size_t)count * s->row_bytes);
        return;
    }
    for (int64_t n = 0; n < count; n++) { /* away from where it moves to first */
        int64_t i = to < from ? n : count - 1 - n;
        memcpy(fv_row_at(rows, side, g, to + i), fv_row_at(rows, side, g, from + i), s->row_bytes);
    }
}

void fv_rows_move(fv_rows *rows, int64_t g, int64_t from, int64_t to, int64_t count)
{
    int32_t *position = rows->position + g * rows->options.capacity;

    if (count == 0 || from == to) return;
    for (int side = 0; side < 2; side++)
        move_bytes(rows, side, g, from, to, count);
    memmove(position + to, position + from, (size_t)count * sizeof *position);
}

fv_status fv_rows_own(fv_rows *rows, int64_t g, int64_t from, int64_t to)
{
    fv_status status = FV_OK;

    for (int side = 0; side < 2 && rows->map && to > from && status == FV_OK; side++) {
        size_t bytes = rows->side[side].row_bytes;
        status =
            fv_map_own(rows, side, g, fv_page_down(rows, (size_t)from * bytes), fv_page_up(rows, (size_t)to * bytes));
    }
    if (status != FV_OK) rows->refused = true;
    return status;
}

/* Brings a head back to where idle rows before and behind it are few.  Behind cold rows a row's place is its position.
 */
static void settle(fv_rows *rows, int64_t g)
{
    fv_rows_head *head = &rows->head[g];
    int64_t wide = (int64_t)fv_max((int64_t)rows->side[0].row_bytes, (int64_t)rows->side[1].row_bytes);
    int64_t slack = fv_max(SLACK, (int64_t)rows->page) / wide, cold = fv_cold_count(rows);

    if (head->count == 0) head->first = cold;
    if (cold == 0 && head->first > slack && fv_rows_own(rows, g, 0, head->count) == FV_OK) {
        fv_rows_move(rows, g, head->first, 0, head->count);
        head->first = 0;
    }
    if (head->bottom > head->first) head->bottom = head->first;
    if (head->top - head->first - head->count > slack || head->first - head->bottom > slack) release_head(rows, g);
}

void fv_rows_leave(fv_rows *rows, int64_t count)
{
    for (int64_t g = 0; g < rows->options.heads; g++) {
        fv_rows_head *head = &rows->head[g];
        head->first += count;
        head->count -= count;
        release_head(rows, g);
    }
}

void fv_rows_clear(fv_rows *rows)
{
    fv_cold_free(rows);
    for (int64_t g = 0; rows->head && g < rows->options.heads; g++) {
        rows->head[g].count = rows->head[g].first = 0;
        fv_away_truncate(rows, g, 0);
    }
    fv_rows_release(rows);
    rows->refused = false;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

bool fv_rows_alike(const fv_rows *rows)
{
    for (int64_t g = 1; g < rows->options.heads; g++) {
        if (rows->head[g].first != rows->head[0].first || rows->head[g].count != rows->head[0].count) return false;
        if (!rows->cold && !fv_rows_complete(rows, g) &&
            memcmp(fv_rows_positions(rows, g), fv_rows_positions(rows, 0),
                   (size_t)rows->head[0].count * sizeof *rows->position) != 0)
            return false;
    }
    return true;
}

int64_t fv_rows_all(const fv_rows *rows, int64_t head)
{
    return fv_cold_count(rows) + rows->head[head].count;
}

bool fv_rows_complete(const fv_rows *rows, int64_t head)
{
    int64_t count = rows->head[head].count; /* positions ascend, so the last one decides */

    return count == 0 || fv_rows_positions(rows, head)[count - 1] == count - 1;
}

int64_t fv_rows_below(const fv_rows *rows, int64_t g, int64_t position)
{
    const int32_t *at = fv_rows_positions(rows, g);
    int64_t low = 0, high = rows->head[g].count;

    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (at[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static fv_tensor view(const fv_rows *rows, int which, int64_t head, int64_t heads)
{
    const fv_rows_side *side = &rows->side[which];
    size_t block = fv_dtype_block_bytes(side->type);
    int64_t apart = (int64_t)(side->apart / block) * fv_dtype_block(side->type);
    int64_t stride = (int64_t)(side->stride / block) * fv_dtype_block(side->type);
    fv_tensor whole = {.data = fv_row_at(rows, which, head, rows->head[head].first), .dtype = side->type};

    return fv_view(&whole, 4, (const int64_t[]){1, heads, rows->head[head].count, side->dim},
                   (const int64_t[]){heads * apart, apart, stride, 1}, 0);
}

void fv_rows_view(const fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values)
{
    *keys = view(rows, 0, head, heads);
    *values = view(rows, 1, head, heads);
}

fv_status fv_rows_view_all(fv_ctx *ctx, fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values)
{
    if (fv_cold_count(rows) > 0)
        return fv_cold_read(ctx, rows, head, heads, NULL, fv_rows_all(rows, head), keys, values);
    fv_rows_view(rows, head, heads, keys, values);
    return FV_OK;
}

size_t fv_rows_used(const fv_rows *rows)
{
    int64_t count = 0;

    for (int64_t g = 0; rows->head && g < rows->options.heads; g++)
        count += rows->head[g].count;
    return (size_t)count * (rows->side[0].row_bytes + rows->side[1].row_bytes) + fv_cold_used(rows);
}

static void measure_side(const fv_rows *rows, int side, fv_rows_bytes *bytes)
{
    const fv_rows_side *s = &rows->side[side];

    if (s->slab && rows->options.layer == 0) {
        bytes->reserved += fv_slab_reserved(s->slab);
        bytes->committed += fv_slab_mapped(s->slab);
    }
    if (s->slab) return;
    bytes->reserved += s->reserved * (size_t)rows->options.heads;
    for (int64_t g = 0; g < rows->options.heads; g++) {
        const fv_rows_head *head = &rows->head[g];
        size_t begin = fv_page_down(rows, (size_t)head->bottom * s->row_bytes);
        size_t end = head->top > head->bottom ? fv_page_up(rows, (size_t)head->top * s->row_bytes) : begin;
        if (rows->map)
            fv_map_measure(rows, side, g, begin, end, bytes);
        else
            bytes->committed += end - begin;
    }
}

void fv_rows_measure(const fv_rows *rows, fv_rows_bytes *bytes)
{
    *bytes = (fv_rows_bytes){.used = fv_rows_used(rows),
                             .committed = fv_cold_used(rows),
                             .reserved = fv_cold_used(rows),
                             .host = fv_away_bytes(rows) + fv_cold_host(rows)};
    for (int side = 0; rows->head && side < 2; side++)
        measure_side(rows, side, bytes);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* Row i of head g is to lie behind the rows that are there. */
static fv_status write_blocks(fv_ctx *ctx, const fv_rows *rows, int side, int64_t head, const fv_tensor *from)
{
    fv_tensor place = view(rows, side, head, 1);
    int64_t n = from->dims[2], count = rows->head[head].count;

    place.dims[2] += n;
    return fv_quantize_rows(
        ctx, &(fv_quantize_args){
                 .x = fv_view(from, 2, from->dims + 2, from->strides + 2, head * from->strides[1]),
                 .out = fv_view(&place, FV_DIMS(n, place.dims[3]), place.strides + 2, count * place.strides[2])});
}

static fv_status write_side(fv_ctx *ctx, const fv_rows *rows, int side, const fv_tensor *from)
{
    int64_t heads = rows->options.heads, n = from->dims[2];
    bool alike = true;

    if (fv_dtype_block(rows->side[side].type) > 1) {
        for (int64_t g = 0; g < heads; g++)
            FV_TRY(write_blocks(ctx, rows, side, g, from));
        return FV_OK;
    }
    for (int64_t g = 1; g < heads; g++)
        alike = alike && rows->head[g].first == rows->head[0].first && rows->head[g].count == rows->head[0].count;
    for (int64_t g = 0; g < heads; g += alike ? heads : 1) {
        fv_tensor place = view(rows, side, g, alike ? heads : 1), part = fv_slice(from, 1, g, alike ? heads : 1);
        place.dims[2] += n; /* behind the rows that are there */
        place = fv_slice(&place, 2, rows->head[g].count, n);
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = part, .out = place}));
    }
    return FV_OK;
}

/* Ranges that are full become huge pages: kernels that read them need fewer translations.  Nothing but a full one, so
 * that no byte is resident that holds no row.  Old systems say no, and nothing is lost. */
static void make_huge(const fv_rows *rows, int64_t g, int64_t before)
{
    const fv_rows_head *head = &rows->head[g];

    for (int side = 0; side < 2 && !rows->map && !rows->options.pages; side++) {
        size_t bytes = rows->side[side].row_bytes, bottom = (size_t)head->bottom * bytes;
        size_t from = (size_t)before * bytes / HUGE * HUGE;
        size_t to = (size_t)(head->first + head->count) * bytes / HUGE * HUGE;
        while (from < bottom)
            from += HUGE;
        if (to > from) (void)madvise(fv_row_at(rows, side, g, 0) + from, to - from, MADV_COLLAPSE);
    }
}

/* Room for n rows more, which are this stream's own, at the end of every head. */
static fv_status make_room(fv_rows *rows, int64_t n)
{
    int64_t capacity = rows->options.capacity, top = 0;

    if (rows->refused)
        return fv_fail(FV_E_MEMORY, "cache rows: pages that other streams read could not be copied for a change");
    for (int64_t g = 0; g < rows->options.heads; g++) {
        fv_rows_head *head = &rows->head[g];
        if (head->count + n > capacity)
            return fv_fail(FV_E_MEMORY, "cache rows: %lld more do not fit beside %lld of at most %lld", (long long)n,
                           (long long)head->count, (long long)capacity);
        if (head->first + head->count + n > capacity) {
            FV_TRY(fv_rows_own(rows, g, 0, head->count + n));
            fv_rows_move(rows, g, head->first, 0, head->count);
            head->first = 0;
            head->bottom = 0;
        }
        FV_TRY(fv_rows_own(rows, g, head->first + head->count, head->first + head->count + n));
        top = fv_max(top, head->first + head->count + n);
    }
    for (int side = 0; side < 2; side++)
        if (rows->side[side].slab) FV_TRY(fv_slab_map(rows->side[side].slab, top));
    return FV_OK;
}

fv_status fv_rows_append(fv_ctx *ctx, fv_rows *rows, const fv_tensor *k, const fv_tensor *v, int64_t position)
{
    int64_t n = k->dims[2], capacity = rows->options.capacity;

    FV_TRY(make_room(rows, n));
    FV_TRY(write_side(ctx, rows, 0, k));
    FV_TRY(write_side(ctx, rows, 1, v));
    for (int64_t g = 0; g < rows->options.heads; g++) {
        fv_rows_head *head = &rows->head[g];
        int64_t end = head->first + head->count;
        int32_t *to = rows->position + g * capacity + end;
        for (int64_t i = 0; i < n; i++)
            to[i] = (int32_t)(position + i);
        head->count += n;
        head->top = fv_max(head->top, end + n);
        make_huge(rows, g, end);
    }
    return FV_OK;
}

fv_status fv_rows_erase(fv_rows *rows, int64_t g, int64_t from, int64_t count)
{
    fv_rows_head *head = &rows->head[g];
    int64_t first = head->first, behind = head->count - from - count;

    assert(from >= 0 && count >= 0 && behind >= 0);
    if (count == 0) return FV_OK;
    if (from < behind) { /* the shorter part moves */
        if (from > 0) FV_TRY(fv_rows_own(rows, g, first + count, first + count + from));
        fv_rows_move(rows, g, first, first + count, from);
        head->first += count;
    } else {
        if (behind > 0) FV_TRY(fv_rows_own(rows, g, first + from, first + from + behind));
        fv_rows_move(rows, g, first + from + count, first + from, behind);
    }
    head->count -= count;
    settle(rows, g);
    return FV_OK;
}

fv_status fv_rows_keep(fv_rows *rows, int64_t g, const int32_t *keep, int64_t count)
{
    fv_rows_head *head = &rows->head[g];
    int64_t same = 0;

    while (same < count && keep[same] == same)
        same++;
    FV_TRY(fv_rows_own(rows, g, head->first + same, head->first + count));
    for (int64_t n = same, to = same; n < count; to = n) {
        int64_t run = 1;
        while (n + run < count && keep[n + run] == keep[n] + run)
            run++;
        fv_rows_move(rows, g, head->first + keep[n], head->first + to, run);
        n += run;
    }
    head->count = count;
    settle(rows, g);
    return FV_OK;
}
