/* Safetensors files: tensors by name, read where they lie, and written.  A file that is read is hostile: its header is
 * checked whole against its size before anything is used, and nothing is allocated that its bytes do not justify. */
#ifndef FV_SAFETENSORS_H
#define FV_SAFETENSORS_H

#include "base/tensor.h"

enum {
    FV_SAFETENSORS_HEADER = 100000000, /* most bytes of a header */
    FV_SAFETENSORS_NAME = 1024,        /* most bytes of a tensor's name */
};

typedef struct fv_safetensor {
    const char *name; /* UTF-8 */
    fv_tensor tensor; /* over the file's pages: perhaps not aligned, never written to */
    size_t bytes;
} fv_safetensor;

/* What a file says about itself ("__metadata__"). */
typedef struct fv_note {
    const char *key, *value;
} fv_note;

typedef struct fv_safetensors fv_safetensors;

/* Maps a file and checks all of it.  FV_E_IO, FV_E_FORMAT, FV_E_UNSUPPORTED (a tensor's type), FV_E_SHAPE (rank above
 * FV_MAX_RANK), FV_E_MEMORY. */
fv_status fv_safetensors_open(const char *path, fv_safetensors **file);
/* The same over bytes in memory, which must outlive the reader; `path` is for sentences. */
fv_status fv_safetensors_parse(const char *path, const void *bytes, size_t size, fv_safetensors **file);
void fv_safetensors_close(fv_safetensors *file);

int64_t fv_safetensors_count(const fv_safetensors *file);
const fv_safetensor *fv_safetensors_at(const fv_safetensors *file, int64_t index);      /* by name, ascending */
const fv_safetensor *fv_safetensors_find(const fv_safetensors *file, const char *name); /* NULL: there is none */
const char *fv_safetensors_note(const fv_safetensors *file, const char *key);           /* NULL: there is none */

/* A tensor of the type it is stored in, in aligned memory of its own; `owned` is released with fv_free.  FV_E_MEMORY.
 */
fv_status fv_safetensors_copy(const fv_safetensor *stored, fv_tensor *tensor, void **owned);

/* Writes plain-typed tensors of any strides, under a temporary name first, so that no part file ever bears `path`.
 * FV_E_ARGUMENT for a name or note that cannot stand in a file or stands twice, FV_E_DTYPE, FV_E_IO, FV_E_MEMORY. */
fv_status fv_safetensors_write(const char *path, int64_t count, const fv_named_tensor *tensors, int64_t notes,
                               const fv_note *note);

#endif
