/* The scheduler where memory or the disk ends: requests fail one by one, and the others know nothing of it. */
#include <errno.h>
#include <unistd.h>

#include "support/scheduled.h"

/* The n-th write from now on, and all later ones, fail (0: none); and those that end behind so many bytes of a file. */
static _Atomic long writes, refused_from, most_bytes;

ssize_t __real_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset)
{
    bool full = most_bytes > 0 && offset + (off_t)count > most_bytes;

    if (!full && (++writes < refused_from || refused_from == 0)) return __real_pwrite(file, bytes, count, offset);
    errno = ENOSPC;
    return -1;
}

/* Memory that runs out under way: whoever is hit is told, the rest go on, and later requests are as ever. */
static void failing_memory_ends_requests_one_by_one(void **state)
{
    static int32_t ids[SCHEDULED_CONTEXT];
    static struct outcome good, o[3];
    fv_request_options options;
    struct scheduled f;
    int failed = 0, finished = 0;
    (void)state;

    scheduled_begin(&f, &scheduled_models[0], 2);
    scheduled_start(&f, &(fv_scheduler_options){.parallel = 3});
    options = scheduled_request(ids, 60, &good);
    options.no_reuse = true;
    assert_ok(scheduled_submit(&f, &options, &good));
    scheduled_wait(&good);
    for (int64_t nth = 1; nth < 120; nth += 7) {
        for (int r = 0; r < 3; r++) {
            options = scheduled_request(ids, 60, &o[r]);
            options.no_reuse = true;
            options.presence_penalty = r == 2 ? 0.5F : 0;
            if (r == 1) options.choices = 3;
            assert_ok(scheduled_submit(&f, &options, &o[r]));
        }
        test_alloc_fail(nth);
        for (int r = 0; r < 3; r++)
            scheduled_wait(&o[r]);
        test_alloc_fail(0);
        for (int r = 0; r < 3; r++) {
            failed += o[r].end == FV_REQUEST_FAILED;
            finished += o[r].end == FV_REQUEST_STOP;
            assert_true(o[r].end == FV_REQUEST_FAILED || o[r].end == FV_REQUEST_STOP);
            if (o[r].end == FV_REQUEST_FAILED) assert_true(o[r].error[0] != 0);
            if (o[r].end == FV_REQUEST_STOP && r == 0) scheduled_same("beside failures", &good, &o[r], 1);
        }
    }
    assert_true(failed > 0 && finished > 0);
    options = scheduled_request(ids, 60, &o[0]);
    assert_ok(scheduled_submit(&f, &options, &o[0]));
    scheduled_wait(&o[0]);
    scheduled_same("afterwards", &good, &o[0], 1);
    scheduled_stop(&f, true);
    scheduled_end(&f);
}

/* In a prompt or in the answer, in the company of requests that know nothing of it. */
static void a_full_disk_ends_the_requests_it_concerns(void **state)
{
    static const char *const caches[] = {"alisa:r=0.3,resident=8", "alisa:r=0.3", NULL,
                                         "alisa:r=0.3,bits=8,resident=1"};
    /* 15 of 100 rows stay; 2 layers, 3 heads, keys and values of 32 f16 */
    const long prompt_bytes = 85 * 2 * 3 * 2 * 32 * 2;
    static int32_t ids[SCHEDULED_CONTEXT];
    static struct outcome alone[4], o[4];
    fv_random random = fv_random_new(test_seed(), 9850);
    fv_request_options options;
    struct scheduled f;
    (void)state;

    scheduled_ids(&random, ids, SCHEDULED_CONTEXT);
    scheduled_begin(&f, &scheduled_models[0], 2);
    for (long nth = 0; nth < 30; nth += 1 + nth / 4) { /* 0: the disk is not full, and each is alone */
        scheduled_start(&f, &(fv_scheduler_options){0});
        writes = 0;
        refused_from = nth < 24 ? nth : 0;
        most_bytes = nth < 24 ? 0 : prompt_bytes + 400; /* there is room again for who begins again */
        for (int r = 0; r < 4; r++) {
            struct outcome *out = nth ? &o[r] : &alone[r];
            options = scheduled_request(ids + r, 100, out);
            options.cache = caches[r];
            options.no_reuse = true;
            assert_ok(scheduled_submit(&f, &options, out));
            if (nth == 0) scheduled_wait(out);
        }
        for (int r = 0; r < 4 && nth > 0; r++) {
            scheduled_wait(&o[r]);
            if (o[r].end == FV_REQUEST_FAILED) {
                assert_true(caches[r] && strstr(caches[r], "resident"));
                assert_non_null(strstr(o[r].error, "No space left on device"));
            } else {
                assert_int_equal(o[r].end, FV_REQUEST_STOP);
                scheduled_same(caches[r] ? caches[r] : "full", &alone[r], &o[r], 1);
            }
        }
        if (nth > 0 && (nth < 12 || nth >= 24))
            assert_int_equal(o[0].end, FV_REQUEST_FAILED); /* it writes nearly every step */
        scheduled_stop(&f, true);
    }
    refused_from = most_bytes = 0;
    scheduled_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failing_memory_ends_requests_one_by_one),
        cmocka_unit_test(a_full_disk_ends_the_requests_it_concerns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
