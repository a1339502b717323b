/* Dynamic mask attention: each key has one importance, made of the values; a query reads the most important ones before
 * it, and adds the importance to their logits.  As it does not depend on the query, the keys read are a running choice:
 * each key has a lifetime.  arXiv 2508.02124. */
#include "attention/sparse/core.h"
#include "ops/ranks.h"

struct dma {
    int64_t keep, block_smooth;
    int delta, mask;
    bool bias, keep_self, evict;
};

enum { DELTA_LINEAR, DELTA_EXP };
enum { MASK_TOPK, MASK_RELU };
enum { DT_WEIGHT, DT_BIAS, A, IMPORTANCE };
static const char *const deltas[] = {"linear", "exp", NULL};
static const char *const masks[] = {"topk", "relu", NULL};

static const fv_option options[] = {
    FV_INT(struct dma, keep, 2048, 1, INT32_MAX, "keys that a query reads"),
    FV_ENUM(struct dma, delta, "linear", deltas, "importance: a softplus(dt), or exp of that"),
    FV_BOOL(struct dma, bias, 1, "add the importance to logits"),
    FV_ENUM(struct dma, mask, "topk", masks, "keys read: the most important ones, or all of an importance above 0"),
    FV_BOOL(struct dma, keep_self, 0, "a causal query reads its own key, which takes one of the places"),
    FV_BOOL(struct dma, evict, 1, "keys that no query reads any more leave the lists (0: they stay, hidden)"),
    FV_INT(struct dma, block_smooth, 0, 0, 1 << 16,
           "keys of a block, read if more than half of those before the query would be, else not; 0: none"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("dt_weight", "[Hkv, Hkv*Dv]", "dt = dt_weight (values of all key-value heads) + dt_bias (0)"),
    FV_PARAM("dt_bias", "[Hkv]", "see dt_weight (0)"),
    FV_PARAM("a", "[Hkv]", "factor of softplus(dt) (0: later keys are more important)"),
    FV_PARAM("importance", "[B, Hkv, M]", "takes the place of all that"),
    {0},
};

static fv_status accept(fv_call *call)
{
    const fv_tensor *param = call->param;

    if (!fv_present(&param[IMPORTANCE])) return FV_OK;
    for (int other = DT_WEIGHT; other < IMPORTANCE; other++)
        if (fv_present(&param[other]))
            return fv_fail(FV_E_USAGE, "dma: params 'importance' and '%s' exclude each other", params[other].name);
    return FV_OK;
}

/* ---- importance ------------------------------------------------------------------------------------------------- */

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    (void)call;
    *width = kind == 0;
    return kind == 0 ? keys : 0;
}

/* a softplus(dt) of keys [B,Hkv,n,Dv] into `out` [B,n,Hkv]. */
static fv_status measure(fv_ctx *ctx, const fv_call *call, const fv_tensor *v, const fv_tensor *out)
{
    int64_t Hkv = call->key_heads;
    fv_tensor weight = call->param[DT_WEIGHT], values, joined, dt, z;

    FV_TRY(fv_as_f32(ctx, v, &values));
    FV_TRY(fv_join_heads(ctx, &values, &joined));
    FV_TRY(fv_tensor_new(ctx, &dt, FV_F32, 3, out->dims));
    FV_TRY(fv_tensor_new(ctx, &z, FV_F32, 3, out->dims));
    if (!fv_present(&weight)) FV_TRY(fv_tensor_zeros(ctx, &weight, FV_F32, FV_DIMS(Hkv, joined.dims[2])));
    FV_TRY(
        fv_gemm(ctx, &(fv_gemm_args){.a = joined, .b = fv_transposed(&weight), .c = dt, .bias = call->param[DT_BIAS]}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SOFTPLUS, .x = dt, .out = z}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = z, .y = call->param[A], .out = *out});
}

/* Importance of keys from .. on, out [B,Hkv,n,1]. */
static fv_status make_importance(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const struct dma *o = call->options;
    fv_tensor v = fv_slice(&call->v, 2, from, out->dims[2]), exponent;
    fv_tensor numbers = fv_plane(out, 3, 0), to = fv_transposed(&numbers);

    if (!fv_present(&call->param[A])) return fv_fill(ctx, out, o->delta == DELTA_EXP); /* a 0, or exp of that */
    if (o->delta == DELTA_LINEAR) return measure(ctx, call, &v, &to);
    FV_TRY(fv_tensor_new(ctx, &exponent, FV_F32, 3, to.dims));
    FV_TRY(measure(ctx, call, &v, &exponent));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = exponent, .out = to});
}

/* [B,Hkv,M,1] */
static fv_status importance_of(fv_ctx *ctx, const fv_call *call, fv_tensor *importance)
{
    *importance = fv_expanded(&call->param[IMPORTANCE], 3);
    if (fv_present(importance)) return FV_OK;
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_keep(ctx, call, kept, 0, call->keys, make_importance, importance));
    return FV_OK;
}

/* ---- lifetimes -------------------------------------------------------------------------------------------------- */

struct life {
    const fv_call *call;
    fv_tensor importance;
    int64_t block, blocks;
    uint64_t *heap; /* [planes,keep] */
    int32_t *gone;  /* [planes,keys] of single keys */
    int32_t *left;  /* [planes,blocks] of blocks */
    uint8_t *own;   /* [planes,keys] */
};

/* Orders by importance (NaN last), equal ones by index: the later key is larger. */
static uint64_t rank_of(float importance, int64_t j)
{
    uint32_t key = importance != importance ? 0 : fv_rank_key(importance);

    return (uint64_t)key << 32 | (uint32_t)j;
}

/* Whether all keys are equally important. */
static bool is_constant(const fv_call *call)
{
    return !fv_present(&call->param[A]) && !fv_present(&call->param[IMPORTANCE]);
}

/* When each key leaves the `most` most important ones so far; right away if it is none of them. */
static void choose_most(const struct life *l, int64_t plane, int64_t most, int32_t *gone)
{
    const fv_call *call = l->call;
    uint64_t *heap = l->heap + plane * fv_min(call->keys, ((const struct dma *)call->options)->keep);

    for (int64_t j = 0; j < call->keys && is_constant(call); j++)
        gone[j] = j + most < call->keys ? (int32_t)(j + most) : INT32_MAX;
    for (int64_t j = 0; j < call->keys && !is_constant(call); j++) {
        const float *at = fv_at(&l->importance, plane / call->key_heads, plane % call->key_heads, j, 0);
        uint64_t rank = rank_of(*at, j);
        gone[j] = INT32_MAX;
        if (j < most) {
            heap[j] = rank;
            for (int64_t i = j + 1 == most ? most / 2 - 1 : -1; i >= 0; i--)
                fv_ranks_sift(heap, i, most);
        } else if (most > 0 && rank > heap[0]) {
            gone[(uint32_t)heap[0]] = (int32_t)j;
            heap[0] = rank;
            fv_ranks_sift(heap, 0, most);
        } else {
            gone[j] = (int32_t)j;
        }
    }
}

static void choose_positive(const struct life *l, int64_t plane, int32_t *gone)
{
    for (int64_t j = 0; j < l->call->keys; j++) {
        const float *at = fv_at(&l->importance, plane / l->call->key_heads, plane % l->call->key_heads, j, 0);
        gone[j] = *at > 0 ? INT32_MAX : (int32_t)j;
    }
}

/* Block c of the keys from .. to-1: it is read while more than half of those that have come live. */
static void smooth(const struct life *l, int64_t plane, int64_t c)
{
    int64_t keys = l->call->keys, from = c * l->block, to = fv_min(from + l->block, keys);
    const int32_t *gone = l->gone + plane * keys;
    int32_t left = (int32_t)from;

    for (int64_t p = from; p < to; p++) {
        int64_t living = 0, longer = 0;
        for (int64_t j = from; j <= p; j++)
            living += gone[j] > p;
        for (int64_t j = from; j < to; j++)
            longer += gone[j] >= gone[p];
        l->own[plane * keys + p] = 2 * living > p + 1 - from;
        if (2 * longer > to - from && gone[p] > left) left = gone[p];
    }
    l->left[plane * l->blocks + c] = left;
}

static void live(void *user, int64_t plane, int thread)
{
    const struct life *l = user;
    const struct dma *o = l->call->options;
    int64_t keys = l->call->keys, self = o->keep_self && l->call->causal;
    int32_t *gone = l->gone + plane * keys;

    (void)thread;
    if (o->mask == MASK_TOPK)
        choose_most(l, plane, fv_min(o->keep - self, keys), gone);
    else
        choose_positive(l, plane, gone);
    /* With its own place taken, a query reads what lived before it, and its own key. */
    for (int64_t j = 0; self && j < keys; j++)
        gone[j] += o->mask == MASK_TOPK ? gone[j] < INT32_MAX : gone[j] == j;
    for (int64_t c = 0; c < l->blocks; c++)
        smooth(l, plane, c);
}

/* One list for all queries: what lives in the end. */
static fv_status list_all(fv_ctx *ctx, const fv_call *call, const struct life *l, fv_plan *plan)
{
    fv_list_shape shape = fv_call_lists(call, call->key_heads, call->queries, l->block);
    fv_list_builder lists;

    shape.offset = 0;
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t plane = 0; plane < lists.rows; plane++) {
        fv_lists_row(&lists);
        for (int64_t c = 0; c < l->blocks; c++)
            if (l->left[plane * l->blocks + c] == INT32_MAX) fv_lists_add(&lists, c);
    }
    return fv_lists_end(&lists, plan);
}

static fv_status list(fv_ctx *ctx, const fv_call *call, const fv_tensor *importance, fv_plan *plan)
{
    const struct dma *o = call->options;
    int64_t planes = call->batch * call->key_heads;
    struct life l = {.call = call, .importance = *importance, .block = fv_max(o->block_smooth, 1)};

    l.blocks = fv_ceil_div(call->keys, l.block);
    FV_TRY(FV_SCRATCH(ctx, l.heap, planes * fv_min(call->keys, o->keep)));
    FV_TRY(FV_SCRATCH(ctx, l.gone, planes * call->keys));
    FV_TRY(FV_SCRATCH(ctx, l.left, planes * l.blocks));
    FV_TRY(FV_SCRATCH(ctx, l.own, planes * call->keys));
    fv_run(ctx, planes, live, &l);
    if (!call->causal) return list_all(ctx, call, &l, plan);
    return fv_lifetimes_plan(
        ctx, call,
        &(fv_lifetimes){.block = l.block, .heads = call->key_heads, .gone = l.left, .own = l.own, .dead = !o->evict},
        plan);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct dma *o = call->options;
    fv_tensor importance, bias;

    FV_TRY(importance_of(ctx, call, &importance));
    FV_TRY(list(ctx, call, &importance, plan_));
    if (!o->bias || (is_constant(call) && o->delta == DELTA_LINEAR)) return FV_OK; /* a bias of 0 */
    FV_TRY(fv_repeat_heads(ctx, &importance, call->query_heads, &bias));
    attend->logits.bias = fv_transposed(&bias);
    return FV_OK;
}

const fv_mechanism fv_mechanism_dma = {
    .name = "dma",
    .title = "Dynamic mask attention",
    .paper = "arXiv 2508.02124",
    .sheet = 123,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "delta_j = a softplus(W v_j) for each key-value head, v_j the values of all of them; softmax of "
               "q.k D^-1/2 + delta over the keep keys j <= p of largest delta; ties go to the later key",
    .cost = "each query reads keep keys; importance costs 2 M Hkv^2 Dv flops",
    .options = options,
    .options_size = sizeof(struct dma),
    .params = params,
    .accept = accept,
    .kept = kept,
    .plan = plan,
};
