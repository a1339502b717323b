/* Long-range grouping attention: tokens of all views read one another where they lie on one coarse lattice, or in one
 * patch, of the views' grid, and a convolution marks the view.  LRGT, arXiv 2308.08724. */
#include "attention/mechanism.h"

struct lga {
    fv_tuple grid;
    int64_t groups;
    int grouping;
};

enum { STRIDED, SHORT };
enum { IFS_WEIGHT, IFS_BIAS };
enum { AXES = 3 }; /* views, rows, columns */

static const char *const groupings[] = {"strided", "short", NULL};

static const fv_option options[] = {
    FV_SIDES(struct lga, grid, "views x rows x columns", NULL, 1, INT32_MAX, "views x rows x columns of the tokens"),
    FV_INT(struct lga, groups, 7, 1, INT32_MAX, "groups on each side, which it divides; 1: one, of all tokens"),
    FV_ENUM(struct lga, grouping, "strided", groupings,
            "strided: a group is every groups-th row and column; short: a patch of rows and columns"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("ifs_weight", "[H*Dv, 3, 3]", "depthwise convolution of v on each view's grid (none)"),
    FV_PARAM("ifs_bias", "[H*Dv]", "its bias (0)"),
    {0},
};

static fv_status check(const void *values)
{
    const struct lga *o = values;
    const int64_t *grid = o->grid.items;

    if (grid[1] % o->groups == 0 && grid[2] % o->groups == 0) return FV_OK;
    return fv_fail(FV_E_USAGE, "lga: option 'groups': expected a divisor of %lld rows and %lld columns, got %lld",
                   (long long)grid[1], (long long)grid[2], (long long)o->groups);
}

static fv_status accept(fv_call *call)
{
    return fv_check_cells(call, &((const struct lga *)call->options)->grid, call->queries);
}

/* A group is a window of its own: whole groups share it. */
static void fill_plan(const fv_call *call, fv_plan *plan)
{
    const struct lga *o = call->options;

    *plan = (fv_plan){.grid = {.rank = AXES}};
    for (int a = 0; a < AXES; a++) {
        plan->grid.dims[a] = o->grid.items[a];
        plan->grid.window[a] = plan->grid.stride[a] = o->grid.items[a] / (a > 0 ? o->groups : 1);
        plan->grid.dilation[a] = a > 0 && o->grouping == STRIDED ? o->groups : 1;
    }
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const int64_t *grid = ((const struct lga *)call->options)->grid.items;
    const fv_tensor *weight = &call->param[IFS_WEIGHT], *bias = &call->param[IFS_BIAS];
    fv_plan plan;
    fv_attend_args attend = {.q = call->q,
                             .k = call->k,
                             .v = call->v,
                             .o = call->o,
                             .lse = call->lse,
                             .plan = &plan,
                             .logits = fv_call_logits(call)};

    fill_plan(call, &plan);
    if (!fv_present(weight) && !fv_present(bias)) return fv_attend(ctx, &attend);
    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, 4, call->o.dims));
    FV_TRY(fv_attend(ctx, &attend));
    return fv_add_local(ctx, call, &attend.o, weight, bias, fv_images_of(grid[0], grid[1], grid[2]));
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx;
    fill_plan(call, &pairs->plan);
    return FV_OK;
}

const fv_mechanism fv_mechanism_lga = {
    .name = "lga",
    .title = "Long-range grouping attention (LRGT)",
    .paper = "arXiv 2308.08724",
    .sheet = 94,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula = "softmax over the tokens of all views with the query's row mod groups and column mod groups (short: "
               "row div (rows / groups), column div (columns / groups)); plus a 3x3 convolution of each view's v",
    .cost = "each query reads N / groups^2 keys",
    .options = options,
    .options_size = sizeof(struct lga),
    .params = params,
    .check = check,
    .accept = accept,
    .forward = forward,
    .map = map,
};
