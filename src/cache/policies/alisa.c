/* ALISA, sparse window attention: a step reads the k newest rows and the k older ones that recent queries have looked
 * at most.  Every row is kept.
 *
 * A row's score is the sum of the weights that the last k queries gave it, k growing with the rows held, so a sum gains
 * the newest query's weights and loses those of the queries that leave the window.  A step's weights are few and are
 * kept.  Those of a prompt's queries are as many as rows are held, so the queries are kept instead, and their weights
 * are formed again, some queries at a time, when the first of them leaves; sums are exact (fv_row_sums), and what is
 * taken away is what was added.
 *
 * Rows that are older than the k newest need not lie in memory as they are (cold.h): of three tiers, the oldest rows
 * are computed again, the next lie in a file, and all of them may be held in 8 bits.  Without 8 bits nobody sees a
 * difference.  With them a prompt is read as it is, and then weighed by its keys in 8 bits, which is what is left of
 * them when its queries leave the window. */
#include "cache/selection.h"

#include <math.h>

struct alisa {
    double r;
    int score, sets, bits;
    int64_t refresh, resident, recompute;
};

static const char *const scores[] = {"local", "global", "last", NULL};
static const char *const sets[] = {"layer", "kv", NULL};
static const char *const widths[] = {"16", "8", NULL};
enum { LOCAL, GLOBAL, LAST };
enum { SETS_LAYER, SETS_KV };
enum { BITS_16, BITS_8 };

static const fv_option options[] = {
    FV_FLOAT(struct alisa, r, 0.2, 1e-9, 1, "share of the rows that a step reads: half newest, half by score"),
    FV_ENUM(struct alisa, score, "local", scores, "weights of the last k queries, of all so far, or of the last one"),
    FV_ENUM(struct alisa, sets, "layer", sets, "one set for a layer, or one for each key-value head"),
    FV_INT(struct alisa, refresh, 0, 0, INT32_MAX, "every so many steps one reads everything; 0: none"),
    FV_ENUM(struct alisa, bits, "16", widths,
            "16: rows in their storage type; 8: those older than the k newest in 8 bits by channel, in blocks of 64"),
    FV_INT(
        struct alisa, resident, 0, 0, INT32_MAX,
        "newest rows that stay in memory, the k newest in any case, and up to 63 more with 8 bits; the others lie in a "
        "file; 0: all stay"),
    FV_INT(struct alisa, recompute, 0, 0, INT32_MAX,
           "oldest rows that are not kept, but computed again from the layer's inputs when they are read; 0: none"),
    FV_OPTIONS_END,
};

enum { BLOCK = 16 /* queries of a prompt whose weights are formed together */ };

/* What a query gave rows. */
struct query {
    void *memory; /* what the pointers below point into */
    /* of a step: `listed` places of each set, then the rows from `from` on to its own; weights [sets, listed + run] */
    int32_t *place;
    float *weight;
    int64_t listed, from;
    /* of a prompt: q [H, D]; its weights are formed with those of queries block_from .. block_to-1 */
    float *q;
    int64_t block_from, block_to;
    bool added;
};

struct layer {
    fv_row_sums *sum; /* [sets] */
    fv_chosen chosen;
    int64_t steps;
    struct query *query; /* of the window: those of tokens first .. first+count-1, from `begin` on */
    int64_t first, count, begin, room;
    float *block; /* [sets, BLOCK, block_to]: weights of the queries of a block */
    int64_t block_from, block_to, block_room;
    fv_tensor keys; /* what several blocks are formed from; absent: each asks for its own */
    fv_logits logits;
    int64_t ready;    /* rows behind which the next step's choice is made; 0: not yet */
    fv_offload *file; /* of the stream, with the first layer */
};

static fv_status open_use(fv_policy_use *use)
{
    const struct alisa *o = use->options;
    const struct {
        const char *name;
        int choice;
    } side[] = {{"k", use->common.k}, {"v", use->common.v}};

    for (int i = 0; i < 2; i++) {
        fv_dtype type = fv_policy_type(side[i].choice);
        if (o->bits == BITS_8 && fv_dtype_block(type) > 1)
            return fv_fail(FV_E_USAGE,
                           "alisa: option 'bits': 8 bits by channel are for rows of f16, bf16 or f32, got %s=%s",
                           side[i].name, fv_dtype_name(type));
    }
    return FV_OK;
}

static int64_t set_count(const fv_policy_layer *layer)
{
    const struct alisa *o = layer->use->options;

    return o->sets == SETS_KV ? layer->rows->options.heads : 1;
}

/* Newest rows, and older ones, that a step behind n rows reads. */
static int64_t half(const struct alisa *o, int64_t n)
{
    return fv_max((int64_t)floor((double)n * o->r / 2 + 0.5), 1);
}

/* Queries before token n that scores are made of. */
static int64_t window(const struct alisa *o, int64_t n)
{
    return o->score == LAST ? 1 : half(o, n);
}

static bool chooses(const struct alisa *o)
{
    return o->r < 1;
}

/* ---- tiers ------------------------------------------------------------------------------------------------------- */

static fv_status make_tiers(fv_policy_layer *layer)
{
    const struct alisa *o = layer->use->options;
    struct layer *first = layer->all[0].state;

    if (layer->rows->cold || (o->bits == BITS_16 && o->resident == 0 && o->recompute == 0)) return FV_OK;
    if (o->resident > 0 && !first->file) FV_TRY(fv_offload_new(NULL, &first->file));
    return fv_cold_new(layer->rows, &(fv_cold_options){.packed = o->bits == BITS_8,
                                                       .file = first->file,
                                                       .computed = o->recompute,
                                                       .project = layer->project,
                                                       .user = layer->model,
                                                       .layer = layer->layer});
}

/* What leaves memory behind n rows.  Rows of a prompt that is being read stay as they are, so that its chunks are the
 * same to all that read it. */
static fv_status move_rows(fv_ctx *ctx, fv_policy_layer *layer, int64_t n, bool reading)
{
    const struct alisa *o = layer->use->options;
    int64_t old = n - half(o, n), away = o->resident > 0 ? fv_min(old, n - o->resident) : 0;

    if (!layer->rows->cold) return FV_OK;
    FV_TRY(fv_cold_drop(layer->rows, old));
    if (o->bits == BITS_8 && reading) return FV_OK;
    if (o->bits == BITS_8) FV_TRY(fv_cold_pack(ctx, layer->rows, old));
    return fv_cold_write(ctx, layer->rows, away);
}

/* Keys of the first `count` rows that a prompt's queries are weighed by: they never change. */
static fv_status prompt_keys(fv_ctx *ctx, fv_policy_layer *layer, int64_t count, fv_tensor *keys)
{
    const struct alisa *o = layer->use->options;
    fv_tensor values;

    if (o->bits == BITS_8) return fv_cold_keys(ctx, layer->rows, count, keys);
    FV_TRY(fv_rows_view_all(ctx, layer->rows, 0, layer->rows->options.heads, keys, &values));
    *keys = fv_slice(keys, 2, 0, count);
    return FV_OK;
}

static fv_status grow_sums(fv_policy_layer *layer, int64_t rows)
{
    struct layer *own = layer->state;

    if (!own->sum) FV_TRY(FV_ZALLOC(own->sum, set_count(layer)));
    for (int64_t s = 0; s < set_count(layer); s++)
        FV_TRY(fv_row_sums_grow(&own->sum[s], rows));
    return FV_OK;
}

/* ---- the window of queries --------------------------------------------------------------------------------------- */

static struct query *query_at(const struct layer *own, int64_t token)
{
    return &own->query[own->begin + token - own->first];
}

static fv_status push(struct layer *own, int64_t token, const struct query *query)
{
    if (own->count == 0) own->first = token;
    if (own->begin > own->count) {
        memmove(own->query, own->query + own->begin, (size_t)own->count * sizeof *own->query);
        own->begin = 0;
    }
    FV_TRY(FV_GROW(own->query, own->room, own->begin + own->count + 1));
    own->query[own->begin + own->count++] = *query;
    return FV_OK;
}

/* The weights [1, heads of a group, queries, to] that are added to what a set has of a block. */
struct summing {
    const float *weight;
    float *out, *sum; /* [BLOCK, to], and room of the same size */
    int64_t heads, queries, to;
};

static void sum_query(void *user, int64_t i, int thread)
{
    const struct summing *s = user;
    float *out = s->out + i * s->to, *sum = s->sum + i * s->to;

    (void)thread;
    fv_sum_heads(s->weight + i * s->to, s->heads, s->queries * s->to, s->to, sum);
    for (int64_t j = 0; j < s->to; j++)
        out[j] += sum[j];
}

/* q [H, queries, D] of the block's queries. */
static fv_status block_queries(fv_ctx *ctx, const fv_policy_layer *layer, int64_t from, int64_t queries, float **q)
{
    const fv_cache_model *m = layer->use->model;
    int64_t dim = m->key_dim;

    FV_TRY(FV_SCRATCH(ctx, *q, m->query_heads * queries * dim));
    for (int64_t h = 0; h < m->query_heads; h++)
        for (int64_t i = 0; i < queries; i++)
            memcpy(*q + (h * queries + i) * dim, query_at(layer->state, from + i)->q + h * dim,
                   (size_t)dim * sizeof **q);
    return FV_OK;
}

/* Weights of a block of a prompt's queries, of each set the sums over its heads; a key-value head at a time, so that
 * no more is formed than heads of a group times BLOCK rows. */
static fv_status form_block(fv_ctx *ctx, fv_policy_layer *layer, int64_t from, int64_t to)
{
    struct layer *own = layer->state;
    const fv_cache_model *m = layer->use->model;
    int64_t queries = to - from, dim = m->key_dim, per = m->query_heads / m->key_heads, n = set_count(layer);
    struct summing summing = {.heads = per, .queries = queries, .to = to};
    fv_tensor keys;
    float *q;

    own->block_to = own->block_from = 0;
    FV_TRY(FV_GROW(own->block, own->block_room, n * BLOCK * to));
    memset(own->block, 0, (size_t)(n * BLOCK * to) * sizeof *own->block);
    if (fv_present(&own->keys))
        keys = fv_slice(&own->keys, 2, 0, to);
    else
        FV_TRY(prompt_keys(ctx, layer, to, &keys));
    FV_TRY(block_queries(ctx, layer, from, queries, &q));
    FV_TRY(FV_SCRATCH(ctx, summing.sum, queries * to));
    for (int64_t g = 0; g < m->key_heads; g++) {
        fv_mark mark = fv_scratch_mark(ctx);
        fv_tensor k = fv_slice(&keys, 1, g, 1), weight, part;
        FV_TRY(fv_tensor_wrap(&part, q + g * per * queries * dim, FV_F32, FV_DIMS(1, per, queries, dim)));
        FV_TRY(fv_query_weights(ctx, &part, &k, &own->logits, from + 1, &weight));
        summing.weight = weight.data;
        summing.out = own->block + (n > 1 ? g : 0) * BLOCK * to;
        fv_run(ctx, queries, sum_query, &summing);
        fv_scratch_release(ctx, mark);
    }
    own->block_from = from;
    own->block_to = to;
    return FV_OK;
}

typedef void change_fn(fv_row_sums *sums, int64_t row, const float *weight, int64_t count);

/* Adds what a query gave to the sums, or takes it away. */
static fv_status change(fv_ctx *ctx, fv_policy_layer *layer, int64_t token, change_fn *by)
{
    struct layer *own = layer->state;
    const struct query *query = query_at(own, token);

    if (query->q && own->block_to != query->block_to) {
        fv_mark mark = fv_scratch_mark(ctx);
        FV_TRY(form_block(ctx, layer, query->block_from, query->block_to));
        fv_scratch_release(ctx, mark);
    }
    for (int64_t s = 0; s < set_count(layer); s++) {
        int64_t run = token + 1 - query->from;
        const float *weight = query->weight + s * (query->listed + run);
        if (query->q) {
            by(&own->sum[s], 0, own->block + (s * BLOCK + token - own->block_from) * own->block_to, own->block_to);
            continue;
        }
        for (int64_t i = 0; i < query->listed; i++)
            by(&own->sum[s], query->place[s * query->listed + i], weight + i, 1);
        by(&own->sum[s], query->from, weight + query->listed, run);
    }
    return FV_OK;
}

/* Queries that leave the window of a step behind n rows. */
static fv_status leave(fv_ctx *ctx, fv_policy_layer *layer, int64_t n)
{
    struct layer *own = layer->state;

    while (own->count > 0 && own->first < n - window(layer->use->options, n)) {
        if (own->query[own->begin].added) FV_TRY(change(ctx, layer, own->first, fv_row_sums_subtract));
        fv_free(own->query[own->begin].memory);
        own->first++;
        own->begin++;
        own->count--;
    }
    return FV_OK;
}

/* ---- a prompt ---------------------------------------------------------------------------------------------------- */

static fv_status keep_query(fv_policy_layer *layer, const fv_policy_call *call, int64_t i)
{
    struct layer *own = layer->state;
    int64_t heads = call->q.dims[1], dim = call->q.dims[3];
    struct query query = {0};

    FV_TRY(FV_ALLOC(query.q, heads * dim));
    query.memory = query.q;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t d = 0; d < dim; d++)
            query.q[h * dim + d] = *(const float *)fv_at(&call->q, 0, h, i, d);
    fv_status status = push(own, call->offset + i, &query);
    if (status != FV_OK) fv_free(query.memory);
    return status;
}

/* score=global: the heads of each set. */
static fv_status add_all(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    struct layer *own = layer->state;
    int64_t rows = fv_rows_all(layer->rows, 0), n = set_count(layer), per = call->q.dims[1] / n;
    fv_tensor sums;
    float *sum;

    FV_TRY(fv_call_weights(ctx, layer->rows, call, 0, layer->rows->options.heads, &sums));
    FV_TRY(FV_SCRATCH(ctx, sum, rows));
    for (int64_t s = 0; s < n; s++) {
        fv_sum_heads((const float *)sums.data + s * per * rows, per, rows, rows, sum);
        fv_row_sums_add(&own->sum[s], 0, sum, rows);
    }
    return FV_OK;
}

static fv_status score_prompt(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct alisa *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t end = call->offset + call->queries;

    own->logits = call->logits;
    FV_TRY(grow_sums(layer, end));
    if (o->score == GLOBAL) return add_all(ctx, layer, call);
    FV_TRY(leave(ctx, layer, end));
    for (int64_t t = fv_max(call->offset, end - window(o, end)); t < end; t++)
        FV_TRY(keep_query(layer, call, t - call->offset));
    return FV_OK;
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    if (call->prompt && chooses(layer->use->options)) FV_TRY(score_prompt(ctx, layer, call));
    FV_TRY(make_tiers(layer));
    if (layer->rows->cold) FV_TRY(fv_cold_note(layer->rows, call->offset, &call->input, call->few));
    return move_rows(ctx, layer, call->offset + call->queries, call->prompt);
}

/* Blocks end at other tokens in other layers, so that they are not all formed again in the same step. */
static fv_status add_prompt(fv_ctx *ctx, fv_policy_layer *layer)
{
    struct layer *own = layer->state;
    int64_t end = own->first + own->count;

    for (int64_t t = own->first, to; t < end; t = to) {
        to = t + 1;
        if (query_at(own, t)->added) continue;
        to = fv_min(t + BLOCK - (t + layer->place) % BLOCK, end);
        for (int64_t i = t; i < to; i++) {
            struct query *query = query_at(own, i);
            query->block_from = t;
            query->block_to = to;
            FV_TRY(change(ctx, layer, i, fv_row_sums_add));
            query->added = true;
        }
    }
    return FV_OK;
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    struct layer *own = layer->state;
    fv_status status;

    if (layer->rows->cold) FV_TRY(fv_cold_cut(layer->rows));
    FV_TRY(move_rows(ctx, layer, prompt, false));
    if (own->count == 0) return FV_OK;
    FV_TRY(prompt_keys(ctx, layer, own->first + own->count, &own->keys));
    status = add_prompt(ctx, layer);
    own->keys = (fv_tensor){0};
    return status;
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

/* The k rows of the largest sums among the first `older`; of equals the higher, so scores lie backwards. */
static fv_status choose(fv_ctx *ctx, fv_policy_layer *layer, int64_t n, int64_t k)
{
    struct layer *own = layer->state;
    int64_t lists = set_count(layer), older = n - k;
    fv_tensor backwards, index;

    FV_TRY(fv_tensor_new(ctx, &backwards, FV_F32, FV_DIMS(lists, older)));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(lists, k)));
    for (int64_t s = 0; s < lists; s++)
        for (int64_t j = 0; j < older; j++)
            ((float *)backwards.data)[s * older + older - 1 - j] = fv_row_sum(&own->sum[s], j);
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = backwards, .index = index}));
    FV_TRY(fv_chosen_begin(&own->chosen, lists, 2 * k + 1));
    for (int64_t s = 0; s < lists; s++) {
        const int32_t *best = (const int32_t *)index.data + s * k;
        fv_chosen_next(&own->chosen);
        for (int64_t i = k - 1; i >= 0; i--)
            fv_chosen_add(&own->chosen, older - 1 - best[i], 1);
        fv_chosen_add(&own->chosen, older, k + 1);
    }
    return FV_OK;
}

/* What a call reads: it is known once the layer has seen the call before. */
static fv_status prepare(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct alisa *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t n = call->offset, k = half(o, n);

    if (!call->prompt && own->ready == n && n > 0) return FV_OK;
    fv_chosen_all(&own->chosen);
    if (call->prompt || !chooses(o)) return FV_OK;
    own->steps++;
    FV_TRY(grow_sums(layer, n + 1));
    if (o->score != GLOBAL) FV_TRY(leave(ctx, layer, n));
    if (2 * k < n && (o->refresh == 0 || own->steps % o->refresh != 0)) FV_TRY(choose(ctx, layer, n, k));
    own->ready = n;
    return FV_OK;
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    struct layer *own = layer->state;

    (void)head;
    FV_TRY(prepare(ctx, layer, call));
    fv_chosen_plan(&own->chosen, call->offset + 1, plan);
    return FV_OK;
}

/* The next layer's rows come from the file while this one computes. */
static fv_status look_ahead(fv_ctx *ctx, const fv_policy_layer *layer, const fv_policy_call *call)
{
    fv_policy_layer *next = &layer->all[layer->place + 1];

    if (layer->place + 1 == layer->use->layers || !next->rows->cold || !((struct layer *)layer->all[0].state)->file)
        return FV_OK;
    FV_TRY(prepare(ctx, next, call));
    fv_chosen_ahead(ctx, &((struct layer *)next->state)->chosen, next->rows);
    return FV_OK;
}

/* Room for what a step gives: places of each set, but for the run of the newest, and weights. */
static fv_status new_query(const fv_policy_layer *layer, int64_t token, struct query *query)
{
    const struct layer *own = layer->state;
    int64_t n = set_count(layer), count, places, weights;

    *query = (struct query){0};
    if (fv_chosen_list(&own->chosen, 0, &count)) {
        query->listed = (count - 1) / 2;
        query->from = token - query->listed;
    }
    places = n * query->listed;
    weights = n * (query->listed + token + 1 - query->from);
    FV_TRY(fv_alloc(&query->memory, places + weights, sizeof(float)));
    query->weight = query->memory;
    query->place = (int32_t *)query->memory + weights;
    for (int64_t s = 0; s < n && query->listed > 0; s++)
        memcpy(query->place + s * query->listed, fv_chosen_list(&own->chosen, s, &count),
               (size_t)query->listed * sizeof *query->place);
    return FV_OK;
}

/* Weights of a step over the keys it read. */
static fv_status take_weights(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_tensor *keys)
{
    const struct alisa *o = layer->use->options;
    struct layer *own = layer->state;
    int64_t n = set_count(layer), per = call->q.dims[1] / n, count = keys->dims[2];
    struct query query;
    fv_tensor weight;
    fv_status status;

    FV_TRY(fv_query_weights(ctx, &call->q, keys, &call->logits, count, &weight));
    FV_TRY(new_query(layer, call->offset, &query));
    for (int64_t s = 0; s < n; s++)
        fv_sum_heads((const float *)weight.data + s * per * count, per, count, count, query.weight + s * count);
    query.added = true;
    status = push(own, call->offset, &query);
    if (status != FV_OK) {
        fv_free(query.memory);
        return status;
    }
    FV_TRY(change(ctx, layer, call->offset, fv_row_sums_add));
    if (o->score != GLOBAL) return FV_OK;
    fv_free(query.memory); /* nothing leaves */
    own->count = own->begin = 0;
    return FV_OK;
}

static fv_status read(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args)
{
    const struct layer *own = layer->state;
    fv_tensor keys;

    FV_TRY(look_ahead(ctx, layer, call));
    FV_TRY(fv_chosen_read(ctx, &own->chosen, layer->rows, args, &keys));
    if (call->prompt || !chooses(layer->use->options)) return FV_OK;
    return take_weights(ctx, layer, call, own->chosen.lists > 0 ? &keys : &args->k);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void drop(fv_policy_layer *layer)
{
    struct layer *own = layer->state;

    for (int64_t s = 0; own->sum && s < set_count(layer); s++)
        fv_row_sums_free(&own->sum[s]);
    fv_free(own->sum);
    for (int64_t i = 0; i < own->count; i++)
        fv_free(own->query[own->begin + i].memory);
    fv_free(own->query);
    fv_free(own->block);
    fv_chosen_free(&own->chosen);
    fv_offload_drop(own->file);
    memset(own, 0, sizeof *own);
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct layer *own = layer->state;
    const fv_cache_model *m = layer->use->model;
    size_t bytes = fv_chosen_bytes(&own->chosen) + (size_t)own->room * sizeof *own->query +
                   (size_t)own->block_room * sizeof *own->block + fv_cold_input_bytes(layer->rows);

    for (int64_t s = 0; own->sum && s < set_count(layer); s++)
        bytes += (size_t)own->sum[s].room * sizeof *own->sum[s].sum;
    for (int64_t i = 0; i < own->count; i++) {
        const struct query *query = &own->query[own->begin + i];
        int64_t step = set_count(layer) * (2 * query->listed + own->first + i + 1 - query->from);
        bytes += (size_t)(query->q ? m->query_heads * m->key_dim : step) * sizeof(float);
    }
    return bytes;
}

static const int32_t *selected(const fv_policy_layer *layer, int64_t head, int64_t *count)
{
    const struct layer *own = layer->state;

    return fv_chosen_list(&own->chosen, head, count);
}

const fv_policy fv_policy_alisa = {
    .name = "alisa",
    .title = "Sparse window attention (ALISA)",
    .paper = "arXiv 2403.17312",
    .sheet = 104,
    .traits = FV_POLICY_SCORES | FV_POLICY_SELECTS | FV_POLICY_LSE,
    .keeps =
        "all rows; behind n rows a step reads the newest k = max(1, floor(n r / 2 + 1/2)) and the k older ones with "
        "the largest sums of weights of the last k queries",
    .cost =
        "a step reads 2 k + 1 rows of a key-value head, the keys twice; 8 bytes a row and layer, the last k queries "
        "of a prompt and the weights of the last k steps; with recompute an input (4 bytes x the model's width) for "
        "each "
        "such row and layer, so it pays where a row of keys and values is larger",
    .sweep = "r=SHARE",
    .options = options,
    .options_size = sizeof(struct alisa),
    .layer_bytes = sizeof(struct layer),
    .open = open_use,
    .plan = plan,
    .read = read,
    .after = after,
    .act = act,
    .drop = drop,
    .state_bytes = state_bytes,
    .selected = selected,
};
