/* Whole files in, whole files out. */
#ifndef FV_FILE_H
#define FV_FILE_H

#include <stdio.h>

#include "base/status.h"

/* All bytes of a file (or of a pipe), with a 0 behind them; `owned` is released with fv_free.  FV_E_IO, FV_E_MEMORY,
 * FV_E_INTERRUPTED if a signal came while it waited for a pipe. */
fv_status fv_file_read(const char *path, char **owned, size_t *size);

/* Maps a regular file read-only.  An empty file maps to size 0.  FV_E_IO. */
fv_status fv_file_map(const char *path, const void **data, size_t *size);
void fv_file_unmap(const void *data, size_t size);

/* A file without a name in `folder` (NULL: TMPDIR, or /tmp), read and written; it goes when it is closed.  FV_E_IO. */
fv_status fv_file_unnamed(const char *folder, int *descriptor);

/* Writes under a temporary name beside `path`, and renames on commit; fv_file_discard removes it.  A pipe or device is
 * written to as it is.  FV_E_IO. */
typedef struct fv_file_out {
    FILE *stream;
    char *temporary, *path;
} fv_file_out;
fv_status fv_file_create(const char *path, fv_file_out *out);
fv_status fv_file_commit(fv_file_out *out);
void fv_file_discard(fv_file_out *out);

#endif
