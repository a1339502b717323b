/* Rounding to the steps of few bits, group by group: bound by memory, so one way for all backends. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/check.h"
#include "ops/tape.h"

static void round_group(void *user, int64_t index, int thread)
{
    const fv_round_args *r = user;
    const fv_tensor *x = &r->x, *out = &r->out;
    int lead = x->rank - 2;
    int64_t groups = fv_ceil_div(x->dims[lead], r->rows), n = index / groups, first = index % groups * r->rows;
    int64_t count = fv_min(r->rows, x->dims[lead] - first), C = x->dims[lead + 1];
    const int64_t *from = x->strides + lead, *to = out->strides + lead;
    const float *in = (const float *)x->data + fv_lead_offset(x, lead, n) + first * from[0];
    float *rounded = (float *)out->data + fv_lead_offset(out, lead, n) + first * to[0];

    (void)thread;
    for (int64_t c = 0, channels = r->by_channel ? 1 : C; c < C; c += channels) {
        float most = 0, scale;
        for (int64_t i = 0; i < count; i++)
            for (int64_t e = c; e < c + channels; e++) {
                float size = fabsf(in[i * from[0] + e * from[1]]);
                most = size > most ? size : most;
            }
        scale = most > 0 ? most / (float)r->steps : 1;
        for (int64_t i = 0; i < count; i++)
            for (int64_t e = c; e < c + channels; e++)
                rounded[i * to[0] + e * to[1]] = nearbyintf(in[i * from[0] + e * from[1]] / scale) * scale;
    }
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_round_args *r = args;
    fv_tensor x = fv_tape_shadow(ctx, &r->x), out = fv_tape_shadow(ctx, &r->out);

    fv_add_into(ctx, &x, &out, 1);
    return FV_OK;
}

fv_status fv_round_rows(fv_ctx *ctx, const fv_round_args *args)
{
    const fv_tensor *x = &args->x;

    FV_TRY(fv_check_rank("round", "x", x, FV_TYPE(FV_F32), 2, FV_MAX_RANK));
    FV_TRY(fv_check("round", "out", &args->out, FV_TYPE(FV_F32), x->rank, x->dims));
    FV_TRY(fv_check_apart(ctx, "round", x, &args->out));
    if (args->rows < 1 || args->steps < 1 || args->steps > 127)
        return fv_fail(FV_E_ARGUMENT, "round: expected groups of 1 row or more and 1 to 127 steps, got %lld and %d",
                       (long long)args->rows, args->steps);
    fv_run(ctx, fv_lead_count(x, x->rank - 2) * fv_ceil_div(x->dims[x->rank - 2], args->rows), round_group,
           (void *)args);
    return FV_TAPE_RECORD(ctx, backward, args, 1, x, &args->out);
}
