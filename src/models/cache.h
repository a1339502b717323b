/* Keys and values of one layer: rows of all positions so far, in address space reserved for the whole context.  Pages
 * become resident when they are first written, so what is reserved costs nothing. */
#ifndef FV_CACHE_H
#define FV_CACHE_H

#include "base/tensor.h"

typedef struct fv_cache {
    fv_tensor keys, values; /* [1, Hkv, context, D], [1, Hkv, context, Dv] */
    void *memory;
    size_t reserved;
} fv_cache;

/* f16 or f32 rows.  FV_E_MEMORY. */
fv_status fv_cache_new(fv_cache *cache, fv_dtype dtype, int64_t heads, int64_t context, int64_t key_dim,
                       int64_t value_dim);
void fv_cache_free(fv_cache *cache);
void fv_cache_clear(fv_cache *cache); /* gives pages back */

/* Bytes that `rows` positions take. */
size_t fv_cache_bytes(const fv_cache *cache, int64_t rows);

#endif
