#include "base/tensor.h"

#include <assert.h>

static const struct {
    const char *name;
    int block;
    int bytes;
} dtypes[FV_DTYPE_COUNT] = {
    [FV_F32] = {"f32", 1, 4},         [FV_F16] = {"f16", 1, 2},       [FV_BF16] = {"bf16", 1, 2},
    [FV_F64] = {"f64", 1, 8},         [FV_I8] = {"i8", 1, 1},         [FV_U8] = {"u8", 1, 1},
    [FV_I16] = {"i16", 1, 2},         [FV_U16] = {"u16", 1, 2},       [FV_I32] = {"i32", 1, 4},
    [FV_I64] = {"i64", 1, 8},         [FV_Q4_0] = {"q4_0", 32, 18},   [FV_Q4_1] = {"q4_1", 32, 20},
    [FV_Q5_0] = {"q5_0", 32, 22},     [FV_Q5_1] = {"q5_1", 32, 24},   [FV_Q8_0] = {"q8_0", 32, 34},
    [FV_Q2_K] = {"q2_K", 256, 84},    [FV_Q3_K] = {"q3_K", 256, 110}, [FV_Q4_K] = {"q4_K", 256, 144},
    [FV_Q5_K] = {"q5_K", 256, 176},   [FV_Q6_K] = {"q6_K", 256, 210}, [FV_Q8_K] = {"q8_K", 256, 292},
    [FV_IQ4_NL] = {"iq4_nl", 32, 18},
};

const char *fv_dtype_name(fv_dtype dtype)
{
    return dtype >= 0 && dtype < FV_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

int64_t fv_dtype_block(fv_dtype dtype)
{
    return dtypes[dtype].block;
}

size_t fv_dtype_block_bytes(fv_dtype dtype)
{
    return (size_t)dtypes[dtype].bytes;
}

size_t fv_dtype_size(fv_dtype dtype)
{
    return (size_t)dtypes[dtype].bytes;
}

fv_status fv_dtype_bytes(fv_dtype dtype, int64_t count, size_t *bytes)
{
    int64_t block = fv_dtype_block(dtype);

    if (count < 0 || count % block != 0)
        return fv_fail(FV_E_SHAPE, "%lld elements are no whole number of %s blocks of %lld", (long long)count,
                       fv_dtype_name(dtype), (long long)block);
    if (!fv_mul_size((size_t)(count / block), fv_dtype_block_bytes(dtype), bytes))
        return fv_fail(FV_E_MEMORY, "%lld elements of %s overflow a size", (long long)count, fv_dtype_name(dtype));
    return FV_OK;
}

int64_t fv_tensor_count(const fv_tensor *t)
{
    int64_t count = 1;

    for (int d = 0; d < t->rank; d++)
        count *= t->dims[d];
    return count;
}

bool fv_tensor_contiguous(const fv_tensor *t)
{
    int64_t stride = 1;

    for (int d = t->rank - 1; d >= 0; d--) {
        if (t->dims[d] != 1 && t->strides[d] != stride) return false;
        stride *= t->dims[d];
    }
    return true;
}

bool fv_tensor_same_shape(const fv_tensor *a, const fv_tensor *b)
{
    return a->rank == b->rank && memcmp(a->dims, b->dims, (size_t)a->rank * sizeof a->dims[0]) == 0;
}

const char *fv_shape_text(const fv_tensor *t)
{
    static _Thread_local char ring[4][160];
    static _Thread_local unsigned next;
    char *text = ring[next++ % 4];
    int length = 0;

    if (!t->data) return "absent";
    length += snprintf(text, sizeof ring[0], "[");
    for (int d = 0; d < t->rank && length < 140; d++)
        length +=
            snprintf(text + length, sizeof ring[0] - (size_t)length, "%s%lld", d ? "," : "", (long long)t->dims[d]);
    snprintf(text + length, sizeof ring[0] - (size_t)length, "]");
    return text;
}

fv_status fv_tensor_wrap(fv_tensor *t, void *data, fv_dtype dtype, int rank, const int64_t *dims)
{
    int64_t stride = 1;

    if (rank < 0 || rank > FV_MAX_RANK)
        return fv_fail(FV_E_SHAPE, "tensor rank: expected 0 to %d, got %d", FV_MAX_RANK, rank);
    if (dtype < 0 || dtype >= FV_DTYPE_COUNT) return fv_fail(FV_E_DTYPE, "unknown data type %d", (int)dtype);
    *t = (fv_tensor){.data = data, .dtype = dtype, .rank = rank};
    for (int d = rank - 1; d >= 0; d--) {
        t->dims[d] = dims[d];
        t->strides[d] = stride;
        if (!fv_mul_i64(stride, dims[d], &stride))
            return fv_fail(FV_E_SHAPE, "tensor dimension %d: %lld is negative or makes the size overflow", d,
                           (long long)dims[d]);
    }
    return FV_OK;
}

void fv_tensor_write(const fv_tensor *t, FILE *stream)
{
    int64_t count = fv_tensor_count(t), index[FV_MAX_RANK] = {0};
    size_t size = fv_dtype_size(t->dtype);

    if (fv_tensor_contiguous(t)) {
        if (count > 0) fwrite(t->data, size, (size_t)count, stream);
        return;
    }
    for (int64_t n = 0; n < count; n++) {
        int64_t offset = 0;
        for (int d = 0; d < t->rank; d++)
            offset += index[d] * t->strides[d];
        fwrite((const char *)t->data + offset * (int64_t)size, size, 1, stream);
        for (int d = t->rank - 1; d >= 0 && ++index[d] == t->dims[d]; d--)
            index[d] = 0;
    }
}

fv_status fv_tensor_new(fv_ctx *ctx, fv_tensor *t, fv_dtype dtype, int rank, const int64_t *dims)
{
    size_t bytes = 0;

    FV_TRY(fv_tensor_wrap(t, NULL, dtype, rank, dims));
    FV_TRY(fv_dtype_bytes(dtype, fv_tensor_count(t), &bytes));
    if (bytes > INT64_MAX) return fv_fail(FV_E_MEMORY, "a tensor of %zu bytes is more than memory can hold", bytes);
    return fv_arena_alloc(ctx->arena, &t->data, (int64_t)bytes, 1);
}

fv_status fv_tensor_zeros(fv_ctx *ctx, fv_tensor *t, fv_dtype dtype, int rank, const int64_t *dims)
{
    size_t bytes = 0;

    FV_TRY(fv_tensor_new(ctx, t, dtype, rank, dims));
    FV_TRY(fv_dtype_bytes(dtype, fv_tensor_count(t), &bytes));
    memset(t->data, 0, bytes);
    return FV_OK;
}

/* ---- views ----------------------------------------------------------------------------------------------------- */

static void *advance(const fv_tensor *t, int64_t offset)
{
    int64_t block = fv_dtype_block(t->dtype);

    if (!t->data) return NULL;
    assert(offset % block == 0);
    return (char *)t->data + offset / block * (int64_t)fv_dtype_block_bytes(t->dtype);
}

fv_tensor fv_view(const fv_tensor *t, int rank, const int64_t *dims, const int64_t *strides, int64_t offset)
{
    fv_tensor view = {.data = advance(t, offset), .dtype = t->dtype, .device = t->device, .rank = rank};

    assert(rank <= FV_MAX_RANK);
    for (int d = 0; d < rank; d++) {
        view.dims[d] = dims[d];
        view.strides[d] = strides[d];
    }
    return view;
}

fv_tensor fv_slice(const fv_tensor *t, int dim, int64_t from, int64_t count)
{
    fv_tensor view = *t;

    assert(dim < t->rank && from >= 0 && count >= 0 && from + count <= t->dims[dim]);
    view.data = advance(t, from * t->strides[dim]);
    view.dims[dim] = count;
    return view;
}

fv_tensor fv_transposed(const fv_tensor *t)
{
    fv_tensor view = *t;
    int r = t->rank;

    assert(r >= 2);
    view.dims[r - 1] = t->dims[r - 2];
    view.dims[r - 2] = t->dims[r - 1];
    view.strides[r - 1] = t->strides[r - 2];
    view.strides[r - 2] = t->strides[r - 1];
    return view;
}

fv_tensor fv_permuted(const fv_tensor *t, const int *order)
{
    fv_tensor view = *t;

    for (int d = 0; d < t->rank; d++) {
        view.dims[d] = t->dims[order[d]];
        view.strides[d] = t->strides[order[d]];
    }
    return view;
}

fv_tensor fv_reshaped(const fv_tensor *t, int rank, const int64_t *dims)
{
    fv_tensor view = *t;
    int64_t stride = 1;

    assert(fv_tensor_contiguous(t) && rank <= FV_MAX_RANK);
    view.rank = rank;
    for (int d = rank - 1; d >= 0; d--) {
        view.dims[d] = dims[d];
        view.strides[d] = stride;
        stride *= dims[d];
    }
    assert(stride == fv_tensor_count(t));
    return view;
}

fv_tensor fv_broadcast(const fv_tensor *t, int rank, const int64_t *dims)
{
    fv_tensor view = *t;

    assert(rank >= t->rank && rank <= FV_MAX_RANK);
    view.rank = rank;
    for (int d = rank - 1; d >= 0; d--) {
        int from = d - (rank - t->rank);
        view.dims[d] = dims[d];
        view.strides[d] = from < 0 || t->dims[from] == 1 ? 0 : t->strides[from];
        assert(from < 0 || t->dims[from] == 1 || t->dims[from] == dims[d]);
    }
    return view;
}

fv_tensor fv_expanded(const fv_tensor *t, int dim)
{
    fv_tensor view = *t;

    assert(t->rank < FV_MAX_RANK && dim <= t->rank);
    view.rank++;
    for (int d = dim; d < t->rank; d++) {
        view.dims[d + 1] = t->dims[d];
        view.strides[d + 1] = t->strides[d];
    }
    view.dims[dim] = view.strides[dim] = 1;
    return view;
}

fv_tensor fv_plane(const fv_tensor *t, int dim, int64_t at)
{
    fv_tensor view = fv_slice(t, dim, at, 1);

    view.rank--;
    for (int d = dim; d < view.rank; d++) {
        view.dims[d] = t->dims[d + 1];
        view.strides[d] = t->strides[d + 1];
    }
    return view;
}

fv_tensor fv_parted(const fv_tensor *t, int dim, int64_t part)
{
    fv_tensor view = fv_expanded(t, dim);

    view.dims[dim] = t->dims[dim] / part;
    view.strides[dim] = t->strides[dim] * part;
    view.dims[dim + 1] = part;
    return view;
}

fv_tensor fv_every(const fv_tensor *t, int dim, int64_t from, int64_t step, int64_t count)
{
    fv_tensor view = fv_slice(t, dim, from, 0);

    assert(count < 1 || from + (count - 1) * step < t->dims[dim]);
    view.dims[dim] = count;
    view.strides[dim] *= step;
    return view;
}

/* ---- elements -------------------------------------------------------------------------------------------------- */

float fv_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff, bits;
    float value;

    if (exponent == 31) {
        bits = sign | 0x7f800000 | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else { /* subnormal: fraction * 2^-24 */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t fv_f32_to_f16(float value)
{
    uint32_t bits, sign, magnitude;

    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000;
    magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 65536 or more */
    if (magnitude < 0x38800000) {                                  /* subnormal half: let the adder round */
        float shifted;
        memcpy(&shifted, &magnitude, sizeof shifted);
        shifted += 0.5f;
        memcpy(&magnitude, &shifted, sizeof magnitude);
        return (uint16_t)(sign | (magnitude - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((magnitude - 0x38000000) >> 13));
}

double fv_load(fv_dtype dtype, const void *data, int64_t index)
{
    switch (dtype) {
    case FV_F32: return ((const float *)data)[index];
    case FV_F16: return fv_f16_to_f32(((const uint16_t *)data)[index]);
    case FV_BF16: return fv_bf16_to_f32(((const uint16_t *)data)[index]);
    case FV_F64: return ((const double *)data)[index];
    case FV_I8: return ((const int8_t *)data)[index];
    case FV_U8: return ((const uint8_t *)data)[index];
    case FV_I16: return ((const int16_t *)data)[index];
    case FV_U16: return ((const uint16_t *)data)[index];
    case FV_I32: return ((const int32_t *)data)[index];
    case FV_I64: return (double)((const int64_t *)data)[index];
    default: assert(!"plain dtype"); return 0;
    }
}

void fv_store(fv_dtype dtype, void *data, int64_t index, double value)
{
    switch (dtype) {
    case FV_F32: ((float *)data)[index] = (float)value; break;
    case FV_F16: ((uint16_t *)data)[index] = fv_f32_to_f16((float)value); break;
    case FV_BF16: ((uint16_t *)data)[index] = fv_f32_to_bf16((float)value); break;
    case FV_F64: ((double *)data)[index] = value; break;
    case FV_I8: ((int8_t *)data)[index] = (int8_t)value; break;
    case FV_U8: ((uint8_t *)data)[index] = (uint8_t)value; break;
    case FV_I16: ((int16_t *)data)[index] = (int16_t)value; break;
    case FV_U16: ((uint16_t *)data)[index] = (uint16_t)value; break;
    case FV_I32: ((int32_t *)data)[index] = (int32_t)value; break;
    case FV_I64: ((int64_t *)data)[index] = (int64_t)value; break;
    default: assert(!"plain dtype");
    }
}

void fv_load_row(fv_dtype dtype, const void *data, int64_t offset, int64_t stride, float *out, int64_t count)
{
    if (dtype == FV_F32 && stride == 1) {
        memcpy(out, (const float *)data + offset, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)fv_load(dtype, data, offset + i * stride);
}

void fv_store_row(fv_dtype dtype, void *data, int64_t offset, int64_t stride, const float *in, int64_t count)
{
    if (dtype == FV_F32 && stride == 1) {
        memcpy((float *)data + offset, in, (size_t)count * sizeof *in);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        fv_store(dtype, data, offset + i * stride, in[i]);
}
