/* Attention of a few rows (decode): keys and values are read once, as they are stored, and each is used for all rows
 * while it is in registers; in f32.  Bound by the bytes of keys and values up to about four rows (f32 beyond
 * the caches 69 to 82 % of the reading speed), by multiplications beyond. */
#include "ops/cpu/few_read.h"

#define STORED_TYPE(type, line, bytes, block)                                                                          \
    INLINE vf one_##type(const char *row, const char *next, int64_t index, int64_t count)                              \
    {                                                                                                                  \
        (void)next;                                                                                                    \
        return read_##type(row, index, count);                                                                         \
    }                                                                                                                  \
    FEW_DOTS(type, dots_rows, line, bytes, read_##type, one_##type, block, multiply, 1)                                \
    FEW_ADD(type, line, bytes, read_##type, one_##type, block, multiply, 1)

STORED_TYPE(f32, 16, 64, NULL)
STORED_TYPE(f16, 32, 64, NULL)
STORED_TYPE(bf16, 32, 64, NULL)
STORED_TYPE(q8_0, 32, 34, NULL)
STORED_TYPE(q4_0, 32, 18, block_q4_0)

#define FEW(type)                                                                                                      \
    {                                                                                                                  \
        .dots = dots_##type, .add = add_##type                                                                         \
    }
static const struct fv_few_kernels few_table[FV_DTYPE_COUNT] = {
    [FV_F32] = FEW(f32), [FV_F16] = FEW(f16), [FV_BF16] = FEW(bf16), [FV_Q8_0] = FEW(q8_0), [FV_Q4_0] = FEW(q4_0)};

void LEAF(fill_few)(struct fv_kernels *kernels)
{
    kernels->few = few_table;
}
