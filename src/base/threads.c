#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/memory.h"

#define SPINS 4000 /* about 20 us: the gap between two loops of a decode step */

enum { JOB_SHIFT = 16, JOB_OPEN = 1 << 15, JOB_JOINED = JOB_OPEN - 1 };

struct fv_pool {
    int threads, started;
    pthread_t *handles;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* Of the job: its number above JOB_SHIFT, JOB_OPEN while threads may join, and how many have joined.  The caller
     * waits only for those that joined, so a thread that a busy machine does not wake in time costs nothing. */
    atomic_ullong job;
    atomic_llong next;
    atomic_bool stop;
    int64_t count;
    fv_item_fn *item;
    void *user;
};

struct worker {
    fv_pool *pool;
    int thread;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void work(fv_pool *pool, int thread)
{
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->count) return;
        pool->item(pool->user, index, thread);
    }
}

/* Waits for a job that is not `seen`. */
static unsigned long long await_job(fv_pool *pool, unsigned long long seen)
{
    unsigned long long job = seen;

    for (int spin = 0; spin < SPINS && job >> JOB_SHIFT == seen >> JOB_SHIFT; spin++) {
        relax();
        job = atomic_load_explicit(&pool->job, memory_order_acquire);
    }
    if (job >> JOB_SHIFT != seen >> JOB_SHIFT) return job;
    pthread_mutex_lock(&pool->mutex);
    while ((job = atomic_load_explicit(&pool->job, memory_order_acquire)) >> JOB_SHIFT == seen >> JOB_SHIFT)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return job;
}

static void *worker_main(void *argument)
{
    struct worker worker = *(struct worker *)argument;
    fv_pool *pool = worker.pool;
    unsigned long long job = 0;

    fv_free(argument);
    for (;;) {
        job = await_job(pool, job);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) return NULL;
        while (job & JOB_OPEN) {
            if (!atomic_compare_exchange_weak_explicit(&pool->job, &job, job + 1, memory_order_acq_rel,
                                                       memory_order_acquire))
                continue;
            work(pool, worker.thread);
            atomic_fetch_sub_explicit(&pool->job, 1, memory_order_release);
            break;
        }
    }
}

int fv_usable_threads(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int count = CPU_COUNT(&set);
        if (count > 0) return count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

fv_status fv_pool_new(int threads, fv_pool **pool)
{
    fv_status status;
    fv_pool *p;

    *pool = NULL;
    FV_TRY(FV_ZALLOC(p, 1));
    p->threads = threads;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    FV_TRY_DONE(FV_ZALLOC(p->handles, threads));
    for (int t = 1; t < threads; t++) {
        struct worker *worker;
        FV_TRY_DONE(FV_ALLOC(worker, 1));
        *worker = (struct worker){p, t};
        if (pthread_create(&p->handles[t], NULL, worker_main, worker) != 0) {
            fv_free(worker);
            status = fv_fail(FV_E_MEMORY, "thread %d of %d could not be started", t + 1, threads);
            goto done;
        }
        p->started = t;
    }
    *pool = p;
    return FV_OK;
done:
    fv_pool_free(p);
    return status;
}

static void post(fv_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    unsigned long long number = atomic_load_explicit(&pool->job, memory_order_relaxed) >> JOB_SHIFT;
    atomic_store_explicit(&pool->job, (number + 1) << JOB_SHIFT | JOB_OPEN, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

void fv_pool_free(fv_pool *pool)
{
    if (!pool) return;
    atomic_store(&pool->stop, true);
    post(pool);
    for (int t = 1; t <= pool->started; t++)
        pthread_join(pool->handles[t], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    fv_free(pool->handles);
    fv_free(pool);
}

int fv_pool_threads(const fv_pool *pool)
{
    return pool->threads;
}

void fv_pool_run(fv_pool *pool, int64_t count, fv_item_fn *item, void *user)
{
    if (pool->threads == 1 || count <= 1) {
        for (int64_t index = 0; index < count; index++)
            item(user, index, 0);
        return;
    }
    pool->count = count;
    pool->item = item;
    pool->user = user;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    post(pool);
    work(pool, 0);
    atomic_fetch_and_explicit(&pool->job, ~(unsigned long long)JOB_OPEN, memory_order_acq_rel);
    for (int spin = 0; atomic_load_explicit(&pool->job, memory_order_acquire) & JOB_JOINED; spin++)
        if (spin < SPINS)
            relax();
        else
            sched_yield(); /* a thread that joined was put aside */
}
