/* S2-Attention: besides a window of blocks each head reads the blocks of its own residue class, so that the heads
 * together cover the whole text.  arXiv 2407.17678; the window with strides of arXiv 2410.01485. */
#include "attention/mechanism.h"

struct s2 {
    int64_t block, local, local_right, stride, offset, dense_heads;
    bool causal, homo;
    int mode;
};

enum { AUTO, ABSOLUTE, RELATIVE };
enum { PATTERN };

static const char *const modes[] = {"auto", "absolute", "relative", NULL};

static const fv_option options[] = {
    FV_BOOL(struct s2, causal, 1, "nothing behind the query"),
    FV_INT(struct s2, block, 64, 1, INT32_MAX, "tokens in a block"),
    FV_INT(struct s2, local, 32, 1, INT32_MAX, "blocks of the window, the query's own included"),
    FV_INT(struct s2, local_right, 0, 0, INT32_MAX, "blocks of the window from the query's own on; 0: as `local`"),
    FV_INT(struct s2, stride, 8, 1, INT32_MAX, "outside the window, one in so many blocks is read"),
    FV_INT(struct s2, offset, 0, 0, INT32_MAX, "shifts the blocks that a head owns"),
    FV_BOOL(struct s2, homo, 0, "all heads own the same blocks"),
    FV_INT(struct s2, dense_heads, 0, 0, INT32_MAX, "last key-value heads that read everything"),
    FV_ENUM(
        struct s2, mode, "auto", modes,
        "absolute: heads own residue classes of blocks; relative: one in `stride` by distance, alike for all heads; "
        "auto: absolute if causal"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_OF(FV_U8, "pattern", "[1|Hkv, blocks, blocks]",
                "in place of the rule: 1 where block row reads block column"),
    {0},
};

static fv_status check(const void *values)
{
    const struct s2 *o = values;

    if (!o->causal || o->local_right == 0) return FV_OK;
    return fv_fail(FV_E_USAGE, "s2: option 'local_right' needs causal=0: no query reads what lies behind it");
}

static fv_status accept(fv_call *call)
{
    const struct s2 *o = call->options;
    const fv_tensor *pattern = &call->param[PATTERN];
    int64_t blocks = fv_ceil_div(call->keys, o->block);

    if (call->causal && !o->causal)
        return fv_fail(FV_E_USAGE, "s2: option 'causal': expected 1 of a causal call, got 0");
    call->causal = o->causal;
    if (o->dense_heads > call->key_heads)
        return fv_fail(FV_E_SHAPE, "s2: option 'dense_heads': expected at most the key-value heads, %lld, got %lld",
                       (long long)call->key_heads, (long long)o->dense_heads);
    if (!fv_present(pattern) || pattern->dims[1] == blocks || (call->decoding && pattern->dims[1] > blocks))
        return FV_OK;
    return fv_fail(FV_E_SHAPE, "s2: param 'pattern': expected %lld blocks of %lld keys, got %s", (long long)blocks,
                   (long long)o->block, fv_shape_text(pattern));
}

/* Blocks that head h reads for block `own` by its pattern. */
static void add_pattern(const fv_tensor *pattern, int64_t h, int64_t own, fv_list_builder *lists)
{
    const uint8_t *row = (const uint8_t *)pattern->data + (pattern->dims[0] > 1 ? h : 0) * pattern->strides[0] +
                         own * pattern->strides[1];

    for (int64_t block = 0; block < lists->key_blocks; block++)
        if (row[block * pattern->strides[2]]) fv_lists_add(lists, block);
}

/* The same by the rule: absolute: (J + h step + offset) mod stride = 0; relative: the distance from the window is a
 * multiple of the stride. */
static void add_rule(const struct s2 *o, int64_t heads, int64_t h, int64_t own, fv_list_builder *lists)
{
    bool relative = o->mode == AUTO ? !o->causal : o->mode == RELATIVE;
    int64_t left = own - o->local + 1, right = o->causal ? own : own + (o->local_right ? o->local_right : o->local) - 1;
    int64_t end = o->causal ? own + 1 : lists->key_blocks, step = fv_max(o->stride / heads, 1);

    if (relative) {
        fv_lists_add_every(lists, left - left / o->stride * o->stride, left, o->stride);
        fv_lists_add_range(lists, left, right + 1);
        fv_lists_add_every(lists, right + o->stride, end, o->stride);
        return;
    }
    fv_lists_add_range(lists, left, right + 1);
    fv_lists_add_every(lists, -(((o->homo ? 0 : h) * step + o->offset) % o->stride), end, o->stride);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct s2 *o = call->options;
    fv_list_builder lists;

    (void)attend;
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = o->block,
                                           .key_block = o->block,
                                           .heads = call->key_heads,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = call->offset}));
    for (int64_t r = 0; r < call->key_heads * lists.groups; r++) {
        int64_t h = r / lists.groups, own = fv_lists_first_block(&lists) + r % lists.groups;
        fv_lists_row(&lists);
        if (h >= call->key_heads - o->dense_heads)
            fv_lists_add_range(&lists, 0, o->causal ? own + 1 : lists.key_blocks);
        else if (own >= 0 && fv_present(&call->param[PATTERN]))
            add_pattern(&call->param[PATTERN], h, own, &lists);
        else if (own >= 0)
            add_rule(o, call->query_heads, h, own, &lists);
    }
    return fv_lists_end(&lists, plan_);
}

const fv_mechanism fv_mechanism_s2 = {
    .name = "s2",
    .title = "S2-Attention",
    .paper = "arXiv 2407.17678, 2410.01485",
    .sheet = 86,
    .family = FV_STATIC_SPARSE,
    .traits = FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "with P = p div block, J = j div block, h the key-value head and step = max(1, stride div H): j <= p is "
               "visible iff P - J < local or (J + h step + offset) mod stride = 0; mode=relative: iff (max(0, P - J - "
               "local + 1) + max(0, J - P - local_right + 1)) mod stride = 0",
    .cost = "each query reads local * block + N / stride keys",
    .options = options,
    .options_size = sizeof(struct s2),
    .params = params,
    .check = check,
    .accept = accept,
    .plan = plan,
};
