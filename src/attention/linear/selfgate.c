/* A softmax over keys whose logits are those of their own tokens, q_j.k_j: one pooling of the values for all queries,
 * or one that runs along with them.  "Non-approximate" attention of Deconstructing Attention, arXiv 2510.11602. */
#include "attention/mechanism.h"

struct selfgate {
    bool silu;
};

static const fv_option options[] = {
    FV_BOOL(struct selfgate, silu, 1, "queries go through SiLU first"),
    FV_OPTIONS_END,
};

/* ---- logits of keys ---------------------------------------------------------------------------------------------- */

/* They are made of queries, which do not stay: those of a group's heads side by side, for each key. */
static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    *width = call->key_heads > 0 ? call->query_heads / call->key_heads : 1;
    return kind == 0 ? keys : 0;
}

/* u = scale * dots, with a model's own terms. */
static fv_status finish_logits(fv_ctx *ctx, const fv_call *call, const fv_tensor *dots, const fv_tensor *out)
{
    fv_tensor number, u, negative, size, bend;

    FV_TRY(fv_number(ctx, call->scale, &number));
    if (call->softcap == 0 && call->gain == 0)
        return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = *dots, .y = number, .out = *out});
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = *dots, .y = number}, &u));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.x = u, .alpha = -1}, &negative));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = u, .y = negative}, &size));
    FV_TRY(fv_number(ctx, call->gain, &number));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = size, .y = number}, &bend));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = u, .y = bend}, &u));
    return fv_map_apply(
        ctx, &(fv_map_args){
                 .op = call->softcap == 0 ? FV_MAP_COPY : FV_MAP_SOFTCAP, .x = u, .out = *out, .alpha = call->softcap});
}

static fv_status make_logits(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const struct selfgate *o = call->options;
    int64_t rows = out->dims[2], B = call->batch, H = call->query_heads, Hkv = call->key_heads;
    fv_tensor q, k = fv_slice(&call->k, 2, from, rows), own, dots;
    fv_tensor by_head = fv_permuted(out, (const int[]){0, 1, 3, 2});

    FV_TRY(fv_kept_queries(call, from, rows, &q));
    if (o->silu) FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SILU, .x = q}, &q));
    FV_TRY(fv_tensor_new(ctx, &own, FV_I32, FV_DIMS(1, 1, rows, 1)));
    for (int64_t j = 0; j < rows; j++)
        ((int32_t *)own.data)[j] = (int32_t)j;
    FV_TRY(fv_tensor_new(ctx, &dots, FV_F32, FV_DIMS(B, H, rows, 1)));
    FV_TRY(fv_sampled_dots(ctx, &(fv_sampled_dots_args){.x = q, .y = k, .index = own, .out = dots}));
    dots = fv_reshaped(&dots, FV_DIMS(B, Hkv, H / Hkv, rows));
    return finish_logits(ctx, call, &dots, &by_head);
}

/* ---- softmax ----------------------------------------------------------------------------------------------------- */

/* Row n of x [B,H,rows,..] from n on, `count` of them, as rank 3 without the last dim of 1. */
static fv_tensor flat(const fv_tensor *x, int64_t from, int64_t count)
{
    fv_tensor rows = fv_slice(x, 2, from, count);

    rows.rank = 3;
    return rows;
}

/* All keys of 0..keys-1 for one query: o [B,H,1,Dv], lse [B,H,1]. */
static fv_status pool(fv_ctx *ctx, const fv_call *call, const fv_tensor *u, int64_t keys, const fv_tensor *o,
                      const fv_tensor *lse)
{
    fv_tensor none, bias = fv_slice(u, 2, 0, keys);

    FV_TRY(fv_number(ctx, 0, &none)); /* no query and no key takes part, only biases */
    return fv_attend(ctx, &(fv_attend_args){.q = fv_broadcast(&none, FV_DIMS(call->batch, call->query_heads, 1, 1)),
                                            .k = fv_broadcast(&none, FV_DIMS(call->batch, call->key_heads, keys, 1)),
                                            .v = fv_slice(&call->v, 2, 0, keys),
                                            .o = *o,
                                            .lse = *lse,
                                            .logits = {.bias = fv_transposed(&bias)}});
}

/* The call's own keys, each for the queries from its own on.  Every weight is one over the largest so far, which does
 * not matter to the result, nor to its gradients. */
static fv_status run_along(fv_ctx *ctx, const fv_call *call, const fv_tensor *all, const fv_tensor *o,
                           const fv_tensor *lse)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries;
    fv_tensor u = fv_slice(all, 2, call->offset, N), stored = fv_slice(&call->v, 2, call->offset, N), v;
    fv_tensor top, fade, shifted, beta, divisor, one, log_divisor;

    FV_TRY(fv_tensor_new(ctx, &top, FV_F32, FV_DIMS(B, H, N, 1)));
    FV_TRY_CHOOSING(ctx, fv_cumsum(ctx, &(fv_cumsum_args){.x = u, .out = top, .max = true}));
    FV_TRY(fv_tensor_zeros(ctx, &fade, FV_F32, FV_DIMS(B, H, N)));
    FV_TRY(fv_tensor_new(ctx, &divisor, FV_F32, FV_DIMS(B, H, N)));
    FV_TRY(fv_number(ctx, 1, &one));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SUB,
                                            .x = flat(&top, 0, N - 1),
                                            .y = flat(&top, 1, N - 1),
                                            .out = fv_slice(&fade, 2, 1, N - 1)}));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = flat(&u, 0, N), .y = flat(&top, 0, N)}, &shifted));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = shifted}, &beta));
    FV_TRY(fv_as_f32(ctx, &stored, &v));
    FV_TRY(fv_scan(ctx, &(fv_scan_args){.q = fv_broadcast(&one, FV_DIMS(B, H, N, 1)),
                                        .k = fv_broadcast(&one, FV_DIMS(B, call->key_heads, N, 1)),
                                        .v = v,
                                        .o = *o,
                                        .decay = FV_DECAY_PER_TOKEN,
                                        .log_decay = fade,
                                        .beta = beta,
                                        .normalise = true,
                                        .denominator = divisor}));
    if (!fv_present(lse)) return FV_OK;
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_LOG, .x = divisor}, &log_divisor));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = log_divisor, .y = flat(&top, 0, N), .out = *lse});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries, Dv = call->value_dim;
    int64_t before = call->causal && N > 1 ? call->offset : call->keys; /* keys that all queries read */
    fv_tensor rows, u, o, lse;
    fv_merge_args merge;

    FV_TRY(fv_keep(ctx, call, kept, 0, call->keys, make_logits, &rows));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.x = fv_permuted(&rows, (const int[]){0, 1, 3, 2})}, &u));
    u = fv_reshaped(&u, FV_DIMS(B, H, call->keys, 1));
    if (before == 0) return run_along(ctx, call, &u, &call->o, &call->lse);
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, FV_DIMS(B, H, 1, Dv)));
    FV_TRY(fv_tensor_new(ctx, &lse, FV_F32, FV_DIMS(B, H, 1)));
    FV_TRY(pool(ctx, call, &u, before, &o, &lse));
    if (before == call->keys) { /* one row for all queries */
        if (fv_present(&call->lse)) FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = lse, .out = call->lse}));
        return fv_map_apply(ctx, &(fv_map_args){.x = o, .out = call->o});
    }
    FV_TRY(fv_call_merge(ctx, call, 2, &merge));
    merge.o_part[0] = fv_broadcast(&o, 4, call->o.dims);
    merge.lse_part[0] = fv_broadcast(&lse, 3, call->o.dims);
    FV_TRY(run_along(ctx, call, &u, &merge.o_part[1], &merge.lse_part[1]));
    return fv_merge(ctx, &merge);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx, (void)call, (void)pairs; /* every pair, or those of causality */
    return FV_OK;
}

static fv_status work(fv_ctx *ctx, const fv_call *call, fv_work *work_)
{
    double rows = (double)(call->batch * call->query_heads * call->keys);
    fv_plan plan = {.causal = call->causal, .offset = call->offset};

    work_->flops = 2 * rows * (double)(call->head_dim + 2 * call->value_dim);
    return fv_plan_pairs(ctx, &plan, call->batch, call->query_heads, call->queries, call->keys, &work_->pairs);
}

const fv_mechanism fv_mechanism_selfgate = {
    .name = "selfgate",
    .title = "Self-gated pooling (no pairwise similarity)",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .family = FV_LINEAR,
    .traits = FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NEEDS_KEPT,
    .formula = "o_i = sum_j softmax_j(scale silu(q_j).k_j) v_j, j <= i with --causal; q_j is the head's own",
    .cost = "2 N (D + 2 Dv) flops a head",
    .options = options,
    .options_size = sizeof(struct selfgate),
    .kept = kept,
    .forward = forward,
    .map = map,
    .work = work,
};
