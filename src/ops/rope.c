/* Rotary positions: checks; the gradient turns back. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static fv_status check_rope(const fv_ctx *ctx, const fv_rope_args *r)
{
    int64_t width;

    FV_TRY(fv_check_rank("rope", "x", &r->x, FV_TYPE(FV_F32), 4, 4));
    FV_TRY(fv_check("rope", "out", &r->out, FV_TYPE(FV_F32), 4, r->x.dims));
    width = r->rotary ? r->rotary : r->x.dims[3];
    if (width < 0 || width > r->x.dims[3] || width % 2 != 0)
        return fv_fail(FV_E_SHAPE, "rope: rotary: expected an even number of at most %lld channels, got %lld",
                       (long long)r->x.dims[3], (long long)width);
    FV_TRY(fv_check_optional("rope", "frequency", &r->frequency, FV_TYPE(FV_F32), FV_DIMS(width / 2)));
    if (!fv_present(&r->frequency) && !(r->base > 0))
        return fv_fail(FV_E_ARGUMENT, "rope: base: expected more than 0, got %g", (double)r->base);
    return fv_check_apart(ctx, "rope", &r->x, &r->out);
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    fv_rope_args r = *(const fv_rope_args *)args;
    fv_tensor x = fv_tape_shadow(ctx, &r.x);

    r.x = fv_tape_shadow(ctx, &r.out);
    r.inverse = !r.inverse;
    FV_TRY(fv_tensor_new(ctx, &r.out, FV_F32, 4, r.x.dims));
    FV_TRY(fv_rope(ctx, &r));
    fv_add_into(ctx, &x, &r.out, 1);
    return FV_OK;
}

fv_status fv_rope(fv_ctx *ctx, const fv_rope_args *args)
{
    fv_rope_args r = *args;

    FV_TRY(check_rope(ctx, args));
    if (r.rotary == 0) r.rotary = r.x.dims[3];
    if (r.magnitude == 0) r.magnitude = 1;
    if (fv_tensor_count(&r.x) > 0) FV_TRY(ctx->backend->rope(ctx, &r));
    return FV_TAPE_RECORD(ctx, backward, args, 1, &args->x, &args->out);
}
