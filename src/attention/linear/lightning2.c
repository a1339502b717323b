/* Lightning Attention-2: causal linear attention with a fixed decay per head, computed block by block.
 * arXiv 2401.04658. */
#include <math.h>

#include "attention/mechanism.h"

struct lightning2 {
    int decay;
    int64_t block;
};

enum { DECAY_ALIBI, DECAY_NONE };
enum { DECAY, STATE };

static const char *const decays[] = {"alibi", "none", NULL};

static const fv_option options[] = {
    FV_ENUM(struct lightning2, decay, "alibi", decays, "rates s_h: the ALiBi slopes, or 0"),
    FV_INT(struct lightning2, block, 64, 1, 65536, "tokens computed at once; does not change the result"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("decay", "[H]", "rates s_h >= 0 in place of the option's"),
    FV_PARAM_OUT("state", "[B, H, D, Dv]", "the state S before the first token (0), and after the last when written"),
    {0},
};

/* The slope of head h among `heads` = 2^n: a geometric series down to 2^-8. */
static double slope(int64_t h, int64_t heads)
{
    return exp2(-8.0 * (double)(h + 1) / (double)heads);
}

/* -s_h of the ALiBi rule: heads beyond a power of two take every second slope of twice as many. */
static fv_status alibi(fv_ctx *ctx, int64_t heads, fv_tensor *log_decay)
{
    int64_t power = 1;

    while (power * 2 <= heads)
        power *= 2;
    FV_TRY(fv_tensor_new(ctx, log_decay, FV_F32, FV_DIMS(heads)));
    for (int64_t h = 0; h < heads; h++)
        ((float *)log_decay->data)[h] = (float)-(h < power ? slope(h, power) : slope(2 * (h - power), 2 * power));
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const fv_tensor *rate = &call->param[DECAY];

    for (int64_t h = 0; fv_present(rate) && h < call->query_heads; h++) {
        float s = ((const float *)rate->data)[h * rate->strides[0]];
        if (!(s >= 0)) return fv_fail(FV_E_SHAPE, "lightning2: param 'decay': expected rates >= 0, got %g", s);
    }
    return FV_OK;
}

static fv_status scan(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan_)
{
    const struct lightning2 *o = call->options;
    const fv_tensor *rate = &call->param[DECAY];

    scan_->chunk = o->block;
    scan_->state_in = call->param[STATE];
    scan_->state_out = call->param_out[STATE];
    if (!fv_present(rate) && o->decay == DECAY_NONE) return FV_OK;
    scan_->decay = FV_DECAY_PER_HEAD;
    if (!fv_present(rate)) return alibi(ctx, call->query_heads, &scan_->log_decay);
    return fv_mapped(ctx, &(fv_map_args){.x = *rate, .alpha = -1}, &scan_->log_decay);
}

const fv_mechanism fv_mechanism_lightning2 = {
    .name = "lightning2",
    .title = "Lightning Attention-2",
    .paper = "arXiv 2401.04658",
    .sheet = 1,
    .family = FV_LINEAR,
    .traits = FV_CAUSAL | FV_SELF_ONLY | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_SCALE |
              FV_NO_LSE | FV_NO_MAP | FV_RECURRENT,
    .formula = "S_t = exp(-s_h) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t",
    .cost = "4 N D Dv flops a head and blocks of block x block; a state of D Dv numbers a head",
    .options = options,
    .options_size = sizeof(struct lightning2),
    .params = params,
    .accept = accept,
    .scan = scan,
};
