/* AnchorAttention: a row's largest logit among the first keys and its own group's, the anchor, stands for its largest
 * of all; a group of blocks then also reads the single keys whose logits come near the anchor.  arXiv 2505.23520. */
#include <math.h>

#include "attention/sparse/core.h"

struct anchor {
    int64_t block, step, init;
    double theta;
    bool use_anchor, count_bug;
};

static const fv_option options[] = {
    FV_INT(struct anchor, block, 128, 1, INT32_MAX, "queries whose mean scores keys"),
    FV_INT(struct anchor, step, 16, 1, INT32_MAX, "blocks of a group, which shares a list"),
    FV_FLOAT(struct anchor, theta, 12, -INFINITY, INFINITY, "how far below the anchor a key's logit may lie"),
    FV_INT(struct anchor, init, 128, 0, INT32_MAX, "first keys, read by everyone; at most a group"),
    FV_BOOL(struct anchor, use_anchor, 1, "0: every anchor is 0"),
    FV_BOOL(struct anchor, count_bug, 0, "1: candidates are the keys from `block` to `block` before the group"),
    FV_OPTIONS_END,
};

enum {
    QUERIES = 2048,   /* of groups whose lists are held at once; or one group */
    SCORES = 1 << 18, /* held at once */
    KEYS = 256,       /* compared at once */
};

static int64_t group_of(const void *values)
{
    const struct anchor *o = values;

    return o->block * o->step;
}

static fv_status check(const void *values)
{
    const struct anchor *o = values;

    if (o->init <= group_of(o)) return FV_OK;
    return fv_fail(FV_E_USAGE, "anchor: option 'init': expected at most block * step = %lld, got %lld",
                   (long long)group_of(o), (long long)o->init);
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

struct choosing {
    const struct anchor *options;
    const fv_call *call;
    int64_t first, blocks;    /* first: position / block of the first block of queries */
    int64_t *start;           /* [blocks + 1] their rows */
    fv_tensor q, anchor;      /* [B,H,blocks,D] and [B,H,blocks,1]: means */
    int64_t begin, end, hole; /* candidates of a group: keys from begin on that lie `hole` before it */
    int64_t from;             /* key of the first score */
    fv_tensor scores;         /* [B,H,blocks,n] */
    fv_key_lists lists;
};

/* Keys that some group may choose. */
static struct choosing candidates(const fv_call *call)
{
    const struct anchor *o = call->options;
    int64_t hole = o->count_bug ? o->block : 0, last = call->offset + call->queries - 1;

    return (struct choosing){.options = o,
                             .call = call,
                             .begin = o->count_bug ? o->block : o->init,
                             .end = last / group_of(o) * group_of(o) - hole,
                             .hole = hole};
}

static fv_status pool(fv_ctx *ctx, const fv_tensor *row_max, struct choosing *c)
{
    const fv_call *call = c->call;
    int64_t B = call->batch, H = call->query_heads, block = c->options->block;
    fv_tensor rows = fv_reshaped(row_max, FV_DIMS(B, H, call->queries, 1));

    c->first = call->offset / block;
    FV_TRY(fv_cut_queries(ctx, call, block, &c->blocks, &c->start));
    FV_TRY(fv_tensor_new(ctx, &c->q, FV_F32, FV_DIMS(B, H, c->blocks, call->head_dim)));
    FV_TRY(fv_tensor_zeros(ctx, &c->anchor, FV_F32, FV_DIMS(B, H, c->blocks, 1)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = call->q, .out = c->q, .start = c->start}));
    if (!c->options->use_anchor) return FV_OK;
    return fv_pool_rows(ctx, &(fv_pool_args){.x = rows, .out = c->anchor, .start = c->start});
}

/* Logits of the mean queries with `count` keys from c->from on. */
static fv_status score(fv_ctx *ctx, struct choosing *c, int64_t count)
{
    fv_tensor rows = fv_slice(&c->call->k, 2, c->from, count), k;

    FV_TRY(fv_as_f32(ctx, &rows, &k));
    return fv_call_products(ctx, c->call, &c->q, &k, &c->scores);
}

/* Adds the scored keys that come near the anchor of some block of a group to its list. */
static void list_keys(void *user, int64_t index, int thread)
{
    struct choosing *c = user;
    int64_t step = c->options->step, group = c->lists.first + index % c->lists.groups, width = c->scores.dims[3];
    int64_t plane = index / c->lists.groups * c->blocks, end = group * c->lists.block - c->hole;
    int64_t block = plane + fv_max(group * step - c->first, 0), blocks = plane + c->blocks;
    int64_t count = fv_clamp(end - c->from, 0, width), taken = c->lists.count[index];
    int32_t *entry = c->lists.entry + index * c->lists.room;
    const float theta = (float)c->options->theta;
    float least[KEYS]; /* distances from an anchor */

    (void)thread;
    blocks = fv_min(blocks, plane + (group + 1) * step - c->first);
    for (int64_t from = 0; from < count; from += KEYS) {
        int64_t n = fv_min(KEYS, count - from);
        for (int64_t j = 0; j < n; j++)
            least[j] = INFINITY;
        for (int64_t b = block; b < blocks; b++) {
            const float *scores = (const float *)c->scores.data + b * width + from;
            float anchor = ((const float *)c->anchor.data)[b];
            for (int64_t j = 0; j < n; j++)
                least[j] = anchor - scores[j] < least[j] ? anchor - scores[j] : least[j];
        }
        for (int64_t j = 0; j < n; j++) {
            entry[taken] = (int32_t)(c->from + from + j);
            taken += least[j] <= theta;
        }
    }
    c->lists.count[index] = taken;
}

static fv_status take_keys(fv_ctx *ctx, struct choosing *c, int64_t count)
{
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, score(ctx, c, count));
    fv_run(ctx, c->lists.lists, list_keys, c);
    return fv_ctx_check(ctx);
}

static fv_status choose(fv_ctx *ctx, const fv_tensor *row_max, struct choosing *c)
{
    int64_t H = c->call->query_heads, step;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, pool(ctx, row_max, c));
    FV_TRY(fv_key_lists_new(ctx, c->call, H, group_of(c->options), c->end - c->begin, &c->lists));
    step = fv_max(SCORES / (c->call->batch * H * c->blocks), KEYS);
    for (c->from = c->begin; c->from < c->end; c->from += step)
        FV_TRY_SCRATCH(ctx, take_keys(ctx, c, fv_min(step, c->end - c->from)));
    return FV_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* Attention to the first keys and the own group, and, where there are candidates, the choice among them. */
static fv_status begin(fv_ctx *ctx, const fv_call *call, struct choosing *c)
{
    fv_plan near = {.causal = true,
                    .offset = call->offset,
                    .window = {.sink = c->options->init, .window = 1, .block = group_of(c->options)}};
    fv_attend_args attend = fv_call_attend(call, &near);
    bool any = c->begin < c->end;

    if (any) FV_TRY(fv_tensor_new(ctx, &attend.row_max, FV_F32, 3, call->o.dims));
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    if (any) FV_TRY_CHOOSING(ctx, choose(ctx, &attend.row_max, c));
    return FV_OK;
}

static fv_status forward_part(fv_ctx *ctx, const fv_call *call)
{
    struct choosing c = candidates(call);
    fv_plan plan = {.offset = call->offset};
    fv_attend_args attend;
    fv_merge_args merge;
    fv_call near, far;

    if (c.begin >= c.end) return begin(ctx, call, &c);
    FV_TRY(fv_call_merge(ctx, call, 2, &merge));
    near = fv_merge_part(call, &merge, 0);
    far = fv_merge_part(call, &merge, 1);
    FV_TRY(begin(ctx, &near, &c));
    FV_TRY(fv_key_lists_plan(ctx, call, &c.lists, &plan));
    attend = fv_call_attend(&far, &plan);
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    return fv_merge(ctx, &merge);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    return fv_run_parts(ctx, call, group_of(call->options), QUERIES, forward_part);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct choosing c = candidates(call);
    int64_t group = group_of(c.options);
    fv_list_shape shape = fv_call_lists(call, call->query_heads, group, 1);
    fv_call part = *call;
    fv_list_builder lists;

    part.lse = (fv_tensor){0};
    FV_TRY(fv_tensor_new(ctx, &part.o, FV_F32, 4, call->o.dims));
    FV_TRY(begin(ctx, &part, &c));
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t r = 0; r < lists.rows; r++) {
        int64_t own = (fv_lists_first_block(&lists) + r % lists.groups) * group;
        fv_lists_row(&lists);
        fv_lists_add_range(&lists, 0, c.options->init);
        for (int64_t n = 0; c.lists.lists > 0 && n < c.lists.count[r]; n++)
            fv_lists_add(&lists, c.lists.entry[r * c.lists.room + n]);
        fv_lists_add_range(&lists, own, own + group);
    }
    return fv_lists_end(&lists, &pairs->plan);
}

const fv_mechanism fv_mechanism_anchor = {
    .name = "anchor",
    .title = "AnchorAttention",
    .paper = "arXiv 2505.23520",
    .sheet = 55,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_BLOCK_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "a = the row's largest logit over the first init keys and those of its group of block * step rows; a group "
        "also reads key j before it where mean(a) - scale mean(q).k_j <= theta for a block of it; softmax over the "
        "union",
    .cost = "each query reads init + block step / 2 keys and the chosen ones; scores cost N (N / block) D flops a head",
    .options = options,
    .options_size = sizeof(struct anchor),
    .check = check,
    .ahead = group_of,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
