#include "app/reads.h"

#include <math.h>

#include "app/app.h"
#include "attention/attention.h"
#include "base/memory.h"
#include "ops/blocks.h"

fv_status app_reads_new(app_reads *reads, int64_t layers, int64_t heads, int64_t keys)
{
    int64_t cells;

    *reads = (app_reads){.layers = layers, .heads = heads, .keys = keys};
    if (!fv_mul_i64(layers, heads, &cells) || !fv_mul_i64(cells, APP_READS_BINS, &cells))
        return fv_fail(FV_E_MEMORY, "%lld layers of %lld heads are too many", (long long)layers, (long long)heads);
    FV_TRY(FV_ALLOC(reads->weight, cells));
    for (int64_t i = 0; i < cells; i++)
        reads->weight[i] = -1;
    return FV_ZALLOC(reads->state, layers);
}

void app_reads_free(app_reads *reads)
{
    fv_free(reads->weight);
    fv_free(reads->state);
    *reads = (app_reads){0};
}

struct look {
    const fv_session_look *at;
    const fv_pairs *pairs;
    app_reads *reads;
    float *scores; /* [heads, keys] */
};

/* One head: scores of the visible keys, softmax, sums in bins of their positions. */
static void look_head(void *user, int64_t head, int thread)
{
    const struct look *look = user;
    const fv_call *call = look->at->call;
    const fv_plan *plan = &look->pairs->plan;
    int64_t keys = call->keys, group = call->query_heads / call->key_heads;
    const float *q = fv_at(&call->q, 0, head, 0, 0);
    float *scores = look->scores + head * keys, top = -INFINITY, softcap = look->at->extra->softcap;
    float *bins = look->reads->weight + (look->at->layer * look->reads->heads + look->at->head + head) * APP_READS_BINS;
    fv_tensor k = call->k;
    double sum = 0;

    (void)thread;
    for (int64_t j = 0; j < keys; j++) {
        int64_t key = look->pairs->key_order ? look->pairs->key_order[j] : j;
        float dot = 0, row[1024];
        fv_tensor at = fv_slice(&k, 1, head / group, 1);
        scores[key] = -INFINITY;
        if (!fv_plan_sees(plan, call->query_heads, 0, head, 0, j)) continue;
        at = fv_slice(&at, 2, key, 1);
        fv_blocks_load(k.dtype, at.data, 0, call->head_dim / fv_dtype_block(k.dtype), row);
        for (int64_t d = 0; d < call->head_dim; d++)
            dot += q[d * call->q.strides[3]] * row[d];
        dot *= call->scale;
        scores[key] = softcap > 0 ? softcap * tanhf(dot / softcap) : dot;
        top = fmaxf(top, scores[key]);
    }
    for (int64_t j = 0; j < keys; j++)
        if (scores[j] > -INFINITY) sum += exp((double)scores[j] - top);
    for (int64_t j = 0; j < keys; j++) {
        int64_t place = look->at->plan && plan->key_position ? plan->key_position[j] : j;
        int64_t position = look->at->position ? look->at->position[place] : place;
        int64_t bin = fv_min(position * APP_READS_BINS / look->reads->keys, APP_READS_BINS - 1);
        if (scores[j] == -INFINITY) continue;
        bins[bin] = fmaxf(bins[bin], 0) + (float)(exp((double)scores[j] - top) / sum);
    }
}

static fv_status look_all(fv_ctx *ctx, struct look *look)
{
    const fv_session_look *at = look->at;
    fv_pairs pairs = {0};

    if (at->plan)
        pairs.plan = *at->plan;
    else
        FV_TRY(fv_call_pairs(ctx, fv_attention_mechanism(at->attention), at->call, &pairs));
    FV_TRY(FV_SCRATCH(ctx, look->scores, at->call->query_heads * at->call->keys));
    look->pairs = &pairs;
    fv_run(ctx, at->call->query_heads, look_head, look);
    return FV_OK;
}

fv_status app_reads_look(app_reads *reads, fv_ctx *ctx, const fv_session_look *at)
{
    struct look look = {.at = at, .reads = reads};
    unsigned traits = fv_attention_mechanism(at->attention)->traits;
    double start = app_seconds();
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status = FV_OK;

    if (at->layer == 0 && at->head == 0) reads->steps++;
    if (traits & (FV_RECURRENT | FV_NO_MAP))
        reads->state[at->layer] = true;
    else if (at->call->queries == 1 && at->call->head_dim <= 1024)
        status = look_all(ctx, &look);
    fv_scratch_release(ctx, mark);
    reads->seconds += app_seconds() - start;
    return status;
}
