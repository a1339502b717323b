/* The pool: every item once, whatever their number; who is done takes over what others have left; threads stay where
 * they are put. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/threads.h"
#include "support/support.h"

enum { MOST = 3000, THREADS = 5 };

struct counts {
    atomic_int item[MOST];
    atomic_int thread[THREADS];
    atomic_int done;
    int waits_for; /* items that item 0 waits for */
    bool late;
};

static void count_item(void *user, int64_t index, int thread)
{
    struct counts *c = user;

    atomic_fetch_add(&c->item[index], 1);
    atomic_fetch_add(&c->thread[thread], 1);
}

static void every_item_runs_once(void **state)
{
    static const int64_t sizes[] = {0, 1, 2, 3, 4, 5, 6, 7, 64, 999, MOST};

    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        fv_pool *pool;
        assert_ok(fv_pool_new(threads, &pool));
        assert_int_equal(fv_pool_threads(pool), threads);
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            static struct counts counts;
            int sum = 0;
            memset(&counts, 0, sizeof counts);
            fv_pool_run(pool, sizes[n], count_item, &counts);
            for (int64_t i = 0; i < MOST; i++)
                if (counts.item[i] != (i < sizes[n]))
                    fail_msg("%d threads, %lld items: item %lld ran %d times", threads, (long long)sizes[n],
                             (long long)i, counts.item[i]);
            for (int t = 0; t < threads; t++)
                sum += counts.thread[t];
            assert_int_equal(sum, sizes[n]);
        }
        fv_pool_free(pool);
    }
}

/* Item 0 ends when all others have: also those that were meant for its thread. */
static void wait_in_first(void *user, int64_t index, int thread)
{
    struct counts *c = user;
    time_t limit = time(NULL) + 20;

    (void)thread;
    while (index == 0 && atomic_load(&c->done) < c->waits_for && !c->late) {
        c->late = time(NULL) > limit;
        sched_yield();
    }
    atomic_fetch_add(&c->done, 1);
}

static void idle_threads_take_over(void **state)
{
    (void)state;
    for (int threads = 2; threads <= 4; threads++) {
        struct counts counts = {.waits_for = 99};
        fv_pool *pool;
        assert_ok(fv_pool_new(threads, &pool));
        fv_pool_run(pool, 100, wait_in_first, &counts);
        if (counts.late) fail_msg("%d threads: %d of 99 other items ran in 20 s", threads, counts.done);
        assert_int_equal(counts.done, 100);
        fv_pool_free(pool);
    }
}

static void note_processors(void *user, int64_t index, int thread)
{
    cpu_set_t set;

    (void)index;
    if (thread > 0 && sched_getaffinity(0, sizeof set, &set) == 0) ((atomic_int *)user)[thread] = CPU_COUNT(&set);
    for (int n = 0; n < 2000; n++)
        sched_yield();
}

static void pinned_threads_have_one_processor(void **state)
{
    atomic_int processors[THREADS] = {0};
    fv_pool *pool;

    (void)state;
    setenv("FOVEA_PIN", "1", 1);
    assert_ok(fv_pool_new(3, &pool));
    unsetenv("FOVEA_PIN");
    for (int turn = 0; turn < 50 && !(processors[1] && processors[2]); turn++)
        fv_pool_run(pool, 6, note_processors, processors);
    assert_int_equal(processors[1], 1);
    assert_int_equal(processors[2], 1);
    fv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once),
        cmocka_unit_test(idle_threads_take_over),
        cmocka_unit_test(pinned_threads_have_one_processor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
