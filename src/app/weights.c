#include "app/weights.h"

#include <math.h>

#include "attention/attention.h"
#include "ops/blocks.h"

struct work {
    const fv_session_look *look;
    const fv_pairs *pairs;
    app_weights *out;
    float *row; /* [heads, head_dim] */
};

static void head_item(void *user, int64_t head, int thread)
{
    const struct work *w = user;
    const fv_call *call = w->look->call;
    const fv_tensor *k = &call->k;
    int64_t keys = call->keys, dim = call->head_dim, group = call->query_heads / call->key_heads;
    const float *q = fv_at(&call->q, 0, head, 0, 0);
    float *weight = w->out->weight + head * keys, *row = w->row + head * dim, top = -INFINITY;
    float softcap = w->look->extra->softcap;
    double sum = 0;

    (void)thread;
    for (int64_t j = 0; j < keys; j++)
        weight[j] = -INFINITY;
    for (int64_t j = 0; j < keys; j++) {
        int64_t key = w->pairs->key_order ? w->pairs->key_order[j] : j;
        float dot = 0;
        if (!fv_plan_sees(&w->pairs->plan, call->query_heads, 0, head, 0, j)) continue;
        fv_tensor at = fv_slice(k, 1, head / group, 1);
        at = fv_slice(&at, 2, key, 1);
        fv_blocks_load(k->dtype, at.data, 0, dim / fv_dtype_block(k->dtype), row);
        for (int64_t d = 0; d < dim; d++)
            dot += q[d * call->q.strides[3]] * row[d];
        dot *= call->scale;
        weight[key] = softcap > 0 ? softcap * tanhf(dot / softcap) : dot;
        top = fmaxf(top, weight[key]);
    }
    for (int64_t j = 0; j < keys; j++)
        sum += weight[j] = weight[j] > -INFINITY ? expf(weight[j] - top) : 0;
    for (int64_t j = 0; j < keys && sum > 0; j++)
        weight[j] = (float)((double)weight[j] / sum);
}

fv_status app_weights_of(fv_ctx *ctx, const fv_session_look *look, app_weights *weights)
{
    const fv_call *call = look->call;
    struct work work = {.look = look, .out = weights};
    fv_pairs pairs = {0};

    *weights = (app_weights){.heads = call->query_heads, .keys = call->keys, .text = look->position};
    if (look->plan) {
        pairs.plan = *look->plan;
        weights->position = look->plan->key_position;
    } else {
        FV_TRY(fv_call_pairs(ctx, fv_attention_mechanism(look->attention), call, &pairs));
    }
    FV_TRY(FV_SCRATCH(ctx, weights->weight, call->query_heads * call->keys));
    FV_TRY(FV_SCRATCH(ctx, work.row, call->query_heads * call->head_dim));
    work.pairs = &pairs;
    fv_run(ctx, call->query_heads, head_item, &work);
    return FV_OK;
}
