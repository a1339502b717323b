/* Linear attention whose weights are the series of exp to the second order, 1 + x + x^2 / 2, so that none is negative.
 * "Approximate" attention of Deconstructing Attention, arXiv 2510.11602. */
#include "attention/mechanism.h"

struct taylor2 {
    int denominator;
};

enum { JOINT, SPLIT };

static const char *const denominators[] = {"joint", "split", NULL};

static const fv_option options[] = {
    FV_ENUM(struct taylor2, denominator, "joint", denominators,
            "split: each order of the series is normalised by itself, and the three are added"),
    FV_OPTIONS_END,
};

static int64_t state_width(const fv_call *call)
{
    int64_t D = call->head_dim;

    return 1 + D + D * (D + 1) / 2;
}

static int feature_groups(const fv_call *call, int64_t start[FV_FEATURE_GROUPS + 1])
{
    const struct taylor2 *o = call->options;

    start[1] = o->denominator == SPLIT ? 1 : state_width(call);
    start[2] = 1 + call->head_dim;
    start[3] = state_width(call);
    return o->denominator == SPLIT ? 3 : 1;
}

static fv_status features(fv_ctx *ctx, const fv_call *call, const fv_tensor *x, fv_tensor *out)
{
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(x->dims[0], x->dims[1], x->dims[2], state_width(call))));
    return fv_taylor_rows(ctx, &(fv_taylor_args){.x = *x, .out = *out});
}

static fv_status scan(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan_)
{
    fv_tensor scale, q;

    FV_TRY(fv_number(ctx, call->scale, &scale));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = call->q, .y = scale}, &q));
    FV_TRY(features(ctx, call, &q, &scan_->q));
    FV_TRY(features(ctx, call, &call->k, &scan_->k));
    scan_->normalise = true;
    return FV_OK;
}

const fv_mechanism fv_mechanism_taylor2 = {
    .name = "taylor2",
    .title = "Attention by the second-order series of exp",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .family = FV_LINEAR,
    .traits = FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_MAP | FV_RECURRENT,
    .formula = "o_i = sum_j f_ij v_j / sum_j f_ij, f = 1 + x + x^2 / 2, x = scale q_i.k_j, j <= i with --causal; "
               "denominator=split: sum over t = 1, x, x^2 / 2 of sum_j t_ij v_j / sum_j t_ij",
    .cost = "2 (N + M) F Dv flops a head, F = 1 + D + D (D + 1) / 2 features; a state of F (Dv + 1) numbers a head",
    .options = options,
    .options_size = sizeof(struct taylor2),
    .scan = scan,
    .state_width = state_width,
    .feature_groups = feature_groups,
};
