/* What tests share: cmocka with its headers, contexts, random tensors, comparison with numbers in the failure. */
#ifndef FV_SUPPORT_H
#define FV_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "base/tensor.h"

/* Fails with the library's sentence. */
#define assert_ok(expression)                                                                                          \
    do {                                                                                                               \
        fv_status assert_status_ = (expression);                                                                       \
        if (assert_status_ != FV_OK) fail_msg("%s: %s: %s", #expression, fv_status_name(assert_status_), fv_error());  \
    } while (0)
/* Expects a failure whose sentence holds `words`. */
#define assert_fails(expression, expected, words)                                                                      \
    do {                                                                                                               \
        fv_status assert_status_ = (expression);                                                                       \
        if (assert_status_ != (expected))                                                                              \
            fail_msg("%s: expected %s, got %s (%s)", #expression, fv_status_name(expected),                            \
                     fv_status_name(assert_status_), assert_status_ ? fv_error() : "");                                \
        if (!strstr(fv_error(), (words)))                                                                              \
            fail_msg("%s: expected a sentence with '%s', got '%s'", #expression, (words), fv_error());                 \
    } while (0)

/* The seed of this run: FOVEA_TEST_SEED, or the clock; printed once. */
uint64_t test_seed(void);

/* A context on a device ("ref", "cpu"), `threads` threads. */
fv_ctx *test_ctx(const char *device, int threads);

/* The devices to test: "ref", "cpu", NULL. */
extern const char *const test_devices[];

/* A contiguous f32 tensor of normal numbers * scale in scratch memory of ctx; each call draws fresh numbers. */
fv_tensor test_random(fv_ctx *ctx, double scale, int rank, const int64_t *dims);

/* Fails unless |got - expected| <= tolerance * max(1, |expected|) everywhere; expected is contiguous in C order.
 * The message has where, expected, got, tolerance. NaN never passes; infinities must be equal. */
void test_close(const char *what, const fv_tensor *got, const double *expected, double tolerance);

/* Makes the n-th allocation from now (1 = next) and all later ones fail; 0: none fails.  Needs the --wrap options of
 * cmake/tests.cmake. test_alloc_count: allocations since the last call of test_alloc_fail. */
void test_alloc_fail(int64_t nth);
int64_t test_alloc_count(void);
/* Runs `call` on contexts of the device with every allocation in turn failing, until none does: it fails with a
 * sentence or is done; it neither crashes nor leaks. */
typedef fv_status test_call_fn(fv_ctx *ctx, void *user);
void test_without_memory(const char *what, const char *device, test_call_fn *call, void *user);

#endif
