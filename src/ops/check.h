/* What the front ends of primitives check, in sentences of one form: "gemm: b: expected ..., got ...". */
#ifndef FV_CHECK_H
#define FV_CHECK_H

#include "base/tensor.h"

/* Sets of data types. */
#define FV_TYPE(dtype) (1u << (dtype))
#define FV_TYPES_HALF (FV_TYPE(FV_F32) | FV_TYPE(FV_F16) | FV_TYPE(FV_BF16))
#define FV_TYPES_FLOAT (FV_TYPES_HALF | FV_TYPE(FV_F64))
#define FV_TYPES_PLAIN (FV_TYPE(FV_Q4_0) - 1u)
/* What keys and values are stored as. */
#define FV_TYPES_ROWS (FV_TYPES_HALF | FV_TYPE(FV_Q8_0) | FV_TYPE(FV_Q4_0))
#define FV_TYPES_BLOCKS ((FV_TYPE(FV_DTYPE_COUNT) - 1u) & ~FV_TYPES_PLAIN)

static inline bool fv_type_in(fv_dtype dtype, unsigned types)
{
    return (FV_TYPE(dtype) & types) != 0;
}

#define FV_ANY (-1) /* in `dims`: whatever it is */

/* Present, of one of `types` and of exactly this shape (FV_ANY passes).  With FV_DIMS:
 * fv_check("attend", "q", &q, FV_TYPE(FV_F32), FV_DIMS(B, H, N, D)).  FV_E_ARGUMENT if absent, FV_E_DTYPE, FV_E_SHAPE.
 */
fv_status fv_check(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank, const int64_t *dims);
/* The same, or absent. */
fv_status fv_check_optional(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank,
                            const int64_t *dims);
/* Present, of one of `types`, of a rank in low..high. */
fv_status fv_check_rank(const char *op, const char *name, const fv_tensor *t, unsigned types, int low, int high);
/* Present, of one of `types`, and fv_broadcast may spread it to `dims`: dims are aligned at the last, and each is
 * missing, 1, or equal. */
fv_status fv_check_broadcast(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank,
                             const int64_t *dims);
/* While a tape records, an output must not be its input: FV_E_ARGUMENT. */
fv_status fv_check_apart(const fv_ctx *ctx, const char *op, const fv_tensor *input, const fv_tensor *output);

/* ---- walking over leading dims --------------------------------------------------------------------------------- */

/* Product of the first `lead` dims. */
static inline int64_t fv_lead_count(const fv_tensor *t, int lead)
{
    int64_t count = 1;

    for (int d = 0; d < lead; d++)
        count *= t->dims[d];
    return count;
}

/* Offset in elements of the n-th (in row-major order) sub-tensor over the first `lead` dims. */
static inline int64_t fv_lead_offset(const fv_tensor *t, int lead, int64_t n)
{
    int64_t offset = 0;

    for (int d = lead - 1; d >= 0 && n > 0; d--) {
        offset += n % t->dims[d] * t->strides[d];
        n /= t->dims[d];
    }
    return offset;
}

#endif
