#include "app/reads.h"

#include <math.h>

#include "app/app.h"
#include "attention/attention.h"
#include "base/memory.h"

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
    const fv_call *call;
    const fv_pairs *pairs;
    const fv_logits *extra;
    app_reads *reads;
    int64_t layer;
    float *scores; /* [heads, keys] */
};

/* One head: scores of the visible keys, softmax, sums in bins. */
static void look_head(void *user, int64_t head, int thread)
{
    const struct look *look = user;
    const fv_call *call = look->call;
    int64_t keys = call->keys, group = call->query_heads / call->key_heads;
    const float *q = fv_at(&call->q, 0, head, 0, 0);
    float *scores = look->scores + head * keys, top = -INFINITY, softcap = look->extra ? look->extra->softcap : 0;
    float *bins = look->reads->weight + (look->layer * look->reads->heads + head) * APP_READS_BINS;
    double sum = 0;

    (void)thread;
    for (int64_t j = 0; j < keys; j++) {
        int64_t key = look->pairs->key_order ? look->pairs->key_order[j] : j;
        float dot = 0, row[1024];
        scores[key] = -INFINITY;
        if (!fv_plan_sees(&look->pairs->plan, call->query_heads, 0, head, 0, j)) continue;
        fv_load_row(call->k.dtype, call->k.data, (head / group) * call->k.strides[1] + key * call->k.strides[2],
                    call->k.strides[3], row, call->head_dim);
        for (int64_t d = 0; d < call->head_dim; d++)
            dot += q[d * call->q.strides[3]] * row[d];
        dot *= call->scale;
        scores[key] = softcap > 0 ? softcap * tanhf(dot / softcap) : dot;
        top = fmaxf(top, scores[key]);
    }
    for (int64_t j = 0; j < keys; j++)
        if (scores[j] > -INFINITY) sum += exp((double)scores[j] - top);
    for (int64_t j = 0; j < keys; j++) {
        int64_t bin = fv_min(j * APP_READS_BINS / look->reads->keys, APP_READS_BINS - 1);
        if (scores[j] == -INFINITY) continue;
        bins[bin] = fmaxf(bins[bin], 0) + (float)(exp((double)scores[j] - top) / sum);
    }
}

static fv_status look_all(fv_ctx *ctx, struct look *look, const fv_attention *attention)
{
    fv_pairs pairs;

    FV_TRY(fv_call_pairs(ctx, fv_attention_mechanism(attention), look->call, &pairs));
    FV_TRY(FV_SCRATCH(ctx, look->scores, look->call->query_heads * look->call->keys));
    look->pairs = &pairs;
    fv_run(ctx, look->call->query_heads, look_head, look);
    return FV_OK;
}

fv_status app_reads_look(app_reads *reads, fv_ctx *ctx, int64_t layer, const fv_attention *attention,
                         const fv_call *call, const fv_logits *extra)
{
    struct look look = {.call = call, .extra = extra, .reads = reads, .layer = layer};
    unsigned traits = fv_attention_mechanism(attention)->traits;
    double start = app_seconds();
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status = FV_OK;

    if (layer == 0) reads->steps++;
    if (traits & (FV_RECURRENT | FV_NO_MAP))
        reads->state[layer] = true;
    else if (call->queries == 1 && call->head_dim <= 1024)
        status = look_all(ctx, &look, attention);
    fv_scratch_release(ctx, mark);
    reads->seconds += app_seconds() - start;
    return status;
}
