/* Contexts held to an instruction set, and random weights of every stored type. */
#ifndef FV_TEST_STORED_H
#define FV_TEST_STORED_H

#include "support/support.h"

/* A context that is held to an instruction set, or NULL where the machine lacks it. */
fv_ctx *test_isa_ctx(const char *isa, int threads, fv_precision precision);
extern const char *const test_isas[]; /* NULL-ended */

/* Runs `check` for each instruction set with 1, 2 and 3 threads, in f32. */
void test_each_isa(void (*check)(fv_ctx *ctx));

extern const fv_dtype test_block_types[];
enum { TEST_BLOCK_TYPES = 11 };

/* rows x k random elements of a type, in scratch memory. */
fv_tensor test_stored(fv_ctx *ctx, fv_dtype dtype, int64_t rows, int64_t k);

#endif
