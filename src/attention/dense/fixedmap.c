/* Attention maps that no input changes: queries and keys come from one fixed stream, and every batch of values is read
 * by the same map.  Random and fixed sequences of Deconstructing Attention, arXiv 2510.11602. */
#include "attention/mechanism.h"

enum { VALUE_CHANNELS = 256 }; /* of one attend: batches are read side by side */

static const fv_option options[] = {FV_OPTIONS_END};

/* x [batches,H,N,C] as [1,H,N,batches,C], and back from the same shape contiguous. */
static fv_tensor side_by_side(const fv_tensor *x)
{
    const int64_t *d = x->dims, *s = x->strides;

    return fv_view(x, FV_DIMS(1, d[1], d[2], d[0], d[3]), (const int64_t[]){0, s[1], s[2], s[0], s[3]}, 0);
}

/* Batches of values, as more channels of one; o likewise.  lse [1,H,N] or absent. */
static fv_status attend_batches(fv_ctx *ctx, fv_attend_args *attend, const fv_tensor *v, const fv_tensor *o)
{
    fv_tensor from = side_by_side(v), to = side_by_side(o), wide_v, wide_o;

    if (v->dims[0] == 1) {
        attend->v = *v;
        attend->o = *o;
        return fv_attend(ctx, attend);
    }
    FV_TRY(fv_tensor_new(ctx, &wide_v, FV_F32, 5, from.dims));
    FV_TRY(fv_tensor_new(ctx, &wide_o, FV_F32, 5, to.dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = from, .out = wide_v}));
    attend->v = fv_reshaped(&wide_v, FV_DIMS(1, from.dims[1], from.dims[2], from.dims[3] * from.dims[4]));
    attend->o = fv_reshaped(&wide_o, FV_DIMS(1, to.dims[1], to.dims[2], to.dims[3] * to.dims[4]));
    FV_TRY(fv_attend(ctx, attend));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = wide_o, .out = to});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    int64_t B = call->batch, H = call->query_heads, most = fv_max(VALUE_CHANNELS / call->value_dim, 1);
    fv_plan plan = {.causal = call->causal, .offset = call->offset};
    fv_attend_args attend = {.q = call->q, .k = call->k, .plan = &plan, .logits = fv_call_logits(call)};
    fv_tensor v = call->v, lse = {0};

    if (B > 1 && fv_dtype_block(v.dtype) > 1) FV_TRY(fv_plain(ctx, &call->v, &v));
    if (call->k.dims[1] != v.dims[1]) { /* every query head has a key of its own, or a value */
        FV_TRY(fv_repeat_heads(ctx, &call->k, H, &attend.k));
        FV_TRY(fv_repeat_heads(ctx, &call->v, H, &v));
    }
    if (fv_present(&call->lse)) FV_TRY(fv_tensor_new(ctx, &lse, FV_F32, FV_DIMS(1, H, call->queries)));
    for (int64_t b = 0, count; b < B; b += count) {
        fv_tensor part, o;
        count = fv_min(most, B - b);
        part = fv_slice(&v, 0, b, count);
        o = fv_slice(&call->o, 0, b, count);
        attend.lse = b == 0 ? lse : (fv_tensor){0};
        FV_TRY(attend_batches(ctx, &attend, &part, &o));
    }
    return fv_present(&lse) ? fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = lse, .out = call->lse}) : FV_OK;
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    (void)ctx, (void)call, (void)pairs; /* every pair, or those of causality */
    return FV_OK;
}

/* Logits are computed once for the batches that are read together. */
static fv_status work(fv_ctx *ctx, const fv_call *call, fv_work *work_)
{
    int64_t maps = fv_ceil_div(call->batch, fv_max(VALUE_CHANNELS / call->value_dim, 1));
    fv_plan plan = {.causal = call->causal, .offset = call->offset};
    int64_t pairs;

    FV_TRY(fv_plan_pairs(ctx, &plan, 1, call->query_heads, call->queries, call->keys, &pairs));
    work_->pairs = call->batch * pairs;
    work_->flops = 2 * (double)pairs * (double)(maps * call->head_dim + call->batch * call->value_dim);
    return FV_OK;
}

const fv_mechanism fv_mechanism_fixedmap = {
    .name = "fixedmap",
    .title = "Attention maps of a fixed stream",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .family = FV_DENSE,
    .traits = FV_SHARED_QK | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "softmax(scale q k^T) v for every batch of v, with the first N rows of one stream's q and k",
    .cost = "2 N^2 (D + B Dv) flops a head for B batches of 256 channels or fewer in all, half of it with --causal",
    .options = options,
    .forward = forward,
    .map = map,
    .work = work,
};
