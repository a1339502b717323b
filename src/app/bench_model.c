/* Rows of a whole model: reading a prompt, and one token behind it. */
#include "app/bench.h"
#include "base/memory.h"
#include "models/model.h"

struct model_call {
    fv_session *session;
    int32_t *ids;
    int64_t count;
    bool fresh; /* from an empty session; otherwise behind what is there */
    float *logits;
};

static fv_status run_model(fv_ctx *ctx, void *user)
{
    struct model_call *call = user;

    (void)ctx;
    if (call->fresh) fv_session_clear(call->session);
    return fv_session_feed(call->session, call->ids, call->count, call->logits, 1);
}

static double count_of(const fv_tensor *t)
{
    return fv_present(t) ? (double)fv_tensor_count(t) : 0;
}

/* Flops of `count` tokens behind `before`: two for each weight of the layers, those of the attention that sees
 * everything or a window, and the vocabulary's once. */
static double model_flops(const fv_model *model, int64_t before, int64_t count)
{
    const fv_sizes *s = &model->sizes;
    double flops = 2 * count_of(&model->output.tensor);

    for (int64_t l = 0; l < s->layers; l++) {
        const fv_layer *layer = &model->layers[l];
        const fv_weight *matrices[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                       &layer->gate, &layer->up, &layer->down};
        double pairs = 0;
        for (int64_t i = before; i < before + count; i++)
            pairs += (double)(layer->window ? fv_min(i + 1, layer->window) : i + 1);
        for (size_t n = 0; n < sizeof matrices / sizeof *matrices; n++)
            flops += 2 * count_of(&matrices[n]->tensor) * (double)count;
        flops += 2 * pairs * (double)s->query_heads * (double)(s->key_dim + s->value_dim);
    }
    return flops;
}

static fv_status lengths(struct bench *b, const fv_model *model, struct model_call *call, const cli_ints *sizes)
{
    /* an embedding of its own is looked up, not multiplied by */
    bool tied = model->embedding.data == model->output.tensor.data;
    size_t embedding = 0;

    FV_TRY(fv_dtype_bytes(model->embedding.dtype, fv_tensor_count(&model->embedding), &embedding));
    for (int i = 0; i < sizes->count; i++) {
        int64_t n = sizes->items[i];
        bench_row prompt = bench_named("model prompt", "%lld tokens", (long long)n);
        bench_row token = bench_named("model token", "1 token behind %lld", (long long)n);
        fv_session_stats stats;
        call->count = n;
        call->fresh = true;
        prompt.work = (app_work){.flops = model_flops(model, 0, n),
                                 .read = (double)(model->weight_bytes - (tied ? 0 : embedding)),
                                 .unit = APP_DOT_BF16};
        FV_TRY(bench_measure(b, &prompt, FV_PRECISION_AUTO, run_model, call));
        fv_session_measure(call->session, &stats);
        call->count = 1;
        call->fresh = false;
        token.work = (app_work){.flops = model_flops(model, n, 1),
                                .read = prompt.work.read + (double)stats.cache_bytes,
                                .unit = APP_DOT_BF16};
        FV_TRY(bench_measure(b, &token, FV_PRECISION_AUTO, run_model, call));
    }
    return FV_OK;
}

fv_status bench_model(struct bench *b)
{
    static const int64_t prompts[] = {512, 2048};
    cli_ints sizes = bench_sizes(b, 2, prompts);
    int64_t longest = 0, room = 1 << 11; /* single tokens fed while a row is measured */
    struct model_call call = {0};
    fv_model_info info;
    fv_model *model;
    fv_status status;

    if (bench_counts(b, 2 * sizes.count)) return FV_OK;
    for (int i = 0; i < sizes.count; i++)
        longest = fv_max(longest, sizes.items[i]);
    FV_TRY(app_model_open(b->model, &model, &info));
    FV_TRY_DONE(FV_ALLOC(call.ids, longest));
    FV_TRY_DONE(FV_ALLOC(call.logits, info.vocabulary));
    for (int64_t i = 0; i < longest; i++)
        call.ids[i] = (int32_t)(i * 7919 % info.vocabulary);
    FV_TRY_DONE(fv_session_new(b->app->ctx, model, &(fv_session_options){.context = longest + room}, &call.session));
    status = lengths(b, model, &call, &sizes);
done:
    fv_session_free(call.session);
    fv_free(call.ids);
    fv_free(call.logits);
    fv_model_close(model);
    return status;
}
