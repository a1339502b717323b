/* scan: what a call must hold before a backend sees it, and its place on the tape. */
#include <math.h>

#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

#define F32 FV_TYPE(FV_F32)

static fv_status check_decay(const fv_scan_args *a, int64_t B, int64_t H, int64_t N, int64_t D, int64_t Dv)
{
    const fv_tensor *t = &a->log_decay;

    switch (a->decay) {
    case FV_DECAY_NONE:
        if (fv_present(t)) return fv_fail(FV_E_ARGUMENT, "scan: log_decay is given, but decay is none");
        return FV_OK;
    case FV_DECAY_PER_HEAD: return fv_check("scan", "log_decay", t, F32, FV_DIMS(H));
    case FV_DECAY_PER_TOKEN: return fv_check("scan", "log_decay", t, F32, FV_DIMS(B, H, N));
    case FV_DECAY_PER_KEY: return fv_check("scan", "log_decay", t, F32, FV_DIMS(B, H, N, D));
    case FV_DECAY_PER_VALUE: return fv_check("scan", "log_decay", t, F32, FV_DIMS(B, H, N, Dv));
    }
    return fv_fail(FV_E_ARGUMENT, "scan: unknown kind of decay %d", (int)a->decay);
}

static fv_status check_normaliser(const fv_scan_args *a, int64_t B, int64_t H, int64_t N, int64_t D)
{
    if (!a->normalise) {
        if (fv_present(&a->z_in) || fv_present(&a->z_out) || fv_present(&a->denominator))
            return fv_fail(FV_E_ARGUMENT, "scan: z_in, z_out and denominator are for normalise, which is off");
        return FV_OK;
    }
    if (a->delta) return fv_fail(FV_E_UNSUPPORTED, "scan: the delta rule has no normaliser");
    if (a->decay == FV_DECAY_PER_VALUE)
        return fv_fail(FV_E_UNSUPPORTED, "scan: decay per value channel has no one normaliser for all channels");
    if (!isfinite(a->epsilon) || !isfinite(a->floor) || a->epsilon < 0 || a->floor < 0)
        return fv_fail(FV_E_ARGUMENT, "scan: expected epsilon and floor >= 0, got %g and %g", (double)a->epsilon,
                       (double)a->floor);
    FV_TRY(fv_check_optional("scan", "denominator", &a->denominator, F32, FV_DIMS(B, H, N)));
    FV_TRY(fv_check_optional("scan", "z_in", &a->z_in, F32, FV_DIMS(B, H, D)));
    return fv_check_optional("scan", "z_out", &a->z_out, F32, FV_DIMS(B, H, D));
}

static fv_status check(const fv_scan_args *a)
{
    int64_t B, H, N, D, Hkv, Dv;

    FV_TRY(fv_check_rank("scan", "q", &a->q, F32, 4, 4));
    B = a->q.dims[0], H = a->q.dims[1], N = a->q.dims[2], D = a->q.dims[3];
    FV_TRY(fv_check("scan", "k", &a->k, F32, FV_DIMS(B, FV_ANY, N, D)));
    Hkv = a->k.dims[1];
    if (H > 0 && (Hkv < 1 || H % Hkv != 0))
        return fv_fail(FV_E_SHAPE, "scan: %lld key-value heads do not divide %lld query heads (shapes %s and %s)",
                       (long long)Hkv, (long long)H, fv_shape_text(&a->q), fv_shape_text(&a->k));
    FV_TRY(fv_check("scan", "v", &a->v, F32, FV_DIMS(B, Hkv, N, FV_ANY)));
    Dv = a->v.dims[3];
    FV_TRY(fv_check("scan", "o", &a->o, F32, FV_DIMS(B, H, N, Dv)));
    FV_TRY(check_decay(a, B, H, N, D, Dv));
    FV_TRY(fv_check_optional("scan", "beta", &a->beta, F32, FV_DIMS(B, H, N)));
    FV_TRY(fv_check_optional("scan", "state_in", &a->state_in, F32, FV_DIMS(B, H, D, Dv)));
    FV_TRY(fv_check_optional("scan", "state_out", &a->state_out, F32, FV_DIMS(B, H, D, Dv)));
    if (a->chunk < 0) return fv_fail(FV_E_ARGUMENT, "scan: a chunk of %lld tokens", (long long)a->chunk);
    return check_normaliser(a, B, H, N, D);
}

static fv_status check_gradients(const fv_scan_args *a, const fv_scan_grads *g)
{
    const struct {
        const char *name;
        const fv_tensor *gradient, *of;
    } pairs[] = {
        {"d_state_out", &g->d_state_out, &a->state_out},
        {"d_z_out", &g->d_z_out, &a->z_out},
        {"d_q", &g->d_q, &a->q},
        {"d_k", &g->d_k, &a->k},
        {"d_v", &g->d_v, &a->v},
        {"d_beta", &g->d_beta, &a->beta},
        {"d_log_decay", &g->d_log_decay, &a->log_decay},
        {"d_state_in", &g->d_state_in, &a->state_in},
        {"d_z_in", &g->d_z_in, &a->z_in},
    };

    FV_TRY(fv_check("scan backward", "d_o", &g->d_o, F32, a->o.rank, a->o.dims));
    for (size_t n = 0; n < sizeof pairs / sizeof pairs[0]; n++) {
        if (!fv_present(pairs[n].gradient)) continue;
        if (!fv_present(pairs[n].of))
            return fv_fail(FV_E_ARGUMENT, "scan backward: %s: the call has no such tensor", pairs[n].name);
        FV_TRY(fv_check("scan backward", pairs[n].name, pairs[n].gradient, F32, pairs[n].of->rank, pairs[n].of->dims));
    }
    return FV_OK;
}

fv_status fv_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads)
{
    FV_TRY(check(args));
    FV_TRY(check_gradients(args, grads));
    return ctx->backend->scan_backward(ctx, args, grads);
}

static fv_status walk_back(fv_ctx *ctx, const void *data)
{
    const fv_scan_args *a = data;
    fv_scan_grads g = {
        .d_o = fv_tape_shadow(ctx, &a->o),
        .d_state_out = fv_tape_shadow(ctx, &a->state_out),
        .d_z_out = fv_tape_shadow(ctx, &a->z_out),
        .d_q = fv_tape_shadow(ctx, &a->q),
        .d_k = fv_tape_shadow(ctx, &a->k),
        .d_v = fv_tape_shadow(ctx, &a->v),
        .d_beta = fv_tape_shadow(ctx, &a->beta),
        .d_log_decay = fv_tape_shadow(ctx, &a->log_decay),
        .d_state_in = fv_tape_shadow(ctx, &a->state_in),
        .d_z_in = fv_tape_shadow(ctx, &a->z_in),
    };

    return fv_present(&g.d_o) ? ctx->backend->scan_backward(ctx, a, &g) : FV_OK;
}

fv_status fv_scan(fv_ctx *ctx, const fv_scan_args *args)
{
    const fv_scan_args *a = args;

    FV_TRY(check(a));
    FV_TRY(fv_check_apart(ctx, "scan", &a->q, &a->o));
    if (fv_present(&a->state_in)) FV_TRY(fv_check_apart(ctx, "scan", &a->state_in, &a->state_out));
    if (fv_present(&a->z_in)) FV_TRY(fv_check_apart(ctx, "scan", &a->z_in, &a->z_out));
    FV_TRY(ctx->backend->scan(ctx, a));
    return FV_TAPE_RECORD(ctx, walk_back, a, 7, &a->q, &a->k, &a->v, &a->log_decay, &a->beta, &a->state_in, &a->z_in,
                          &a->o, &a->state_out, &a->z_out);
}
