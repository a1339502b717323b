/* Tensors for tests of primitives: odd strides, casts, elements by index. */
#ifndef FV_TEST_TENSORS_H
#define FV_TEST_TENSORS_H

#include "support/support.h"

/* As test_random, but a view with gaps between rows and the dims in reverse order in memory. */
fv_tensor test_strided(fv_ctx *ctx, double scale, int rank, const int64_t *dims);

/* A contiguous copy in another plain type, rounded; its values are exact in what follows. */
fv_tensor test_cast(fv_ctx *ctx, const fv_tensor *t, fv_dtype dtype);

/* The n-th element in C order. */
double test_element(const fv_tensor *t, int64_t n);
/* The element at `index` of a tensor of `rank` dims that t repeats to (dims aligned at the last). */
double test_spread_at(const fv_tensor *t, int rank, const int64_t *index);
/* n as an index into dims, C order. */
void test_index(int rank, const int64_t *dims, int64_t n, int64_t *index);

/* Doubles from the heap of the test; fails the test when there are none. */
double *test_doubles(int64_t count);

/* Runs a check on every device, with 1 and 3 threads. */
void test_each_device(void (*check)(fv_ctx *ctx));

#endif
