#include "ops/check.h"

#include <stdio.h>

static fv_status check_type(const char *op, const char *name, const fv_tensor *t, unsigned types)
{
    char names[160] = "";
    size_t length = 0;

    if (!fv_present(t)) return fv_fail(FV_E_ARGUMENT, "%s: %s: expected a tensor, got none", op, name);
    if (fv_type_in(t->dtype, types)) return FV_OK;
    for (int i = 0; i < FV_DTYPE_COUNT; i++) {
        if (!fv_type_in((fv_dtype)i, types) || length + 12 > sizeof names) continue;
        length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", length ? " or " : "",
                                   fv_dtype_name((fv_dtype)i));
    }
    return fv_fail(FV_E_DTYPE, "%s: %s: expected %s, got %s", op, name, names, fv_dtype_name(t->dtype));
}

/* "[2,*,16]": * for FV_ANY */
static void shape_words(char *text, size_t size, int rank, const int64_t *dims)
{
    size_t length = (size_t)snprintf(text, size, "[");

    for (int d = 0; d < rank; d++) {
        const char *comma = d ? "," : "";
        if (dims[d] == FV_ANY)
            length += (size_t)snprintf(text + length, size - length, "%s*", comma);
        else
            length += (size_t)snprintf(text + length, size - length, "%s%lld", comma, (long long)dims[d]);
    }
    snprintf(text + length, size - length, "]");
}

fv_status fv_check(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank, const int64_t *dims)
{
    char expected[160];
    bool fits;

    FV_TRY(check_type(op, name, t, types));
    fits = t->rank == rank;
    for (int d = 0; d < rank && fits; d++)
        fits = dims[d] == FV_ANY || dims[d] == t->dims[d];
    if (fits) return FV_OK;
    shape_words(expected, sizeof expected, rank, dims);
    return fv_fail(FV_E_SHAPE, "%s: %s: expected shape %s, got %s", op, name, expected, fv_shape_text(t));
}

fv_status fv_check_optional(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank,
                            const int64_t *dims)
{
    return fv_present(t) ? fv_check(op, name, t, types, rank, dims) : FV_OK;
}

fv_status fv_check_rank(const char *op, const char *name, const fv_tensor *t, unsigned types, int low, int high)
{
    FV_TRY(check_type(op, name, t, types));
    if (t->rank >= low && t->rank <= high) return FV_OK;
    if (low == high)
        return fv_fail(FV_E_SHAPE, "%s: %s: expected %d dims, got shape %s", op, name, low, fv_shape_text(t));
    return fv_fail(FV_E_SHAPE, "%s: %s: expected %d to %d dims, got shape %s", op, name, low, high, fv_shape_text(t));
}

fv_status fv_check_broadcast(const char *op, const char *name, const fv_tensor *t, unsigned types, int rank,
                             const int64_t *dims)
{
    char expected[160];
    bool fits;

    FV_TRY(check_type(op, name, t, types));
    fits = t->rank <= rank;
    for (int d = 0; d < t->rank && fits; d++)
        fits = t->dims[d] == 1 || t->dims[d] == dims[d + rank - t->rank];
    if (fits) return FV_OK;
    shape_words(expected, sizeof expected, rank, dims);
    return fv_fail(FV_E_SHAPE, "%s: %s: expected a shape that repeats to %s, got %s", op, name, expected,
                   fv_shape_text(t));
}

fv_status fv_check_apart(const fv_ctx *ctx, const char *op, const fv_tensor *input, const fv_tensor *output)
{
    if (!ctx->recording || input->data != output->data) return FV_OK;
    return fv_fail(FV_E_ARGUMENT, "%s: out: expected memory of its own while a tape records, got that of an input", op);
}
