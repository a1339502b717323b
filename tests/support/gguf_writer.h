/* Writes GGUF files for tests, whole and broken ones.  Shares nothing with the reader but the enum of types. */
#ifndef FV_GGUF_WRITER_H
#define FV_GGUF_WRITER_H

#include "base/text.h"
#include "models/gguf.h"

/* All zero is an empty file of version 3. */
typedef struct gguf_writer {
    int version; /* 0: 3 */
    fv_text keys, infos, data;
    int64_t key_count, tensor_count, alignment; /* alignment 0: 32 */
} gguf_writer;

void gguf_put_raw(gguf_writer *w, const char *key, fv_gguf_type type, const void *value, int64_t bytes);
void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_put_f32(gguf_writer *w, const char *key, float value);
void gguf_put_bool(gguf_writer *w, const char *key, bool value);
void gguf_put_string(gguf_writer *w, const char *key, const char *value);
void gguf_put_strings(gguf_writer *w, const char *key, const char *const *values, int64_t count);
void gguf_put_array(gguf_writer *w, const char *key, fv_gguf_type type, const void *values, int64_t count);

/* dims as tensors have them in memory, the contiguous one last. */
void gguf_put_tensor(gguf_writer *w, const char *name, fv_dtype dtype, int rank, const int64_t *dims, const void *data);

/* The file's bytes, aligned; release with fv_free. */
void gguf_bytes(const gguf_writer *w, unsigned char **bytes, size_t *size);
void gguf_save(const gguf_writer *w, const char *path);
void gguf_writer_free(gguf_writer *w);

#endif
