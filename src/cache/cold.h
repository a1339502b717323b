/* Rows of a layer that memory does not hold as they were written: always the oldest ones, positions 0 .. count-1 of
 * every key-value head.  In the order of their positions they are
 *   rows that are computed again, from what the layer was given (f32, in memory);
 *   rows in 8 bits by channel (channels.h), in blocks of at most FV_COLD_BLOCK tokens: codes in a file, or in memory;
 *     or, where rows stay in their storage type, rows in a file.
 * A record of the file is a token's row, of all heads.  Rows never change and never come back: whoever reads them gets
 * copies, in scratch memory. */
#ifndef FV_COLD_H
#define FV_COLD_H

#include "cache/rows.h"

enum { FV_COLD_BLOCK = 64 };

/* Keys [count, Hkv D] and values [count, Hkv Dv] of a layer, f32, in scratch memory, exactly as they were before they
 * were stored: of tokens at ascending positions, from what the layer was given, input [count, width] f32.  few: they
 * came from the kernels of FV_BATCH_STEPS, otherwise from those of FV_BATCH_PROMPT. */
typedef fv_status fv_project_fn(fv_ctx *ctx, void *user, int64_t layer, const fv_tensor *input, const int32_t *position,
                                bool few, fv_tensor *k, fv_tensor *v);

typedef struct fv_cold_options {
    bool packed;      /* rows become 8 bits */
    fv_offload *file; /* NULL: none leaves memory */
    int64_t computed; /* rows before this one are computed again */
    fv_project_fn *project;
    void *user;
    int64_t layer;
} fv_cold_options;

/* FV_E_MEMORY.  Lives as long as the rows, until they are cleared. */
fv_status fv_cold_new(fv_rows *rows, const fv_cold_options *options);

/* Keeps inputs [count, width] of tokens at position .. , those that will be computed again.  FV_E_MEMORY. */
fv_status fv_cold_note(fv_rows *rows, int64_t position, const fv_tensor *input, bool few);
/* A block ends behind the rows that are there: the next one begins with the next row.  FV_E_MEMORY. */
fv_status fv_cold_cut(fv_rows *rows);

/* Rows before `to` leave: those that can be computed again; whole blocks, to 8 bits; rows or, if they are packed, whole
 * blocks of them to the file.  Each step that succeeds stays.  FV_E_MEMORY, FV_E_IO. */
fv_status fv_cold_drop(fv_rows *rows, int64_t to);
fv_status fv_cold_pack(fv_ctx *ctx, fv_rows *rows, int64_t to);
fv_status fv_cold_write(fv_ctx *ctx, fv_rows *rows, int64_t to);

/* Rows of `heads` heads from `head` on, of all that there are: place[h] lists `count` ascending positions for head h
 * (NULL: the first `count`).  keys [1,heads,count,D], values (NULL: not wanted) [1,heads,count,Dv], in scratch memory:
 * of the storage type, or f32 where rows are packed.  FV_E_IO: the file was cut or changed; FV_E_MEMORY. */
fv_status fv_cold_read(fv_ctx *ctx, fv_rows *rows, int64_t head, int64_t heads, const int32_t *const *place,
                       int64_t count, fv_tensor *keys, fv_tensor *values);
/* Begins to read what such a call for all heads will want from the file.  What goes wrong shows there. */
void fv_cold_ahead(fv_ctx *ctx, fv_rows *rows, const int32_t *const *place, int64_t count);

/* Keys [1,heads,count,D] f32 of all heads, in scratch memory, of the first `count` rows, each as 8 bits will hold it;
 * all of them lie in blocks that are cut. */
fv_status fv_cold_keys(fv_ctx *ctx, fv_rows *rows, int64_t count, fv_tensor *keys);

size_t fv_cold_input_bytes(const fv_rows *rows);

/* ---- for rows ---------------------------------------------------------------------------------------------------- */

void fv_cold_free(fv_rows *rows);
/* FV_E_ARGUMENT: rows of a shorter text would lie elsewhere. */
fv_status fv_cold_truncate(fv_rows *rows, int64_t length);
int64_t fv_cold_count(const fv_rows *rows);
size_t fv_cold_used(const fv_rows *rows); /* bytes of rows in memory, and in the file */
size_t fv_cold_host(const fv_rows *rows);

#endif
