/* Dynamic hierarchical sparse attention: chunks of keys, whose length may vary, are scored by their means against the
 * mean of a query block, and the block reads the best tokens within a budget.  arXiv 2510.24606. */
#include "attention/sparse/dhsa.h"

#include "attention/sparse/core.h"

static const char *const pools[] = {"avg_norm", "avg", "max", NULL};
static const char *const scores_[] = {"chunk", "vs", NULL};

static const fv_option options[] = {
    FV_INT(struct fv_dhsa, block, 256, 1, INT32_MAX, "queries that share a list"),
    FV_INT(struct fv_dhsa, budget, 2048, 1, INT32_MAX, "keys a list holds; at least local + global"),
    FV_INT(struct fv_dhsa, local, 128, 0, INT32_MAX, "newest keys of a block, always in its list"),
    FV_INT(struct fv_dhsa, global, 128, 0, INT32_MAX, "first keys, always in it"),
    FV_INT(struct fv_dhsa, instruction, 64, 0, INT32_MAX, "last queries, which read all; logits: a chunk begins there"),
    FV_ENUM(struct fv_dhsa, pool, "avg_norm", pools, "what stands for a chunk: its mean times the root of its length"),
    FV_INT(struct fv_dhsa, chunk, 64, 1, INT32_MAX, "keys of a chunk, where no boundaries are given"),
    FV_FLOAT(struct fv_dhsa, threshold, 1.1, -1e30, 1e30, "least logit of a boundary"),
    FV_INT(struct fv_dhsa, half_width, 8, 0, INT32_MAX, "how near an accepted boundary suppresses others"),
    FV_INT(struct fv_dhsa, reach, 4, 1, 1 << 20, "keys on either side by which the network judges a boundary"),
    FV_BOOL(struct fv_dhsa, strict, 0, "1: blocks choose by the mean query of the block before; the first reads all"),
    FV_ENUM(struct fv_dhsa, score, "chunk", scores_, "vs: of equal chunks, by columns and diagonals of the last block"),
    FV_FLOAT(struct fv_dhsa, vertical, 0.5, 0, 1, "vs: share of the budget that goes to columns"),
    FV_FLOAT(struct fv_dhsa, density, 0.125, 0, 1, "vs: share of the chunks that a block reads"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_OF(FV_I32, "boundaries", "[E]", "where chunks begin, and the end: 0 < .. < M (chunks of equal length)"),
    FV_PARAM_FIXED("boundary_logits", "[B, M]", "of a boundary behind each key"),
    FV_PARAM_FIXED("p.norm_weight", "[C]", "network that makes those logits, of C = Hkv D channels: norm (1)"),
    FV_PARAM_FIXED("p.norm_bias", "[C]", "(0)"),
    FV_PARAM_FIXED("p.qkv_weight", "[3*C, C]", "4 heads of attention in the windows"),
    FV_PARAM_FIXED("p.qkv_bias", "[3*C]", "(0)"),
    FV_PARAM_FIXED("p.out_weight", "[C, C]", "their output"),
    FV_PARAM_FIXED("p.out_bias", "[C]", "(0)"),
    FV_PARAM_FIXED("p.fc1_weight", "[256, F]", "hidden layer over F = 4 C + 1 features"),
    FV_PARAM_FIXED("p.fc1_bias", "[256]", "(0)"),
    FV_PARAM_FIXED("p.fc2_weight", "[1, 256]", "logit"),
    FV_PARAM_FIXED("p.fc2_bias", "[1]", "(0)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    int64_t channels = call->key_heads * call->head_dim;

    (void)values;
    if (strcmp(name, "C") == 0) return channels;
    return strcmp(name, "F") == 0 ? 4 * channels + 1 : -1;
}

static fv_status check(const void *values)
{
    const struct fv_dhsa *o = values;

    if (o->local + o->global <= o->budget) return FV_OK;
    return fv_fail(FV_E_USAGE, "dhsa: option 'budget': expected at least local + global = %lld, got %lld",
                   (long long)(o->local + o->global), (long long)o->budget);
}

bool fv_dhsa_has_network(const fv_call *call)
{
    bool any = false;

    for (int p = FV_DHSA_NORM_WEIGHT; p < FV_DHSA_PARAMS; p++)
        any |= fv_present(&call->param[p]);
    return any;
}

static fv_status check_network(const fv_call *call)
{
    static const int needed[] = {FV_DHSA_QKV_WEIGHT, FV_DHSA_OUT_WEIGHT, FV_DHSA_FC1_WEIGHT, FV_DHSA_FC2_WEIGHT};

    for (int n = 0; n < 4; n++)
        if (!fv_present(&call->param[needed[n]]))
            return fv_fail(FV_E_USAGE, "dhsa: param '%s' is missing: the network needs it", params[needed[n]].name);
    if (call->key_heads * call->head_dim % FV_DHSA_HEADS == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "dhsa: the network: expected a multiple of %d channels, got %lld", FV_DHSA_HEADS,
                   (long long)(call->key_heads * call->head_dim));
}

int64_t fv_dhsa_boundary(const fv_call *call, int64_t n)
{
    const fv_tensor *t = &call->param[FV_DHSA_BOUNDARIES];

    return ((const int32_t *)t->data)[n * t->strides[0]];
}

static fv_status check_boundaries(const fv_call *call)
{
    int64_t count = call->param[FV_DHSA_BOUNDARIES].dims[0];

    if (count < 2 || fv_dhsa_boundary(call, 0) != 0 || fv_dhsa_boundary(call, count - 1) != call->keys)
        return fv_fail(FV_E_SHAPE, "dhsa: param 'boundaries': expected 0 first and %lld last, got %lld and %lld",
                       (long long)call->keys, (long long)(count > 0 ? fv_dhsa_boundary(call, 0) : -1),
                       (long long)(count > 0 ? fv_dhsa_boundary(call, count - 1) : -1));
    for (int64_t n = 1; n < count; n++)
        if (fv_dhsa_boundary(call, n) <= fv_dhsa_boundary(call, n - 1))
            return fv_fail(FV_E_SHAPE, "dhsa: param 'boundaries': expected ascending ones, got %lld behind %lld",
                           (long long)fv_dhsa_boundary(call, n), (long long)fv_dhsa_boundary(call, n - 1));
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct fv_dhsa *o = call->options;
    bool given = fv_present(&call->param[FV_DHSA_BOUNDARIES]), logits = fv_present(&call->param[FV_DHSA_LOGITS]);
    bool network = fv_dhsa_has_network(call);

    if (given + logits + network > 1 || (o->score == FV_DHSA_BY_LINES && given + logits + network > 0))
        return fv_fail(FV_E_USAGE, "dhsa: boundaries come from 'boundaries', 'boundary_logits' or 'p.*': expected %s",
                       o->score == FV_DHSA_BY_LINES ? "none of them with score=vs" : "one of them");
    if (network) FV_TRY(check_network(call));
    return given ? check_boundaries(call) : FV_OK;
}

static int64_t ahead(const void *values)
{
    const struct fv_dhsa *o = values;

    return o->score == FV_DHSA_BY_LINES ? 0 : o->block; /* the last block chooses for all */
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

int64_t fv_dhsa_keys(const fv_call *call, const struct fv_dhsa_groups *g, int64_t i)
{
    const struct fv_dhsa *o = call->options;

    return fv_min((g->first + i + 1) * o->block, call->keys);
}

int64_t fv_dhsa_target(const fv_call *call)
{
    const struct fv_dhsa *o = call->options;

    return fv_max((int64_t)(o->density * (double)fv_ceil_div(call->keys, o->chunk)), 1);
}

static int64_t length_of(const fv_call *call, const struct fv_dhsa_groups *g, int64_t i)
{
    const struct fv_dhsa *o = call->options;

    if (i < 0) return fv_ceil_div(call->keys, g->granule);
    if (o->score == FV_DHSA_BY_CHUNKS) return fv_min(fv_dhsa_keys(call, g, i), o->budget);
    return fv_min(fv_ceil_div(fv_dhsa_keys(call, g, i), o->chunk),
                  fv_max(fv_dhsa_target(call), 2)); /* both ends are forced */
}

static void add_group(struct fv_dhsa_groups *g, int64_t block, int64_t from)
{
    g->block[g->count] = block;
    g->query_start[g->count++] = from;
    g->listed += block >= 0;
}

static fv_status group_rows(fv_ctx *ctx, const fv_call *call, struct fv_dhsa_groups *g)
{
    const struct fv_dhsa *o = call->options;
    int64_t entries = 0;

    *g = (struct fv_dhsa_groups){.first = call->offset / o->block,
                                 .granule = o->score == FV_DHSA_BY_LINES ? o->chunk : 1};
    FV_TRY(fv_cut_queries(ctx, call, o->block, &g->blocks, &g->start));
    FV_TRY(FV_SCRATCH(ctx, g->block, g->blocks + 2));
    FV_TRY(FV_SCRATCH(ctx, g->query_start, g->blocks + 3));
    FV_TRY(FV_SCRATCH(ctx, g->row_start, call->batch * (g->blocks + 2) + 1));
    if (o->score == FV_DHSA_BY_CHUNKS && o->strict) g->from = g->start[1];
    g->to = fv_clamp(call->keys - o->instruction - call->offset, g->from, call->queries);
    if (o->score == FV_DHSA_BY_LINES) g->to = fv_min(g->to, g->start[g->blocks - 1]);
    if (g->from > 0) add_group(g, -1, 0);
    for (int64_t i = 0; i < g->blocks; i++)
        if (g->start[i] < g->to && g->start[i + 1] > g->from) add_group(g, i, fv_max(g->start[i], g->from));
    if (g->to < call->queries) add_group(g, -1, g->to);
    g->query_start[g->count] = call->queries;
    for (int64_t r = 0; r < call->batch * g->count; r++) {
        g->row_start[r] = entries;
        entries += length_of(call, g, g->block[r % g->count]);
    }
    g->row_start[call->batch * g->count] = entries;
    return FV_SCRATCH(ctx, g->entry, entries);
}

void fv_dhsa_list_all(const struct fv_dhsa_groups *g, int64_t row)
{
    for (int64_t e = g->row_start[row]; e < g->row_start[row + 1]; e++)
        g->entry[e] = (int32_t)(e - g->row_start[row]);
}

static void lists_of(const fv_call *call, const struct fv_dhsa_groups *g, fv_plan *plan)
{
    plan->lists = (fv_lists){.query_block = ((const struct fv_dhsa *)call->options)->block,
                             .key_block = g->granule,
                             .groups = g->count,
                             .key_blocks = fv_ceil_div(call->keys, g->granule),
                             .query_start = g->query_start,
                             .batch_stride = call->batch > 1 ? g->count : 0,
                             .heads = 1,
                             .row_start = g->row_start,
                             .entry = g->entry};
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static fv_status choose(fv_ctx *ctx, const fv_call *call, struct fv_dhsa_groups *g)
{
    const struct fv_dhsa *o = call->options;

    FV_TRY(group_rows(ctx, call, g));
    for (int64_t r = 0; r < call->batch * g->count; r++)
        if (g->block[r % g->count] < 0) fv_dhsa_list_all(g, r);
    if (g->listed == 0) return FV_OK;
    return o->score == FV_DHSA_BY_LINES ? fv_dhsa_choose_by_lines(ctx, call, g)
                                        : fv_dhsa_choose_by_chunks(ctx, call, g);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    struct fv_dhsa_groups g;

    (void)attend;
    FV_TRY_CHOOSING(ctx, choose(ctx, call, &g));
    lists_of(call, &g, plan_);
    return FV_OK;
}

const fv_mechanism fv_mechanism_dhsa = {
    .name = "dhsa",
    .title = "Dynamic hierarchical sparse attention",
    .paper = "arXiv 2510.24606",
    .sheet = 22,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_BLOCK_CAUSAL | FV_SELF_ONLY | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "of the n keys up to its end a query block reads all if n <= budget, else the first global, the last local "
        "and the best others by mean(q).mean(k in chunk) sqrt(length), q and k averaged over heads, until there "
        "are budget; softmax over those j <= p; the last instruction queries read all",
    .cost = "each query reads at most budget keys; scores cost 2 (N / block) (N / chunk) D flops",
    .options = options,
    .options_size = sizeof(struct fv_dhsa),
    .params = params,
    .check = check,
    .size = size,
    .accept = accept,
    .ahead = ahead,
    .plan = plan,
    .kept = fv_dhsa_kept,
};
