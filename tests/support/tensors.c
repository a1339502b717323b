#include "support/tensors.h"

#include <stdlib.h>

fv_tensor test_strided(fv_ctx *ctx, double scale, int rank, const int64_t *dims)
{
    int64_t reversed[FV_MAX_RANK] = {0};
    int order[FV_MAX_RANK];

    for (int d = 0; d < rank; d++) {
        reversed[d] = dims[rank - 1 - d] + 1;
        order[d] = rank - 1 - d;
    }
    fv_tensor whole = test_random(ctx, scale, rank, reversed), view = fv_permuted(&whole, order);
    for (int d = 0; d < rank; d++)
        view = fv_slice(&view, d, 1, dims[d]);
    return view;
}

fv_tensor test_cast(fv_ctx *ctx, const fv_tensor *t, fv_dtype dtype)
{
    fv_tensor cast;

    assert_ok(fv_tensor_new(ctx, &cast, dtype, t->rank, t->dims));
    for (int64_t n = 0; n < fv_tensor_count(t); n++)
        fv_store(dtype, cast.data, n, test_element(t, n));
    return cast;
}

void test_index(int rank, const int64_t *dims, int64_t n, int64_t *index)
{
    for (int d = rank - 1; d >= 0; d--) {
        index[d] = n % dims[d];
        n /= dims[d];
    }
}

double test_spread_at(const fv_tensor *t, int rank, const int64_t *index)
{
    int64_t offset = 0;

    for (int d = 0; d < t->rank; d++)
        if (t->dims[d] > 1) offset += index[d + rank - t->rank] * t->strides[d];
    return fv_load(t->dtype, t->data, offset);
}

double test_element(const fv_tensor *t, int64_t n)
{
    int64_t index[FV_MAX_RANK];

    test_index(t->rank, t->dims, n, index);
    return test_spread_at(t, t->rank, index);
}

double *test_doubles(int64_t count)
{
    double *values = calloc((size_t)count + 1, sizeof *values);

    assert_non_null(values);
    return values;
}

void test_each_device(void (*check)(fv_ctx *ctx))
{
    for (int d = 0; test_devices[d]; d++)
        for (int threads = 1; threads <= 3; threads += 2) {
            fv_ctx *ctx = test_ctx(test_devices[d], threads);
            check(ctx);
            fv_ctx_free(ctx);
        }
}
