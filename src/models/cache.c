#define _GNU_SOURCE
#include "models/cache.h"

#include <errno.h>
#include <sys/mman.h>

fv_status fv_cache_new(fv_cache *cache, fv_dtype dtype, int64_t heads, int64_t context, int64_t key_dim,
                       int64_t value_dim)
{
    int64_t key_count = 0, count = 0;
    size_t bytes = 0, element = fv_dtype_size(dtype);

    *cache = (fv_cache){0};
    if (!fv_mul_i64(heads, context, &count) || !fv_mul_i64(count, key_dim + value_dim, &count) ||
        !fv_mul_size((size_t)count, element, &bytes) || bytes > SIZE_MAX / 4)
        return fv_fail(FV_E_MEMORY, "a cache of %lld tokens is more than memory can hold", (long long)context);
    key_count = heads * context * key_dim;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return fv_fail(FV_E_MEMORY, "a cache of %lld tokens needs %zu bytes of address space: %s", (long long)context,
                       bytes, strerror(errno));
    cache->memory = memory;
    cache->reserved = bytes;
    FV_TRY(fv_tensor_wrap(&cache->keys, memory, dtype, FV_DIMS(1, heads, context, key_dim)));
    return fv_tensor_wrap(&cache->values, (char *)memory + (size_t)key_count * element, dtype,
                          FV_DIMS(1, heads, context, value_dim));
}

void fv_cache_free(fv_cache *cache)
{
    if (cache->memory) munmap(cache->memory, cache->reserved);
    *cache = (fv_cache){0};
}

void fv_cache_clear(fv_cache *cache)
{
    if (cache->memory) (void)madvise(cache->memory, cache->reserved, MADV_DONTNEED);
}

size_t fv_cache_bytes(const fv_cache *cache, int64_t rows)
{
    if (!cache->memory) return 0;
    return (size_t)rows * (size_t)cache->keys.dims[1] * (size_t)(cache->keys.dims[3] + cache->values.dims[3]) *
           fv_dtype_size(cache->keys.dtype);
}
