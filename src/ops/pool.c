/* Pooling of rows into cells: checks and gradients. */
#include "ops/pool.h"

#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_starts(const fv_pool_args *p, int64_t rows, int64_t cells)
{
    for (int64_t m = 0; m < cells; m++) {
        int64_t from = p->start[m], to = p->start[m + 1];
        if (from >= 0 && from <= to && to <= rows) continue;
        return fv_fail(FV_E_ARGUMENT, "pool: cell %lld: expected rows within 0 to %lld, got %lld to %lld", (long long)m,
                       (long long)rows, (long long)from, (long long)to);
    }
    return FV_OK;
}

static fv_status check_grid(const fv_pool_args *p, int64_t rows, int64_t cells)
{
    int64_t from = 0, to = 0, reach;

    if (fv_mul_i64(p->grid_height, p->grid_width, &from) && fv_mul_i64(p->out_height, p->out_width, &to) &&
        from == rows && to == cells && p->out_height > 0 && p->out_width > 0 &&
        fv_mul_i64(p->out_height + 1, p->grid_height, &reach) && fv_mul_i64(p->out_width + 1, p->grid_width, &reach))
        return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "pool: a grid of %lld x %lld pooled to %lld x %lld does not fit %lld rows and %lld cells",
                   (long long)p->grid_height, (long long)p->grid_width, (long long)p->out_height,
                   (long long)p->out_width, (long long)rows, (long long)cells);
}

static fv_status check_pool(const fv_pool_args *p)
{
    int64_t shape[FV_MAX_RANK], rows, cells, stride = p->stride ? p->stride : p->block;

    FV_TRY(fv_check_rank("pool", "x", &p->x, FV_TYPE(FV_F32), 2, FV_MAX_RANK));
    memcpy(shape, p->x.dims, sizeof shape);
    shape[p->x.rank - 2] = FV_ANY;
    FV_TRY(fv_check("pool", "out", &p->out, FV_TYPE(FV_F32), p->x.rank, shape));
    rows = p->x.dims[p->x.rank - 2];
    cells = p->out.dims[p->x.rank - 2];
    if (p->kind < FV_POOL_MEAN || p->kind > FV_POOL_SUM)
        return fv_fail(FV_E_ARGUMENT, "pool: unknown kind %d", (int)p->kind);
    if (p->start) return check_starts(p, rows, cells);
    if (p->grid_height != 0) return check_grid(p, rows, cells);
    if (p->block < 1 || stride < 1)
        return fv_fail(FV_E_ARGUMENT, "pool: expected a block and a stride of 1 or more, got %lld and %lld",
                       (long long)p->block, (long long)p->stride);
    if (p->block > INT64_MAX / 4 || stride > INT64_MAX / 4)
        return fv_fail(FV_E_ARGUMENT, "pool: a block of %lld rows is more than memory can hold", (long long)p->block);
    if (cells <= fv_ceil_div(rows, stride)) return FV_OK;
    return fv_fail(FV_E_SHAPE, "pool: out: expected at most %lld cells of %lld rows every %lld, got shape %s",
                   (long long)fv_ceil_div(rows, stride), (long long)p->block, (long long)stride,
                   fv_shape_text(&p->out));
}

struct job {
    const fv_pool_args *pool;
    fv_tensor gradient, d_x; /* d_x zeroed, contiguous */
};

/* Cells may share rows: one item walks all cells of its leading index. */
static void backward_item(void *user, int64_t index, int thread)
{
    const struct job *job = user;
    const fv_pool_args *p = job->pool;
    const fv_tensor *x = &p->x, *g = &job->gradient;
    int lead = x->rank - 2, last = lead + 1;
    int64_t channels = x->dims[last];
    const float *from = (const float *)x->data + fv_lead_offset(x, lead, index);
    const float *gradient = (const float *)g->data + fv_lead_offset(g, lead, index);
    float *to = (float *)job->d_x.data + index * x->dims[lead] * channels;

    (void)thread;
    for (int64_t m = 0; m < g->dims[lead]; m++) {
        fv_pool_cell cell = fv_pool_cell_of(p, m);
        double share = p->kind == FV_POOL_MEAN ? 1.0 / (double)fv_max(fv_pool_cell_rows(&cell), 1) : 1;
        for (int64_t c = 0; c < channels; c++) {
            double value = gradient[m * g->strides[lead] + c * g->strides[last]] * share;
            int64_t highest = -1;
            for (int64_t y = cell.y0; y < cell.y1; y++) {
                for (int64_t i = y * cell.width + cell.x0; i < y * cell.width + cell.x1; i++) {
                    const float *at = from + c * x->strides[last];
                    if (p->kind != FV_POOL_MAX)
                        to[i * channels + c] += (float)value;
                    else if (highest < 0 || at[i * x->strides[lead]] > at[highest * x->strides[lead]])
                        highest = i;
                }
            }
            if (highest >= 0) to[highest * channels + c] += (float)value;
        }
    }
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_pool_args *p = args;
    struct job job = {.pool = p, .gradient = fv_tape_shadow(ctx, &p->out)};
    fv_tensor x = fv_tape_shadow(ctx, &p->x);

    FV_TRY(fv_tensor_zeros(ctx, &job.d_x, FV_F32, p->x.rank, p->x.dims));
    fv_run(ctx, fv_lead_count(&p->x, p->x.rank - 2), backward_item, &job);
    fv_add_into(ctx, &x, &job.d_x, 1);
    return FV_OK;
}

fv_status fv_pool_rows(fv_ctx *ctx, const fv_pool_args *args)
{
    FV_TRY(check_pool(args));
    if (fv_tensor_count(&args->out) > 0) FV_TRY(ctx->backend->pool(ctx, args));
    return FV_TAPE_RECORD(ctx, backward, args, 1, &args->x, &args->out);
}
