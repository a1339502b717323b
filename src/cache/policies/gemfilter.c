/* GemFilter: the first layers read the whole prompt, the last token's products with the keys of one layer choose
 * tokens, and the model reads those alone, as a prompt of its own. */
#include <float.h>
#include <math.h>

#include "cache/policy.h"

struct gemfilter {
    int64_t budget, layer, kernel, keep_first, keep_last;
    int score;
};

static const char *const scores[] = {"raw", "softmax", NULL};
enum { RAW, SOFTMAX };

static const fv_option options[] = {
    FV_INT(struct gemfilter, budget, 1024, 1, INT32_MAX, "tokens of a prompt that are kept"),
    FV_INT(struct gemfilter, layer, -1, -1, INT32_MAX,
           "where they are judged; -1: 0.4 of the layers, the nearest one without a window"),
    FV_INT(struct gemfilter, kernel, 5, 1, 4095, "tokens over which scores are averaged; odd"),
    FV_ENUM(struct gemfilter, score, "raw", scores, "products summed over heads, or weights averaged over them"),
    FV_INT(struct gemfilter, keep_first, 0, 0, INT32_MAX, "first tokens, kept whatever they score"),
    FV_INT(struct gemfilter, keep_last, 0, 0, INT32_MAX, "last tokens, kept whatever they score"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct gemfilter *o = values;

    if (o->kernel % 2 == 0)
        return fv_fail(FV_E_USAGE, "gemfilter: option 'kernel': expected an odd number, got %lld",
                       (long long)o->kernel);
    if (o->keep_first + o->keep_last <= o->budget) return FV_OK;
    return fv_fail(FV_E_USAGE, "gemfilter: keep_first and keep_last are %lld tokens, more than the budget of %lld",
                   (long long)(o->keep_first + o->keep_last), (long long)o->budget);
}

static fv_status open(fv_policy_use *use)
{
    const struct gemfilter *o = use->options;

    if (o->layer < use->model->layers) return FV_OK;
    return fv_fail(FV_E_USAGE, "gemfilter: option 'layer': expected -1 to %lld (this model's layers), got %lld",
                   (long long)use->model->layers - 1, (long long)o->layer);
}

static int64_t filter_layer(const fv_policy_use *use, int64_t tokens)
{
    const struct gemfilter *o = use->options;
    int64_t layers = use->model->layers, wanted = (4 * layers + 5) / 10; /* 0.4 L, rounded */

    if (tokens <= o->budget) return -1;
    if (o->layer >= 0) return o->layer;
    for (int64_t away = 0; away < layers; away++) {
        if (wanted - away >= 0 && use->model->window[wanted - away] == 0) return wanted - away;
        if (wanted + away < layers && use->model->window[wanted + away] == 0) return wanted + away;
    }
    return wanted;
}

/* score[j] = sum_h q_h . k_g(h),j, which is sum_g (sum_h q_h) . k_g,j: one product per key-value head. */
static fv_status raw_scores(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, double *score)
{
    int64_t heads = k->dims[1], group = q->dims[1] / heads, n = k->dims[2], dim = k->dims[3];
    fv_tensor sum, products;

    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, FV_DIMS(1, heads, dim, 1)));
    FV_TRY(fv_tensor_new(ctx, &products, FV_F32, FV_DIMS(1, heads, n, 1)));
    for (int64_t g = 0; g < heads; g++)
        for (int64_t d = 0; d < dim; d++) {
            double all = 0;
            for (int64_t h = g * group; h < (g + 1) * group; h++)
                all += (double)*(const float *)fv_at(q, 0, h, 0, d);
            *(float *)fv_at(&sum, 0, g, d, 0) = (float)all;
        }
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *k, .b = sum, .c = products}));
    for (int64_t j = 0; j < n; j++) {
        score[j] = 0;
        for (int64_t g = 0; g < heads; g++)
            score[j] += (double)*(const float *)fv_at(&products, 0, g, j, 0);
    }
    return FV_OK;
}

/* score[j] = the mean over heads of the weight that the layer's own attention gives key j. */
static fv_status softmax_scores(fv_ctx *ctx, const fv_logits *logits, const fv_tensor *q, const fv_tensor *k,
                                double *score)
{
    int64_t heads = q->dims[1], n = k->dims[2];
    fv_attend_args args = {.q = *q, .k = *k, .v = *k, .logits = *logits};

    FV_TRY(fv_tensor_new(ctx, &args.o, FV_F32, 4, q->dims));
    FV_TRY(fv_tensor_new(ctx, &args.weights, FV_F32, FV_DIMS(1, heads, 1, n)));
    FV_TRY(fv_attend(ctx, &args));
    for (int64_t j = 0; j < n; j++) {
        score[j] = 0;
        for (int64_t h = 0; h < heads; h++)
            score[j] += (double)*(const float *)fv_at(&args.weights, 0, h, 0, j) / (double)heads;
    }
    return FV_OK;
}

/* Means over `kernel` tokens, those beyond the ends counting as 0.  What is no number comes last. */
static void pool(const double *score, int64_t n, int64_t kernel, float *out)
{
    int64_t half = kernel / 2;

    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int64_t i = fv_max(j - half, 0); i < fv_min(j + half + 1, n); i++)
            sum += score[i];
        sum /= (double)kernel;
        out[j] = isnan(sum) ? -FLT_MAX : (float)fmax(fmin(sum, FLT_MAX), -FLT_MAX);
    }
}

static fv_status filter(fv_ctx *ctx, const fv_policy_use *use, const fv_logits *logits, const fv_tensor *q,
                        const fv_tensor *k, int32_t *keep, int64_t *count)
{
    const struct gemfilter *o = use->options;
    int64_t n = k->dims[2];
    fv_select_args select = {0};
    float *pooled;
    double *score;

    *count = fv_min(o->budget, n);
    FV_TRY(FV_SCRATCH(ctx, score, n));
    FV_TRY(o->score == RAW ? raw_scores(ctx, q, k, score) : softmax_scores(ctx, logits, q, k, score));
    FV_TRY(fv_tensor_new(ctx, &select.scores, FV_F32, FV_DIMS(1, n)));
    pooled = select.scores.data;
    pool(score, n, o->kernel, pooled);
    for (int64_t j = 0; j < n; j++)
        if (j < o->keep_first || j >= n - o->keep_last) pooled[j] = INFINITY;
    FV_TRY(fv_tensor_wrap(&select.index, keep, FV_I32, FV_DIMS(1, *count)));
    return fv_select(ctx, &select);
}

const fv_policy fv_policy_gemfilter = {
    .name = "gemfilter",
    .title = "Tokens chosen by an early layer (GemFilter)",
    .paper = "arXiv 2409.17422",
    .sheet = 143,
    .traits = FV_POLICY_SCORES | FV_POLICY_FILTERS,
    .keeps =
        "the budget tokens of the prompt with the largest mean over kernel tokens of sum_h q_h . k_j, q of the last "
        "token at one layer; they are read again at positions 0 ..",
    .cost = "layer / L of the prompt's reading, and a prompt of budget tokens; rows of those tokens only",
    .sweep = "budget=ROWS",
    .options = options,
    .options_size = sizeof(struct gemfilter),
    .check = check,
    .open = open,
    .filter_layer = filter_layer,
    .filter = filter,
};
