#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

const char *const test_devices[] = {"ref", "cpu", NULL};

uint64_t test_seed(void)
{
    static uint64_t seed;

    if (seed == 0) {
        const char *given = getenv("FOVEA_TEST_SEED");
        seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL) * 2654435761u % 1000000007u + 1;
        printf("seed: FOVEA_TEST_SEED=%llu\n", (unsigned long long)seed);
    }
    return seed;
}

fv_ctx *test_ctx(const char *device, int threads)
{
    fv_ctx *ctx = NULL;

    assert_ok(fv_ctx_new(&(fv_ctx_options){.device = device, .threads = threads}, &ctx));
    return ctx;
}

fv_tensor test_random(fv_ctx *ctx, double scale, int rank, const int64_t *dims)
{
    static uint64_t stream;
    fv_random random = fv_random_new(test_seed(), ++stream);
    fv_tensor t;

    assert_ok(fv_tensor_new(ctx, &t, FV_F32, rank, dims));
    for (int64_t i = 0; i < fv_tensor_count(&t); i++)
        ((float *)t.data)[i] = (float)(scale * fv_random_normal(&random));
    return t;
}

void test_close(const char *what, const fv_tensor *got, const double *expected, double tolerance)
{
    int64_t count = fv_tensor_count(got), index[FV_MAX_RANK] = {0};

    for (int64_t n = 0; n < count; n++) {
        int64_t offset = 0;
        for (int d = 0; d < got->rank; d++)
            offset += index[d] * got->strides[d];
        double value = fv_load(got->dtype, got->data, offset), bound = tolerance * fmax(1, fabs(expected[n]));
        bool same = isinf(expected[n]) ? value == expected[n] : fabs(value - expected[n]) <= bound;
        if (!same)
            fail_msg("%s of shape %s, element %lld: expected %.9g, got %.9g (tolerance %.3g)", what, fv_shape_text(got),
                     (long long)n, expected[n], value, bound);
        for (int d = got->rank - 1; d >= 0 && ++index[d] == got->dims[d]; d--)
            index[d] = 0;
    }
}

/* ---- failing allocations --------------------------------------------------------------------------------------- */

static int64_t allocations, fail_from;

void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_realloc(void *pointer, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_realloc(void *pointer, size_t size);

static bool fails(void)
{
    int64_t n = __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);

    return fail_from > 0 && n >= fail_from;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

void *__wrap_realloc(void *pointer, size_t size)
{
    return fails() ? NULL : __real_realloc(pointer, size);
}

void test_alloc_fail(int64_t nth)
{
    allocations = 0;
    fail_from = nth;
}

int64_t test_alloc_count(void)
{
    return allocations;
}

void test_without_memory(const char *what, const char *device, test_call_fn *call, void *user)
{
    bool failed = true;

    for (int64_t nth = 1; failed; nth++) {
        fv_ctx *ctx = test_ctx(device, 1);
        fv_status status;
        test_alloc_fail(nth);
        status = call(ctx, user);
        failed = test_alloc_count() >= nth;
        test_alloc_fail(0);
        if (status != FV_OK && (status != FV_E_MEMORY || !failed)) fail_msg("%s: %s", what, fv_error());
        if (status == FV_OK && failed && nth > 1000) fail_msg("%s: allocates without end", what);
        fv_ctx_free(ctx);
    }
}
