/* Hierarchical chunk attention: each query picks the chunks whose summaries agree with it best, attends within each of
 * them alone, and adds the results by the relevance of their summaries.  arXiv 2105.14039. */
#include <math.h>

#include "attention/sparse/core.h"

struct hcam {
    int64_t chunk, top;
};

enum { SUMMARY_Q, SUMMARY_K, CHUNK_MASK };

static const fv_option options[] = {
    FV_INT(struct hcam, chunk, 32, 1, INT32_MAX, "keys of a chunk; behind the last whole one nobody reads"),
    FV_INT(struct hcam, top, 8, 1, INT32_MAX, "chunks that a query reads"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("summary_q", "[B, N, H*D]", "what picks and weighs chunks (the heads of q, joined)"),
    FV_PARAM_FIXED("summary_k", "[B, C, H*D]", "summaries of the chunks (means of the heads of k, joined)"),
    FV_PARAM_OF(FV_U8, "chunk_mask", "[B, N, C]", "0: the query may not read the chunk (1)"),
    {0},
};

static int64_t chunks_of(const fv_call *call)
{
    return call->keys / ((const struct hcam *)call->options)->chunk;
}

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    (void)values;
    return strcmp(name, "C") == 0 ? chunks_of(call) : -1;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    return fv_kept_means(call, kind, 0, ((const struct hcam *)call->options)->chunk, keys, width);
}

/* Summaries of the chunks, [B,C,E]. */
static fv_status summarise(fv_ctx *ctx, const fv_call *call, fv_tensor *summaries)
{
    const struct hcam *o = call->options;
    const fv_tensor *given = &call->param[SUMMARY_K];
    fv_tensor means, wide;

    if (fv_present(given)) {
        *summaries = fv_slice(given, 1, 0, chunks_of(call));
        return FV_OK;
    }
    FV_TRY(fv_keep_means(ctx, call, 0, o->chunk, chunks_of(call), &means));
    FV_TRY(fv_repeat_heads(ctx, &means, call->query_heads, &wide));
    return fv_join_heads(ctx, &wide, summaries);
}

/* The chunks of queries from .., their places among the scores [B,1,n,C], and how many each query has. */
static fv_status pick(fv_ctx *ctx, const fv_chooser *c, int64_t from, const fv_tensor *scores, int32_t *place,
                      int64_t *count)
{
    const fv_tensor *mask = &c->call->param[CHUNK_MASK];
    int64_t B = c->call->batch, n = scores->dims[2], C = scores->dims[3], K = c->choice->index.dims[3];
    fv_tensor readable = *scores;

    if (fv_present(mask)) {
        FV_TRY(fv_tensor_new(ctx, &readable, FV_F32, 4, scores->dims));
        for (int64_t row = 0; row < B * n; row++)
            for (int64_t m = 0; m < C; m++) {
                bool shown = *(uint8_t *)fv_at(mask, row / n, from + row % n, m, 0);
                ((float *)readable.data)[row * C + m] = shown ? ((float *)scores->data)[row * C + m] : -INFINITY;
            }
    }
    FV_TRY(fv_choose(ctx, c->call, c->choice, from, &readable));
    for (int64_t row = 0; row < B * n; row++) {
        const int32_t *index = fv_at(&c->choice->index, row / n, 0, from + row % n, 0);
        count[row] = 0;
        for (int64_t t = 0; t < K; t++) {
            place[row * K + t] = index[t] < 0 ? -1 : (int32_t)(row % n * C + index[t]);
            count[row] += index[t] >= 0;
        }
    }
    return FV_OK;
}

/* The chunks of queries from .., and the softmax of their scores as weights. */
static fv_status weigh(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const fv_chooser *c = user;
    int64_t B = c->call->batch, n = scores->dims[2], C = scores->dims[3], K = c->choice->index.dims[3], *count;
    fv_tensor place, logits;

    FV_TRY(FV_SCRATCH(ctx, count, B * n));
    FV_TRY(fv_tensor_new(ctx, &place, FV_I32, FV_DIMS(B, n * K)));
    FV_TRY(fv_tensor_new(ctx, &logits, FV_F32, FV_DIMS(B, n * K, 1)));
    FV_TRY_CHOOSING(ctx, pick(ctx, c, from, scores, place.data, count));
    FV_TRY(fv_gather(ctx,
                     &(fv_gather_args){.x = fv_reshaped(scores, FV_DIMS(B, n * C, 1)), .index = place, .out = logits}));
    return fv_softmax(ctx, &(fv_softmax_args){.x = fv_reshaped(&logits, FV_DIMS(B, 1, n, K)),
                                              .out = fv_slice(&c->choice->weight, 2, from, n),
                                              .valid = count});
}

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    const struct hcam *o = call->options;
    int64_t chosen = fv_min(o->top, chunks_of(call));
    fv_tensor queries = call->param[SUMMARY_Q], summaries;

    *choice = (fv_choice){.block = o->chunk, .tail = 1, .heads = 1};
    FV_TRY(fv_choice_new(ctx, call, chosen, choice));
    FV_TRY(fv_tensor_new(ctx, &choice->weight, FV_F32, FV_DIMS(call->batch, 1, call->queries, chosen)));
    if (chosen == 0) return FV_OK;
    FV_TRY_CHOOSING(ctx, summarise(ctx, call, &summaries)); /* no gradient */
    if (!fv_present(&queries)) FV_TRY(fv_join_heads(ctx, &call->q, &queries));
    queries = fv_expanded(&queries, 1);
    summaries = fv_expanded(&summaries, 1);
    return fv_score_blocks(ctx, call, &queries, &summaries, 0, o->chunk, 1 / sqrtf((float)summaries.dims[3]), weigh,
                           &(fv_chooser){call, choice});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    fv_choice choice;

    FV_TRY(choose(ctx, call, &choice));
    return fv_choice_attend(ctx, call, &choice, true);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_choice choice;

    FV_TRY(choose(ctx, call, &choice));
    return fv_choice_plan(ctx, call, &choice, &pairs->plan);
}

const fv_mechanism fv_mechanism_hcam = {
    .name = "hcam",
    .title = "Hierarchical chunk attention (HCAM)",
    .paper = "arXiv 2105.14039",
    .sheet = 36,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "r = summary_q.summary_k E^-1/2, E = H D, for each whole chunk (causal: that ends before the query); o = "
        "sum over the top chunks of softmax(r)_c attention within chunk c; no chunk: 0",
    .cost = "each query reads at most top * chunk keys; scores cost 2 N (M / chunk) D flops a head",
    .options = options,
    .options_size = sizeof(struct hcam),
    .params = params,
    .size = size,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .map = map,
};
