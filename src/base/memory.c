#define _GNU_SOURCE
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK_BYTES ((size_t)1 << 20)
#define HUGE_PAGE ((size_t)1 << 21)

static fv_status alloc_aligned(void **pointer, int64_t count, size_t size, size_t alignment)
{
    size_t bytes;

    *pointer = NULL;
    if (count < 0 || !fv_mul_size((size_t)count, size, &bytes) || bytes > SIZE_MAX / 2)
        return fv_fail(FV_E_MEMORY, "%lld elements of %zu bytes are more than memory can hold", (long long)count, size);
    bytes = (bytes + alignment) & ~(alignment - 1);
    *pointer = aligned_alloc(alignment, bytes);
    if (!*pointer) return fv_fail(FV_E_MEMORY, "out of memory: %zu bytes could not be had", bytes);
    return FV_OK;
}

fv_status fv_alloc(void **pointer, int64_t count, size_t size)
{
    return alloc_aligned(pointer, count, size, FV_ALIGN);
}

fv_status fv_zalloc(void **pointer, int64_t count, size_t size)
{
    FV_TRY(fv_alloc(pointer, count, size));
    memset(*pointer, 0, (size_t)count * size);
    return FV_OK;
}

fv_status fv_grow(void **pointer, int64_t *capacity, int64_t need, size_t size)
{
    int64_t wanted = *capacity < 16 ? 16 : *capacity;
    size_t bytes;
    void *grown;

    if (need <= *capacity) return FV_OK;
    while (wanted < need)
        if (!fv_mul_i64(wanted, 2, &wanted)) wanted = need;
    if (!fv_mul_size((size_t)wanted, size, &bytes) || bytes > SIZE_MAX / 2)
        return fv_fail(FV_E_MEMORY, "%lld elements of %zu bytes are more than memory can hold", (long long)wanted,
                       size);
    grown = realloc(*pointer, bytes);
    if (!grown) return fv_fail(FV_E_MEMORY, "out of memory: %zu bytes could not be had", bytes);
    *pointer = grown;
    *capacity = wanted;
    return FV_OK;
}

void fv_free(void *pointer)
{
    free(pointer);
}

/* ---- arena ----------------------------------------------------------------------------------------------------- */

struct chunk {
    struct chunk *next;
    size_t size, used;
};

struct fv_arena {
    struct chunk *first, *current;
};

static const size_t header = (sizeof(struct chunk) + FV_ALIGN - 1) & ~(size_t)(FV_ALIGN - 1);

static fv_status chunk_new(size_t bytes, struct chunk **chunk)
{
    size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;

    if (size < 2 * HUGE_PAGE) {
        FV_TRY(fv_alloc((void **)chunk, (int64_t)(size + header), 1));
    } else {
        FV_TRY(alloc_aligned((void **)chunk, (int64_t)(size + header), 1, HUGE_PAGE));
#if defined(MADV_HUGEPAGE)
        (void)madvise(*chunk, size + header, MADV_HUGEPAGE); /* an aid, not a need */
#endif
    }
    **chunk = (struct chunk){.size = size};
    return FV_OK;
}

fv_status fv_arena_new(fv_arena **arena)
{
    FV_TRY(FV_ZALLOC(*arena, 1));
    fv_status status = chunk_new(CHUNK_BYTES, &(*arena)->first);
    if (status != FV_OK) {
        fv_free(*arena);
        *arena = NULL;
        return status;
    }
    (*arena)->current = (*arena)->first;
    return FV_OK;
}

void fv_arena_free(fv_arena *arena)
{
    if (!arena) return;
    for (struct chunk *chunk = arena->first; chunk;) {
        struct chunk *next = chunk->next;
        fv_free(chunk);
        chunk = next;
    }
    fv_free(arena);
}

fv_status fv_arena_alloc(fv_arena *arena, void **pointer, int64_t count, size_t size)
{
    size_t bytes;

    *pointer = NULL;
    if (count < 0 || !fv_mul_size((size_t)count, size, &bytes) || bytes > SIZE_MAX / 4)
        return fv_fail(FV_E_MEMORY, "%lld elements of %zu bytes are more than memory can hold", (long long)count, size);
    bytes = (bytes + FV_ALIGN - 1) & ~(size_t)(FV_ALIGN - 1);
    struct chunk *chunk = arena->current;
    while (chunk->size - chunk->used < bytes) {
        struct chunk *next = chunk->next;
        if (next && next->size < bytes) { /* nothing lives behind the current chunk: what is too small goes */
            chunk->next = next->next;
            fv_free(next);
            continue;
        }
        if (!next) FV_TRY(chunk_new(bytes, &chunk->next));
        chunk = chunk->next;
        chunk->used = 0;
    }
    *pointer = (char *)chunk + header + chunk->used;
    chunk->used += bytes;
    arena->current = chunk;
    return FV_OK;
}

fv_mark fv_arena_mark(const fv_arena *arena)
{
    return (fv_mark){.chunk = arena->current, .used = arena->current->used};
}

void fv_arena_release(fv_arena *arena, fv_mark mark)
{
    arena->current = mark.chunk;
    arena->current->used = mark.used;
}
