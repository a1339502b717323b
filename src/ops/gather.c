/* Gathering and scattering rows, running sums, and windows as a gather: checks and gradients. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_index(const fv_tensor *index, int64_t rows)
{
    int last = index->rank - 1;
    int64_t count = index->dims[last];

    for (int64_t n = 0; n < fv_lead_count(index, last); n++) {
        const int32_t *at = (const int32_t *)index->data + fv_lead_offset(index, last, n);
        for (int64_t r = 0; r < count; r++) {
            int32_t row = at[r * index->strides[last]];
            if (row < -1 || row >= rows)
                return fv_fail(FV_E_ARGUMENT, "gather: index %lld: expected -1 to %lld, got %d",
                               (long long)(n * count + r), (long long)rows - 1, row);
        }
    }
    return FV_OK;
}

/* `few`: the tensor with a row for each index; `many`: the other. */
static fv_status check_gather(const fv_gather_args *g)
{
    const fv_tensor *few = g->scatter ? &g->x : &g->out, *many = g->scatter ? &g->out : &g->x;
    const char *few_name = g->scatter ? "x" : "out", *many_name = g->scatter ? "out" : "x";
    unsigned types = g->scatter ? FV_TYPE(FV_F32) : FV_TYPES_PLAIN;
    int64_t shape[FV_MAX_RANK];

    FV_TRY(fv_check_rank("gather", few_name, few, types, 2, FV_MAX_RANK));
    FV_TRY(fv_check_rank("gather", many_name, many, types, 2, few->rank));
    memcpy(shape, few->dims, sizeof shape);
    shape[few->rank - 2] = many->dims[many->rank - 2];
    if (many->dims[many->rank - 1] != few->dims[few->rank - 1])
        return fv_fail(FV_E_SHAPE, "gather: x %s and out %s: expected as many channels", fv_shape_text(&g->x),
                       fv_shape_text(&g->out));
    FV_TRY(fv_check_broadcast("gather", many_name, many, types, few->rank, shape));
    FV_TRY(fv_check_rank("gather", "index", &g->index, FV_TYPE(FV_I32), 1, few->rank - 1));
    if (g->index.dims[g->index.rank - 1] != few->dims[few->rank - 2])
        return fv_fail(FV_E_SHAPE, "gather: index %s does not fit the rows of %s %s", fv_shape_text(&g->index),
                       few_name, fv_shape_text(few));
    FV_TRY(fv_check_broadcast("gather", "index", &g->index, FV_TYPE(FV_I32), few->rank - 1, few->dims));
    if (g->x.dtype != g->out.dtype &&
        !(fv_type_in(g->x.dtype, FV_TYPES_FLOAT) && fv_type_in(g->out.dtype, FV_TYPES_FLOAT)))
        return fv_fail(FV_E_DTYPE, "gather: out: expected %s as x, got %s", fv_dtype_name(g->x.dtype),
                       fv_dtype_name(g->out.dtype));
    return check_index(&g->index, many->dims[many->rank - 2]);
}

static fv_status gather_backward(fv_ctx *ctx, const void *args)
{
    fv_gather_args g = *(const fv_gather_args *)args;
    fv_tensor x = fv_tape_shadow(ctx, &g.x), out = fv_tape_shadow(ctx, &g.out), rows;

    if (!g.scatter) return fv_gather(ctx, &(fv_gather_args){.x = out, .index = g.index, .out = x, .scatter = true});
    FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, x.rank, x.dims));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = out, .index = g.index, .out = rows}));
    fv_add_into(ctx, &x, &rows, 1);
    return FV_OK;
}

fv_status fv_gather(fv_ctx *ctx, const fv_gather_args *args)
{
    fv_gather_args g = *args;
    int64_t shape[FV_MAX_RANK];

    FV_TRY(check_gather(args));
    fv_tensor *few = g.scatter ? &g.x : &g.out, *many = g.scatter ? &g.out : &g.x;
    memcpy(shape, few->dims, sizeof shape);
    shape[few->rank - 2] = many->dims[many->rank - 2];
    *many = fv_broadcast(many, few->rank, shape);
    g.index = fv_broadcast(&g.index, few->rank - 1, few->dims);
    if (fv_tensor_count(few) == 0) return FV_OK; /* nothing for a tape to walk back over either */
    FV_TRY(ctx->backend->gather(ctx, &g));
    return FV_TAPE_RECORD(ctx, gather_backward, args, 1, &args->x, &args->out);
}

/* ---- running sums and maxima
 * ---------------------------------------------------------------------------------------------- */

struct max_job {
    const fv_cumsum_args *sums;
    fv_tensor gradient, d_x; /* d_x zeroed, contiguous */
};

/* What reaches a row goes to the first that is as large, of those it takes in. */
static void max_item(void *user, int64_t index, int thread)
{
    const struct max_job *job = user;
    const fv_tensor *x = &job->sums->x, *g = &job->gradient;
    int lead = x->rank - 2, last = lead + 1;
    int64_t rows = x->dims[lead], channels = x->dims[last];
    const float *from = (const float *)x->data + fv_lead_offset(x, lead, index);
    const float *gradient = (const float *)g->data + fv_lead_offset(g, lead, index);
    float *to = (float *)job->d_x.data + index * rows * channels;

    (void)thread;
    for (int64_t c = 0; c < channels; c++) {
        int64_t highest = -1, seen = 0;
        for (int64_t n = 0; n < rows; n++) {
            for (; seen < (job->sums->exclusive ? n : n + 1); seen++) {
                int64_t i = job->sums->reverse ? rows - 1 - seen : seen;
                const float *at = from + c * x->strides[last];
                if (highest < 0 || at[i * x->strides[lead]] > at[highest * x->strides[lead]]) highest = i;
            }
            int64_t i = job->sums->reverse ? rows - 1 - n : n;
            if (highest >= 0) to[highest * channels + c] += gradient[i * g->strides[lead] + c * g->strides[last]];
        }
    }
}

static fv_status max_backward(fv_ctx *ctx, const fv_cumsum_args *c, const fv_tensor *x)
{
    struct max_job job = {.sums = c, .gradient = fv_tape_shadow(ctx, &c->out)};

    FV_TRY(fv_tensor_zeros(ctx, &job.d_x, FV_F32, c->x.rank, c->x.dims));
    fv_run(ctx, fv_lead_count(&c->x, c->x.rank - 2), max_item, &job);
    fv_add_into(ctx, x, &job.d_x, 1);
    return FV_OK;
}

static fv_status cumsum_backward(fv_ctx *ctx, const void *args)
{
    fv_cumsum_args c = *(const fv_cumsum_args *)args;
    fv_tensor x = fv_tape_shadow(ctx, &c.x);

    if (c.max) return max_backward(ctx, &c, &x);
    c.x = fv_tape_shadow(ctx, &c.out);
    c.reverse = !c.reverse;
    FV_TRY(fv_tensor_new(ctx, &c.out, FV_F32, c.x.rank, c.x.dims));
    FV_TRY(fv_cumsum(ctx, &c));
    fv_add_into(ctx, &x, &c.out, 1);
    return FV_OK;
}

fv_status fv_cumsum(fv_ctx *ctx, const fv_cumsum_args *args)
{
    FV_TRY(fv_check_rank("cumsum", "x", &args->x, FV_TYPE(FV_F32), 2, FV_MAX_RANK));
    FV_TRY(fv_check("cumsum", "out", &args->out, FV_TYPE(FV_F32), args->x.rank, args->x.dims));
    FV_TRY(fv_check_apart(ctx, "cumsum", &args->x, &args->out));
    if (fv_tensor_count(&args->x) > 0) FV_TRY(ctx->backend->cumsum(ctx, args));
    return FV_TAPE_RECORD(ctx, cumsum_backward, args, 1, &args->x, &args->out);
}
