/* Core context aware attention: old tokens are pooled, a group at a time, by the attention of the group's last token; a
 * query reads all pooled rows, and in the same softmax the tokens behind them as they are.  arXiv 2412.12465. */
#include <math.h>

#include "attention/sparse/core.h"

struct corecontext {
    int64_t group, window;
    int pool, core_pos;
    bool log_bias;
};

/* Bytes of partial results held at once. */
#define PART_BYTES ((int64_t)8 << 20)

enum { POOL_PER_HEAD, POOL_KV_HEAD, POOL_ALL_HEADS, POOL_MEAN };
static const char *const pools[] = {"per_head", "kv_head", "all_heads", "mean", NULL};
static const char *const positions[] = {"none", NULL};

static const fv_option options[] = {
    FV_INT(struct corecontext, group, 16, 1, 1 << 20, "tokens pooled into one row"),
    FV_INT(struct corecontext, window, 1024, 1, INT32_MAX, "newest tokens, read as they are; up to group - 1 more are"),
    FV_ENUM(
        struct corecontext, pool, "per_head", pools,
        "pooling by the weights of each query head; by their mean over a key-value head's or all query heads; or by "
        "equal ones"),
    FV_BOOL(struct corecontext, log_bias, 0, "add log group to the logits of pooled rows"),
    FV_ENUM(struct corecontext, core_pos, "none", positions, "position that pooled keys are rotated for once more"),
    FV_OPTIONS_END,
};

/* Pooled rows of a key-value head: one for each of its query heads, or for all of them. */
static int64_t pooled_heads(const fv_call *call)
{
    const struct corecontext *o = call->options;

    return o->pool == POOL_PER_HEAD ? call->query_heads / call->key_heads : 1;
}

/* A row holds the pooled keys and values of a group of tokens, [pooled heads, D + Dv]. */
static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    *width = kind == 0 ? pooled_heads(call) * (call->head_dim + call->value_dim) : 0;
    return kind == 0 ? keys / ((const struct corecontext *)call->options)->group : 0;
}

/* ---- pooling ---------------------------------------------------------------------------------------------------- */

/* Weights [B|1,Hkv|1,C|1,pooled heads,group] of the tokens of groups from .. from+C-1, whose keys are k
 * [B,Hkv,C,group,D]. */
static fv_status weigh(fv_ctx *ctx, const fv_call *call, const fv_tensor *k, int64_t from, fv_tensor *weights)
{
    const struct corecontext *o = call->options;
    int64_t B = call->batch, Hkv = call->key_heads, members = call->query_heads / Hkv, g = o->group, C = k->dims[2];
    int64_t first = (from + 1) * g - 1 - call->offset; /* the query of the first group's last token */
    fv_tensor q, logits, means;

    if (o->pool == POOL_MEAN || call->scale == 0) {
        FV_TRY(fv_tensor_new(ctx, weights, FV_F32, FV_DIMS(1, 1, 1, pooled_heads(call), g)));
        return fv_fill(ctx, weights, 1 / (float)g);
    }
    if (first < 0)
        return fv_fail(FV_E_UNSUPPORTED,
                       "corecontext: pools tokens by a query of theirs, but it came before this chunk");
    q = fv_every(&call->q, 2, first, g, C);
    q = fv_grouped(&q, Hkv);
    q = fv_permuted(&q, (const int[]){0, 1, 3, 2, 4});
    FV_TRY(fv_tensor_new(ctx, &logits, FV_F32, FV_DIMS(B, Hkv, C, members, g)));
    FV_TRY(fv_tensor_new(ctx, weights, FV_F32, FV_DIMS(B, Hkv, C, members, g)));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = q, .b = fv_transposed(k), .c = logits}));
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = logits, .out = *weights, .scale = call->scale}));
    if (o->pool == POOL_PER_HEAD) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(B, Hkv, C, g)));
    FV_TRY(fv_pool_rows(
        ctx, &(fv_pool_args){.x = *weights, .out = fv_reshaped(&means, FV_DIMS(B, Hkv, C, 1, g)), .block = members}));
    FV_TRY(fv_pool_heads(ctx, FV_POOL_MEAN, &means, o->pool == POOL_ALL_HEADS ? 1 : Hkv, &means));
    *weights = fv_reshaped(&means, FV_DIMS(B, means.dims[1], C, 1, g));
    return FV_OK;
}

/* Rows of keys or values by groups, [B,Hkv,C,group,D], from group `from` on. */
static fv_status groups_of(fv_ctx *ctx, const fv_call *call, const fv_tensor *x, int64_t from, int64_t C,
                           fv_tensor *groups)
{
    int64_t g = ((const struct corecontext *)call->options)->group;
    fv_tensor stored = fv_slice(x, 2, from * g, C * g), rows;

    FV_TRY(fv_as_f32(ctx, &stored, &rows));
    *groups = fv_parted(&rows, 2, g);
    return FV_OK;
}

static fv_status pool_rows(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    int64_t D = call->head_dim, Dv = call->value_dim;
    fv_tensor pooled = fv_parted(out, 3, D + Dv), k, v, weights;

    FV_TRY(groups_of(ctx, call, &call->k, from, out->dims[2], &k));
    FV_TRY(groups_of(ctx, call, &call->v, from, out->dims[2], &v));
    FV_TRY(weigh(ctx, call, &k, from, &weights));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = weights, .b = k, .c = fv_slice(&pooled, 4, 0, D)}));
    return fv_gemm(ctx, &(fv_gemm_args){.a = weights, .b = v, .c = fv_slice(&pooled, 4, D, Dv)});
}

static fv_status make_rows(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, pool_rows(ctx, call, from, out));
    return FV_OK;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Who reads which pooled rows, and which keys behind them: no token twice, and none left out. */
static fv_status cut(fv_ctx *ctx, const fv_call *call, fv_plan *pooled, fv_plan *raw, int64_t *read)
{
    const struct corecontext *o = call->options;
    int32_t *from, *to;

    FV_TRY(FV_SCRATCH(ctx, from, call->queries));
    FV_TRY(FV_SCRATCH(ctx, to, call->queries));
    *read = 0;
    for (int64_t i = 0; i < call->queries; i++) {
        *read = fv_max(call->offset + i + 1 - o->window, 0) / o->group;
        to[i] = (int32_t)*read;
        from[i] = (int32_t)(*read * o->group);
    }
    *pooled = (fv_plan){.key_to = to};
    *raw = (fv_plan){.causal = true, .offset = call->offset, .key_from = from};
    return FV_OK;
}

/* Attention to pooled rows [B,Hkv,read,width]; the query heads that have rows of their own, one of each group at a
 * time. */
static fv_status attend_pooled(fv_ctx *ctx, const fv_call *call, const fv_plan *plan, const fv_tensor *rows)
{
    int64_t P = pooled_heads(call), D = call->head_dim, Dv = call->value_dim, heads = call->query_heads / P;
    fv_attend_args attend = {.plan = plan, .logits = fv_call_logits(call)};

    for (int64_t p = 0; p < P; p++) {
        attend.q = fv_every(&call->q, 1, p, P, heads);
        attend.k = fv_slice(rows, 3, p * (D + Dv), D);
        attend.v = fv_slice(rows, 3, p * (D + Dv) + D, Dv);
        attend.o = fv_every(&call->o, 1, p, P, heads);
        attend.lse = fv_every(&call->lse, 1, p, P, heads);
        FV_TRY(fv_attend_counted(ctx, call, &attend));
    }
    return FV_OK;
}

static fv_status attend_both(fv_ctx *ctx, const fv_call *call, void *rows)
{
    const struct corecontext *o = call->options;
    fv_attend_args attend;
    fv_merge_args merge;
    fv_call far, near = *call;
    fv_plan pooled, raw;
    fv_tensor used;
    int64_t read;

    FV_TRY(cut(ctx, call, &pooled, &raw, &read));
    if (read > 0) {
        FV_TRY(fv_call_merge(ctx, call, 2, &merge));
        far = fv_merge_part(call, &merge, 0);
        near = fv_merge_part(call, &merge, 1);
        used = fv_slice(rows, 2, 0, read);
        FV_TRY(attend_pooled(ctx, &far, &pooled, &used));
        if (o->log_bias) /* the same for all of its logits */
            FV_TRY(fv_mapped(ctx, &(fv_map_args){.x = far.lse, .beta = logf((float)o->group)}, &merge.lse_part[0]));
    }
    attend = fv_call_attend(&near, &raw);
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    return read > 0 ? fv_merge(ctx, &merge) : FV_OK;
}

/* So many queries at a time that what is merged stays in cache. */
static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    int64_t groups = call->keys / ((const struct corecontext *)call->options)->group;
    int64_t row = 2 * call->batch * call->query_heads * (call->value_dim + 1) * (int64_t)sizeof(float);
    fv_tensor rows;

    FV_TRY(fv_keep(ctx, call, kept, 0, groups, make_rows, &rows));
    return fv_run_stretches(ctx, call, fv_round_up(fv_max(PART_BYTES / row, 256), 64), attend_both, &rows);
}

/* --plan is the tokens that are read as they are. */
static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_plan pooled;
    int64_t read;

    return cut(ctx, call, &pooled, &pairs->plan, &read);
}

const fv_mechanism fv_mechanism_corecontext = {
    .name = "corecontext",
    .title = "Core context aware attention",
    .paper = "arXiv 2412.12465",
    .sheet = 109,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE |
              FV_NEEDS_KEPT,
    .formula =
        "c_u = sum over group u of softmax(q_last.k D^-1/2) (k, v), for j = floor((p + 1 - window) / group) groups; "
        "one softmax over c_1 .. c_j (+ log group) and the tokens from j group on",
    .cost = "each query reads N / group pooled rows and window to window + group - 1 tokens; pooling costs "
            "2 N (2 D + Dv) flops a head; N / group rows are kept besides keys and values",
    .options = options,
    .options_size = sizeof(struct corecontext),
    .kept = kept,
    .kept_half = true,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
