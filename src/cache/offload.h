/* A file for rows that memory shall not hold: records of bytes, written when they leave and read when they are wanted
 * again.  The file has no name, so nobody can delete it and nothing is left of it; what comes back is checked, so that
 * a file that was cut or written by others is an error and never wrong numbers; and it is never mapped.  Any thread may
 * call. */
#ifndef FV_OFFLOAD_H
#define FV_OFFLOAD_H

#include "base/memory.h"

typedef struct fv_offload fv_offload;

typedef struct fv_record {
    int64_t place;
    uint64_t check;
} fv_record;

/* In a folder (NULL: TMPDIR, or /tmp).  FV_E_IO, FV_E_MEMORY.  Lives until its last user lets it go. */
fv_status fv_offload_new(const char *folder, fv_offload **file);
fv_offload *fv_offload_hold(fv_offload *file);
void fv_offload_drop(fv_offload *file);    /* also NULL */
int64_t fv_offload_size(fv_offload *file); /* bytes of the file */

/* Writes `count` records of `size` bytes that lie one behind the other; one write where places allow.  FV_E_IO: no
 * record is held then. */
fv_status fv_offload_write(fv_offload *file, const void *bytes, size_t size, int64_t count, fv_record *records);
/* Reads records to bytes, one behind the other.  FV_E_IO, also where a record is not what was written. */
fv_status fv_offload_read(fv_offload *file, const fv_record *records, size_t size, int64_t count, void *bytes);
/* Their places may be used again. */
void fv_offload_forget(fv_offload *file, const fv_record *records, size_t size, int64_t count);

/* Reading ahead, by a thread that the file starts with the first call. */
typedef struct fv_read_ahead fv_read_ahead;
fv_status fv_read_ahead_begin(fv_offload *file, const fv_record *records, size_t size, int64_t count,
                              fv_read_ahead **ahead);
/* What was read, once it was; NULL: it could not be. */
const void *fv_read_ahead_wait(fv_offload *file, fv_read_ahead *ahead);
void fv_read_ahead_end(fv_offload *file, fv_read_ahead *ahead); /* also NULL */

#endif
