/* Softmax attention over every pair, or over a sliding window of them: what all others are compared with. */
#include "attention/mechanism.h"

struct dense {
    int64_t window;
    double softcap;
};

enum { BIAS, SINKS };

static const fv_option options[] = {
    FV_INT(struct dense, window, 0, 0, INT32_MAX, "keys within this distance, the query's own included; 0: all"),
    FV_FLOAT(struct dense, softcap, 0, 0, 1e6, "c: scaled scores s become c tanh(s / c); 0: off"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("bias", "[1|B, 1|H, N, M]", "added to the scaled scores"),
    FV_PARAM("sinks", "[H]", "an extra logit per head, in the denominator only"),
    {0},
};

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct dense *o = call->options;

    (void)ctx;
    plan_->window.window = o->window;
    if (o->softcap > 0) attend->logits.softcap = (float)o->softcap;
    attend->logits.bias = call->param[BIAS];
    attend->sinks = call->param[SINKS];
    return FV_OK;
}

const fv_mechanism fv_mechanism_dense = {
    .name = "dense",
    .title = "Dense softmax attention",
    .paper = "arXiv 1706.03762",
    .family = FV_DENSE,
    .traits = FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "o_i = sum_j softmax_j(cap(scale q_i.k_j) + bias_ij) v_j over the keys j that i sees: all, those up to "
               "its own position p with --causal, and with a window only |p - j| < window",
    .cost = "2 N M (D + Dv) flops a head, half of it when causal; O(N + M) memory",
    .options = options,
    .options_size = sizeof(struct dense),
    .params = params,
    .plan = plan,
};
