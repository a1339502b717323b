/* Sizes that cannot overflow unseen, and small integer helpers. */
#ifndef FV_SIZE_H
#define FV_SIZE_H

#include "base/status.h"

static inline int64_t fv_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t fv_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t fv_clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* a >= 0, b > 0 */
static inline int64_t fv_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

/* b > 0 */
static inline int64_t fv_floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

static inline int64_t fv_round_up(int64_t a, int64_t b)
{
    return fv_ceil_div(a, b) * b;
}

/* false on overflow or a negative operand */
static inline bool fv_mul_size(size_t a, size_t b, size_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

static inline bool fv_mul_i64(int64_t a, int64_t b, int64_t *product)
{
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, product);
}

static inline bool fv_add_i64(int64_t a, int64_t b, int64_t *sum)
{
    return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, sum);
}

static inline bool fv_add_size(size_t a, size_t b, size_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

#endif
