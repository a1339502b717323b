/* The CPU backend: the reference table with what is faster put in its place. */
#include <pthread.h>

#include "ops/blocks.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

/* Written once, constant from then on. */
static fv_backend tables[FV_ISA_COUNT];
static struct fv_kernels kernels[FV_ISA_COUNT];

typedef void fill_fn(struct fv_kernels *kernels);
#define ISA(name) void fv_##name##_fill(struct fv_kernels *kernels)

ISA(c);
#if defined(__x86_64__)
ISA(avx2);
ISA(avx512f);
ISA(avx512);
#endif

static const struct {
    const char *name;
    fill_fn *fill;
} isas[FV_ISA_COUNT] = {
    [FV_ISA_C] = {"cpu-c", fv_c_fill},
#if defined(__x86_64__)
    [FV_ISA_AVX2] = {"cpu-avx2", fv_avx2_fill},
    [FV_ISA_AVX512F] = {"cpu-avx512f", fv_avx512f_fill},
    [FV_ISA_AVX512] = {"cpu-avx512", fv_avx512_fill},
#endif
};

static void fill(void)
{
    for (int isa = 0; isa < FV_ISA_COUNT; isa++) {
        fv_backend *table = &tables[isa];
        if (!isas[isa].fill) continue;
        isas[isa].fill(&kernels[isa]);
        *table = fv_backend_ref;
        table->name = isas[isa].name;
        table->few_linear = FV_FEW_LINEAR;
        table->few_gemm = FV_DOT_ROWS;
        table->gemm = fv_cpu_gemm;
        table->linear = fv_cpu_linear;
        table->pack = fv_cpu_pack;
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
        table->select = fv_cpu_select;
        table->match = fv_cpu_match;
        table->gather = fv_cpu_gather;
        table->sampled_dots = fv_cpu_sampled_dots;
        table->sampled_sums = fv_cpu_sampled_sums;
        table->sampled_spread = fv_cpu_sampled_spread;
        table->cumsum = fv_cpu_cumsum;
        table->taylor = fv_cpu_taylor;
        table->conv2d = fv_cpu_conv2d;
        table->dequantize = fv_cpu_dequantize;
        table->quantize = fv_cpu_quantize;
    }
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

const fv_backend *fv_backend_cpu(fv_isa isa)
{
    pthread_once(&once, fill);
    return &tables[isa];
}

const struct fv_kernels *fv_kernels_of(const fv_ctx *ctx)
{
    pthread_once(&once, fill); /* contexts of the reference backend come here too */
    return &kernels[ctx->isa];
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
