/* A pool of tensors in reserved address space that are mapped page by page from their beginning (vAttention, arXiv
 * 2405.04437): ordinary kernels run on them, and no block table is needed.  Pages of tensors that are given back stay
 * mapped for the next one of the same size, and a thread maps ahead of what is written, so that in a steady state
 * nobody waits for the system.  Streams of several threads may share a pool. */
#ifndef FV_PAGES_H
#define FV_PAGES_H

#include "base/memory.h"

typedef struct fv_pages_options {
    int64_t page;      /* bytes, a power of two of 4096 or more; 0: the system's */
    bool async;        /* a thread maps ahead */
    bool deferred;     /* pages of tensors given back stay mapped */
    int64_t lookahead; /* rows that are mapped ahead */
    int64_t limit;     /* most bytes mapped; 0: what the system gives */
} fv_pages_options;

typedef struct fv_pages fv_pages;
typedef struct fv_slab fv_slab; /* a tensor */

/* FV_E_MEMORY.  A pool lives until its last user lets it go. */
fv_status fv_pages_new(const fv_pages_options *options, fv_pages **pages);
fv_pages *fv_pages_hold(fv_pages *pages);
void fv_pages_drop(fv_pages *pages); /* also NULL */
/* The pool with these knobs that a context keeps, for all of its streams; the context holds it. */
fv_status fv_pages_of(fv_ctx *ctx, const fv_pages_options *options, fv_pages **pages);

/* Of all pools that a context keeps: bytes mapped in tensors that were given back; unmaps them, false: there are none.
 */
size_t fv_pages_idle(const fv_ctx *ctx);
bool fv_pages_trim(const fv_ctx *ctx);

/* A tensor of `rows` rows of row_bytes: one given back that has the pages for `expected` rows and not many more, or a
 * new one.  Its content is anything.  FV_E_MEMORY. */
fv_status fv_slab_take(fv_pages *pages, size_t row_bytes, int64_t rows, int64_t expected, fv_slab **slab);
fv_slab *fv_slab_hold(fv_slab *slab);
void fv_slab_drop(fv_slab *slab); /* the last one gives it back to its pool */

char *fv_slab_memory(const fv_slab *slab);
size_t fv_slab_row_bytes(const fv_slab *slab);
size_t fv_slab_reserved(const fv_slab *slab);
size_t fv_slab_mapped(const fv_slab *slab);

/* Maps what rows 0 .. rows-1 need, and has the thread map ahead.  FV_E_MEMORY; what was mapped stays.  Touching what is
 * not mapped is a fault. */
fv_status fv_slab_map(fv_slab *slab, int64_t rows);
/* Unmaps what lies behind rows 0 .. rows-1, but for pools that keep pages. */
void fv_slab_shrink(fv_slab *slab, int64_t rows);

typedef struct fv_pages_stats {
    size_t mapped, idle; /* bytes; idle: of tensors given back */
    int64_t calls;       /* of the system to map, that a caller waited for */
    int64_t ahead;       /* by the thread */
    int64_t unmaps;
    int64_t taken, reused; /* tensors, so far */
} fv_pages_stats;
void fv_pages_measure(fv_pages *pages, fv_pages_stats *stats); /* once the thread rests */

#endif
