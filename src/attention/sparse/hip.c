/* HiP: each query block looks for the keys it likes best in a tree of groups of them.  Version 1.1 of arXiv 2406.09827.
 */
#include "attention/sparse/tree.h"

struct hip {
    int64_t k, block_q, block_k, window, sink, stride, refresh;
    int rep;
    bool share_heads;
};

static const char *const representatives[] = {"first", "centre", "last", NULL}; /* as fv_tree_rep has them */
#define STRETCH_BYTES ((int64_t)2 << 20)                                        /* of trees that grow at once */

static const fv_option options[] = {
    FV_INT(struct hip, k, 512, 1, 1 << 30, "keys that are searched for, a multiple of block_k"),
    FV_INT(struct hip, block_q, 32, 1, INT32_MAX, "queries that search together"),
    FV_INT(struct hip, block_k, 2, 1, 1 << 20, "keys of a block"),
    FV_INT(struct hip, window, 128, 0, INT32_MAX, "newest keys of a query block, always read"),
    FV_INT(struct hip, sink, 0, 0, INT32_MAX, "first keys, always read"),
    FV_INT(struct hip, stride, 2, 1, INT32_MAX, "every stride-th row of a query block searches; none: the last one"),
    FV_ENUM(struct hip, rep, "first", representatives, "block by which a group of blocks is known"),
    FV_BOOL(struct hip, share_heads, 0, "query heads of a key-value head search together, by the largest score"),
    FV_INT(struct hip, refresh, 8, 1, INT32_MAX, "steps of decoding that use one search"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct hip *o = values;

    if (o->k % o->block_k == 0) return FV_OK;
    return fv_fail(FV_E_USAGE, "hip: option 'k': expected a multiple of block_k %lld, got %lld", (long long)o->block_k,
                   (long long)o->k);
}

static int64_t ahead(const void *values)
{
    return ((const struct hip *)values)->block_q;
}

/* Blocks that are searched for where `end` keys are visible; 0: all keys are read. */
static int64_t wanted(const struct hip *o, int64_t end)
{
    return end - o->window - o->sink > o->k ? o->k / o->block_k : 0;
}

static int64_t choice_width(const fv_call *call, int64_t keys)
{
    return wanted(call->options, keys);
}

/* ---- the search ------------------------------------------------------------------------------------------------- */

struct search {
    const fv_call *call;
    const struct hip *o;
    int64_t heads, first, groups; /* heads that search; query blocks of positions from the first on */
    fv_tensor chosen;             /* [B,heads,groups,top] i32 */
    int64_t end;                  /* keys that an earlier step saw, whose choice it is; 0: each group's own */
};

/* Visible keys of a query block: up to its last query. */
static int64_t end_of(const struct search *s, int64_t g)
{
    return fv_min((s->first + g + 1) * s->o->block_q, s->call->offset + s->call->queries);
}

/* The rows of `count` query blocks that search, x [B,Hkv,heads / Hkv,count,rows,D]; a block that has fewer has its last
 * one several times. */
static fv_status take_queries(fv_ctx *ctx, const struct search *s, int64_t from, int64_t count, fv_tensor *x)
{
    const fv_call *call = s->call;
    int64_t B = call->batch, Hkv = call->key_heads, group = call->query_heads / Hkv, D = call->head_dim;
    int64_t rows = fv_clamp(s->o->block_q / s->o->stride, 1, call->queries);
    fv_tensor index, taken, own;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(count * rows)));
    for (int64_t i = 0; i < count; i++) {
        int64_t first = (s->first + from + i) * s->o->block_q - call->offset, found = 0;
        int64_t end = end_of(s, from + i) - call->offset;
        int32_t *row = (int32_t *)index.data + i * rows;
        for (int64_t q = fv_max(first, 0); q < end; q++)
            if ((q - first) % s->o->stride == s->o->stride - 1) row[found++] = (int32_t)q;
        if (found == 0) row[found++] = (int32_t)(end - 1);
        for (; found < rows; found++)
            row[found] = row[found - 1];
    }
    FV_TRY(fv_tensor_new(ctx, &taken, FV_F32, FV_DIMS(B, call->query_heads, count * rows, D)));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = call->q, .index = index, .out = taken}));
    *x = fv_reshaped(&taken, FV_DIMS(B, Hkv, group, count, rows, D));
    if (s->heads == call->query_heads) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &own, FV_F32, FV_DIMS(B, Hkv, count, group, rows, D)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = fv_permuted(x, (const int[]){0, 1, 3, 2, 4, 5}), .out = own}));
    *x = fv_reshaped(&own, FV_DIMS(B, Hkv, 1, count, group * rows, D));
    return FV_OK;
}

static fv_status search_part(fv_ctx *ctx, const struct search *s, int64_t from, int64_t count)
{
    fv_tree tree = {.k = s->call->k,
                    .first = s->o->sink,
                    .block = s->o->block_k,
                    .rep = (fv_tree_rep)s->o->rep,
                    .chosen = fv_slice(&s->chosen, 2, from, count)};
    int64_t *end;

    FV_TRY(FV_SCRATCH(ctx, end, count));
    for (int64_t i = 0; i < count; i++)
        end[i] = end_of(s, from + i) - s->o->window;
    tree.end = end;
    FV_TRY(take_queries(ctx, s, from, count, &tree.x));
    return fv_tree_search(ctx, &tree);
}

static fv_status search(fv_ctx *ctx, const struct search *s)
{
    int64_t top = s->chosen.dims[3], bytes = s->call->batch * s->heads * 2 * top * (16 + 4 * s->o->block_k);
    int64_t step = top > 0 ? fv_clamp(STRETCH_BYTES / bytes, 1, s->groups) : s->groups;

    for (int64_t from = 0; from < s->groups && top > 0; from += step)
        FV_TRY_SCRATCH(ctx, search_part(ctx, s, from, fv_min(step, s->groups - from)));
    return FV_OK;
}

/* Searches, unless a step may use what an earlier one chose. */
static fv_status choose(fv_ctx *ctx, struct search *s)
{
    const fv_call *call = s->call;
    fv_kept_choice *kept = call->choice;
    int64_t keys = call->offset + call->queries;

    if (!kept) {
        FV_TRY(fv_tensor_new(ctx, &s->chosen, FV_I32, FV_DIMS(call->batch, s->heads, s->groups, wanted(s->o, keys))));
        return search(ctx, s);
    }
    s->chosen = fv_slice(&kept->index, 1, 0, s->heads);
    s->chosen = fv_expanded(&s->chosen, 2);
    if (kept->end == 0 || keys - kept->end >= s->o->refresh) {
        kept->end = 0;
        if (wanted(s->o, keys) > 0) FV_TRY(search(ctx, s));
        kept->end = fv_max(keys, 0);
    }
    s->end = kept->end;
    return FV_OK;
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

/* Keys before `last` of queries whose search saw `end` of them: what came since then is in the window. */
static void list_keys(const struct hip *o, int64_t end, int64_t last, const int32_t *chosen, fv_list_builder *lists)
{
    int64_t top = wanted(o, end), behind = top > 0 ? end - o->window : 0;

    fv_lists_add_range(lists, 0, fv_min(o->sink, behind));
    for (int64_t n = 0; n < top && chosen[n] >= 0; n++) {
        int64_t key = o->sink + chosen[n] * o->block_k;
        fv_lists_add_range(lists, key, fv_min(key + o->block_k, behind));
    }
    fv_lists_add_range(lists, behind, last);
}

static fv_status make_lists(fv_ctx *ctx, const fv_call *call, fv_plan *plan)
{
    const struct hip *o = call->options;
    struct search s = {.call = call, .o = o, .heads = o->share_heads ? call->key_heads : call->query_heads};
    fv_list_shape shape = fv_call_lists(call, s.heads, o->block_q, 1);
    fv_list_builder lists;

    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    s.first = fv_lists_first_block(&lists);
    s.groups = lists.groups;
    FV_TRY(choose(ctx, &s));
    for (int64_t row = 0; row < lists.rows; row++) {
        int64_t g = row % s.groups, h = row / s.groups % s.heads, last = end_of(&s, g);
        fv_lists_row(&lists);
        list_keys(o, s.end > 0 ? s.end : last, last, fv_at(&s.chosen, row / s.groups / s.heads, h, g, 0), &lists);
    }
    return fv_lists_end(&lists, plan);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    (void)attend;
    FV_TRY_CHOOSING(ctx, make_lists(ctx, call, plan_));
    return FV_OK;
}

const fv_mechanism fv_mechanism_hip = {
    .name = "hip",
    .title = "Hierarchically pruned attention",
    .paper = "arXiv 2406.09827",
    .sheet = 80,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_BLOCK_CAUSAL | FV_OWN_DECODE | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "softmax over the first sink keys, the newest `window` of the query block, and k / block_k blocks between "
        "them: as many groups of blocks are halved until all are single; of the halves those stay whose "
        "representative has the largest q.k of the query block's rows; version 1.1",
    .cost =
        "each query reads sink + k + window keys; a search at stride 2 costs 2 k D log2(N / k) flops a query at most",
    .options = options,
    .options_size = sizeof(struct hip),
    .check = check,
    .ahead = ahead,
    .choice_width = choice_width,
    .plan = plan,
};
