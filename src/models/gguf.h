/* GGUF files (versions 2 and 3), read where they lie.  The file is hostile: every count, offset, type, string, length
 * and alignment is checked against its size before use, and nothing is allocated that its bytes do not justify. */
#ifndef FV_GGUF_H
#define FV_GGUF_H

#include "base/tensor.h"

/* Types of metadata values, by the file's own numbers. */
typedef enum fv_gguf_type {
    FV_GGUF_U8 = 0,
    FV_GGUF_I8,
    FV_GGUF_U16,
    FV_GGUF_I16,
    FV_GGUF_U32,
    FV_GGUF_I32,
    FV_GGUF_F32,
    FV_GGUF_BOOL,
    FV_GGUF_STRING,
    FV_GGUF_ARRAY,
    FV_GGUF_U64,
    FV_GGUF_I64,
    FV_GGUF_F64,
    FV_GGUF_TYPES,
} fv_gguf_type;

/* Bytes in the file's pages; not 0-ended. */
typedef struct fv_gguf_text {
    const char *data;
    int64_t length;
} fv_gguf_text;

/* An array in the file's pages: `data` may be unaligned, so elements are read with fv_gguf_int_at and so on. */
typedef struct fv_gguf_array {
    fv_gguf_type type; /* of the elements */
    int64_t count;
    const unsigned char *data;
} fv_gguf_array;

typedef struct fv_gguf_tensor {
    fv_gguf_text name;
    fv_tensor tensor; /* over the file's pages, row-major: dims are the file's in reverse; never written to */
    size_t bytes;
} fv_gguf_tensor;

typedef struct fv_gguf fv_gguf;

/* Maps a file and checks all of it.  FV_E_IO, FV_E_FORMAT, FV_E_UNSUPPORTED (version, tensor type), FV_E_MEMORY. */
fv_status fv_gguf_open(const char *path, fv_gguf **gguf);
/* The same over `size` bytes in memory, aligned to 8, which must outlive the reader; `name` is for sentences. */
fv_status fv_gguf_parse(const char *name, const void *bytes, size_t size, fv_gguf **gguf);
void fv_gguf_close(fv_gguf *gguf);

const char *fv_gguf_name(const fv_gguf *gguf); /* the path, for sentences */

/* ---- metadata --------------------------------------------------------------------------------------------------- *
 * Getters leave *value alone when the key is absent, so that it may hold a default; FV_E_FORMAT when the value has
 * another type or does not fit.  What a model cannot do without is asked for with fv_gguf_require first. */

bool fv_gguf_has(const fv_gguf *gguf, const char *key);
fv_status fv_gguf_require(const fv_gguf *gguf, const char *key);
fv_status fv_gguf_int(const fv_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *value); /* any integer */
fv_status fv_gguf_float(const fv_gguf *gguf, const char *key, double *value); /* f32, f64; must be finite */
fv_status fv_gguf_bool(const fv_gguf *gguf, const char *key, bool *value);
fv_status fv_gguf_string(const fv_gguf *gguf, const char *key, fv_gguf_text *value);
bool fv_gguf_text_is(fv_gguf_text text, const char *word);

/* An array whose elements are of one of the types in the bit mask `types` (1u << FV_GGUF_I32 | ...). */
fv_status fv_gguf_get_array(const fv_gguf *gguf, const char *key, unsigned types, fv_gguf_array *value);
int64_t fv_gguf_int_at(const fv_gguf_array *array,
                       int64_t index); /* any integer or bool type; u64 above INT64_MAX: -1 */
double fv_gguf_float_at(const fv_gguf_array *array, int64_t index); /* f32, f64 */
/* All strings of an array: *texts (released with fv_free; NULL when the key is absent) points into the file's pages. */
fv_status fv_gguf_strings(const fv_gguf *gguf, const char *key, fv_gguf_text **texts, int64_t *count);

#define FV_GGUF_INTEGERS                                                                                               \
    (1u << FV_GGUF_U8 | 1u << FV_GGUF_I8 | 1u << FV_GGUF_U16 | 1u << FV_GGUF_I16 | 1u << FV_GGUF_U32 |                 \
     1u << FV_GGUF_I32 | 1u << FV_GGUF_U64 | 1u << FV_GGUF_I64)
#define FV_GGUF_FLOATS (1u << FV_GGUF_F32 | 1u << FV_GGUF_F64)

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

int64_t fv_gguf_tensors(const fv_gguf *gguf);
const fv_gguf_tensor *fv_gguf_tensor_at(const fv_gguf *gguf, int64_t index); /* by name, ascending */
const fv_gguf_tensor *fv_gguf_find(const fv_gguf *gguf, const char *name);   /* NULL: there is none */

#endif
