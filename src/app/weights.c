#include "app/weights.h"

#include <math.h>

#include "attention/attention.h"
#include "ops/blocks.h"

struct work {
    const fv_look *look;
    const fv_pairs *pairs;
    app_weights *out;
    float *row; /* [heads, head_dim] */
};

static float product(const struct work *w, int64_t head, int64_t key)
{
    const fv_call *call = w->look->call;
    int64_t dim = call->head_dim, group = call->query_heads / call->key_heads;
    const float *q = fv_at(&call->q, 0, head, 0, 0);
    fv_tensor at = fv_slice(&call->k, 1, head / group, 1);
    float *row = w->row + head * dim, dot = 0;

    at = fv_slice(&at, 2, key, 1);
    fv_blocks_load(at.dtype, at.data, 0, dim / fv_dtype_block(at.dtype), row);
    for (int64_t d = 0; d < dim; d++)
        dot += q[d * call->q.strides[3]] * row[d];
    return dot;
}

/* Keys that are read as one weigh alike, by their mean. */
static void head_item(void *user, int64_t head, int thread)
{
    const struct work *w = user;
    const fv_call *call = w->look->call;
    const fv_pairs *pairs = w->pairs;
    const int32_t *order = pairs->key_order ? pairs->key_order + head * pairs->head_stride : NULL;
    int64_t keys = call->keys, columns = pairs->columns ? pairs->columns : keys;
    float *weight = w->out->weight + head * keys, top = -INFINITY, softcap = w->look->extra->softcap;
    double sum = 0;

    (void)thread;
    for (int64_t j = 0; j < keys; j++)
        weight[j] = -INFINITY;
    for (int64_t j = 0; j < columns; j++) {
        int64_t first = pairs->columns ? pairs->column_key[j] : j, count = pairs->columns ? pairs->column_keys[j] : 1;
        float dot = 0;
        if (!fv_plan_sees(&pairs->plan, call->query_heads, 0, head, 0, j)) continue;
        for (int64_t n = first; n < first + count; n++)
            dot += product(w, head, order ? order[n] : n) / (float)count;
        dot *= call->scale;
        if (softcap > 0) dot = softcap * tanhf(dot / softcap);
        for (int64_t n = first; n < first + count; n++)
            weight[order ? order[n] : n] = dot;
        top = fmaxf(top, dot);
    }
    for (int64_t j = 0; j < keys; j++)
        sum += weight[j] = weight[j] > -INFINITY ? expf(weight[j] - top) : 0;
    for (int64_t j = 0; j < keys && sum > 0; j++)
        weight[j] = (float)((double)weight[j] / sum);
}

fv_status app_weights_of(fv_ctx *ctx, const fv_look *look, app_weights *weights)
{
    const fv_call *call = look->call;
    struct work work = {.look = look, .out = weights};
    fv_pairs pairs = {0};

    *weights = (app_weights){.heads = call->query_heads, .keys = call->keys, .text = look->text};
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
