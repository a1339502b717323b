#include <math.h>

#include "ops/blocks.h"
#include "ops/check.h"
#include "ops/ref/ref.h"

struct job {
    const fv_match_args *match;
    float *row; /* [threads, C] */
};

/* A row of y, whatever it is stored as. */
static void load_row(const fv_tensor *y, int64_t offset, float *out)
{
    int last = y->rank - 1;
    int64_t block = fv_dtype_block(y->dtype), bytes = (int64_t)fv_dtype_block_bytes(y->dtype);

    if (block > 1)
        fv_blocks_load(y->dtype, (const char *)y->data + offset / block * bytes, 0, y->dims[last] / block, out);
    else
        fv_load_row(y->dtype, y->data, offset, y->strides[last], out, y->dims[last]);
}

static void match_entry(void *user, int64_t item, int thread)
{
    const struct job *job = user;
    const fv_tensor *x = &job->match->x, *y = &job->match->y, *index = &job->match->index, *out = &job->match->out;
    int lead = out->rank - 1;
    int64_t n = item / out->dims[lead], e = item % out->dims[lead], C = x->dims[lead + 1];
    const int32_t *at = (const int32_t *)index->data + fv_lead_offset(index, lead, n) + e * index->strides[lead];
    const float *rows = (const float *)x->data + fv_lead_offset(x, lead, n);
    float *row = job->row + thread * C, best = -INFINITY;

    for (int64_t m = 0; m < index->dims[lead + 1]; m++) {
        int64_t j = at[m * index->strides[lead + 1]];
        if (j < 0) continue;
        load_row(y, fv_lead_offset(y, lead, n) + j * y->strides[lead], row);
        for (int64_t r = 0; r < x->dims[lead]; r++) {
            double sum = 0;
            for (int64_t c = 0; c < C; c++)
                sum += (double)rows[r * x->strides[lead] + c * x->strides[lead + 1]] * row[c];
            if ((float)sum > best) best = (float)sum;
        }
    }
    ((float *)out->data)[fv_lead_offset(out, lead, n) + e * out->strides[lead]] = best;
}

fv_status fv_ref_match(fv_ctx *ctx, const fv_match_args *args)
{
    struct job job = {.match = args};
    fv_mark mark = fv_scratch_mark(ctx);

    FV_TRY(FV_SCRATCH(ctx, job.row, fv_ctx_threads(ctx) * args->x.dims[args->x.rank - 1]));
    fv_run(ctx, fv_tensor_count(&args->out), match_entry, &job);
    fv_scratch_release(ctx, mark);
    return FV_OK;
}
