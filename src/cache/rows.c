#define _GNU_SOURCE
#include "cache/rows.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ops/blocks.h"
#include "ops/ops.h"

enum { SLACK = 32 << 10 /* bytes of a span that may lie idle before they go back */ };

/* ---- address space ---------------------------------------------------------------------------------------------- */

static fv_status reserve(size_t bytes, void **memory)
{
    *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*memory != MAP_FAILED) return FV_OK;
    *memory = NULL;
    return fv_fail(FV_E_MEMORY, "a cache needs %zu bytes of address space: %s", bytes, strerror(errno));
}

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* Spans begin on pages, and lie whole blocks apart, since strides count elements. */
static fv_status make_side(fv_rows *rows, int which, fv_dtype type, int64_t dim)
{
    fv_rows_side *side = &rows->side[which];
    size_t block = fv_dtype_block_bytes(type), unit = rows->page, bytes, all;
    void *memory;

    if (!fv_blocks_storable(type))
        return fv_fail(FV_E_DTYPE, "cache rows: expected f16, bf16, f32, q8_0 or q4_0, got %s", fv_dtype_name(type));
    if (dim % fv_dtype_block(type) != 0)
        return fv_fail(FV_E_SHAPE, "cache rows of %s: expected a head dim that %lld divides, got %lld",
                       fv_dtype_name(type), (long long)fv_dtype_block(type), (long long)dim);
    while (unit % block != 0)
        unit += rows->page;
    *side = (fv_rows_side){.type = type, .dim = dim};
    FV_TRY(fv_dtype_bytes(type, dim, &side->row_bytes));
    if (!fv_mul_size((size_t)rows->options.capacity, side->row_bytes, &bytes) || bytes > SIZE_MAX / 4 ||
        !fv_mul_size(round_up(bytes, unit), (size_t)rows->options.heads, &all) || all > SIZE_MAX / 4)
        return fv_fail(FV_E_MEMORY, "a cache of %lld tokens is more than memory can hold",
                       (long long)rows->options.capacity);
    side->reserved = round_up(bytes, unit);
    FV_TRY(reserve(all, &memory));
    side->memory = memory;
    return FV_OK;
}

static void free_side(const fv_rows *rows, fv_rows_side *side)
{
    if (side->memory) munmap(side->memory, side->reserved * (size_t)rows->options.heads);
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
    rows->page = round_up(fv_max(o->page, 1) > (int64_t)system ? (size_t)o->page : system, system);
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
    if (status != FV_OK) fv_rows_free(rows);
    return status;
}

void fv_rows_free(fv_rows *rows)
{
    free_side(rows, &rows->side[0]);
    free_side(rows, &rows->side[1]);
    if (rows->position) munmap(rows->position, position_bytes(rows));
    fv_free(rows->head);
    *rows = (fv_rows){0};
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

static char *span(const fv_rows *rows, int side, int64_t head)
{
    return rows->side[side].memory + (size_t)head * rows->side[side].reserved;
}

static char *row_at(const fv_rows *rows, int side, int64_t head, int64_t row)
{
    return span(rows, side, head) + (size_t)row * rows->side[side].row_bytes;
}

static size_t round_down(size_t bytes, size_t to)
{
    return bytes / to * to;
}

static void give_back(const fv_rows *rows, int side, int64_t head, size_t begin, size_t end)
{
    if (end > begin) (void)madvise(span(rows, side, head) + begin, end - begin, MADV_DONTNEED);
}

static void release_head(fv_rows *rows, int64_t g)
{
    fv_rows_head *head = &rows->head[g];
    int64_t end = head->first + head->count;

    for (int side = 0; side < 2; side++) {
        size_t bytes = rows->side[side].row_bytes, page = rows->page;
        size_t from = round_down((size_t)head->first * bytes, page), to = round_up((size_t)end * bytes, page);
        give_back(rows, side, g, round_down((size_t)head->bottom * bytes, page), head->count > 0 ? from : to);
        give_back(rows, side, g, to, round_up((size_t)head->top * bytes, page));
    }
    head->bottom = head->first;
    head->top = end;
}

void fv_rows_release(fv_rows *rows)
{
    for (int64_t g = 0; rows->head && g < rows->options.heads; g++)
        release_head(rows, g);
}

/* Moves rows `from` .. from+count-1 of a head to `to`. */
static void move(fv_rows *rows, int64_t g, int64_t from, int64_t to, int64_t count)
{
    int32_t *position = rows->position + g * rows->options.capacity;

    if (count == 0 || from == to) return;
    for (int side = 0; side < 2; side++)
        memmove(row_at(rows, side, g, to), row_at(rows, side, g, from), (size_t)count * rows->side[side].row_bytes);
    memmove(position + to, position + from, (size_t)count * sizeof *position);
}

/* Brings a head back to where idle rows before and behind it are few. */
static void settle(fv_rows *rows, int64_t g)
{
    fv_rows_head *head = &rows->head[g];
    int64_t wide = (int64_t)fv_max((int64_t)rows->side[0].row_bytes, (int64_t)rows->side[1].row_bytes);
    int64_t slack = fv_max(SLACK, (int64_t)rows->page) / wide;

    if (head->count == 0) head->first = 0;
    if (head->first > slack) {
        move(rows, g, head->first, 0, head->count);
        head->first = 0;
    }
    if (head->bottom > head->first) head->bottom = head->first;
    if (head->top - head->first - head->count > slack || head->first - head->bottom > slack) release_head(rows, g);
}

void fv_rows_clear(fv_rows *rows)
{
    for (int64_t g = 0; rows->head && g < rows->options.heads; g++)
        rows->head[g].count = rows->head[g].first = 0;
    fv_rows_release(rows);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

bool fv_rows_alike(const fv_rows *rows)
{
    for (int64_t g = 1; g < rows->options.heads; g++) {
        if (rows->head[g].first != rows->head[0].first || rows->head[g].count != rows->head[0].count) return false;
        if (!fv_rows_complete(rows, g) && memcmp(fv_rows_positions(rows, g), fv_rows_positions(rows, 0),
                                                 (size_t)rows->head[0].count * sizeof *rows->position) != 0)
            return false;
    }
    return true;
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
    int64_t block = fv_dtype_block(side->type), apart = (int64_t)(side->reserved / fv_dtype_block_bytes(side->type));
    fv_tensor whole = {.data = row_at(rows, which, head, rows->head[head].first), .dtype = side->type};

    return fv_view(&whole, 4, (const int64_t[]){1, heads, rows->head[head].count, side->dim},
                   (const int64_t[]){heads * apart * block, apart * block, side->dim, 1}, 0);
}

void fv_rows_view(const fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values)
{
    *keys = view(rows, 0, head, heads);
    *values = view(rows, 1, head, heads);
}

void fv_rows_measure(const fv_rows *rows, fv_rows_bytes *bytes)
{
    *bytes = (fv_rows_bytes){0};
    for (int side = 0; rows->head && side < 2; side++) {
        const fv_rows_side *s = &rows->side[side];
        bytes->reserved += s->reserved * (size_t)rows->options.heads;
        for (int64_t g = 0; g < rows->options.heads; g++) {
            const fv_rows_head *head = &rows->head[g];
            size_t end = round_up((size_t)head->top * s->row_bytes, rows->page);
            bytes->used += (size_t)head->count * s->row_bytes;
            if (head->top > head->bottom)
                bytes->committed += end - round_down((size_t)head->bottom * s->row_bytes, rows->page);
        }
    }
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

fv_status fv_rows_append(fv_ctx *ctx, fv_rows *rows, const fv_tensor *k, const fv_tensor *v, int64_t position)
{
    int64_t n = k->dims[2], capacity = rows->options.capacity;

    for (int64_t g = 0; g < rows->options.heads; g++) {
        fv_rows_head *head = &rows->head[g];
        if (head->count + n > capacity)
            return fv_fail(FV_E_MEMORY, "cache rows: %lld more do not fit beside %lld of at most %lld", (long long)n,
                           (long long)head->count, (long long)capacity);
        if (head->first + head->count + n <= capacity) continue;
        move(rows, g, head->first, 0, head->count);
        head->first = 0;
        head->bottom = 0;
    }
    FV_TRY(write_side(ctx, rows, 0, k));
    FV_TRY(write_side(ctx, rows, 1, v));
    for (int64_t g = 0; g < rows->options.heads; g++) {
        fv_rows_head *head = &rows->head[g];
        int32_t *to = rows->position + g * capacity + head->first + head->count;
        for (int64_t i = 0; i < n; i++)
            to[i] = (int32_t)(position + i);
        head->count += n;
        head->top = fv_max(head->top, head->first + head->count);
    }
    return FV_OK;
}

void fv_rows_erase(fv_rows *rows, int64_t g, int64_t from, int64_t count)
{
    fv_rows_head *head = &rows->head[g];
    int64_t behind = head->count - from - count;

    assert(from >= 0 && count >= 0 && behind >= 0);
    if (count == 0) return;
    if (from < behind) { /* the shorter part moves */
        move(rows, g, head->first, head->first + count, from);
        head->first += count;
    } else {
        move(rows, g, head->first + from + count, head->first + from, behind);
    }
    head->count -= count;
    settle(rows, g);
}

void fv_rows_keep(fv_rows *rows, int64_t g, const int32_t *keep, int64_t count)
{
    fv_rows_head *head = &rows->head[g];

    for (int64_t n = 0, to = 0; n < count; to = n) {
        int64_t run = 1;
        while (n + run < count && keep[n + run] == keep[n] + run)
            run++;
        move(rows, g, head->first + keep[n], head->first + to, run);
        n += run;
    }
    head->count = count;
    settle(rows, g);
}

/* ---- going back ------------------------------------------------------------------------------------------------- */

/* The first position below `length` that a fresh layer would hold and this one does not; -1: none. */
static int64_t missing(const fv_rows *rows, int64_t g, int64_t length, int64_t window, fv_rows_held_fn *held,
                       void *user)
{
    const int32_t *position = fv_rows_positions(rows, g);
    int64_t n = 0, count = fv_rows_below(rows, g, length);

    if (!held && !window && count == length) return -1;
    for (int64_t j = window > 0 ? fv_max(length - window, 0) : 0; j < length; j++) {
        while (n < count && position[n] < j)
            n++;
        if ((n == count || position[n] != j) && (!held || held(user, g, j))) return j;
    }
    return -1;
}

fv_status fv_rows_truncate(fv_rows *rows, int64_t length, int64_t window, fv_rows_held_fn *held, void *user)
{
    for (int64_t g = 0; g < rows->options.heads; g++) {
        int64_t gone = missing(rows, g, length, window, held, user);
        if (gone >= 0)
            return fv_fail(FV_E_ARGUMENT,
                           "going back to %lld tokens: the row of position %lld, which they need, is "
                           "gone",
                           (long long)length, (long long)gone);
    }
    for (int64_t g = 0; g < rows->options.heads; g++) {
        rows->head[g].count = fv_rows_below(rows, g, length);
        settle(rows, g);
    }
    return FV_OK;
}

/* ---- merging and converting ------------------------------------------------------------------------------------- */

static void load(const fv_rows *rows, int side, int64_t g, int64_t row, float *out)
{
    const fv_rows_side *s = &rows->side[side];

    fv_blocks_load(s->type, row_at(rows, side, g, row), 0, s->dim / fv_dtype_block(s->type), out);
}

fv_status fv_rows_merge(fv_ctx *ctx, fv_rows *rows, int64_t g, const int32_t *place, const float *weight, int64_t count)
{
    int64_t first = rows->head[g].first, widest = fv_max(rows->options.key_dim, rows->options.value_dim);
    fv_mark mark = fv_arena_mark(ctx->arena);
    float *row, *sum;

    if (count < 1) return fv_fail(FV_E_ARGUMENT, "merge: expected one or more rows, got %lld", (long long)count);
    for (int64_t i = 0; i < count; i++)
        if (place[i] < 0 || place[i] >= rows->head[g].count || (i > 0 && place[i] <= place[i - 1]))
            return fv_fail(FV_E_ARGUMENT, "merge: row %lld: expected ascending places of 0 to %lld, got %d",
                           (long long)i, (long long)rows->head[g].count - 1, place[i]);
    FV_TRY(FV_SCRATCH(ctx, row, widest));
    FV_TRY(FV_SCRATCH(ctx, sum, widest));
    for (int side = 0; side < 2; side++) {
        int64_t dim = rows->side[side].dim;
        memset(sum, 0, (size_t)dim * sizeof *sum);
        for (int64_t i = 0; i < count; i++) {
            float w = weight ? weight[i] : 1 / (float)count;
            load(rows, side, g, first + place[i], row);
            for (int64_t d = 0; d < dim; d++)
                sum[d] += w * row[d];
        }
        fv_blocks_store(rows->side[side].type, sum, dim, row_at(rows, side, g, first + place[count - 1]));
    }
    for (int64_t i = count - 2; i >= 0; i--)
        fv_rows_erase(rows, g, place[i], 1);
    fv_arena_release(ctx->arena, mark);
    return FV_OK;
}

fv_status fv_rows_convert(fv_ctx *ctx, fv_rows *rows, fv_dtype key_type, fv_dtype value_type)
{
    fv_rows_options options = rows->options;
    int64_t widest = fv_max(options.key_dim, options.value_dim);
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_rows other;
    float *row;

    options.key_type = key_type;
    options.value_type = value_type;
    FV_TRY(FV_SCRATCH(ctx, row, widest));
    FV_TRY(fv_rows_new(&other, &options));
    for (int64_t g = 0; g < options.heads; g++) {
        int64_t count = rows->head[g].count;
        other.head[g] = (fv_rows_head){.count = count, .top = count};
        memcpy(other.position + g * options.capacity, fv_rows_positions(rows, g), (size_t)count * sizeof(int32_t));
        for (int side = 0; side < 2; side++)
            for (int64_t i = 0; i < count; i++) {
                load(rows, side, g, rows->head[g].first + i, row);
                fv_blocks_store(other.side[side].type, row, other.side[side].dim, row_at(&other, side, g, i));
            }
    }
    fv_arena_release(ctx->arena, mark);
    fv_rows_free(rows);
    *rows = other;
    return FV_OK;
}
