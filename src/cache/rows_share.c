/* Pages that several streams read.  A span that can be shared lies in pieces of a file in memory (lender.h): pieces of
 * the stream's own, and pieces whose pages are counted, mapped for reading only.  Whoever wants to write counted pages
 * copies them to fresh ones first, or takes them back if nobody else holds them; so what is resident is known exactly,
 * and a stream never sees what another one does. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cache/rows.h"
#include "cache/rows_inside.h"

enum { MOST_PIECES = 16 /* of a span that shares: each is a map of the system's */ };

/* Bytes begin .. end-1 of a span, at `place` of the file. */
struct piece {
    size_t begin, end;
    int64_t place;
    fv_block *block; /* counts the pages; NULL: the stream's own, in its own lender's file */
};

struct pieces {
    struct piece *at; /* ascending, no gaps */
    int64_t count, capacity;
};

struct fv_rows_map {
    fv_lender *lender;
    int64_t spans; /* 2 * heads */
    struct pieces span[];
};

static struct pieces *pieces_of(const fv_rows *rows, int side, int64_t head)
{
    return &rows->map->span[side * rows->options.heads + head];
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

fv_status fv_map_new(fv_rows *rows)
{
    int64_t spans = 2 * rows->options.heads, bytes = 0;
    fv_lender *lender = rows->options.lender;
    struct fv_rows_map *map;

    if (lender)
        fv_lender_hold(lender);
    else if (fv_lender_new(&lender) != FV_OK)
        return FV_OK; /* rows will be copied */
    if (!fv_mul_i64(spans, sizeof(struct pieces), &bytes) || fv_zalloc((void **)&map, bytes + 64, 1) != FV_OK) {
        fv_lender_drop(lender);
        return fv_fail(FV_E_MEMORY, "cache rows: no memory for %lld spans", (long long)spans);
    }
    map->lender = lender;
    map->spans = spans;
    rows->map = map;
    return FV_OK;
}

static size_t bytes_of(const struct piece *piece)
{
    return piece->end - piece->begin;
}

/* What a piece held goes. */
static void drop(const fv_rows *rows, const struct piece *piece)
{
    if (piece->block)
        fv_block_drop(piece->block, piece->place, bytes_of(piece));
    else
        fv_lender_punch(rows->map->lender, piece->place, bytes_of(piece));
}

void fv_map_free(fv_rows *rows)
{
    if (!rows->map) return;
    for (int64_t s = 0; s < rows->map->spans; s++) {
        struct pieces *pieces = &rows->map->span[s];
        for (int64_t i = 0; i < pieces->count; i++)
            drop(rows, &pieces->at[i]);
        fv_lender_count(-pieces->count);
        fv_free(pieces->at);
    }
    fv_lender_drop(rows->map->lender);
    fv_free(rows->map);
    rows->map = NULL;
}

fv_status fv_map_reserve(fv_rows *rows, int side, size_t span, char **memory)
{
    int64_t heads = rows->options.heads;
    size_t all = span * (size_t)heads;
    int64_t place = fv_lender_take(rows->map->lender, all);

    *memory = fv_lender_map(rows->map->lender, NULL, all, place, true);
    if (!*memory) return fv_fail(FV_E_MEMORY, "a cache needs %zu bytes of address space", all);
    for (int64_t g = 0; g < heads; g++) {
        struct pieces *pieces = pieces_of(rows, side, g);
        FV_TRY(FV_GROW(pieces->at, pieces->capacity, 1));
        pieces->at[0] = (struct piece){.end = span, .place = place + g * (int64_t)span};
        pieces->count = 1;
        fv_lender_count(1);
    }
    return FV_OK;
}

/* The part of a piece that lies in begin .. end. */
static struct piece part_of(const struct piece *piece, size_t begin, size_t end)
{
    struct piece part = *piece;

    part.begin = (size_t)fv_clamp((int64_t)begin, (int64_t)piece->begin, (int64_t)piece->end);
    part.end = (size_t)fv_clamp((int64_t)end, (int64_t)piece->begin, (int64_t)piece->end);
    part.place += (int64_t)(part.begin - piece->begin);
    return part;
}

/* Room for one piece to be put in the middle of another. */
static fv_status grow(struct pieces *pieces)
{
    return FV_GROW(pieces->at, pieces->capacity, pieces->count + 2);
}

/* Puts a piece in place of what lay there; there is room (grow).  Who holds pages is the caller's affair. */
static void put(struct pieces *pieces, struct piece new)
{
    int64_t first = 0, last, more;
    struct piece put[3];
    int n = 0;

    while (pieces->at[first].end <= new.begin)
        first++;
    for (last = first; pieces->at[last].end < new.end;)
        last++;
    put[n] = part_of(&pieces->at[first], 0, new.begin);
    n += bytes_of(&put[n]) > 0;
    put[n++] = new;
    put[n] = part_of(&pieces->at[last], new.end, SIZE_MAX / 2);
    n += bytes_of(&put[n]) > 0;
    more = n - (last + 1 - first);
    memmove(&pieces->at[last + 1 + more], &pieces->at[last + 1],
            (size_t)(pieces->count - last - 1) * sizeof *pieces->at);
    memcpy(&pieces->at[first], put, (size_t)n * sizeof *put);
    pieces->count += more;
    fv_lender_count(more);
}

/* ---- giving back ------------------------------------------------------------------------------------------------ */

/* Fresh pages in place of all that lay there, own or shared.  Refused: what is shared stays held. */
static void renew(fv_rows *rows, int side, int64_t g, size_t begin, size_t end)
{
    struct pieces *pieces = pieces_of(rows, side, g);
    struct piece new = {begin, end, fv_lender_take(rows->map->lender, end - begin), NULL};

    if (grow(pieces) != FV_OK) return;
    if (!fv_lender_map(rows->map->lender, fv_row_at(rows, side, g, 0) + begin, end - begin, new.place, true)) return;
    for (int64_t i = 0; i < pieces->count; i++) {
        struct piece old = part_of(&pieces->at[i], begin, end);
        if (bytes_of(&old) > 0) drop(rows, &old);
    }
    put(pieces, new);
}

void fv_map_give_back(fv_rows *rows, int side, int64_t g, size_t begin, size_t end)
{
    struct pieces *pieces = pieces_of(rows, side, g);
    bool shared = false;

    for (int64_t i = 0; i < pieces->count; i++) {
        struct piece part = part_of(&pieces->at[i], begin, end);
        if (bytes_of(&part) == 0) continue;
        if (!part.block) fv_lender_punch(rows->map->lender, part.place, bytes_of(&part));
        shared = shared || part.block;
    }
    if (shared) renew(rows, side, g, begin, end);
}

/* ---- owning ----------------------------------------------------------------------------------------------------- */

/* The piece's pages are this stream's again, if nobody else holds them. */
static bool take_back(fv_rows *rows, char *memory, struct piece *piece)
{
    fv_lender *lender = rows->map->lender;

    if (fv_block_lender(piece->block) != lender) return false;
    /* Writable first: who claims pages cannot undo it. */
    if (mprotect(memory + piece->begin, bytes_of(piece), PROT_READ | PROT_WRITE) != 0) return false;
    if (fv_block_claim(piece->block, piece->place, bytes_of(piece))) {
        piece->block = NULL;
        return true;
    }
    (void)mprotect(memory + piece->begin, bytes_of(piece), PROT_READ);
    return false;
}

/* Copies the piece's pages to fresh ones. */
static bool copy(fv_rows *rows, char *memory, struct piece *piece)
{
    fv_lender *lender = rows->map->lender;
    int64_t place = fv_lender_take(lender, bytes_of(piece));

    if (!fv_lender_write(lender, memory + piece->begin, bytes_of(piece), place) ||
        !fv_lender_map(lender, memory + piece->begin, bytes_of(piece), place, true)) {
        fv_lender_punch(lender, place, bytes_of(piece));
        return false;
    }
    fv_block_drop(piece->block, piece->place, bytes_of(piece));
    piece->block = NULL;
    piece->place = place;
    return true;
}

fv_status fv_map_own(fv_rows *rows, int side, int64_t g, size_t begin, size_t end)
{
    struct pieces *pieces = pieces_of(rows, side, g);
    char *memory = fv_row_at(rows, side, g, 0);

    for (int64_t i = 0; i < pieces->count; i++) {
        struct piece whole = pieces->at[i], part = part_of(&whole, begin, end);
        if (bytes_of(&part) == 0 || !part.block) continue;
        FV_TRY(grow(pieces));
        /* A whole piece takes no map more, where the system allows no more of them. */
        if (!take_back(rows, memory, &part) && !copy(rows, memory, &part)) {
            part = whole;
            if (!copy(rows, memory, &part))
                return fv_fail(FV_E_MEMORY, "cache rows: %zu bytes that other streams read could not be copied",
                               end - begin);
        }
        put(pieces, part);
    }
    return FV_OK;
}

/* ---- lending ---------------------------------------------------------------------------------------------------- */

/* Counts the pages of a span's own pieces in begin .. end: from now on nobody writes them. */
static bool lend(fv_rows *rows, int side, int64_t g, size_t begin, size_t end)
{
    struct pieces *pieces = pieces_of(rows, side, g);
    char *memory = fv_row_at(rows, side, g, 0);

    for (int64_t i = 0; i < pieces->count; i++) {
        struct piece part = part_of(&pieces->at[i], begin, end);
        size_t bytes = bytes_of(&part);
        if (bytes == 0 || part.block) continue;
        if (pieces->count + 2 > MOST_PIECES || grow(pieces) != FV_OK ||
            fv_block_new(rows->map->lender, part.place, bytes, rows->page, &part.block) != FV_OK)
            return false;
        if (mprotect(memory + part.begin, bytes, PROT_READ) != 0) {
            (void)fv_block_claim(part.block, part.place, bytes);
            return false;
        }
        put(pieces, part);
    }
    return true;
}

/* Maps what lies in begin .. end of a span of `from`, which is lent, at the same place of `to`: as far as it goes. */
static size_t borrow(fv_rows *to, const fv_rows *from, int side, int64_t g, size_t begin, size_t end)
{
    const struct pieces *theirs = pieces_of(from, side, g);
    struct pieces *pieces = pieces_of(to, side, g);
    char *memory = fv_row_at(to, side, g, 0);

    for (int64_t i = 0; i < theirs->count; i++) {
        struct piece part = part_of(&theirs->at[i], begin, end);
        size_t bytes = bytes_of(&part);
        if (bytes == 0) continue;
        if (!part.block || grow(pieces) != FV_OK || fv_lender_count(0) > FV_MOST_MAPS ||
            !fv_lender_map(fv_block_lender(part.block), memory + part.begin, bytes, part.place, false))
            return part.begin;
        fv_block_hold(part.block, part.place, bytes);
        put(pieces, part);
    }
    return end;
}

/* Rows a .. b-1 by place of a side of a head, to the same places of `to`. */
static void share_side(fv_rows *to, fv_rows *from, int side, int64_t g, int64_t a, int64_t b)
{
    size_t row = from->side[side].row_bytes, begin = (size_t)a * row, end = (size_t)b * row;
    size_t low = fv_page_up(from, begin), high = fv_page_down(from, end), done = low;
    const char *source = fv_row_at(from, side, g, 0);
    char *target = fv_row_at(to, side, g, 0);

    if (high > low && lend(from, side, g, low, high)) done = borrow(to, from, side, g, low, high);
    if (high <= low || done == low) {
        memcpy(target + begin, source + begin, end - begin);
        return;
    }
    memcpy(target + begin, source + begin, low - begin);
    memcpy(target + done, source + done, end - done);
}

/* Row by row, where the spans are not alike. */
static void copy_side(fv_rows *to, const fv_rows *from, int side, int64_t g, int64_t a, int64_t b)
{
    for (int64_t i = a; i < b; i++)
        memcpy(fv_row_at(to, side, g, i - a), fv_row_at(from, side, g, i), from->side[side].row_bytes);
}

static bool alike(const fv_rows *a, const fv_rows *b)
{
    return a->options.heads == b->options.heads && a->side[0].type == b->side[0].type &&
           a->side[1].type == b->side[1].type && a->side[0].dim == b->side[0].dim && a->side[1].dim == b->side[1].dim;
}

static fv_status check_share(const fv_rows *to, const fv_rows *from)
{
    if (!to->head || !from->head || !alike(to, from))
        return fv_fail(FV_E_ARGUMENT, "sharing rows: expected streams of the same heads, dims and types");
    for (int64_t g = 0; g < to->options.heads; g++) {
        int64_t away;
        (void)fv_rows_offloaded(to, g, &away);
        if (to == from || to->head[g].count + away > 0)
            return fv_fail(FV_E_ARGUMENT, "sharing rows: expected an empty stream to share with, got one of %lld rows",
                           (long long)(to->head[g].count + away));
    }
    return FV_OK;
}

/* Places first .. first+count-1 of a head of `from`. */
static void share_head(fv_rows *to, fv_rows *from, int64_t g, int64_t first, int64_t count)
{
    int64_t capacity = to->options.capacity, a = from->head[g].first + first;
    bool pages = to->map && from->map && to->page == from->page && a + count <= capacity;
    int64_t at = pages ? a : 0;

    for (int side = 0; side < 2 && count > 0; side++)
        if (pages)
            share_side(to, from, side, g, a, a + count);
        else
            copy_side(to, from, side, g, a, a + count);
    memcpy(to->position + g * capacity + at, fv_rows_positions(from, g) + first, (size_t)count * sizeof *to->position);
    to->head[g] = (fv_rows_head){.first = at, .count = count, .bottom = at, .top = at + count};
}

/* A span of one piece, for a stream that holds nothing. */
static fv_status begin_anew(fv_rows *rows, int side, int64_t g)
{
    const struct pieces *pieces = pieces_of(rows, side, g);

    if (pieces->count > 1 || pieces->at[0].block) renew(rows, side, g, 0, rows->side[side].reserved);
    if (pieces->count == 1 && !pieces->at[0].block) return FV_OK;
    return fv_fail(FV_E_MEMORY, "sharing rows: the system refuses address space");
}

static fv_status prepare(fv_rows *to, int64_t g, int64_t count)
{
    if (count > to->options.capacity)
        return fv_fail(FV_E_ARGUMENT, "sharing rows: %lld do not fit a stream of at most %lld", (long long)count,
                       (long long)to->options.capacity);
    for (int side = 0; side < 2; side++) {
        if (to->map) FV_TRY(begin_anew(to, side, g));
        if (to->side[side].slab) FV_TRY(fv_slab_map(to->side[side].slab, count));
    }
    return FV_OK;
}

fv_status fv_rows_share_window(fv_rows *to, fv_rows *from, int64_t length, int64_t window)
{
    int64_t begin = window > 0 ? fv_max(length - window, 0) : 0;

    FV_TRY(check_share(to, from));
    for (int64_t g = 0; g < from->options.heads; g++) {
        int64_t first = fv_rows_below(from, g, begin), count = fv_rows_below(from, g, length) - first;
        if (length < 0 || count != length - begin)
            return fv_fail(FV_E_ARGUMENT,
                           "sharing rows: expected those of positions %lld to %lld, of which head %lld "
                           "holds %lld",
                           (long long)begin, (long long)length - 1, (long long)g, (long long)fv_max(count, 0));
        FV_TRY(prepare(to, g, count));
    }
    for (int64_t g = 0; g < from->options.heads; g++)
        share_head(to, from, g, fv_rows_below(from, g, begin), length - begin);
    return FV_OK;
}

fv_status fv_rows_share(fv_rows *to, fv_rows *from, int64_t length)
{
    return fv_rows_share_window(to, from, length, 0);
}

fv_status fv_rows_fork(fv_rows *to, fv_rows *from)
{
    FV_TRY(check_share(to, from));
    for (int64_t g = 0; g < from->options.heads; g++) {
        int64_t away;
        (void)fv_rows_offloaded(from, g, &away);
        if (fv_rows_all(from, g) > fv_rows_count(from, g))
            return fv_fail(FV_E_ARGUMENT, "sharing rows: the oldest of head %lld are not in memory as they were",
                           (long long)g);
        if (away > 0)
            return fv_fail(FV_E_ARGUMENT, "sharing rows: %lld rows of head %lld lie in a file; fetch them first",
                           (long long)away, (long long)g);
        FV_TRY(prepare(to, g, from->head[g].count));
    }
    for (int64_t g = 0; g < from->options.heads; g++)
        share_head(to, from, g, 0, from->head[g].count);
    return FV_OK;
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

void fv_map_measure(const fv_rows *rows, int side, int64_t g, size_t begin, size_t end, fv_rows_bytes *bytes)
{
    const struct pieces *pieces = pieces_of(rows, side, g);

    for (int64_t i = 0; i < pieces->count; i++) {
        const struct piece *piece = &pieces->at[i];
        struct piece part = part_of(piece, begin, end);
        bytes->committed += bytes_of(piece->block ? piece : &part);
        if (piece->block) bytes->shared += fv_block_shared(piece->block, piece->place, bytes_of(piece));
    }
}

/* Bytes of a lender's file. */
struct range {
    const fv_lender *lender;
    int64_t begin, end;
};

struct ranges {
    struct range *at;
    int64_t count, capacity;
    size_t sum;
};

static int by_place(const void *a, const void *b)
{
    const struct range *x = a, *y = b;

    if (x->lender != y->lender) return (uintptr_t)x->lender < (uintptr_t)y->lender ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static fv_status add(struct ranges *ranges, const struct piece *part)
{
    size_t bytes = bytes_of(part);

    if (bytes == 0) return FV_OK;
    FV_TRY(FV_GROW(ranges->at, ranges->capacity, ranges->count + 1));
    ranges->at[ranges->count++] =
        (struct range){fv_block_lender(part->block), part->place, part->place + (int64_t)bytes};
    ranges->sum += bytes;
    return FV_OK;
}

/* How many bytes are counted more than once. */
static size_t surplus(struct ranges *ranges)
{
    int64_t end = 0;
    size_t once = 0;

    if (ranges->count > 0) qsort(ranges->at, (size_t)ranges->count, sizeof *ranges->at, by_place);
    for (int64_t i = 0; i < ranges->count; i++) {
        const struct range *r = &ranges->at[i];
        if (i == 0 || r->lender != r[-1].lender) end = 0;
        if (r->end > end) once += (size_t)(r->end - fv_max(r->begin, end));
        end = fv_max(end, r->end);
    }
    return ranges->sum - once;
}

static fv_status add_span(const fv_rows *rows, int side, int64_t g, struct ranges *used, struct ranges *committed)
{
    const struct pieces *pieces = pieces_of(rows, side, g);
    size_t row = rows->side[side].row_bytes, begin = (size_t)rows->head[g].first * row;
    size_t end = begin + (size_t)rows->head[g].count * row;

    for (int64_t i = 0; i < pieces->count; i++) {
        struct piece part = part_of(&pieces->at[i], begin, end);
        if (!part.block) continue;
        FV_TRY(add(committed, &pieces->at[i]));
        FV_TRY(add(used, &part));
    }
    return FV_OK;
}

fv_status fv_rows_measure_all(const fv_rows *const *rows, int64_t count, fv_rows_bytes *bytes)
{
    struct ranges used = {0}, committed = {0};
    fv_status status = FV_OK;

    *bytes = (fv_rows_bytes){0};
    for (int64_t n = 0; n < count; n++) {
        fv_rows_bytes one;
        fv_rows_measure(rows[n], &one);
        bytes->used += one.used;
        bytes->committed += one.committed;
        bytes->reserved += one.reserved;
        bytes->host += one.host;
        for (int64_t s = 0; rows[n]->map && s < rows[n]->map->spans && status == FV_OK; s++)
            status =
                add_span(rows[n], (int)(s / rows[n]->options.heads), s % rows[n]->options.heads, &used, &committed);
    }
    if (status == FV_OK) {
        bytes->shared = surplus(&committed);
        bytes->committed -= bytes->shared;
        bytes->used -= surplus(&used);
    }
    fv_free(used.at);
    fv_free(committed.at);
    return status;
}
