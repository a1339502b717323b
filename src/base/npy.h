/* NumPy's .npy files, versions 1 and 2, C order, little endian. */
#ifndef FV_NPY_H
#define FV_NPY_H

#include "base/file.h"
#include "base/tensor.h"

/* Reads a file of f16, f32, f64 or an integer type.  `owned` receives the memory to release with fv_free; f64 becomes
 * f32.  The header is hostile: every size is checked against the file.  FV_E_IO, FV_E_FORMAT (names file and field),
 * FV_E_DTYPE, FV_E_SHAPE (rank above FV_MAX_RANK), FV_E_MEMORY. */
fv_status fv_npy_read(const char *path, fv_tensor *tensor, void **owned);

/* Parses bytes in memory (what fv_npy_read does with a file's); `name` is for sentences. */
fv_status fv_npy_parse(const char *name, const void *bytes, size_t count, fv_tensor *tensor, void **owned);

/* Writes a plain-typed tensor of any strides; under a temporary name first, so that no part file ever bears `path`.
 * FV_E_DTYPE for types .npy cannot name, FV_E_IO. */
fv_status fv_npy_write(const char *path, const fv_tensor *tensor);

/* Starts a file whose data comes piece by piece: writes the header; the caller writes the elements to out->stream in
 * C order and ends with fv_file_commit or fv_file_discard. */
fv_status fv_npy_begin(const char *path, fv_dtype dtype, int rank, const int64_t *dims, fv_file_out *out);

#endif
