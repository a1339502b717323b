/* Gathering and scattering rows whose elements lie side by side, by vectors.  Bound by bytes: each row is read and
 * written once (a scatter also reads what it adds to), at the rate of a copy. */
#include "ops/accumulate.h"
#include "ops/check.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum { PIECE = 8192 }; /* elements an item moves */

struct job {
    const struct fv_kernels *kernels;
    const fv_gather_args *gather;
    int64_t rows, pieces; /* of an item; items of a leading index */
};

static void copy_row(const struct job *job, const char *x, char *out, int64_t count)
{
    const fv_gather_args *g = job->gather;

    if (g->x.dtype == g->out.dtype)
        memcpy(out, x, (size_t)count * fv_dtype_size(g->x.dtype));
    else if (g->out.dtype == FV_F32)
        job->kernels->load[g->x.dtype](x, 0, count, (float *)out);
    else if (g->out.dtype == FV_F16)
        job->kernels->to_f16((const float *)x, count, (uint16_t *)out);
    else
        job->kernels->to_bf16((const float *)x, count, (uint16_t *)out);
}

static void gather_item(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_gather_args *g = job->gather;
    int lead = g->out.rank - 2;
    int64_t n = index / job->pieces, r = index % job->pieces * job->rows, C = g->out.dims[lead + 1];
    int64_t end = fv_min(r + job->rows, g->out.dims[lead]), x_size = (int64_t)fv_dtype_size(g->x.dtype);
    int64_t out_size = (int64_t)fv_dtype_size(g->out.dtype);
    const char *x = (const char *)g->x.data + fv_lead_offset(&g->x, lead, n) * x_size;
    char *out = (char *)g->out.data + fv_lead_offset(&g->out, lead, n) * out_size;
    const int32_t *at = (const int32_t *)g->index.data + fv_lead_offset(&g->index, lead, n);

    (void)thread;
    for (; r < end; r++) {
        int64_t row = at[r * g->index.strides[lead]];
        char *to = out + r * g->out.strides[lead] * out_size;
        if (row < 0)
            memset(to, 0, (size_t)(C * out_size));
        else
            copy_row(job, x + row * g->x.strides[lead] * x_size, to, C);
    }
}

/* Rows may meet in one row of out: an item is a whole leading index. */
static void scatter_item(void *user, int64_t n, int thread)
{
    const struct job *job = user;
    const fv_gather_args *g = job->gather;
    int lead = g->x.rank - 2;
    const float *x = (const float *)g->x.data + fv_lead_offset(&g->x, lead, n);
    float *out = (float *)g->out.data + fv_lead_offset(&g->out, lead, n);
    const int32_t *at = (const int32_t *)g->index.data + fv_lead_offset(&g->index, lead, n);

    (void)thread;
    for (int64_t r = 0; r < g->x.dims[lead]; r++) {
        int64_t row = at[r * g->index.strides[lead]];
        float *to = out + row * g->out.strides[lead];
        if (row >= 0) job->kernels->map(FV_MAP_ADD, g->x.dims[lead + 1], to, x + r * g->x.strides[lead], 1, 1, 0, to);
    }
}

static bool is_fast(const struct job *job)
{
    const fv_gather_args *g = job->gather;
    fv_dtype from = g->x.dtype, to = g->out.dtype;
    int last = g->x.rank - 1;

    if ((g->x.strides[last] != 1 || g->out.strides[last] != 1) && g->x.dims[last] > 1) return false;
    if (from == to) return true;
    return (to == FV_F32 && job->kernels->load[from]) || (from == FV_F32 && (to == FV_F16 || to == FV_BF16));
}

fv_status fv_cpu_gather(fv_ctx *ctx, const fv_gather_args *args)
{
    struct job job = {.kernels = fv_kernels_of(ctx), .gather = args};
    int lead = args->x.rank - 2;
    double work = 4.0 * (double)fv_tensor_count(args->scatter ? &args->x : &args->out);

    if (!is_fast(&job) || (args->scatter && !fv_tensor_apart(&args->out))) return fv_backend_ref.gather(ctx, args);
    if (args->scatter) {
        fv_cpu_run(ctx, fv_lead_count(&args->x, lead), work, scatter_item, &job);
        return FV_OK;
    }
    job.rows = fv_max(PIECE / fv_max(args->out.dims[lead + 1], 1), 1);
    job.pieces = fv_ceil_div(args->out.dims[lead], job.rows);
    fv_cpu_run(ctx, fv_lead_count(&args->out, lead) * job.pieces, work, gather_item, &job);
    return FV_OK;
}
