/* A gated unit of each token in the place of attention: nothing is mixed between tokens.  arXiv 2510.11602. */
#include "layers/layer.h"

static const fv_param inputs[] = {
    FV_PARAM_NEEDED("x", "[B, N, C]", "tokens"),
    {0},
};

enum { GATE, UP, DOWN };
static const fv_param params[] = {
    FV_PARAM_NEEDED("gate_weight", "[m, C]", "of the gate"),
    FV_PARAM_NEEDED("up_weight", "[m, C]", "of what passes it"),
    FV_PARAM_NEEDED("down_weight", "[C, m]", "of the result"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("y", "[B, N, C]", "the same tokens, each from itself alone"),
    {0},
};

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const fv_tensor *x = &call->in[0], *w = call->param;
    fv_tensor gate = {0}, up = {0}, product, y = call->out[0];

    FV_TRY(fv_layer_linear(ctx, x, &w[GATE], NULL, &gate));
    FV_TRY(fv_layer_linear(ctx, x, &w[UP], NULL, &up));
    FV_TRY(fv_layer_map(ctx, FV_MAP_SILU_MUL, &gate, &up, &product));
    return fv_layer_linear(ctx, &product, &w[DOWN], NULL, &y);
}

const fv_layer_type fv_layer_mlpmix = {
    .name = "mlpmix",
    .title = "Gated unit in the place of attention (no token mixing)",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "y = (SiLU(x Wg^T) * x Wu^T) Wd^T",
    .cost = "6 m C flops a token; m = 4 C / 3 has the weights of attention's four matrices",
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .forward = forward,
};
