/* PowerAttention: a query block reads the sink blocks, a local window, and the blocks at distances base^n, so that any
 * token reaches any later one within log(distance) layers.  arXiv 2503.03588, section 3. */
#include "attention/mechanism.h"

struct power {
    int64_t block, window_blocks, sink_blocks, base;
};

static const fv_option options[] = {
    FV_INT(struct power, block, 256, 1, INT32_MAX, "tokens in a block"),
    FV_INT(struct power, window_blocks, 5, 1, INT32_MAX, "blocks of the local window, the query's own included"),
    FV_INT(struct power, sink_blocks, 1, 0, INT32_MAX, "first blocks, which everyone reads"),
    FV_INT(struct power, base, 2, 2, 1024, "distances are powers of this"),
    FV_OPTIONS_END,
};

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct power *o = call->options;
    fv_list_builder lists;

    (void)attend;
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = o->block,
                                           .key_block = o->block,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = call->offset}));
    for (int64_t g = 0; g < lists.groups; g++) {
        int64_t own = fv_lists_first_block(&lists) + g;
        fv_lists_row(&lists);
        fv_lists_add_range(&lists, 0, fv_min(o->sink_blocks, own + 1));
        fv_lists_add_range(&lists, own - o->window_blocks + 1, own + 1);
        for (int64_t distance = 1; distance <= own; distance *= o->base)
            fv_lists_add(&lists, own - distance);
    }
    return fv_lists_end(&lists, plan_);
}

const fv_mechanism fv_mechanism_power = {
    .name = "power",
    .title = "PowerAttention",
    .paper = "arXiv 2503.03588",
    .sheet = 26,
    .family = FV_STATIC_SPARSE,
    .traits = FV_CAUSAL | FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "with P = p div block, J = j div block: j is visible iff j <= p and (P - J < window_blocks, or "
               "J < sink_blocks, or P - J = base^n, n = 0, 1, 2, ...)",
    .cost = "each query reads at most window_blocks + sink_blocks + log_base(N / block) + 1 blocks",
    .options = options,
    .options_size = sizeof(struct power),
    .plan = plan,
};
