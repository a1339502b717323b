/* What the files of rows share: where rows lie, and what has to happen before they are written. */
#ifndef FV_ROWS_INSIDE_H
#define FV_ROWS_INSIDE_H

#include "cache/rows.h"

static inline char *fv_row_at(const fv_rows *rows, int side, int64_t head, int64_t row)
{
    const fv_rows_side *s = &rows->side[side];

    return s->memory + (size_t)head * s->apart + (size_t)row * s->stride;
}

static inline size_t fv_page_down(const fv_rows *rows, size_t bytes)
{
    return bytes / rows->page * rows->page;
}

static inline size_t fv_page_up(const fv_rows *rows, size_t bytes)
{
    return fv_page_down(rows, bytes + rows->page - 1);
}

/* Moves `count` rows of a head, which may be written at their new places. */
void fv_rows_move(fv_rows *rows, int64_t head, int64_t from, int64_t to, int64_t count);
/* The first `count` rows of every head are gone from memory; the others stay where they are. */
void fv_rows_leave(fv_rows *rows, int64_t count);
/* Makes places from .. to-1 of a head this stream's own, for it to write them.  FV_E_MEMORY. */
fv_status fv_rows_own(fv_rows *rows, int64_t head, int64_t from, int64_t to);
/* A row as f32. */
void fv_rows_load(const fv_rows *rows, int side, const void *row, float *out);

/* ---- pages that may be shared (rows_share.c) -------------------------------------------------------------------- */

/* Makes rows->map, NULL where the system cannot share pages. */
fv_status fv_map_new(fv_rows *rows);
void fv_map_free(fv_rows *rows);
/* Memory for the spans of a side. */
fv_status fv_map_reserve(fv_rows *rows, int side, size_t span, char **memory);
/* Bytes begin .. end-1 of a head's span, whole pages: they hold nothing any more; they will be written. */
void fv_map_give_back(fv_rows *rows, int side, int64_t head, size_t begin, size_t end);
fv_status fv_map_own(fv_rows *rows, int side, int64_t head, size_t begin, size_t end);
/* Adds a head's committed and shared bytes. */
void fv_map_measure(const fv_rows *rows, int side, int64_t head, size_t begin, size_t end, fv_rows_bytes *bytes);

/* ---- rows in a file (rows_offload.c) ---------------------------------------------------------------------------- */

void fv_away_free(fv_rows *rows);
/* Forgets rows of a head at positions >= length. */
void fv_away_truncate(fv_rows *rows, int64_t head, int64_t length);
bool fv_away_holds(const fv_rows *rows, int64_t head, int64_t position);
size_t fv_away_bytes(const fv_rows *rows);
/* Stores what `from` has in its file again, for `to`, which has other types. */
fv_status fv_away_convert(fv_ctx *ctx, fv_rows *to, const fv_rows *from);

#endif
