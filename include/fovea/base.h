/* Fovea's ground: status and error text, data types, tensors, the context every call takes. */
#ifndef FOVEA_BASE_H
#define FOVEA_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define FV_API
#else
#define FV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------------------------- */

typedef enum fv_status {
    FV_OK = 0,
    FV_E_ARGUMENT,    /* a call is used wrongly */
    FV_E_USAGE,       /* an unknown name or option, or a value out of its range, in a SPEC or on a command line */
    FV_E_SHAPE,       /* tensors that do not fit each other or an option */
    FV_E_DTYPE,       /* a data type this call cannot take */
    FV_E_MEMORY,      /* out of memory, or a size that overflows */
    FV_E_IO,          /* a file that cannot be opened, read or written */
    FV_E_FORMAT,      /* a malformed file or text */
    FV_E_UNSUPPORTED, /* well-formed, but not something this build can do */
    FV_E_INTERRUPTED, /* fv_ctx_interrupt was called */
} fv_status;

/* The calling thread's last failure in words: what, where, expected, got.  Never NULL; "" before any failure. */
FV_API const char *fv_error(void);

/* "FV_E_SHAPE" and so on. */
FV_API const char *fv_status_name(fv_status status);

/* The library's version, "MAJOR.MINOR.PATCH". */
FV_API const char *fv_version(void);

/* ---- data types ------------------------------------------------------------------------------------------------ */

typedef enum fv_dtype {
    FV_F32 = 0,
    FV_F16,
    FV_BF16,
    FV_F64, /* storage only: computed in f32 */
    FV_I8,
    FV_U8,
    FV_I16,
    FV_U16,
    FV_I32,
    FV_I64,
    /* blocks of quantised weights, as GGUF stores them */
    FV_Q4_0,
    FV_Q4_1,
    FV_Q5_0,
    FV_Q5_1,
    FV_Q8_0,
    FV_Q2_K,
    FV_Q3_K,
    FV_Q4_K,
    FV_Q5_K,
    FV_Q6_K,
    FV_Q8_K,
    FV_IQ4_NL,
    FV_DTYPE_COUNT,
} fv_dtype;

FV_API const char *fv_dtype_name(fv_dtype dtype);   /* "f32", "q4_K", ... */
FV_API int64_t fv_dtype_block(fv_dtype dtype);      /* elements in a block; 1 for plain types */
FV_API size_t fv_dtype_block_bytes(fv_dtype dtype); /* bytes of a block; of an element for plain types */

/* ---- tensors --------------------------------------------------------------------------------------------------- */

#define FV_MAX_RANK 6

typedef enum fv_device { FV_DEVICE_CPU = 0, FV_DEVICE_CUDA } fv_device;

/* A small value: it owns nothing, so views cost nothing.  Strides are in elements; a stride of 0 repeats.
 * Block types need stride 1 along the dimension that is blocked, and other strides in whole blocks.
 * A tensor with data == NULL is absent. */
typedef struct fv_tensor {
    void *data;
    fv_dtype dtype;
    fv_device device;
    int rank;
    int64_t dims[FV_MAX_RANK];
    int64_t strides[FV_MAX_RANK];
} fv_tensor;

/* A contiguous tensor over memory the caller owns.  FV_E_SHAPE for a rank outside 0..FV_MAX_RANK or negative dims. */
FV_API fv_status fv_tensor_wrap(fv_tensor *tensor, void *data, fv_dtype dtype, int rank, const int64_t *dims);

/* A tensor by its registry name. */
typedef struct fv_named_tensor {
    const char *name;
    fv_tensor tensor;
} fv_named_tensor;

/* ---- context --------------------------------------------------------------------------------------------------- */

typedef struct fv_ctx fv_ctx;

typedef enum fv_precision {
    FV_PRECISION_AUTO = 0, /* the fastest that keeps the stated distance from f32 */
    FV_PRECISION_F32,      /* f32 throughout, from the weights as stored */
    FV_PRECISION_BF16,     /* bf16 operands, f32 sums */
} fv_precision;

/* Called from time to time during long work with a fraction in 0..1 of `what`. */
typedef void fv_progress_fn(void *user, const char *what, double fraction);

/* All zero is a good default. */
typedef struct fv_ctx_options {
    const char *device; /* "ref" (plain loops, double sums), "cpu" (default) */
    int threads;        /* 0: as many as the process may use */
    uint64_t seed;
    fv_precision precision;
    fv_progress_fn *progress;
    void *progress_user;
} fv_ctx_options;

/* A context holds device, threads, scratch memory, seed and the tape; it serves one caller thread at a time.
 * FV_E_USAGE for an unknown device, FV_E_MEMORY. */
FV_API fv_status fv_ctx_new(const fv_ctx_options *options, fv_ctx **ctx);
FV_API void fv_ctx_free(fv_ctx *ctx);

/* Asks the work that runs on ctx to stop soon with FV_E_INTERRUPTED; safe from a signal handler or another thread. */
FV_API void fv_ctx_interrupt(fv_ctx *ctx);
FV_API void fv_ctx_clear_interrupt(fv_ctx *ctx);

FV_API int fv_ctx_threads(const fv_ctx *ctx);
FV_API const char *fv_ctx_backend(const fv_ctx *ctx); /* "ref", "cpu-avx512", "cpu-avx2", "cpu-c" */

#ifdef __cplusplus
}
#endif
#endif
