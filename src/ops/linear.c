/* Products of the same rows with several weights. */
#include "ops/backend.h"
#include "ops/check.h"

static fv_status check_part(const fv_linear_args *args, int n)
{
    const fv_linear_part *p = &args->part[n];
    const int64_t m = args->x.dims[0], k = args->x.dims[1];

    FV_TRY(fv_check("linear", "weight", &p->weight, FV_TYPES_HALF | FV_TYPES_BLOCKS, FV_DIMS(FV_ANY, k)));
    FV_TRY(fv_check_optional("linear", "bias", &p->bias, FV_TYPE(FV_F32), FV_DIMS(p->weight.dims[0])));
    if (args->gate && n == 1) {
        if (p->weight.dims[0] == args->part[0].weight.dims[0]) return FV_OK;
        return fv_fail(FV_E_SHAPE, "linear: gate: expected two weights of the same shape, got %s and %s",
                       fv_shape_text(&args->part[0].weight), fv_shape_text(&p->weight));
    }
    return fv_check("linear", "out", &p->out, FV_TYPE(FV_F32), FV_DIMS(m, p->weight.dims[0]));
}

static bool is_packed(const fv_ctx *ctx, const fv_linear_args *args)
{
    if (!ctx->backend->linear || ctx->precision == FV_PRECISION_F32 || ctx->recording) return false;
    if (args->x.strides[1] != 1 && args->x.dims[1] > 1) return false;
    for (int n = 0; n < args->parts; n++) {
        const fv_linear_part *p = &args->part[n];
        if (!p->packed || !p->packed->data) return false;
        if (!(args->gate && n == 1) && p->out.strides[1] != 1 && p->out.dims[1] > 1) return false;
    }
    return true;
}

static fv_status product(fv_ctx *ctx, const fv_linear_args *args, int n, const fv_tensor *out)
{
    const fv_linear_part *p = &args->part[n];

    return fv_gemm(
        ctx, &(fv_gemm_args){
                 .a = args->x, .b = fv_transposed(&p->weight), .c = *out, .bias = p->bias, .beta = p->add ? 1 : 0});
}

/* By products and maps of their own. */
static fv_status in_steps(fv_ctx *ctx, const fv_linear_args *args)
{
    const fv_tensor *out = &args->part[0].out;
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor gate = *out, up;
    fv_status status;

    if (!args->gate) {
        for (int n = 0; n < args->parts; n++)
            FV_TRY(product(ctx, args, n, &args->part[n].out));
        return FV_OK;
    }
    if (ctx->recording) FV_TRY(fv_tensor_new(ctx, &gate, FV_F32, 2, out->dims)); /* its values are asked for later */
    FV_TRY(fv_tensor_new(ctx, &up, FV_F32, 2, out->dims));
    FV_TRY_DONE(product(ctx, args, 0, &gate));
    FV_TRY_DONE(product(ctx, args, 1, &up));
    status = fv_map_apply(ctx, &(fv_map_args){.op = args->gate, .x = gate, .y = up, .out = *out});
done:
    fv_scratch_release(ctx, mark);
    return status;
}

/* Products of one row at a time, whatever they would share, so that none knows of the others. */
static fv_status row_by_row(fv_ctx *ctx, const fv_linear_args *args)
{
    for (int64_t i = 0; i < args->x.dims[0]; i++) {
        fv_linear_args row = *args;
        row.x = fv_slice(&args->x, 0, i, 1);
        for (int n = 0; n < args->parts; n++)
            if (fv_present(&args->part[n].out)) row.part[n].out = fv_slice(&args->part[n].out, 0, i, 1);
        FV_TRY(in_steps(ctx, &row));
    }
    return FV_OK;
}

bool fv_linear_few(const fv_ctx *ctx, const fv_linear_args *args)
{
    if (ctx->batching != FV_BATCH_FREE) return ctx->batching == FV_BATCH_STEPS;
    return args->x.dims[0] <= (is_packed(ctx, args) ? ctx->backend->few_linear : ctx->backend->few_gemm);
}

fv_status fv_linear(fv_ctx *ctx, const fv_linear_args *args)
{
    FV_TRY(fv_check("linear", "x", &args->x, FV_TYPE(FV_F32), FV_DIMS(FV_ANY, FV_ANY)));
    if (args->parts < 1 || args->parts > FV_LINEAR_PARTS || (args->gate && args->parts != 2))
        return fv_fail(FV_E_ARGUMENT, "linear: expected %s weights, got %d", args->gate ? "2" : "1 to 3", args->parts);
    for (int n = 0; n < args->parts; n++)
        FV_TRY(check_part(args, n));
    if (args->x.dims[0] > 0 && is_packed(ctx, args)) return ctx->backend->linear(ctx, args);
    return ctx->batching == FV_BATCH_STEPS ? row_by_row(ctx, args) : in_steps(ctx, args);
}
