/* Tensors: views, sizes, half precision. */
#ifndef FV_TENSOR_H
#define FV_TENSOR_H

#include <stdio.h>
#include <string.h>

#include "base/context.h"

#define FV_DIMS(...)                                                                                                   \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[])                                       \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static inline bool fv_present(const fv_tensor *t)
{
    return t->data != NULL;
}

/* Elements of a tensor; dims were checked when it was made. */
int64_t fv_tensor_count(const fv_tensor *t);
bool fv_tensor_contiguous(const fv_tensor *t);
bool fv_tensor_same_shape(const fv_tensor *a, const fv_tensor *b);

/* Bytes of `count` elements, counted in whole blocks; FV_E_SHAPE if count is no multiple of the block. */
fv_status fv_dtype_bytes(fv_dtype dtype, int64_t count, size_t *bytes);

/* "[1,4,8,16]" in a ring of thread-local buffers, for error sentences. */
const char *fv_shape_text(const fv_tensor *t);

/* A contiguous tensor in the context's scratch memory (see fv_scratch_mark); not zeroed. */
fv_status fv_tensor_new(fv_ctx *ctx, fv_tensor *t, fv_dtype dtype, int rank, const int64_t *dims);
fv_status fv_tensor_zeros(fv_ctx *ctx, fv_tensor *t, fv_dtype dtype, int rank, const int64_t *dims);

/* The elements of a plain-typed tensor of any strides, in C order; the stream remembers failures. */
void fv_tensor_write(const fv_tensor *t, FILE *stream);

/* Views.  They trust their callers: asserts only. */
fv_tensor fv_view(const fv_tensor *t, int rank, const int64_t *dims, const int64_t *strides, int64_t offset);
fv_tensor fv_slice(const fv_tensor *t, int dim, int64_t from, int64_t count);
fv_tensor fv_transposed(const fv_tensor *t);                               /* last two dims swapped */
fv_tensor fv_permuted(const fv_tensor *t, const int *order);               /* out dim d is in dim order[d] */
fv_tensor fv_reshaped(const fv_tensor *t, int rank, const int64_t *dims);  /* t contiguous, same count */
fv_tensor fv_broadcast(const fv_tensor *t, int rank, const int64_t *dims); /* missing or 1 dims get stride 0 */
fv_tensor fv_expanded(const fv_tensor *t, int dim);                        /* a dim of 1 is put in at `dim` */
fv_tensor fv_plane(const fv_tensor *t, int dim, int64_t at);               /* place `at` of a dim, which goes */
/* A dim as two, of parts of so many and what is in them; a rest is left out. */
fv_tensor fv_parted(const fv_tensor *t, int dim, int64_t part);
/* Every step-th of a dim, `count` of them. */
fv_tensor fv_every(const fv_tensor *t, int dim, int64_t from, int64_t step, int64_t count);

/* Address of an element of a plain (not blocked) tensor of up to four used dims. */
size_t fv_dtype_size(fv_dtype dtype);
static inline void *fv_at(const fv_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d)
{
    int64_t offset = a * t->strides[0] + b * t->strides[1] + c * t->strides[2] + d * t->strides[3];

    return (char *)t->data + offset * (int64_t)fv_dtype_size(t->dtype);
}

/* Half precision, by bits; rounding to nearest even. */
float fv_f16_to_f32(uint16_t half);
uint16_t fv_f32_to_f16(float value);

static inline float fv_bf16_to_f32(uint16_t brain)
{
    uint32_t bits = (uint32_t)brain << 16;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t fv_f32_to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* One element as a double, whatever its plain dtype; for reference code and checks, not for hot loops. */
double fv_load(fv_dtype dtype, const void *data, int64_t index);
void fv_store(fv_dtype dtype, void *data, int64_t index, double value);

/* Rows of plain dtypes to and from f32; stride in elements. */
void fv_load_row(fv_dtype dtype, const void *data, int64_t offset, int64_t stride, float *out, int64_t count);
void fv_store_row(fv_dtype dtype, void *data, int64_t offset, int64_t stride, const float *in, int64_t count);

#endif
