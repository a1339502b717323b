#include "app/reads.h"

#include <math.h>

#include "app/app.h"
#include "app/weights.h"
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

/* Weights, summed in bins of the keys' positions. */
static fv_status look_all(fv_ctx *ctx, app_reads *reads, const fv_look *look)
{
    app_weights weights;

    FV_TRY(app_weights_of(ctx, look, &weights));
    for (int64_t h = 0; h < weights.heads; h++) {
        float *bins = reads->weight + (look->layer * reads->heads + look->head + h) * APP_READS_BINS;
        for (int64_t j = 0; j < weights.keys; j++) {
            int64_t bin = fv_min(app_weights_position(&weights, j) * APP_READS_BINS / reads->keys, APP_READS_BINS - 1);
            float weight = weights.weight[h * weights.keys + j];
            if (weight > 0) bins[bin] = fmaxf(bins[bin], 0) + weight;
        }
    }
    return FV_OK;
}

fv_status app_reads_look(app_reads *reads, fv_ctx *ctx, const fv_look *at)
{
    unsigned traits = fv_attention_mechanism(at->attention)->traits;
    double start = app_seconds();
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status = FV_OK;

    if (at->layer == 0 && at->head == 0) reads->steps++;
    if (traits & (FV_RECURRENT | FV_NO_MAP))
        reads->state[at->layer] = true;
    else if (at->call->queries == 1)
        status = look_all(ctx, reads, at);
    fv_scratch_release(ctx, mark);
    reads->seconds += app_seconds() - start;
    return status;
}
