/* A pool of threads for loops over independent items.  Results never depend on the number of threads: an item is
 * computed by one thread, in the same way whichever it is. */
#ifndef FV_THREADS_H
#define FV_THREADS_H

#include "base/status.h"

typedef struct fv_pool fv_pool;

/* Computes item `index` of a loop; `thread` in 0..threads-1 picks per-thread scratch memory. */
typedef void fv_item_fn(void *user, int64_t index, int thread);

fv_status fv_pool_new(int threads, fv_pool **pool);
void fv_pool_free(fv_pool *pool);
int fv_pool_threads(const fv_pool *pool);

/* Runs items 0..count-1, each thread a stretch of them in ascending order, then what others have left, from behind;
 * returns when all are done.
 * Items must not call fv_pool_run on the same pool. */
void fv_pool_run(fv_pool *pool, int64_t count, fv_item_fn *item, void *user);

/* Threads this process may use (affinity, not the machine's count). */
int fv_usable_threads(void);

#endif
