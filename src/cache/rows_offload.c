/* Rows that lie in a file: a record is a row's key and value, side by side, as they are stored. */
#include <string.h>

#include "base/context.h"
#include "cache/rows.h"
#include "cache/rows_inside.h"
#include "ops/blocks.h"

/* Of a head: positions ascend. */
struct away_head {
    int32_t *position;
    fv_record *record;
    int64_t count, capacity, record_capacity;
    fv_read_ahead *ahead; /* of the positions below */
    int32_t *ahead_position;
    int64_t ahead_count, ahead_capacity;
};

struct fv_rows_away {
    fv_offload *file;
    struct away_head head[];
};

static size_t record_bytes(const fv_rows *rows)
{
    return rows->side[0].row_bytes + rows->side[1].row_bytes;
}

/* The first place in ascending positions that is not below one. */
static int64_t below(const int32_t *position, int64_t count, int64_t value)
{
    int64_t low = 0, high = count;

    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (position[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Where a position is; -1: it is not there. */
static int64_t find(const int32_t *position, int64_t count, int64_t value)
{
    int64_t at = below(position, count, value);

    return at < count && position[at] == value ? at : -1;
}

static void stop_ahead(fv_rows *rows, int64_t g)
{
    struct away_head *head = &rows->away->head[g];

    fv_read_ahead_end(rows->away->file, head->ahead);
    head->ahead = NULL;
    head->ahead_count = 0;
}

static fv_status make_away(fv_rows *rows, fv_offload *file)
{
    struct fv_rows_away *away;

    if (rows->away) return FV_OK;
    if (!file) return fv_fail(FV_E_ARGUMENT, "offloading rows: expected a file with the first of them");
    FV_TRY(
        fv_zalloc((void **)&away, (int64_t)sizeof *away + rows->options.heads * (int64_t)sizeof(struct away_head), 1));
    away->file = fv_offload_hold(file);
    rows->away = away;
    return FV_OK;
}

void fv_away_free(fv_rows *rows)
{
    if (!rows->away) return;
    for (int64_t g = 0; g < rows->options.heads; g++) {
        struct away_head *head = &rows->away->head[g];
        stop_ahead(rows, g);
        fv_offload_forget(rows->away->file, head->record, record_bytes(rows), head->count);
        fv_free(head->position);
        fv_free(head->record);
        fv_free(head->ahead_position);
    }
    fv_offload_drop(rows->away->file);
    fv_free(rows->away);
    rows->away = NULL;
}

void fv_away_truncate(fv_rows *rows, int64_t g, int64_t length)
{
    struct away_head *head = rows->away ? &rows->away->head[g] : NULL;
    int64_t from;

    if (!head) return;
    stop_ahead(rows, g);
    from = below(head->position, head->count, length);
    if (from == head->count) return;
    fv_offload_forget(rows->away->file, head->record + from, record_bytes(rows), head->count - from);
    head->count = from;
}

bool fv_away_holds(const fv_rows *rows, int64_t g, int64_t position)
{
    return rows->away && find(rows->away->head[g].position, rows->away->head[g].count, position) >= 0;
}

size_t fv_away_bytes(const fv_rows *rows)
{
    int64_t count = 0;

    for (int64_t g = 0; rows->away && g < rows->options.heads; g++)
        count += rows->away->head[g].count;
    return (size_t)count * record_bytes(rows);
}

const int32_t *fv_rows_offloaded(const fv_rows *rows, int64_t g, int64_t *count)
{
    *count = rows->away ? rows->away->head[g].count : 0;
    return rows->away ? rows->away->head[g].position : NULL;
}

/* ---- to the file ------------------------------------------------------------------------------------------------ */

static void gather(const fv_rows *rows, int64_t g, const int32_t *place, int64_t count, char *bytes)
{
    for (int64_t n = 0; n < count; n++)
        for (int side = 0; side < 2; side++) {
            memcpy(bytes, fv_row_at(rows, side, g, rows->head[g].first + place[n]), rows->side[side].row_bytes);
            bytes += rows->side[side].row_bytes;
        }
}

/* Takes rows out of memory; `rest` has room for all places of the head. */
static fv_status take_out(fv_rows *rows, int64_t g, const int32_t *place, int64_t count, int32_t *rest)
{
    int64_t kept = 0;

    if (place[count - 1] - place[0] == count - 1) return fv_rows_erase(rows, g, place[0], count);
    for (int64_t i = 0, n = 0; i < rows->head[g].count; i++) {
        if (n < count && place[n] == i)
            n++;
        else
            rest[kept++] = (int32_t)i;
    }
    return fv_rows_keep(rows, g, rest, kept);
}

/* Puts positions and their records in their order; there is room. */
static void insert(struct away_head *head, const int32_t *position, const fv_record *record, int64_t count)
{
    int64_t i = head->count - 1, n = count - 1;

    head->count += count;
    for (int64_t to = head->count - 1; n >= 0; to--) {
        bool old = i >= 0 && head->position[i] > position[n];
        head->position[to] = old ? head->position[i] : position[n];
        head->record[to] = old ? head->record[i--] : record[n--];
    }
}

struct moving {
    char *bytes;
    fv_record *record;
    int32_t *position, *rest;
};

static void free_moving(struct moving *m)
{
    fv_free(m->bytes);
    fv_free(m->record);
    fv_free(m->position);
    fv_free(m->rest);
}

static fv_status make_moving(const fv_rows *rows, int64_t g, int64_t count, struct moving *m)
{
    FV_TRY(fv_alloc((void **)&m->bytes, count, record_bytes(rows)));
    FV_TRY(FV_ALLOC(m->record, count));
    FV_TRY(FV_ALLOC(m->position, count));
    return FV_ALLOC(m->rest, rows->head[g].count);
}

static fv_status move_out(fv_rows *rows, int64_t g, const int32_t *place, int64_t count, struct moving *m)
{
    struct away_head *head = &rows->away->head[g];
    size_t size = record_bytes(rows);
    fv_status status;

    FV_TRY(make_moving(rows, g, count, m));
    FV_TRY(FV_GROW(head->position, head->capacity, head->count + count));
    FV_TRY(FV_GROW(head->record, head->record_capacity, head->count + count));
    for (int64_t n = 0; n < count; n++)
        m->position[n] = fv_rows_positions(rows, g)[place[n]];
    gather(rows, g, place, count, m->bytes);
    FV_TRY(fv_offload_write(rows->away->file, m->bytes, size, count, m->record));
    status = take_out(rows, g, place, count, m->rest);
    if (status != FV_OK) {
        fv_offload_forget(rows->away->file, m->record, size, count);
        rows->refused = false; /* whoever called knows */
        return status;
    }
    for (int64_t n = 0; n < count && head->ahead; n++) /* what was read of an earlier row there */
        if (find(head->ahead_position, head->ahead_count, m->position[n]) >= 0) stop_ahead(rows, g);
    insert(head, m->position, m->record, count);
    return FV_OK;
}

fv_status fv_rows_offload_some(fv_rows *rows, fv_offload *file, int64_t g, const int32_t *place, int64_t count)
{
    struct moving moving = {0};
    fv_status status;

    for (int64_t n = 0; n < count; n++)
        if (place[n] < 0 || place[n] >= rows->head[g].count || (n > 0 && place[n] <= place[n - 1]))
            return fv_fail(FV_E_ARGUMENT, "offloading: row %lld: expected ascending places of 0 to %lld, got %d",
                           (long long)n, (long long)rows->head[g].count - 1, place[n]);
    if (count <= 0) return FV_OK;
    FV_TRY(make_away(rows, file));
    status = move_out(rows, g, place, count, &moving);
    free_moving(&moving);
    return status;
}

fv_status fv_rows_offload(fv_rows *rows, fv_offload *file, int64_t g, int64_t from, int64_t count)
{
    fv_status status;
    int32_t *place;

    if (from < 0 || count < 0 || count > rows->head[g].count - from)
        return fv_fail(FV_E_ARGUMENT, "offloading: expected rows of 0 to %lld, got %lld from %lld on",
                       (long long)rows->head[g].count - 1, (long long)count, (long long)from);
    FV_TRY(FV_ALLOC(place, count));
    for (int64_t n = 0; n < count; n++)
        place[n] = (int32_t)(from + n);
    status = fv_rows_offload_some(rows, file, g, place, count);
    fv_free(place);
    return status;
}

/* ---- and back --------------------------------------------------------------------------------------------------- */

/* The records of positions; FV_E_ARGUMENT. */
static fv_status look_up(const fv_rows *rows, int64_t g, const int32_t *position, int64_t count, fv_record *record)
{
    const struct away_head *head = rows->away ? &rows->away->head[g] : NULL;

    for (int64_t n = 0; n < count; n++) {
        int64_t at = head ? find(head->position, head->count, position[n]) : -1;
        if (at < 0 || (n > 0 && position[n] <= position[n - 1]))
            return fv_fail(FV_E_ARGUMENT, "fetching rows: position %d is not among those in the file, or not in order",
                           position[n]);
        record[n] = head->record[at];
    }
    return FV_OK;
}

/* Bytes of the records: what was read ahead, and the rest from the file, in runs. */
static fv_status read_records(fv_rows *rows, int64_t g, const int32_t *position, int64_t count, struct moving *m)
{
    const struct away_head *head = &rows->away->head[g];
    const char *ready = head->ahead ? fv_read_ahead_wait(rows->away->file, head->ahead) : NULL;
    size_t size = record_bytes(rows);

    for (int64_t n = 0, run; n < count; n += run) {
        int64_t at = ready ? find(head->ahead_position, head->ahead_count, position[n]) : -1;
        run = 1;
        if (at >= 0) {
            memcpy(m->bytes + (size_t)n * size, ready + (size_t)at * size, size);
            continue;
        }
        while (n + run < count && (!ready || find(head->ahead_position, head->ahead_count, position[n + run]) < 0))
            run++;
        FV_TRY(fv_offload_read(rows->away->file, m->record + n, size, run, m->bytes + (size_t)n * size));
    }
    return FV_OK;
}

static void put_row(fv_rows *rows, int64_t g, int64_t row, int32_t position, const char *bytes)
{
    for (int side = 0; side < 2; side++) {
        memcpy(fv_row_at(rows, side, g, row), bytes, rows->side[side].row_bytes);
        bytes += rows->side[side].row_bytes;
    }
    rows->position[g * rows->options.capacity + row] = position;
}

/* Room for `count` rows behind those of a head, and all of them its own to write from the first one that moves on. */
static fv_status open_room(fv_rows *rows, int64_t g, int64_t count, int64_t first_moved)
{
    fv_rows_head *head = &rows->head[g];

    if (head->count + count > rows->options.capacity)
        return fv_fail(FV_E_MEMORY, "fetching rows: %lld more do not fit beside %lld of at most %lld", (long long)count,
                       (long long)head->count, (long long)rows->options.capacity);
    for (int side = 0; side < 2; side++)
        if (rows->side[side].slab) FV_TRY(fv_slab_map(rows->side[side].slab, head->first + head->count + count));
    if (head->first + head->count + count <= rows->options.capacity)
        return fv_rows_own(rows, g, head->first + first_moved, head->first + head->count + count);
    FV_TRY(fv_rows_own(rows, g, 0, head->count + count));
    fv_rows_move(rows, g, head->first, 0, head->count);
    head->first = head->bottom = 0;
    return FV_OK;
}

/* Rows from behind, so that each one that is there moves once. */
static void put_rows(fv_rows *rows, int64_t g, const int32_t *position, int64_t count, const char *bytes)
{
    fv_rows_head *head = &rows->head[g];
    size_t size = record_bytes(rows);
    int64_t end = head->count;

    for (int64_t n = count - 1; n >= 0; n--) {
        int64_t at = below(fv_rows_positions(rows, g), end, position[n]);
        fv_rows_move(rows, g, head->first + at, head->first + at + n + 1, end - at);
        put_row(rows, g, head->first + at + n, position[n], bytes + (size_t)n * size);
        end = at;
    }
    head->count += count;
    head->top = fv_max(head->top, head->first + head->count);
}

static void forget(fv_rows *rows, int64_t g, const int32_t *position, int64_t count, const fv_record *record)
{
    struct away_head *head = &rows->away->head[g];
    int64_t kept = 0;

    for (int64_t i = 0, n = 0; i < head->count; i++) {
        if (n < count && head->position[i] == position[n]) {
            n++;
            continue;
        }
        head->position[kept] = head->position[i];
        head->record[kept++] = head->record[i];
    }
    head->count = kept;
    fv_offload_forget(rows->away->file, record, record_bytes(rows), count);
}

static fv_status move_in(fv_rows *rows, int64_t g, const int32_t *position, int64_t count, struct moving *m)
{
    FV_TRY(fv_alloc((void **)&m->bytes, count, record_bytes(rows)));
    FV_TRY(FV_ALLOC(m->record, count));
    FV_TRY(look_up(rows, g, position, count, m->record));
    FV_TRY(read_records(rows, g, position, count, m));
    if (open_room(rows, g, count, fv_rows_below(rows, g, position[0])) != FV_OK) {
        rows->refused = false; /* whoever called knows */
        return FV_E_MEMORY;
    }
    put_rows(rows, g, position, count, m->bytes);
    forget(rows, g, position, count, m->record);
    return FV_OK;
}

fv_status fv_rows_fetch(fv_rows *rows, int64_t g, const int32_t *position, int64_t count)
{
    struct moving moving = {0};
    fv_status status;

    if (count <= 0) return FV_OK;
    status = move_in(rows, g, position, count, &moving);
    free_moving(&moving);
    return status;
}

/* What is not there, or already on its way, is left out. */
void fv_rows_prefetch(fv_rows *rows, int64_t g, const int32_t *position, int64_t count)
{
    struct away_head *head = rows->away ? &rows->away->head[g] : NULL;
    fv_record *record = NULL;
    int64_t found = 0;

    if (!head || count <= 0) return;
    stop_ahead(rows, g);
    if (FV_GROW(head->ahead_position, head->ahead_capacity, count) != FV_OK) return;
    if (FV_ALLOC(record, count) != FV_OK) return;
    for (int64_t n = 0; n < count; n++) {
        int64_t at = n > 0 && position[n] <= position[n - 1] ? -1 : find(head->position, head->count, position[n]);
        if (at < 0) continue;
        head->ahead_position[found] = position[n];
        record[found++] = head->record[at];
    }
    if (found > 0 && fv_read_ahead_begin(rows->away->file, record, record_bytes(rows), found, &head->ahead) == FV_OK)
        head->ahead_count = found;
    fv_free(record);
}

/* ---- other types ------------------------------------------------------------------------------------------------ */

static fv_status convert_record(fv_rows *to, const fv_rows *from, const fv_record *old, char *bytes, float *row,
                                fv_record *new)
{
    const char *in = bytes;
    char *out = bytes + record_bytes(from);

    FV_TRY(fv_offload_read(from->away->file, old, record_bytes(from), 1, bytes));
    for (int side = 0; side < 2; side++) {
        fv_rows_load(from, side, in, row);
        fv_blocks_store(to->side[side].type, row, to->side[side].dim, out);
        in += from->side[side].row_bytes;
        out += to->side[side].row_bytes;
    }
    return fv_offload_write(to->away->file, bytes + record_bytes(from), record_bytes(to), 1, new);
}

fv_status fv_away_convert(fv_ctx *ctx, fv_rows *to, const fv_rows *from)
{
    char *bytes;
    float *row;

    if (!from->away) return FV_OK;
    FV_TRY(make_away(to, from->away->file));
    FV_TRY(FV_SCRATCH(ctx, row, fv_max(from->options.key_dim, from->options.value_dim)));
    FV_TRY(FV_SCRATCH(ctx, bytes, (int64_t)(record_bytes(from) + record_bytes(to))));
    for (int64_t g = 0; g < from->options.heads; g++) {
        const struct away_head *old = &from->away->head[g];
        struct away_head *new = &to->away->head[g];
        FV_TRY(FV_GROW(new->position, new->capacity, old->count));
        FV_TRY(FV_GROW(new->record, new->record_capacity, old->count));
        for (int64_t n = 0; n < old->count; n++) {
            FV_TRY(convert_record(to, from, &old->record[n], bytes, row, &new->record[n]));
            new->position[n] = old->position[n];
            new->count = n + 1;
        }
    }
    return FV_OK;
}
