/* The similar-token merger: tokens are clustered around peaks of their density, clusters are merged by the tokens'
 * scores, and what was merged reads all tokens once more.  LRGT, arXiv 2308.08724.
 *
 * Where the definition leaves it open: fewer tokens than k are all near; equal peaks and equally near centres are taken
 * in the order of tokens and of peaks. */
#include <math.h>

#include "base/random.h"
#include "layers/layer.h"

struct stm {
    int64_t tokens, k, heads;
    double noise;
};

static const fv_option options[] = {
    FV_INT(struct stm, tokens, 196, 1, INT32_MAX, "that come out, as many clusters"),
    FV_INT(struct stm, k, 15, 1, INT32_MAX, "nearest tokens, itself included, that make a token's density"),
    FV_INT(struct stm, heads, 12, 1, INT32_MAX, "of the attention behind merging; they divide C"),
    FV_FLOAT(struct stm, noise, 1e-6, 0, 1, "times a random number, drawn from the seed, tells equal densities apart"),
    FV_OPTIONS_END,
};

static const fv_param inputs[] = {
    FV_PARAM_NEEDED("x", "[B, n, C]", "tokens"),
    {0},
};

enum {
    NORM1_WEIGHT,
    NORM1_BIAS,
    SCORE_WEIGHT,
    SCORE_BIAS,
    Q_WEIGHT,
    K_WEIGHT,
    V_WEIGHT,
    O_WEIGHT,
    Q_BIAS,
    K_BIAS,
    V_BIAS,
    O_BIAS,
    NORM2_WEIGHT,
    NORM2_BIAS,
    MLP1_WEIGHT,
    MLP1_BIAS,
    MLP2_WEIGHT,
    MLP2_BIAS,
};
static const fv_param params[] = {
    FV_PARAM("norm1_weight", "[C]", "of the norm of tokens (1)"),
    FV_PARAM("norm1_bias", "[C]", "(0)"),
    FV_PARAM_NEEDED("score_weight", "[1, C]", "of the score by which a token counts in its cluster, and as a key"),
    FV_PARAM("score_bias", "[1]", "(0)"),
    FV_PARAM_NEEDED("q_weight", "[C, C]", "of queries, which merged tokens ask"),
    FV_PARAM_NEEDED("k_weight", "[C, C]", "of keys"),
    FV_PARAM_NEEDED("v_weight", "[C, C]", "of values"),
    FV_PARAM_NEEDED("o_weight", "[C, C]", "of the result of attention"),
    FV_PARAM("q_bias", "[C]", "(0)"),
    FV_PARAM("k_bias", "[C]", "(0)"),
    FV_PARAM("v_bias", "[C]", "(0)"),
    FV_PARAM("o_bias", "[C]", "(0)"),
    FV_PARAM("norm2_weight", "[C]", "of the norm before the feed-forward network (1)"),
    FV_PARAM("norm2_bias", "[C]", "(0)"),
    FV_PARAM_NEEDED("mlp1_weight", "[4*C, C]", "of its first layer"),
    FV_PARAM("mlp1_bias", "[4*C]", "(0)"),
    FV_PARAM_NEEDED("mlp2_weight", "[C, 4*C]", "of its second layer"),
    FV_PARAM("mlp2_bias", "[C]", "(0)"),
    {0},
};

enum { Y, CLUSTER };
static const fv_param outputs[] = {
    FV_PARAM("y", "[B, tokens, C]", "a token for each cluster, by falling peak"),
    FV_PARAM_OF(FV_I32, "cluster", "[B, n]", "the cluster that each token went into"),
    {0},
};

#define EPSILON 1e-5f /* of its norms */

static int64_t size(const fv_layer_call *call, const char *name)
{
    return strcmp(name, "tokens") == 0 ? ((const struct stm *)call->options)->tokens : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    const struct stm *o = call->options;
    int64_t n = fv_size_of(&call->sizes, "n");

    if (o->tokens > n)
        return fv_fail(FV_E_SHAPE, "stm_dpc: option 'tokens': expected at most the tokens there are, %lld, got %lld",
                       (long long)n, (long long)o->tokens);
    return fv_layer_check_heads(call, o->heads, "C");
}

/* ---- clusters --------------------------------------------------------------------------------------------------- */

/* The peaks, and the cluster of each token, i32 [B,tokens] and [B,n]; squared distances over C, negative [B,n,n]; and
 * densities [B,n]. */
struct clusters {
    fv_tensor peak, cluster, closeness, density;
};

static fv_status measure(fv_ctx *ctx, const fv_tensor *y, fv_tensor *closeness)
{
    int64_t B = y->dims[0], n = y->dims[1];
    fv_tensor products, rows, columns;

    FV_TRY(fv_tensor_new(ctx, &products, FV_F32, FV_DIMS(B, n, n)));
    FV_TRY(fv_tensor_new(ctx, closeness, FV_F32, FV_DIMS(B, n, n)));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *y, .b = fv_transposed(y), .c = products}));
    rows = fv_view(&products, FV_DIMS(B, n, 1), (const int64_t[]){n * n, n + 1, 1}, 0);
    columns = fv_view(&products, FV_DIMS(B, 1, n), (const int64_t[]){n * n, 1, n + 1}, 0);
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = rows, .y = columns, .out = *closeness}));
    FV_TRY(fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *closeness, .y = products, .out = *closeness, .alpha = -2}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = *closeness, .out = *closeness}));
    return fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *closeness, .out = *closeness, .alpha = -1 / (float)y->dims[2]});
}

/* exp(mean of the k largest) of each row, and noise. */
static fv_status find_densities(fv_ctx *ctx, const struct stm *o, struct clusters *c)
{
    int64_t B = c->closeness.dims[0], n = c->closeness.dims[1], k = fv_min(o->k, n);
    fv_tensor index, near, density;
    fv_random random = fv_random_new(ctx->seed, 0);

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, n, k)));
    FV_TRY(fv_tensor_new(ctx, &near, FV_F32, FV_DIMS(B, n, k, 1)));
    FV_TRY(fv_tensor_new(ctx, &c->density, FV_F32, FV_DIMS(B, n)));
    density = fv_reshaped(&c->density, FV_DIMS(B, n, 1, 1));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = c->closeness, .index = index}));
    FV_TRY(fv_gather(
        ctx, &(fv_gather_args){.x = fv_reshaped(&c->closeness, FV_DIMS(B, n, n, 1)), .index = index, .out = near}));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = near, .out = density, .block = k}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = density, .out = density}));
    for (int64_t i = 0; i < B * n; i++)
        ((float *)c->density.data)[i] += (float)(o->noise * fv_random_uniform(&random));
    return FV_OK;
}

/* Density times the distance to the nearest token that is denser; the densest has the largest distance of all. */
static void find_heights(const struct clusters *c, int64_t b, float *height)
{
    int64_t n = c->closeness.dims[1];
    const float *density = (const float *)c->density.data + b * n;
    float least = 0;

    for (int64_t i = 0; i < n; i++) {
        const float *closeness = (const float *)c->closeness.data + (b * n + i) * n;
        float most = -INFINITY;
        for (int64_t j = 0; j < n; j++) {
            least = fminf(least, closeness[j]);
            if (density[j] > density[i]) most = fmaxf(most, closeness[j]);
        }
        height[i] = most;
    }
    for (int64_t i = 0; i < n; i++)
        height[i] = density[i] * sqrtf(-(height[i] > -INFINITY ? height[i] : least));
}

/* Tokens to their nearest peaks, and peaks to themselves. */
static void join(const struct clusters *c, int64_t b)
{
    int64_t n = c->closeness.dims[1], count = c->peak.dims[1];
    const int32_t *peak = (const int32_t *)c->peak.data + b * count;
    int32_t *cluster = (int32_t *)c->cluster.data + b * n;

    for (int64_t i = 0; i < n; i++) {
        const float *closeness = (const float *)c->closeness.data + (b * n + i) * n;
        float most = -INFINITY;
        cluster[i] = 0;
        for (int64_t m = 0; m < count; m++) {
            if (peak[m] < 0 || closeness[peak[m]] <= most) continue; /* no peak: of numbers that are none */
            most = closeness[peak[m]];
            cluster[i] = (int32_t)m;
        }
    }
    for (int64_t m = 0; m < count; m++)
        if (peak[m] >= 0) cluster[peak[m]] = (int32_t)m;
}

static fv_status find_clusters(fv_ctx *ctx, const struct stm *o, const fv_tensor *y, struct clusters *c)
{
    int64_t B = y->dims[0], n = y->dims[1];
    fv_tensor height;

    FV_TRY(fv_tensor_new(ctx, &c->peak, FV_I32, FV_DIMS(B, o->tokens)));
    FV_TRY(fv_tensor_new(ctx, &height, FV_F32, FV_DIMS(B, n)));
    FV_TRY(measure(ctx, y, &c->closeness));
    FV_TRY(find_densities(ctx, o, c));
    for (int64_t b = 0; b < B; b++)
        find_heights(c, b, (float *)height.data + b * n);
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = height, .index = c->peak, .by_score = true}));
    for (int64_t b = 0; b < B; b++)
        join(c, b);
    return FV_OK;
}

static fv_status cluster(fv_ctx *ctx, const struct stm *o, const fv_tensor *y, fv_tensor *cluster)
{
    struct clusters c = {0};
    fv_choosing before;
    fv_status status;
    fv_mark mark;

    FV_TRY(fv_tensor_new(ctx, &c.cluster, FV_I32, FV_DIMS(y->dims[0], y->dims[1])));
    *cluster = c.cluster;
    mark = fv_scratch_mark(ctx);
    before = fv_choosing_begin(ctx);
    status = find_clusters(ctx, o, y, &c);
    fv_choosing_end(ctx, before);
    fv_scratch_release(ctx, mark);
    return status;
}

/* ---- merging ---------------------------------------------------------------------------------------------------- */

/* Sums of the rows x [B,n,C] of each cluster. */
static fv_status sum_clusters(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *cluster, int64_t count, fv_tensor *out)
{
    FV_TRY(fv_tensor_zeros(ctx, out, FV_F32, FV_DIMS(x->dims[0], count, x->dims[2])));
    return fv_gather(ctx, &(fv_gather_args){.x = *x, .index = *cluster, .out = *out, .scatter = true});
}

/* Means of the tokens y by e^score; score [B,n,1]. */
static fv_status merge(fv_ctx *ctx, const struct stm *o, const fv_tensor *y, const fv_tensor *score,
                       const fv_tensor *cluster, fv_tensor *merged)
{
    fv_tensor weight, weighted, sum, divisor, floor;

    FV_TRY(fv_tensor_new(ctx, &weight, FV_F32, 3, score->dims));
    FV_TRY(fv_tensor_new(ctx, &weighted, FV_F32, 3, y->dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = *score, .out = weight}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = *y, .y = weight, .out = weighted}));
    FV_TRY(sum_clusters(ctx, &weighted, cluster, o->tokens, &sum));
    FV_TRY(sum_clusters(ctx, &weight, cluster, o->tokens, &divisor));
    FV_TRY(fv_tensor_new(ctx, &floor, FV_F32, 3, divisor.dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = divisor, .out = floor, .beta = 1e-6f}));
    FV_TRY(fv_tensor_new(ctx, merged, FV_F32, 3, sum.dims));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_DIV, .x = sum, .y = floor, .out = *merged});
}

/* What merged tokens read of all of them, whose scores add to the logits. */
static fv_status attend(fv_ctx *ctx, const fv_layer_call *call, const fv_tensor *merged, const fv_tensor *y,
                        const fv_tensor *score, fv_tensor *out)
{
    const struct stm *s = call->options;
    const fv_tensor *w = call->param;
    fv_attend_args args = {.logits.bias = fv_reshaped(score, FV_DIMS(y->dims[0], 1, 1, y->dims[1]))};
    fv_tensor o;

    FV_TRY(fv_layer_project(ctx, merged, &w[Q_WEIGHT], &w[Q_BIAS], s->heads, &args.q));
    FV_TRY(fv_layer_project(ctx, y, &w[K_WEIGHT], &w[K_BIAS], s->heads, &args.k));
    FV_TRY(fv_layer_project(ctx, y, &w[V_WEIGHT], &w[V_BIAS], s->heads, &args.v));
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, 3, merged->dims));
    args.o = fv_layer_heads(&o, s->heads);
    FV_TRY(fv_attend(ctx, &args));
    return fv_layer_linear(ctx, &o, &w[O_WEIGHT], &w[O_BIAS], out);
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct stm *o = call->options;
    const fv_tensor *w = call->param, *out = call->out;
    fv_tensor y, index, score = {0}, merged, read = {0}, z, normed, wide = {0}, bent, part = {0};

    FV_TRY(fv_layer_norm(ctx, &call->in[0], &w[NORM1_WEIGHT], &w[NORM1_BIAS], EPSILON, &y));
    FV_TRY(cluster(ctx, o, &y, &index));
    if (fv_present(&out[CLUSTER]))
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = index, .out = out[CLUSTER]}));
    if (!fv_present(&out[Y])) return FV_OK;
    FV_TRY(fv_layer_linear(ctx, &y, &w[SCORE_WEIGHT], &w[SCORE_BIAS], &score));
    FV_TRY(merge(ctx, o, &y, &score, &index, &merged));
    FV_TRY(attend(ctx, call, &merged, &y, &score, &read));
    FV_TRY(fv_layer_map(ctx, FV_MAP_ADD, &read, &merged, &z));
    FV_TRY(fv_layer_norm(ctx, &z, &w[NORM2_WEIGHT], &w[NORM2_BIAS], EPSILON, &normed));
    FV_TRY(fv_layer_linear(ctx, &normed, &w[MLP1_WEIGHT], &w[MLP1_BIAS], &wide));
    FV_TRY(fv_layer_map(ctx, FV_MAP_GELU, &wide, NULL, &bent));
    FV_TRY(fv_layer_linear(ctx, &bent, &w[MLP2_WEIGHT], &w[MLP2_BIAS], &part));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = z, .y = part, .out = out[Y]});
}

const fv_layer_type fv_layer_stm_dpc = {
    .name = "stm_dpc",
    .title = "Similar-token merger by density peaks (LRGT)",
    .paper = "arXiv 2308.08724",
    .sheet = 94,
    .kind = FV_KIND_REDUCER,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "t = LN(x), s = t w + b; clusters around the tokens of most density * distance to a denser one; m = "
               "sum e^s t / sum e^s; z = m + MHA(m; t, t, logits + s); y = z + MLP(LN(z))",
    .cost = "2 n^2 C flops for distances, which take 8 n^2 bytes; 4 n C^2 for keys and values, 20 C^2 + 4 n C for "
            "each token that comes out",
    .options = options,
    .options_size = sizeof(struct stm),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .size = size,
    .accept = accept,
    .forward = forward,
};
