/* Heap memory with checked sizes, and the arena that hot paths take scratch memory from. */
#ifndef FV_MEMORY_H
#define FV_MEMORY_H

#include "base/size.h"

#define FV_ALIGN 64 /* a cache line, and the widest vector */

/* count * size bytes, aligned to FV_ALIGN; zeroed by fv_zalloc.  Zero bytes give a valid pointer.  FV_E_MEMORY. */
fv_status fv_alloc(void **pointer, int64_t count, size_t size);
fv_status fv_zalloc(void **pointer, int64_t count, size_t size);

/* Grows *pointer (from fv_grow or NULL) so that it holds at least `need` elements; doubles.  FV_E_MEMORY leaves it. */
fv_status fv_grow(void **pointer, int64_t *capacity, int64_t need, size_t size);
void fv_free(void *pointer);

#define FV_ALLOC(pointer, count) fv_alloc((void **)&(pointer), (count), sizeof *(pointer))
#define FV_ZALLOC(pointer, count) fv_zalloc((void **)&(pointer), (count), sizeof *(pointer))
#define FV_GROW(pointer, capacity, need) fv_grow((void **)&(pointer), &(capacity), (need), sizeof *(pointer))

/* Chunks that grow and are given back in stack order.  Memory stays with the arena until it is freed. */
typedef struct fv_arena fv_arena;

typedef struct fv_mark {
    void *chunk;
    size_t used;
} fv_mark;

fv_status fv_arena_new(fv_arena **arena);
void fv_arena_free(fv_arena *arena);
fv_status fv_arena_alloc(fv_arena *arena, void **pointer, int64_t count, size_t size);
fv_mark fv_arena_mark(const fv_arena *arena);
void fv_arena_release(fv_arena *arena, fv_mark mark);

#endif
