/* HyLRA: a plan says of each layer whether it reads everything, chooses chunks of positions, or reads the chunks that a
 * layer below it has chosen in the same step.  Every row is kept. */
#include "cache/selection.h"

#include <math.h>

#include "cache/block_means.h"
#include "cache/plan_file.h"

struct hylra {
    char plan[FV_TEXT_MAX];
    int64_t chunk, keep, sink, recent, activate_at;
    int estimator;
};

static const char *const estimators[] = {"mean", "exact", "hash", NULL};
enum { MEAN, EXACT, HASH };

static const fv_option options[] = {
    FV_WORDS(struct hylra, plan, NULL,
             "JSON file: {\"plan\":[-1 or a source below, for each layer],\"full\":[layers]}"),
    FV_INT(struct hylra, chunk, 64, 1, INT32_MAX, "positions of a chunk"),
    FV_INT(struct hylra, keep, 2048, 1, INT32_MAX, "rows that a step reads, in whole chunks"),
    FV_INT(struct hylra, sink, 64, 0, INT32_MAX, "first rows, whose chunks are always read"),
    FV_INT(struct hylra, recent, 512, 0, INT32_MAX, "newest rows, whose chunks are always read"),
    FV_INT(struct hylra, activate_at, 2048, 0, INT32_MAX, "rows from which on steps choose"),
    FV_ENUM(struct hylra, estimator, "mean", estimators,
            "a chunk's score: query . mean key, its weight, or how few signs of random projections differ"),
    FV_OPTIONS_END,
};

enum { WORDS = 2, BITS = 64 * WORDS };

/* What a layer does, and signs of projections; the same for all streams. */
struct plan {
    int64_t *source;  /* [acted layers] place of the layer whose choice it reads: its own, or one below */
    bool *full;       /* [acted layers] */
    float *direction; /* [D, BITS] +1 or -1; NULL: nobody asks */
};

struct layer {
    fv_block_means means;
    uint64_t *hash; /* [rows, heads, WORDS] */
    int64_t hashed, hash_room;
    fv_chosen chosen; /* of layers that choose */
};

/* ---- the plan ---------------------------------------------------------------------------------------------------- */

static fv_status check(const void *values)
{
    const struct hylra *o = values;

    if (o->keep >= o->chunk) return FV_OK;
    return fv_fail(FV_E_USAGE, "hylra: option 'keep': expected a chunk of %lld rows or more, got %lld",
                   (long long)o->chunk, (long long)o->keep);
}

static int64_t place_of(const fv_policy_use *use, int64_t layer)
{
    for (int64_t n = 0; n < use->layers; n++)
        if (use->layer[n] == layer) return n;
    return -1;
}

static fv_status read_full(const char *path, const json_t *root, const fv_policy_use *use, struct plan *plan)
{
    const json_t *full;
    int64_t layer;

    FV_TRY(fv_plan_file_array(path, root, "full", -1, &full));
    for (int64_t n = 0; n < (int64_t)json_array_size(full); n++) {
        FV_TRY(fv_plan_file_integer(path, "full", full, n, 0, use->model->layers - 1, &layer));
        int64_t place = place_of(use, layer);
        if (place >= 0) plan->full[place] = true;
    }
    return FV_OK;
}

/* Layers that are not acted on are checked and left alone. */
static fv_status read_sources(const char *path, const json_t *root, const fv_policy_use *use, struct plan *plan)
{
    const json_t *sources;
    int64_t source;

    FV_TRY(fv_plan_file_array(path, root, "plan", use->model->layers, &sources));
    for (int64_t l = 0; l < use->model->layers; l++) {
        int64_t place = place_of(use, l), at;
        FV_TRY(fv_plan_file_integer(path, "plan", sources, l, -1, l - 1, &source));
        if (place < 0) continue;
        plan->source[place] = place;
        if (source < 0 || plan->full[place]) continue;
        at = place_of(use, source);
        if (at < 0 || plan->full[at])
            return fv_fail(
                FV_E_FORMAT, "%s: plan[%lld]: expected a layer that chooses chunks, got layer %lld, which %s", path,
                (long long)l, (long long)source, at < 0 ? "this policy does not act on" : "reads everything");
        plan->source[place] = plan->source[at];
    }
    return FV_OK;
}

/* One step of splitmix64: well-mixed bits of a counter. */
static uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static fv_status make_directions(struct plan *plan, int64_t dim)
{
    FV_TRY(FV_ALLOC(plan->direction, dim * BITS));
    for (int64_t n = 0; n < dim * BITS; n++)
        plan->direction[n] = mixed((uint64_t)n) & 1 ? 1 : -1;
    return FV_OK;
}

static fv_status open(fv_policy_use *use)
{
    const struct hylra *o = use->options;
    struct plan *plan;
    json_t *root;
    fv_status status;

    FV_TRY(FV_ZALLOC(plan, 1));
    use->plan = plan;
    FV_TRY(FV_ALLOC(plan->source, use->layers));
    FV_TRY(FV_ZALLOC(plan->full, use->layers));
    if (o->estimator == HASH) FV_TRY(make_directions(plan, use->model->key_dim));
    FV_TRY(fv_plan_file_open(o->plan, &root));
    status = read_full(o->plan, root, use, plan);
    if (status == FV_OK) status = read_sources(o->plan, root, use, plan);
    json_decref(root);
    return status;
}

static void close(fv_policy_use *use)
{
    struct plan *plan = use->plan;

    if (!plan) return;
    fv_free(plan->source);
    fv_free(plan->full);
    fv_free(plan->direction);
    fv_free(plan);
    use->plan = NULL;
}

/* ---- scores of chunks -------------------------------------------------------------------------------------------- */

/* q [1,H,1,D] as [heads of one or all, G, D]. */
static fv_tensor by_group(const fv_tensor *q, int64_t heads)
{
    int64_t group = q->dims[1] / heads;

    return fv_view(q, 3, (const int64_t[]){heads, group, q->dims[3]},
                   (const int64_t[]){group * q->strides[1], q->strides[1], q->strides[3]}, 0);
}

/* out[heads, chunks] = the largest of in[heads, G, chunks]; what is not a number stays behind. */
static void most_of_group(const fv_tensor *in, float *out)
{
    int64_t group = in->dims[1], chunks = in->dims[2];

    for (int64_t g = 0; g < in->dims[0]; g++)
        for (int64_t c = 0; c < chunks; c++) {
            float most = -INFINITY;
            for (int64_t h = 0; h < group; h++)
                most = fmaxf(most, ((const float *)in->data)[(g * group + h) * chunks + c]);
            out[g * chunks + c] = most;
        }
}

static fv_status score_means(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, float *out)
{
    struct layer *own = layer->state;
    fv_tensor q = by_group(&call->q, layer->rows->options.heads), scores;

    FV_TRY(fv_block_means_scores(ctx, &own->means, &q, own->means.blocks, &scores));
    most_of_group(&scores, out);
    return FV_OK;
}

static fv_status score_weights(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t chunks,
                               float *out)
{
    const struct hylra *o = layer->use->options;
    int64_t heads = layer->rows->options.heads, rows = fv_rows_count(layer->rows, 0), all = call->q.dims[1];
    fv_tensor k, v, weight, mass;

    fv_rows_view(layer->rows, 0, heads, &k, &v);
    FV_TRY(fv_query_weights(ctx, &call->q, &k, &call->logits, rows, &weight));
    FV_TRY(fv_tensor_new(ctx, &mass, FV_F32, FV_DIMS(heads, all / heads, chunks)));
    for (int64_t h = 0; h < all; h++) {
        const float *w = (const float *)weight.data + h * rows;
        for (int64_t c = 0; c < chunks; c++) {
            double sum = 0;
            for (int64_t j = c * o->chunk; j < fv_min((c + 1) * o->chunk, rows); j++)
                sum += (double)w[j];
            ((float *)mass.data)[h * chunks + c] = (float)sum;
        }
    }
    most_of_group(&mass, out);
    return FV_OK;
}

/* hash [count, WORDS]: signs of the projections of x [count, D]. */
static fv_status hash_rows(fv_ctx *ctx, const fv_policy_layer *layer, const fv_tensor *x, uint64_t *hash)
{
    const struct plan *plan = layer->use->plan;
    int64_t count = x->dims[0];
    fv_gemm_args product = {.a = *x};

    FV_TRY(fv_tensor_wrap(&product.b, plan->direction, FV_F32, FV_DIMS(x->dims[1], BITS)));
    FV_TRY(fv_tensor_new(ctx, &product.c, FV_F32, FV_DIMS(count, BITS)));
    FV_TRY(fv_gemm(ctx, &product));
    for (int64_t n = 0; n < count * WORDS; n++) {
        const float *projected = (const float *)product.c.data + n * 64;
        hash[n] = 0;
        for (int bit = 0; bit < 64; bit++)
            hash[n] |= (uint64_t)(projected[bit] > 0) << bit;
    }
    return FV_OK;
}

/* Hashes of the rows that have come since. */
static fv_status take_hashes(fv_ctx *ctx, fv_policy_layer *layer)
{
    struct layer *own = layer->state;
    int64_t heads = layer->rows->options.heads, rows = fv_rows_count(layer->rows, 0), count = rows - own->hashed;
    fv_tensor keys;
    uint64_t *hash;

    if (count <= 0) return FV_OK;
    FV_TRY(FV_GROW(own->hash, own->hash_room, rows * heads * WORDS));
    FV_TRY(FV_SCRATCH(ctx, hash, heads * count * WORDS));
    FV_TRY(fv_rows_keys(ctx, layer->rows, own->hashed, count, &keys));
    keys = fv_reshaped(&keys, FV_DIMS(heads * count, keys.dims[2]));
    FV_TRY(hash_rows(ctx, layer, &keys, hash));
    for (int64_t i = 0; i < count; i++)
        for (int64_t g = 0; g < heads; g++)
            memcpy(own->hash + ((own->hashed + i) * heads + g) * WORDS, hash + (g * count + i) * WORDS,
                   WORDS * sizeof *hash);
    own->hashed = rows;
    return FV_OK;
}

static int distance(const uint64_t *a, const uint64_t *b)
{
    int bits = 0;

    for (int w = 0; w < WORDS; w++)
        bits += __builtin_popcountll(a[w] ^ b[w]);
    return bits;
}

/* The nearest row of a chunk to any query of the group decides. */
static fv_status score_hashes(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t chunks,
                              float *out)
{
    const struct hylra *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t heads = layer->rows->options.heads, rows = fv_rows_count(layer->rows, 0), all = call->q.dims[1];
    fv_tensor q = fv_view(&call->q, 2, (const int64_t[]){all, call->q.dims[3]},
                          (const int64_t[]){call->q.strides[1], call->q.strides[3]}, 0);
    uint64_t *asked;

    FV_TRY(FV_SCRATCH(ctx, asked, all * WORDS));
    FV_TRY(hash_rows(ctx, layer, &q, asked));
    for (int64_t g = 0; g < heads; g++)
        for (int64_t c = 0; c < chunks; c++) {
            int least = BITS;
            for (int64_t j = c * o->chunk; j < fv_min((c + 1) * o->chunk, rows); j++)
                for (int64_t h = g * (all / heads); h < (g + 1) * (all / heads); h++) {
                    int far = distance(own->hash + (j * heads + g) * WORDS, asked + h * WORDS);
                    if (far < least) least = far;
                }
            out[g * chunks + c] = (float)-least;
        }
    return FV_OK;
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

/* Chunks of sinks and of recent rows come before all others. */
static int64_t force(const struct hylra *o, int64_t rows, int64_t heads, int64_t chunks, float *scores)
{
    int64_t first = fv_min(fv_ceil_div(fv_min(o->sink, rows), o->chunk), chunks); /* behind the sinks' chunks */
    int64_t last = o->recent > 0 ? fv_max(rows - o->recent, 0) / o->chunk : chunks, forced = 0;

    for (int64_t c = 0; c < chunks; c++) {
        if (c >= first && c < last) continue;
        forced++;
        for (int64_t g = 0; g < heads; g++)
            scores[g * chunks + c] = INFINITY;
    }
    return forced;
}

static fv_status choose(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t chunks)
{
    const struct hylra *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t heads = layer->rows->options.heads, rows = fv_rows_count(layer->rows, 0), count;
    fv_tensor scores, index;

    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(heads, chunks)));
    if (o->estimator == MEAN)
        FV_TRY(score_means(ctx, layer, call, scores.data));
    else if (o->estimator == EXACT)
        FV_TRY(score_weights(ctx, layer, call, chunks, scores.data));
    else
        FV_TRY(score_hashes(ctx, layer, call, chunks, scores.data));
    count = fv_max(o->keep / o->chunk, force(o, rows, heads, chunks, scores.data));
    FV_TRY(fv_best_blocks(ctx, &scores, count, &index));
    FV_TRY(fv_chosen_begin_blocks(&own->chosen, heads, chunks, count));
    for (int64_t c = 0; c <= chunks; c++)
        own->chosen.edge[c] = fv_min(c * o->chunk, rows);
    for (int64_t g = 0; g < heads; g++) {
        const int32_t *best = (const int32_t *)index.data + g * count;
        fv_chosen_next(&own->chosen);
        for (int64_t n = 0; n < count && best[n] >= 0; n++)
            FV_TRY(fv_chosen_add_block(&own->chosen, best[n]));
    }
    return FV_OK;
}

/* What a layer reads in this step: its own choice, or that of its source. */
static fv_chosen *chosen_of(const fv_policy_layer *layer)
{
    const struct plan *plan = layer->use->plan;
    struct layer *source = layer->all[plan->source[layer->place]].state;

    return &source->chosen;
}

static fv_status plan_step(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    const struct hylra *o = layer->use->options;
    const struct plan *uses = layer->use->plan;
    struct layer *own = layer->state;
    int64_t rows = fv_rows_count(layer->rows, 0), chunks = fv_ceil_div(rows, o->chunk);
    bool chooses = !uses->full[layer->place] && uses->source[layer->place] == layer->place;

    (void)head;
    fv_chosen_all(&own->chosen);
    if (uses->full[layer->place]) return FV_OK;
    if (chooses && o->estimator == MEAN) FV_TRY(fv_block_means_take(ctx, &own->means, layer->rows, 0, o->chunk));
    if (chooses && o->estimator == HASH) FV_TRY(take_hashes(ctx, layer));
    if (call->prompt || rows < o->activate_at || chunks <= o->keep / o->chunk) return FV_OK;
    if (chooses) FV_TRY(choose(ctx, layer, call, chunks));
    fv_chosen_plan(chosen_of(layer), rows, plan);
    return FV_OK;
}

static fv_status read(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args)
{
    (void)call;
    return args->plan->lists.row_start ? fv_chosen_read(ctx, chosen_of(layer), layer->rows, args, NULL)
                                       : fv_attend(ctx, args);
}

static void drop(fv_policy_layer *layer)
{
    struct layer *own = layer->state;

    fv_block_means_free(&own->means);
    fv_chosen_free(&own->chosen);
    fv_free(own->hash);
    own->hash = NULL;
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct layer *own = layer->state;

    return fv_block_means_bytes(&own->means) + fv_chosen_bytes(&own->chosen) +
           (size_t)own->hash_room * sizeof *own->hash;
}

static const int32_t *selected(const fv_policy_layer *layer, int64_t head, int64_t *count)
{
    const struct plan *plan = layer->use->plan;

    *count = 0;
    return plan->full[layer->place] ? NULL : fv_chosen_list(chosen_of(layer), head, count);
}

const fv_policy fv_policy_hylra = {
    .name = "hylra",
    .title = "Hybrid layer reuse (HyLRA)",
    .paper = "arXiv 2602.00777",
    .sheet = 47,
    .traits = FV_POLICY_SCORES | FV_POLICY_SELECTS,
    .keeps =
        "all rows; from activate_at rows on a step reads floor(keep / chunk) chunks: those of sinks and recent rows, "
        "then the best by the estimator; layers that reuse read what their source has chosen",
    .cost = "full layers read everything, others keep rows a step; layers that choose read a mean key for each chunk "
            "(mean), 16 bytes a row (hash) or all keys (exact) beside",
    .options = options,
    .options_size = sizeof(struct hylra),
    .layer_bytes = sizeof(struct layer),
    .check = check,
    .open = open,
    .close = close,
    .plan = plan_step,
    .read = read,
    .drop = drop,
    .state_bytes = state_bytes,
    .selected = selected,
};
