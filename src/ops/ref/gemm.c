#include "ops/blocks.h"
#include "ops/check.h"
#include "ops/ref/ref.h"

struct job {
    const fv_gemm_args *gemm;
    float *scratch; /* [threads, 2, k] */
};

/* One column of c: the column of b is read once, and quantised weights lie along it. */
static void gemm_column(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_gemm_args *g = job->gemm;
    int lead = g->c.rank - 2, last = lead + 1;
    int64_t m = g->c.dims[lead], n = g->c.dims[last], k = g->a.dims[last], j = index % n;
    int64_t ia = fv_lead_offset(&g->a, lead, index / n), ib = fv_lead_offset(&g->b, lead, index / n);
    float *c = (float *)g->c.data + fv_lead_offset(&g->c, lead, index / n) + j * g->c.strides[last];
    float *row = job->scratch + (int64_t)thread * 2 * k, *column = row + k;
    int64_t block = fv_dtype_block(g->b.dtype);
    double bias = fv_present(&g->bias) ? fv_load(g->bias.dtype, g->bias.data, j * g->bias.strides[0]) : 0;

    if (block > 1)
        fv_blocks_load(g->b.dtype, g->b.data, (ib + j * g->b.strides[last]) / block, k / block, column);
    else
        fv_load_row(g->b.dtype, g->b.data, ib + j * g->b.strides[last], g->b.strides[lead], column, k);
    for (int64_t i = 0; i < m; i++) {
        float *out = c + i * g->c.strides[lead];
        double sum = 0;
        fv_load_row(g->a.dtype, g->a.data, ia + i * g->a.strides[lead], g->a.strides[last], row, k);
        for (int64_t x = 0; x < k; x++)
            sum += (double)row[x] * column[x];
        sum = g->alpha * sum + bias;
        if (g->beta != 0) sum += (double)g->beta * *out;
        *out = (float)sum;
    }
}

fv_status fv_ref_gemm(fv_ctx *ctx, const fv_gemm_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct job job = {.gemm = args};
    int64_t k = args->a.dims[args->a.rank - 1];

    FV_TRY(FV_SCRATCH(ctx, job.scratch, fv_ctx_threads(ctx) * 2 * k));
    fv_run(ctx, fv_lead_count(&args->c, args->c.rank - 2) * args->c.dims[args->c.rank - 1], gemm_column, &job);
    fv_scratch_release(ctx, mark);
    return FV_OK;
}
