#include "app/app.h"

#include <string.h>

#include "base/memory.h"
#include "base/npy.h"

fv_status app_tensor_new(app_tensor *tensor, fv_dtype dtype, int rank, const int64_t *dims)
{
    fv_tensor shape;
    size_t bytes;

    *tensor = (app_tensor){0};
    FV_TRY(fv_tensor_wrap(&shape, NULL, dtype, rank, dims));
    FV_TRY(fv_dtype_bytes(dtype, fv_tensor_count(&shape), &bytes));
    FV_TRY(fv_zalloc(&tensor->owned, (int64_t)bytes, 1));
    return fv_tensor_wrap(&tensor->t, tensor->owned, dtype, rank, dims);
}

void app_tensor_free(app_tensor *tensor)
{
    fv_free(tensor->owned);
    *tensor = (app_tensor){0};
}

/* Takes over what is f32; f32 of other floats. */
static fv_status read_floats(app_tensor *stored, app_tensor *tensor)
{
    const fv_tensor *t = &stored->t;

    if (t->dtype == FV_F32) {
        *tensor = *stored;
        *stored = (app_tensor){0};
        return FV_OK;
    }
    if (t->dtype != FV_F16 && t->dtype != FV_BF16 && t->dtype != FV_F64)
        return fv_fail(FV_E_DTYPE, "holds %s, expected f32, f16, bf16 or f64", fv_dtype_name(t->dtype));
    FV_TRY(app_tensor_new(tensor, FV_F32, t->rank, t->dims));
    fv_load_row(t->dtype, t->data, 0, 1, tensor->t.data, fv_tensor_count(t));
    return FV_OK;
}

/* Element i of integers; FV_E_DTYPE. */
static fv_status integer_at(const fv_tensor *t, int64_t i, int64_t *value)
{
    switch (t->dtype) {
    case FV_I8: *value = ((const int8_t *)t->data)[i]; return FV_OK;
    case FV_U8: *value = ((const uint8_t *)t->data)[i]; return FV_OK;
    case FV_I16: *value = ((const int16_t *)t->data)[i]; return FV_OK;
    case FV_U16: *value = ((const uint16_t *)t->data)[i]; return FV_OK;
    case FV_I32: *value = ((const int32_t *)t->data)[i]; return FV_OK;
    case FV_I64: *value = ((const int64_t *)t->data)[i]; return FV_OK;
    default: *value = 0; return fv_fail(FV_E_DTYPE, "holds %s, expected integers", fv_dtype_name(t->dtype));
    }
}

static fv_status read_integers(const fv_tensor *stored, fv_dtype dtype, app_tensor *tensor)
{
    int64_t value, low = dtype == FV_U8 ? 0 : INT32_MIN, high = dtype == FV_U8 ? UINT8_MAX : INT32_MAX;

    FV_TRY(app_tensor_new(tensor, dtype, stored->rank, stored->dims));
    for (int64_t i = 0; i < fv_tensor_count(stored); i++) {
        FV_TRY(integer_at(stored, i, &value));
        if (value < low || value > high)
            return fv_fail(FV_E_FORMAT, "element %lld: expected %lld to %lld, got %lld", (long long)i, (long long)low,
                           (long long)high, (long long)value);
        if (dtype == FV_U8)
            ((uint8_t *)tensor->t.data)[i] = (uint8_t)value;
        else
            ((int32_t *)tensor->t.data)[i] = (int32_t)value;
    }
    return FV_OK;
}

fv_status app_tensor_as(app_tensor *stored, fv_dtype dtype, app_tensor *tensor)
{
    fv_status status;

    *tensor = (app_tensor){0};
    status = dtype == FV_F32 ? read_floats(stored, tensor) : read_integers(&stored->t, dtype, tensor);
    app_tensor_free(stored);
    if (status != FV_OK) app_tensor_free(tensor);
    return status;
}

fv_status app_tensor_read_as(const char *path, fv_dtype dtype, app_tensor *tensor)
{
    app_tensor stored = {0};

    *tensor = (app_tensor){0};
    FV_TRY(fv_npy_read(path, &stored.t, &stored.owned));
    fv_status status = app_tensor_as(&stored, dtype, tensor);
    return status == FV_OK ? FV_OK : fv_fail_in(status, "%s", path);
}

fv_status app_tensor_read(const char *path, app_tensor *tensor)
{
    return app_tensor_read_as(path, FV_F32, tensor);
}

void app_round_bf16(app_tensor *tensor)
{
    float *values = tensor->t.data;

    for (int64_t i = 0; values && i < fv_tensor_count(&tensor->t); i++)
        values[i] = fv_bf16_to_f32(fv_f32_to_bf16(values[i]));
}
