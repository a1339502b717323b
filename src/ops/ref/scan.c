/* scan: the recurrence itself, token after token, in doubles; so it does not know what a chunk is. */
#include <math.h>
#include <string.h>

#include "ops/ref/pieces.h"
#include "ops/ref/recurrence.h"
#include "ops/ref/ref.h"

fv_status fv_ref_token_new(fv_ctx *ctx, const fv_scan_args *args, fv_ref_token *token)
{
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];

    FV_TRY(FV_SCRATCH(ctx, token->q, D));
    FV_TRY(FV_SCRATCH(ctx, token->k, D));
    FV_TRY(FV_SCRATCH(ctx, token->v, Dv));
    FV_TRY(FV_SCRATCH(ctx, token->decay, fv_max(D, Dv) + 1));
    FV_TRY(FV_SCRATCH(ctx, token->e, Dv));
    return FV_SCRATCH(ctx, token->row, fv_max(D, Dv));
}

void fv_ref_token_load(const fv_scan_args *args, int64_t b, int64_t h, int64_t t, fv_ref_token *token)
{
    const fv_tensor *g = &args->log_decay;
    int64_t kv = h / (args->q.dims[1] / args->k.dims[1]);

    fv_ref_load(&args->q, b, h, t, token->row, token->q);
    fv_ref_load(&args->k, b, kv, t, token->row, token->k);
    fv_ref_load(&args->v, b, kv, t, token->row, token->v);
    token->beta = fv_present(&args->beta) ? *fv_ref_f32(&args->beta, b, h, t) : 1;
    token->decay[0] = 1;
    if (args->decay == FV_DECAY_PER_HEAD) token->decay[0] = exp(((const float *)g->data)[h * g->strides[0]]);
    if (args->decay == FV_DECAY_PER_TOKEN) token->decay[0] = exp(*fv_ref_f32(g, b, h, t));
    if (args->decay == FV_DECAY_PER_KEY || args->decay == FV_DECAY_PER_VALUE) {
        fv_ref_load(g, b, h, t, token->row, token->decay);
        for (int64_t n = 0; n < g->dims[3]; n++)
            token->decay[n] = exp(token->decay[n]);
    }
}

void fv_ref_step(const fv_scan_args *args, fv_ref_token *token, double *state, double *z)
{
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];

    memcpy(token->e, token->v, (size_t)Dv * sizeof *token->e);
    for (int64_t d = 0; d < D; d++) {
        for (int64_t c = 0; c < Dv; c++) {
            state[d * Dv + c] *= fv_ref_decay(args, token, d, c);
            if (args->delta) token->e[c] -= state[d * Dv + c] * token->k[d];
        }
        if (args->normalise) z[d] = fv_ref_decay(args, token, d, 0) * z[d] + token->beta * token->k[d];
    }
    for (int64_t d = 0; d < D; d++)
        for (int64_t c = 0; c < Dv; c++)
            state[d * Dv + c] += token->beta * token->k[d] * token->e[c];
}

double fv_ref_denominator(const fv_scan_args *args, const fv_ref_token *token, const double *z, bool *floored)
{
    double sum = args->epsilon;

    *floored = false;
    if (!args->normalise) return 1;
    for (int64_t d = 0; d < args->q.dims[3]; d++)
        sum += token->q[d] * z[d];
    *floored = args->floor > 0 && sum < args->floor;
    return *floored ? (double)args->floor : sum;
}

void fv_ref_begin(const fv_scan_args *args, int64_t b, int64_t h, double *state, double *z)
{
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];

    for (int64_t d = 0; d < D; d++) {
        z[d] = fv_present(&args->z_in) ? fv_ref_f32(&args->z_in, b, h, d)[0] : 0;
        for (int64_t c = 0; c < Dv; c++)
            state[d * Dv + c] =
                fv_present(&args->state_in) ? fv_ref_f32(&args->state_in, b, h, d)[c * args->state_in.strides[3]] : 0;
    }
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

struct scan {
    const fv_scan_args *args;
    fv_ref_token *tokens;
    double **states, **zs, **outs; /* per thread */
};

static void write_state(const fv_scan_args *args, int64_t b, int64_t h, const double *state, const double *z)
{
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];

    for (int64_t d = 0; d < D; d++) {
        if (fv_present(&args->z_out)) *fv_ref_f32(&args->z_out, b, h, d) = (float)z[d];
        for (int64_t c = 0; c < Dv && fv_present(&args->state_out); c++)
            fv_ref_f32(&args->state_out, b, h, d)[c * args->state_out.strides[3]] = (float)state[d * Dv + c];
    }
}

static void scan_head(void *user, int64_t item, int thread)
{
    const struct scan *w = user;
    const fv_scan_args *args = w->args;
    fv_ref_token *token = &w->tokens[thread];
    double *state = w->states[thread], *z = w->zs[thread], *out = w->outs[thread];
    int64_t H = args->q.dims[1], N = args->q.dims[2], D = args->q.dims[3], Dv = args->v.dims[3];
    int64_t b = item / H, h = item % H;

    fv_ref_begin(args, b, h, state, z);
    for (int64_t t = 0; t < N; t++) {
        float *o = fv_ref_f32(&args->o, b, h, t);
        double divisor;
        bool floored;
        fv_ref_token_load(args, b, h, t, token);
        fv_ref_step(args, token, state, z);
        divisor = fv_ref_denominator(args, token, z, &floored);
        if (fv_present(&args->denominator)) *fv_ref_f32(&args->denominator, b, h, t) = (float)divisor;
        memset(out, 0, (size_t)Dv * sizeof *out);
        for (int64_t d = 0; d < D; d++)
            for (int64_t c = 0; c < Dv; c++)
                out[c] += token->q[d] * state[d * Dv + c];
        for (int64_t c = 0; c < Dv; c++)
            o[c * args->o.strides[3]] = (float)(divisor != 0 ? out[c] / divisor : 0);
    }
    write_state(args, b, h, state, z);
}

fv_status fv_ref_scan(fv_ctx *ctx, const fv_scan_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t D = args->q.dims[3], Dv = args->v.dims[3], cells;
    int threads = fv_ctx_threads(ctx);
    struct scan w = {.args = args};
    fv_status status;

    if (!fv_mul_i64(D, Dv, &cells)) return fv_fail(FV_E_MEMORY, "scan: the size of the state overflows");
    FV_TRY_DONE(FV_SCRATCH(ctx, w.tokens, threads));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.states, threads));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.zs, threads));
    FV_TRY_DONE(FV_SCRATCH(ctx, w.outs, threads));
    for (int t = 0; t < threads; t++) {
        FV_TRY_DONE(fv_ref_token_new(ctx, args, &w.tokens[t]));
        FV_TRY_DONE(FV_SCRATCH(ctx, w.states[t], cells));
        FV_TRY_DONE(FV_SCRATCH(ctx, w.zs[t], D));
        FV_TRY_DONE(FV_SCRATCH(ctx, w.outs[t], Dv));
    }
    fv_run(ctx, args->q.dims[0] * args->q.dims[1], scan_head, &w);
    status = fv_ctx_check(ctx);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
