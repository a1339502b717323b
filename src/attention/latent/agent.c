/* Agent attention: a few agent tokens read the keys, and every query reads the agents.  arXiv 2312.08874. */
#include "attention/mechanism.h"

struct agent {
    fv_tuple grid;
    int64_t agents;
};

enum { AGENTS, BIAS1, BIAS2, DWC_WEIGHT, DWC_BIAS };

static const fv_option options[] = {
    FV_SIDES(struct agent, grid, "rows x columns", "0x0", 0, INT32_MAX,
             "rows x columns of the queries, where pooled or convolved"),
    FV_INT(struct agent, agents, 49, 1, 1 << 20, "a perfect square: queries are pooled to so many agents"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("agents", "[B, H, p, D]", "agent tokens in place of pooled queries"),
    FV_PARAM("bias1", "[H, p, M]", "added to the scores of agents and keys"),
    FV_PARAM("bias2", "[H, N, p]", "added to the scores of queries and agents"),
    FV_PARAM("dwc_weight", "[H*Dv, 3, 3]", "depthwise convolution of v on the grid (none)"),
    FV_PARAM("dwc_bias", "[H*Dv]", "its bias (0)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    (void)name;
    return fv_present(&call->param[AGENTS]) ? -1 : ((const struct agent *)values)->agents;
}

static int64_t side(int64_t square)
{
    int64_t s = 0;

    while ((s + 1) * (s + 1) <= square)
        s++;
    return s;
}

static fv_status check(const void *values)
{
    const struct agent *o = values;

    if (side(o->agents) * side(o->agents) != o->agents)
        return fv_fail(FV_E_USAGE, "agent: option 'agents': expected a perfect square, got %lld", (long long)o->agents);
    return FV_OK;
}

static bool is_local(const fv_call *call)
{
    return fv_present(&call->param[DWC_WEIGHT]) || fv_present(&call->param[DWC_BIAS]);
}

static fv_status accept(fv_call *call)
{
    const struct agent *o = call->options;
    const int64_t *grid = o->grid.items;
    bool local = is_local(call), given = grid[0] > 0 && grid[1] > 0;

    if (!given && (local || !fv_present(&call->param[AGENTS])))
        return fv_fail(FV_E_USAGE, "agent: option 'grid' must be given to %s", local ? "convolve" : "pool agents");
    if (given) FV_TRY(fv_check_cells(call, &o->grid, call->queries));
    if (local && call->queries != call->keys)
        return fv_fail(FV_E_SHAPE, "agent: the convolution needs as many keys as queries, got %lld and %lld",
                       (long long)call->keys, (long long)call->queries);
    return FV_OK;
}

static fv_status find_agents(fv_ctx *ctx, const fv_call *call, fv_tensor *agents)
{
    const struct agent *o = call->options;
    int64_t out = side(o->agents);

    *agents = call->param[AGENTS];
    if (fv_present(agents)) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, agents, FV_F32, FV_DIMS(call->batch, call->query_heads, o->agents, call->head_dim)));
    return fv_pool_rows(ctx, &(fv_pool_args){.x = call->q,
                                             .out = *agents,
                                             .grid_height = o->grid.items[0],
                                             .grid_width = o->grid.items[1],
                                             .out_height = out,
                                             .out_width = out});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct agent *o = call->options;
    const fv_tensor *param = call->param;
    fv_attend_args gather = {.k = call->k, .v = call->v, .logits = fv_call_logits(call)};
    fv_attend_args spread = {.q = call->q, .o = call->o, .logits = fv_call_logits(call)};
    fv_tensor agents, read;

    FV_TRY(find_agents(ctx, call, &agents));
    FV_TRY(fv_tensor_new(ctx, &read, FV_F32, FV_DIMS(call->batch, call->query_heads, agents.dims[2], call->value_dim)));
    gather.q = agents;
    gather.o = read;
    gather.logits.bias = fv_expanded(&param[BIAS1], 0);
    FV_TRY(fv_attend(ctx, &gather));
    spread.k = agents;
    spread.v = read;
    spread.logits.bias = fv_expanded(&param[BIAS2], 0);
    if (!is_local(call)) return fv_attend(ctx, &spread);
    FV_TRY(fv_tensor_new(ctx, &spread.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_attend(ctx, &spread));
    return fv_add_local(ctx, call, &spread.o, &param[DWC_WEIGHT], &param[DWC_BIAS],
                        fv_images_of(1, o->grid.items[0], o->grid.items[1]));
}

static fv_status work(fv_ctx *ctx, const fv_call *call, fv_work *work_)
{
    const struct agent *o = call->options;
    const fv_tensor *given = &call->param[AGENTS];

    (void)ctx;
    work_->pairs = call->batch * call->query_heads * (fv_present(given) ? given->dims[2] : o->agents) *
                   (call->queries + call->keys);
    work_->flops = 2.0 * (double)work_->pairs * (double)(call->head_dim + call->value_dim);
    return FV_OK;
}

const fv_mechanism fv_mechanism_agent = {
    .name = "agent",
    .title = "Agent attention",
    .paper = "arXiv 2312.08874",
    .sheet = 74,
    .family = FV_LATENT,
    .traits = FV_NEVER_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE | FV_NO_LSE | FV_NO_MAP,
    .formula = "o = softmax(scale q a^T + bias2) (softmax(scale a k^T + bias1) v) + dwc(v), a = q pooled on the grid",
    .cost = "2 p (N + M) (D + Dv) flops a head for p agents",
    .options = options,
    .options_size = sizeof(struct agent),
    .params = params,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
    .work = work,
};
