/* The CPU backend: the reference table with what is faster put in its place. */
#include <pthread.h>

#include "ops/blocks.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

static fv_backend tables[FV_ISA_COUNT]; /* written once, constant from then on */

static const struct fv_kernels *const kernels[FV_ISA_COUNT] = {
    [FV_ISA_C] = &fv_kernels_c,
#if defined(__x86_64__)
    [FV_ISA_AVX2] = &fv_kernels_avx2,
    [FV_ISA_AVX512] = &fv_kernels_avx512,
#endif
};

static void fill(void)
{
    for (int isa = 0; isa < FV_ISA_COUNT; isa++) {
        fv_backend *table = &tables[isa];
        *table = fv_backend_ref;
        table->name = kernels[isa] ? kernels[isa]->name : fv_kernels_c.name;
        table->gemm = fv_cpu_gemm;
        table->attend_backward = fv_cpu_attend_backward;
        table->attend_stats = fv_cpu_attend_stats;
        table->merge = fv_cpu_merge;
        table->merge_backward = fv_cpu_merge_backward;
        table->scan = fv_cpu_scan;
        table->scan_backward = fv_cpu_scan_backward;
        table->map = fv_cpu_map;
        table->attend = fv_cpu_attend;
        table->norm = fv_cpu_norm;
        table->rope = fv_cpu_rope;
        table->softmax = fv_cpu_softmax;
        table->pool = fv_cpu_pool;
        table->dequantize = fv_cpu_dequantize;
    }
}

const fv_backend *fv_backend_cpu(fv_isa isa)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, fill);
    return &tables[isa];
}

const struct fv_kernels *fv_kernels_of(const fv_ctx *ctx)
{
    return kernels[ctx->isa] ? kernels[ctx->isa] : &fv_kernels_c;
}

void fv_kernels_load(const struct fv_kernels *k, fv_dtype dtype, const void *row, int64_t from, int64_t count,
                     float *out)
{
    int64_t block = fv_dtype_block(dtype);

    if (k->load[dtype])
        k->load[dtype](row, from, count, out);
    else if (block > 1)
        fv_blocks_load(dtype, row, from / block, count / block, out);
    else
        fv_load_row(dtype, row, from, 1, out, count);
}

void fv_cpu_run(fv_ctx *ctx, int64_t count, double work, fv_item_fn *item, void *user)
{
    if (work > 2e5) {
        fv_run(ctx, count, item, user);
    } else {
        for (int64_t index = 0; index < count; index++)
            item(user, index, 0);
    }
}
