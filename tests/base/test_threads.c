/* The pool: every item once, whatever the number of threads and items, and many loops one after another. */
#include "support/support.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/threads.h"

enum { ITEMS = 5000 };

struct seen {
    atomic_int times[ITEMS];
    atomic_int outside; /* thread numbers that are none */
    int threads;
};

static void mark(void *user, int64_t index, int thread)
{
    struct seen *seen = user;

    atomic_fetch_add(&seen->times[index], 1);
    if (thread < 0 || thread >= seen->threads) atomic_fetch_add(&seen->outside, 1);
}

static void every_item_runs_once(void **state)
{
    static const int64_t counts[] = {0, 1, 2, 3, 17, ITEMS};
    (void)state;

    for (int threads = 1; threads <= 7; threads += 2) {
        fv_pool *pool;
        assert_ok(fv_pool_new(threads, &pool));
        assert_int_equal(fv_pool_threads(pool), threads);
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            static struct seen seen;
            memset(&seen, 0, sizeof seen);
            seen.threads = threads;
            fv_pool_run(pool, counts[c], mark, &seen);
            assert_int_equal(seen.outside, 0);
            for (int64_t i = 0; i < ITEMS; i++)
                if (seen.times[i] != (i < counts[c]))
                    fail_msg("%d threads, %lld items: item %lld ran %d times", threads, (long long)counts[c],
                             (long long)i, seen.times[i]);
        }
        fv_pool_free(pool);
    }
}

struct sum {
    int64_t part[64];
};

static void add(void *user, int64_t index, int thread)
{
    ((struct sum *)user)->part[thread] += index; /* no lock: a thread number is one thread at a time */
}

static void short_loops_follow_one_another(void **state)
{
    fv_pool *pool;
    (void)state;

    assert_ok(fv_pool_new(4, &pool));
    for (int loop = 0; loop < 20000; loop++) {
        struct sum sum = {{0}};
        int64_t total = 0, count = 2 + loop % 9;
        fv_pool_run(pool, count, add, &sum);
        for (int t = 0; t < 4; t++)
            total += sum.part[t];
        if (total != count * (count - 1) / 2)
            fail_msg("loop %d of %lld items: expected the sum %lld, got %lld", loop, (long long)count,
                     (long long)(count * (count - 1) / 2), (long long)total);
    }
    fv_pool_free(pool);
}

static void failing_memory_leaves_nothing_behind(void **state)
{
    fv_pool *pool;
    (void)state;

    for (int64_t n = 1; n <= 5; n++) {
        test_alloc_fail(n);
        fv_status status = fv_pool_new(4, &pool);
        test_alloc_fail(0);
        if (status == FV_OK)
            fv_pool_free(pool);
        else
            assert_null(pool);
    }
    assert_true(fv_usable_threads() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once),
        cmocka_unit_test(short_loops_follow_one_another),
        cmocka_unit_test(failing_memory_leaves_nothing_behind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
