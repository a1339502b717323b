/* How much a loss would change, to first order, if a block of attention's pairs were taken away.  MoA, arXiv
 * 2406.14909. */
#include <math.h>

#include "attention/influence.h"
#include "layers/layer.h"

struct influence {
    int64_t block;
    bool absolute;
};

static const fv_option options[] = {
    FV_INT(struct influence, block, 64, 1, INT32_MAX, "queries, and keys, that are summed together"),
    FV_BOOL(struct influence, absolute, 1, "magnitudes are summed, so that opposite influences do not cancel"),
    FV_OPTIONS_END,
};

enum { Q, K, V, D_O };
static const fv_param inputs[] = {
    FV_PARAM_NEEDED("q", "[B, H, N, D]", "queries of causal attention"),
    FV_PARAM_NEEDED("k", "[B, Hkv, N, D]", "keys"),
    FV_PARAM_NEEDED("v", "[B, Hkv, N, Dv]", "values"),
    FV_PARAM_NEEDED("do", "[B, H, N, Dv]", "the loss's gradient for attention's result"),
    {0},
};
static const fv_param params[] = {{0}};
static const fv_param outputs[] = {
    FV_PARAM("e", "[Hkv, Nb, Nb]",
             "influence of blocks of queries and keys, Nb = ceil(N / block): the most of a "
             "group's query heads, of means over B"),
    {0},
};

static int64_t size(const fv_layer_call *call, const char *name)
{
    const struct influence *o = call->options;

    return strcmp(name, "Nb") == 0 ? fv_ceil_div(fv_size_of(&call->sizes, "N"), o->block) : -1;
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct influence *o = call->options;
    const fv_tensor *in = call->in, *e = &call->out[0];
    int64_t H = in[Q].dims[1], cells = e->dims[1] * e->dims[2], group = H / e->dims[0];
    double *sums;

    FV_TRY(FV_SCRATCH(ctx, sums, H * cells));
    memset(sums, 0, (size_t)(H * cells) * sizeof *sums);
    FV_TRY(fv_influence(ctx, &(fv_influence_args){.q = in[Q],
                                                  .k = in[K],
                                                  .v = in[V],
                                                  .d_o = in[D_O],
                                                  .block = o->block,
                                                  .absolute = o->absolute,
                                                  .out = sums}));
    for (int64_t n = 0; n < e->dims[0] * cells; n++) {
        const double *from = sums + n / cells * group * cells + n % cells;
        double most = from[0];
        for (int64_t h = 1; h < group; h++)
            most = fmax(most, from[h * cells]);
        ((float *)e->data)[n] = (float)most;
    }
    return FV_OK;
}

const fv_layer_type fv_layer_attn_influence = {
    .name = "attn_influence",
    .title = "Influence of attention's blocks on a loss (probe)",
    .paper = "arXiv 2406.14909",
    .sheet = 78,
    .kind = FV_KIND_PROBE,
    .formula = "E_ij = -A_ij (G_ij - sum_k G_ik A_ik) / (1 - A_ij + eps), E_00 = -A_00 G_00, G = do v^T; e = max over "
               "a group's heads of the mean over B of sums of |E| over blocks",
    .cost = "2 (D + Dv) flops a pair, 64 rows of each head at a time",
    .options = options,
    .options_size = sizeof(struct influence),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .size = size,
    .accept = fv_layer_check_groups,
    .forward = forward,
};
