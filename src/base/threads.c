#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

#define SPINS 4000 /* about 20 us: the gap between two loops of a decode step */
#define OPEN (UINT64_C(1) << 31)

/* Items that a thread has before it: [first, end), end in the high half.  It takes them from the front, one after the
 * other, so that what lies together is read as one stream; who has none left takes from the ends of the others'. */
struct share {
    _Alignas(64) atomic_ullong items;
};

struct fv_pool {
    int threads, started;
    pthread_t *handles;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* generation << 32 | OPEN while a job can be joined | threads that joined it.  Only those are waited for, so that a
     * thread which the system has not woken yet holds up nobody. */
    atomic_ullong state;
    atomic_bool stop;
    struct share *shares; /* [threads] */
    int64_t from;         /* of all items, what is first in the shares */
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

/* The first item of a share, or its last; -1: none is left. */
static int64_t take(struct share *share, bool last)
{
    unsigned long long items = atomic_load_explicit(&share->items, memory_order_relaxed);

    for (;;) {
        uint32_t first = (uint32_t)items, end = (uint32_t)(items >> 32);
        if (first >= end) return -1;
        unsigned long long rest = last ? (unsigned long long)(end - 1) << 32 | first : items + 1;
        if (atomic_compare_exchange_weak_explicit(&share->items, &items, rest, memory_order_relaxed,
                                                  memory_order_relaxed))
            return last ? end - 1 : first;
    }
}

static void work(fv_pool *pool, int thread)
{
    for (int n = 0; n < pool->threads; n++) {
        struct share *share = &pool->shares[(thread + n) % pool->threads];
        for (int64_t index; (index = take(share, n > 0)) >= 0;)
            pool->item(pool->user, pool->from + index, thread);
    }
}

static unsigned generation_of(fv_pool *pool)
{
    return (unsigned)(atomic_load_explicit(&pool->state, memory_order_acquire) >> 32);
}

/* Takes part in job `generation` unless it is over. */
static bool join(fv_pool *pool, unsigned generation)
{
    unsigned long long state = atomic_load_explicit(&pool->state, memory_order_acquire);

    while ((unsigned)(state >> 32) == generation && (state & OPEN))
        if (atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1, memory_order_acq_rel,
                                                  memory_order_acquire))
            return true;
    return false;
}

static void *worker_main(void *argument)
{
    struct worker worker = *(struct worker *)argument;
    fv_pool *pool = worker.pool;
    unsigned seen = 0;

    fv_free(argument);
    for (;;) {
        unsigned now = seen;
        for (int spin = 0; spin < SPINS && now == seen; spin++) {
            relax();
            now = generation_of(pool);
        }
        if (now == seen) {
            pthread_mutex_lock(&pool->mutex);
            while ((now = generation_of(pool)) == seen)
                pthread_cond_wait(&pool->wake, &pool->mutex);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = now;
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) return NULL;
        if (!join(pool, now)) continue;
        work(pool, worker.thread);
        atomic_fetch_sub_explicit(&pool->state, 1, memory_order_release);
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

/* FOVEA_PIN=1: thread t stays on the t-th processor of those the process may use; the calling thread, which is
 * not ours, may be anywhere. */
static void pin(pthread_t thread, int t)
{
    const char *wanted = getenv("FOVEA_PIN");
    cpu_set_t usable, one;
    int place;

    if (!wanted || strcmp(wanted, "1") != 0 || sched_getaffinity(getpid(), sizeof usable, &usable) != 0) return;
    place = t % CPU_COUNT(&usable);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &usable) && place-- == 0) CPU_SET(cpu, &one);
    (void)pthread_setaffinity_np(thread, sizeof one, &one);
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
    FV_TRY_DONE(FV_ZALLOC(p->shares, threads));
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
        pin(p->handles[t], t);
    }
    *pool = p;
    return FV_OK;
done:
    fv_pool_free(p);
    return status;
}

/* Nobody is in a job now. */
static void post(fv_pool *pool)
{
    unsigned long long next = (unsigned long long)(generation_of(pool) + 1u) << 32 | OPEN;

    pthread_mutex_lock(&pool->mutex);
    atomic_store_explicit(&pool->state, next, memory_order_release);
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
    fv_free(pool->shares);
    fv_free(pool);
}

int fv_pool_threads(const fv_pool *pool)
{
    return pool->threads;
}

/* At most INT32_MAX items. */
static void run_part(fv_pool *pool, int64_t from, int64_t count, fv_item_fn *item, void *user)
{
    pool->item = item;
    pool->user = user;
    pool->from = from;
    for (int64_t t = 0; t < pool->threads; t++) {
        unsigned long long first = (unsigned long long)(count * t / pool->threads);
        unsigned long long end = (unsigned long long)(count * (t + 1) / pool->threads);
        atomic_store_explicit(&pool->shares[t].items, end << 32 | first, memory_order_relaxed);
    }
    post(pool);
    work(pool, 0);
    atomic_fetch_and_explicit(&pool->state, ~(unsigned long long)OPEN, memory_order_acq_rel);
    for (int spin = 0; atomic_load_explicit(&pool->state, memory_order_acquire) & (OPEN - 1); spin++) {
        relax();
        if (spin > SPINS) sched_yield(); /* more threads than processors: let the others finish */
    }
}

void fv_pool_run(fv_pool *pool, int64_t count, fv_item_fn *item, void *user)
{
    if (pool->threads == 1 || count <= 1) {
        for (int64_t index = 0; index < count; index++)
            item(user, index, 0);
        return;
    }
    for (int64_t from = 0, part; from < count; from += part) {
        part = count - from < INT32_MAX ? count - from : INT32_MAX;
        run_part(pool, from, part, item, user);
    }
}
