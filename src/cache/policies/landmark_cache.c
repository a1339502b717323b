/* Landmark attention's cache: a landmark stands behind every period - 1 tokens and closes a block.  A chunk of a
 * prompt, or a step, reads what came behind the last complete block before it as it is, and of the blocks before that
 * those whose landmarks it likes best; each by a softmax of its own, gated by its landmark.
 *
 * positions=stingy keeps positions within what a model was trained for, whatever the text's length: landmarks of all
 * blocks but the newest `top` are scored as if they stood right before those, and blocks that were chosen stand one
 * behind the other.  Keys are stored before they are rotated, and rotated for their own positions when they are read;
 * that a block stands elsewhere is said by the query, which is rotated by as much the other way. */
#include <stdio.h>

#include "attention/sparse/core.h"
#include "base/memory.h"
#include "cache/policy.h"

struct landmark_cache {
    int64_t period, top, memory, chunk, token;
    int select, positions;
};

enum { EACH, MAX_OVER_HEADS, MAX_OVER_TOKENS };
enum { STINGY, TRUE_POSITIONS };
static const char *const selections[] = {"per_token_and_head", "max_over_heads", "max_over_tokens", NULL};
static const char *const mappings[] = {"stingy", "true", NULL};

static const fv_option options[] = {
    FV_INT(struct landmark_cache, period, 51, 2, INT32_MAX, "rows of a block, its landmark included"),
    FV_INT(struct landmark_cache, top, 4, 0, INT32_MAX, "blocks that a query retrieves"),
    FV_INT(struct landmark_cache, memory, 0, 0, INT32_MAX, "newest complete blocks that are kept; 0: all"),
    FV_INT(struct landmark_cache, chunk, 250, 1, 65536, "tokens of a prompt that are read together"),
    FV_ENUM(struct landmark_cache, select, "per_token_and_head", selections, "who retrieves blocks together"),
    FV_ENUM(struct landmark_cache, positions, "stingy", mappings, "of blocks that were retrieved"),
    FV_INT(struct landmark_cache, token, -1, -1, INT32_MAX, "id of the landmark; -1: the model's own, <landmark>"),
    FV_OPTIONS_END,
};

struct plan {
    int32_t token;
    fv_attention *near; /* grouped attention to the rows that are read as they are */
};

struct layer {
    fv_tensor index; /* [1,H,n,K] i32 blocks that queries retrieve, by place, ascending; -1 behind the last */
    int32_t *read;   /* [Hkv, read_most] positions that the last step read */
    int64_t *reads;  /* [Hkv] */
    int64_t read_room, reads_room, read_most;
};

static fv_status open(fv_policy_use *use)
{
    const struct landmark_cache *o = use->options;
    struct plan *plan;
    char spec[64];

    FV_TRY(FV_ZALLOC(plan, 1));
    use->plan = plan;
    plan->token = o->token >= 0 ? (int32_t)o->token : use->model->find_token(use->model->model, "<landmark>");
    if (plan->token < 0)
        return fv_fail(FV_E_USAGE, "landmark_cache: this model has no token '<landmark>'; option 'token' says which id "
                                   "stands for it");
    if (plan->token >= use->model->vocabulary)
        return fv_fail(FV_E_USAGE, "landmark_cache: option 'token': expected an id of 0 to %lld, got %d",
                       (long long)use->model->vocabulary - 1, plan->token);
    snprintf(spec, sizeof spec, "landmark:period=%lld", (long long)o->period);
    return fv_attention_new(spec, &plan->near);
}

static void close(fv_policy_use *use)
{
    struct plan *plan = use->plan;

    if (plan) fv_attention_free(plan->near);
    fv_free(plan);
}

static void inserts(const fv_policy_use *use, fv_policy_insert *insert)
{
    const struct landmark_cache *o = use->options;

    *insert = (fv_policy_insert){((const struct plan *)use->plan)->token, o->period - 1, o->chunk};
}

/* ---- what there is ---------------------------------------------------------------------------------------------- */

/* Blocks by place among those held. */
struct view {
    const struct landmark_cache *options;
    const fv_policy_call *call;
    int64_t heads, key_heads;
    int64_t first, blocks; /* position of the first row held; complete blocks that may be retrieved */
    int64_t most;          /* of them a query retrieves */
    fv_tensor k, v;        /* [1,Hkv,rows,..] as they are stored */
};

static struct view look(const fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct landmark_cache *o = layer->use->options;
    struct view view = {.options = o,
                        .call = call,
                        .heads = call->q.dims[1],
                        .key_heads = layer->rows->options.heads,
                        .first = fv_rows_positions(layer->rows, 0)[0]};

    view.blocks = (call->offset - view.first) / o->period;
    view.most = fv_min(o->top, view.blocks);
    fv_rows_view(layer->rows, 0, view.key_heads, &view.k, &view.v);
    return view;
}

/* The place that a block, the n-th of those a query retrieves, is read at: block `at` would stand there. */
static int64_t place_of(const struct view *v, int64_t block, int64_t n)
{
    int64_t newest = v->blocks - v->most;

    if (v->options->positions == TRUE_POSITIONS) return block;
    return newest - 1 + n + (block >= newest);
}

/* Keys [1,Hkv,n,D] as stored, rotated for positions. */
static fv_status rotate(fv_ctx *ctx, const fv_policy_call *call, const fv_tensor *stored, const int32_t *position,
                        fv_tensor *keys)
{
    fv_rope_args turn = *call->rope;

    FV_TRY(fv_as_f32(ctx, stored, &turn.x));
    FV_TRY(fv_tensor_new(ctx, keys, FV_F32, 4, stored->dims));
    turn.out = *keys;
    turn.position = position;
    return fv_rope(ctx, &turn);
}

/* ---- retrieval -------------------------------------------------------------------------------------------------- */

/* Keys of the blocks' landmarks, where they are scored: the newest at their own place, all others before those. */
static fv_status landmarks(fv_ctx *ctx, const struct view *v, fv_tensor *keys)
{
    int64_t period = v->options->period, newest = v->blocks - v->most;
    const int64_t *s = v->k.strides;
    fv_tensor stored = fv_view(&v->k, FV_DIMS(1, v->key_heads, v->blocks, v->k.dims[3]),
                               (const int64_t[]){s[0], s[1], s[2] * period, s[3]}, (period - 1) * s[2]);
    int32_t *position;

    FV_TRY(FV_SCRATCH(ctx, position, v->blocks));
    for (int64_t b = 0; b < v->blocks; b++) {
        int64_t at = v->options->positions == TRUE_POSITIONS ? b : fv_max(b, newest - 1);
        position[b] = (int32_t)(v->first + at * period + period - 1);
    }
    return rotate(ctx, v->call, &stored, position, keys);
}

struct choosing {
    const struct view *view;
    fv_tensor index; /* [1,H or 1,n or 1,K] */
    fv_tensor most;  /* [1,H,1,blocks]: the largest weight of a chunk's tokens */
};

/* Whoever retrieves together goes by the largest of their weights. */
static fv_status choose_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const struct choosing *c = user;
    const fv_policy_call *call = c->view->call;
    int64_t H = scores->dims[1], n = scores->dims[2], blocks = scores->dims[3];
    fv_tensor weights = *scores, index = c->index.dims[2] > 1 ? fv_slice(&c->index, 2, from, n) : c->index;

    if (call->logits.softcap > 0)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = *scores, .out = *scores, .alpha = call->logits.softcap}));
    if (c->view->options->select == EACH) return fv_select(ctx, &(fv_select_args){.scores = *scores, .index = index});
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = *scores, .out = *scores}));
    if (c->view->options->select == MAX_OVER_HEADS) {
        FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, FV_DIMS(1, 1, n, blocks)));
        FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MAX,
                                                 .x = fv_reshaped(scores, FV_DIMS(1, H, n * blocks)),
                                                 .out = fv_reshaped(&weights, FV_DIMS(1, 1, n * blocks)),
                                                 .block = H}));
        return fv_select(ctx, &(fv_select_args){.scores = weights, .index = index});
    }
    FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, FV_DIMS(1, H, 1, blocks)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MAX, .x = *scores, .out = weights, .block = n}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = c->most, .y = weights, .out = c->most});
}

/* index [1,H,n,K], which may repeat heads or queries. */
static fv_status choose(fv_ctx *ctx, const struct view *v, fv_tensor *index)
{
    int64_t H = v->heads, n = v->call->queries;
    bool all_heads = v->options->select == MAX_OVER_HEADS, all_tokens = v->options->select == MAX_OVER_TOKENS;
    struct choosing c = {.view = v};
    fv_tensor keys;

    FV_TRY(fv_tensor_new(ctx, &c.index, FV_I32, FV_DIMS(1, all_heads ? 1 : H, all_tokens ? 1 : n, v->most)));
    FV_TRY(fv_tensor_zeros(ctx, &c.most, FV_F32, FV_DIMS(1, H, 1, v->blocks)));
    *index = fv_broadcast(&c.index, FV_DIMS(1, H, n, v->most));
    if (v->most == 0) return FV_OK;
    FV_TRY(landmarks(ctx, v, &keys));
    FV_TRY(fv_score_rows(ctx, &v->call->q, &keys, v->call->logits.scale, choose_rows, &c));
    return all_tokens ? fv_select(ctx, &(fv_select_args){.scores = c.most, .index = c.index}) : FV_OK;
}

/* ---- who reads what --------------------------------------------------------------------------------------------- */

/* Positions that a step reads of each key-value head. */
static fv_status note_read(struct layer *own, const struct view *v, int64_t rows)
{
    int64_t period = v->options->period, group = v->heads / v->key_heads;

    own->read_most = rows;
    FV_TRY(FV_GROW(own->read, own->read_room, v->key_heads * rows));
    FV_TRY(FV_GROW(own->reads, own->reads_room, v->key_heads));
    for (int64_t g = 0; g < v->key_heads; g++) {
        int32_t *read = own->read + g * rows;
        int64_t count = 0;
        for (int64_t r = 0; r < rows; r++) {
            bool reads = r >= v->blocks * period;
            for (int64_t h = g * group; h < (g + 1) * group && !reads; h++)
                for (int64_t n = 0; n < v->most && !reads; n++)
                    reads = *(int32_t *)fv_at(&own->index, 0, h, 0, n) == r / period;
            if (reads) read[count++] = (int32_t)(v->first + r);
        }
        own->reads[g] = count;
    }
    return FV_OK;
}

/* Tokens of the blocks retrieved, and of those behind them, as lists of each query and head: tokens and landmarks of a
 * block are blocks of their own there. */
static fv_status list(fv_ctx *ctx, const struct view *v, const fv_tensor *index, int64_t rows, fv_plan *plan)
{
    int64_t period = v->options->period, blocks = 2 * (rows / period) + 1, n = v->call->queries, *start;
    fv_list_builder lists;

    FV_TRY(FV_SCRATCH(ctx, start, blocks + 1));
    for (int64_t b = 0; b < blocks; b++)
        start[b] = b / 2 * period + b % 2 * (period - 1);
    start[blocks] = rows;
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = 1,
                                           .key_block = 1,
                                           .key_start = start,
                                           .key_blocks = blocks,
                                           .heads = v->heads,
                                           .queries = n,
                                           .keys = rows}));
    for (int64_t h = 0; h < v->heads; h++)
        for (int64_t i = 0; i < n; i++) {
            fv_lists_row(&lists);
            for (int64_t e = 0; e < v->most; e++)
                fv_lists_add(&lists, 2 * *(int32_t *)fv_at(index, 0, h, i, e));
            for (int64_t b = 2 * v->blocks; b < blocks; b += 2)
                fv_lists_add(&lists, b);
        }
    return fv_lists_end(&lists, plan);
}

static fv_status plan(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan)
{
    struct layer *own = layer->state;
    struct view v = look(layer, call);
    int64_t rows = fv_rows_count(layer->rows, 0);

    (void)head;
    FV_TRY(choose(ctx, &v, &own->index));
    if (!call->prompt) FV_TRY(note_read(own, &v, rows));
    return list(ctx, &v, &own->index, rows, plan);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Partial results: row i K + e of a head is what query i reads of its e-th block, and row n K + i what it reads of the
 * rows behind all blocks. */
struct parts {
    fv_tensor o, lse; /* [1,H,n K + n,Dv], [1,H,n K + n] */
};

/* Blocks that somebody retrieves, one behind the other. */
struct retrieved {
    int64_t count;
    int32_t *at;    /* [blocks] which of them a block is */
    fv_tensor k, v; /* [1,Hkv,count period,..] f32, rotated */
};

static fv_status fetch(fv_ctx *ctx, const struct view *v, const fv_tensor *index, struct retrieved *r)
{
    int64_t period = v->options->period, rows;
    const fv_tensor *side[] = {&v->k, &v->v};
    fv_tensor stored[2], places;
    int32_t *position;

    r->count = 0;
    FV_TRY(FV_SCRATCH(ctx, r->at, v->blocks));
    memset(r->at, -1, (size_t)v->blocks * sizeof *r->at);
    for (int64_t e = 0; e < v->heads * v->call->queries * v->most; e++) {
        int64_t i = e / v->most % v->call->queries, h = e / v->most / v->call->queries;
        int32_t block = *(int32_t *)fv_at(index, 0, h, i, e % v->most);
        if (block >= 0) r->at[block] = 0;
    }
    for (int64_t b = 0; b < v->blocks; b++)
        if (r->at[b] == 0) r->at[b] = (int32_t)r->count++;
    rows = r->count * period;
    FV_TRY(fv_tensor_new(ctx, &places, FV_I32, FV_DIMS(1, 1, rows)));
    FV_TRY(FV_SCRATCH(ctx, position, rows));
    for (int64_t b = 0; b < v->blocks; b++)
        for (int64_t n = 0; r->at[b] >= 0 && n < period; n++) {
            ((int32_t *)places.data)[r->at[b] * period + n] = (int32_t)(b * period + n);
            position[r->at[b] * period + n] = (int32_t)(v->first + b * period + n);
        }
    for (int s = 0; s < 2; s++) {
        fv_tensor x = *side[s];
        if (fv_dtype_block(x.dtype) > 1) FV_TRY(fv_as_f32(ctx, side[s], &x));
        FV_TRY(fv_tensor_new(ctx, &stored[s], FV_F32, FV_DIMS(1, v->key_heads, rows, x.dims[3])));
        FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = x, .index = places, .out = stored[s]}));
    }
    r->v = stored[1];
    return rotate(ctx, v->call, &stored[0], position, &r->k);
}

/* A query for each block that it retrieves, rotated back by as much as the block stands farther on. */
static fv_status turn_queries(fv_ctx *ctx, const struct view *v, const fv_tensor *index, fv_tensor *q)
{
    int64_t n = v->call->queries, K = v->most, D = v->call->q.dims[3];
    const int64_t *s = v->call->q.strides;
    int32_t *back;

    FV_TRY(fv_tensor_new(ctx, q, FV_F32, FV_DIMS(1, v->heads, n, K, D)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY,
                                            .x = fv_view(&v->call->q, FV_DIMS(1, v->heads, n, K, D),
                                                         (const int64_t[]){s[0], s[1], s[2], 0, s[3]}, 0),
                                            .out = *q}));
    *q = fv_reshaped(q, FV_DIMS(1, v->heads, n * K, D));
    if (v->options->positions == TRUE_POSITIONS) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, back, n * K));
    for (int64_t h = 0; h < v->heads; h++) {
        fv_rope_args turn = *v->call->rope;
        turn.x = turn.out = fv_slice(q, 1, h, 1);
        turn.position = back;
        turn.magnitude = 1;
        for (int64_t row = 0; row < n * K; row++) {
            int64_t block = *(int32_t *)fv_at(index, 0, h, row / K, row % K);
            back[row] = (int32_t)(block < 0 ? 0 : (block - place_of(v, block, row % K)) * v->options->period);
        }
        FV_TRY(fv_rope(ctx, &turn));
    }
    return FV_OK;
}

/* Where each query's blocks lie among those fetched, and the logits of their landmarks. */
static fv_status gate(fv_ctx *ctx, const struct view *v, const fv_tensor *index, const struct retrieved *r,
                      const fv_tensor *q, fv_choice *choice)
{
    int64_t K = v->most, rows = v->call->queries * K, D = q->dims[3], group = v->heads / v->key_heads;
    float scale = v->call->logits.scale, cap = v->call->logits.softcap;

    FV_TRY(fv_tensor_new(ctx, &choice->index, FV_I32, FV_DIMS(1, v->heads, rows, 1)));
    FV_TRY(fv_tensor_new(ctx, &choice->gate, FV_F32, FV_DIMS(1, v->heads, rows, 1)));
    for (int64_t e = 0; e < v->heads * rows; e++) {
        int64_t h = e / rows, row = e % rows;
        int32_t block = *(int32_t *)fv_at(index, 0, h, row / K, row % K), at = block < 0 ? -1 : r->at[block];
        const float *own = fv_at(q, 0, h, row, 0);
        double sum = 0;
        ((int32_t *)choice->index.data)[e] = at < 0 ? -1 : 2 * at;
        for (int64_t d = 0; at >= 0 && d < D; d++)
            sum += (double)own[d] * *(const float *)fv_at(&r->k, 0, h / group, (at + 1) * v->options->period - 1, d);
        ((float *)choice->gate.data)[e] = (float)(scale * sum);
    }
    if (cap <= 0) return FV_OK;
    return fv_map_apply(ctx,
                        &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = choice->gate, .out = choice->gate, .alpha = cap});
}

static fv_status read_blocks(fv_ctx *ctx, const struct view *v, const fv_tensor *index, const struct parts *parts)
{
    int64_t period = v->options->period, rows = v->call->queries * v->most, *start;
    struct retrieved r;
    fv_tensor q;

    FV_TRY(fetch(ctx, v, index, &r));
    FV_TRY(turn_queries(ctx, v, index, &q));
    FV_TRY(FV_SCRATCH(ctx, start, 2 * r.count + 1));
    for (int64_t b = 0; b <= 2 * r.count; b++)
        start[b] = b / 2 * period + b % 2 * (period - 1);
    fv_choice choice = {.block = period, .heads = v->heads, .key_start = start, .key_blocks = 2 * r.count};
    const fv_call call = {.q = q,
                          .k = r.k,
                          .v = r.v,
                          .o = fv_slice(&parts->o, 2, 0, rows),
                          .lse = fv_slice(&parts->lse, 2, 0, rows),
                          .batch = 1,
                          .query_heads = v->heads,
                          .key_heads = v->key_heads,
                          .queries = rows,
                          .keys = r.count * period,
                          .head_dim = q.dims[3],
                          .value_dim = r.v.dims[3],
                          .scale = v->call->logits.scale,
                          .softcap = v->call->logits.softcap};

    FV_TRY(gate(ctx, v, index, &r, &q, &choice));
    return fv_choice_attend(ctx, &call, &choice, true);
}

/* Everything behind the blocks that may be retrieved. */
static fv_status read_near(fv_ctx *ctx, const fv_policy_layer *layer, const struct view *v, const struct parts *parts)
{
    const struct plan *shared = layer->use->plan;
    int64_t before = v->blocks * v->options->period, n = v->call->queries, count = v->k.dims[2] - before;
    fv_tensor stored = fv_slice(&v->k, 2, before, count), keys;
    const fv_attend_args extra = {.logits = {.softcap = v->call->logits.softcap}};
    const float scale = v->call->logits.scale;
    int32_t *position;
    fv_call call;

    FV_TRY(FV_SCRATCH(ctx, position, count));
    for (int64_t r = 0; r < count; r++)
        position[r] = (int32_t)(v->first + before + r);
    FV_TRY(rotate(ctx, v->call, &stored, position, &keys));
    FV_TRY(fv_call_chunk(shared->near,
                         &(fv_attention_args){.q = v->call->q,
                                              .k = keys,
                                              .v = fv_slice(&v->v, 2, before, count),
                                              .o = fv_slice(&parts->o, 2, n * v->most, n),
                                              .causal = true,
                                              .scale = &scale},
                         &call));
    call.lse = fv_slice(&parts->lse, 2, n * v->most, n);
    return fv_attention_chunk(ctx, shared->near, &call, NULL, scale != 0 && extra.logits.softcap > 0 ? &extra : NULL);
}

static fv_status read(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args)
{
    const struct layer *own = layer->state;
    struct view v = look(layer, call);
    int64_t H = v.heads, n = call->queries, K = v.most, S = n * (K + 1), *start;
    struct parts parts;
    int32_t *slot;

    FV_TRY(fv_tensor_new(ctx, &parts.o, FV_F32, FV_DIMS(1, H, S, args->o.dims[3])));
    FV_TRY(fv_tensor_new(ctx, &parts.lse, FV_F32, FV_DIMS(1, H, S)));
    if (K > 0) FV_TRY(read_blocks(ctx, &v, &own->index, &parts));
    FV_TRY(read_near(ctx, layer, &v, &parts));
    FV_TRY(FV_SCRATCH(ctx, start, H * n + 1));
    FV_TRY(FV_SCRATCH(ctx, slot, H * S));
    for (int64_t row = 0; row < H * n; row++) {
        start[row] = row * (K + 1);
        for (int64_t e = 0; e < K; e++)
            slot[start[row] + e] = (int32_t)(row % n * K + e);
        slot[start[row] + K] = (int32_t)(n * K + row % n);
    }
    start[H * n] = H * S;
    return fv_merge(
        ctx,
        &(fv_merge_args){
            .parts = 1, .o_part = {parts.o}, .lse_part = {parts.lse}, .slot_start = start, .slot = slot, .o = args->o});
}

/* Only the newest complete blocks stay. */
static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct landmark_cache *o = layer->use->options;
    int64_t first = ((call->offset + call->queries) / o->period - o->memory) * o->period;

    (void)ctx;
    for (int64_t g = 0; o->memory > 0 && g < layer->rows->options.heads; g++)
        FV_TRY(fv_rows_erase(layer->rows, g, 0, fv_rows_below(layer->rows, g, first)));
    return FV_OK;
}

static int64_t bound(const fv_policy_use *use, int64_t place)
{
    const struct landmark_cache *o = use->options;

    (void)place;
    return o->memory > 0 && o->memory < INT32_MAX / o->period ? (o->memory + 1) * o->period : INT64_MAX;
}

static void drop(fv_policy_layer *layer)
{
    struct layer *own = layer->state;

    fv_free(own->read);
    fv_free(own->reads);
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct layer *own = layer->state;

    return (size_t)own->read_room * sizeof *own->read + (size_t)own->reads_room * sizeof *own->reads;
}

static const int32_t *selected(const fv_policy_layer *layer, int64_t head, int64_t *count)
{
    const struct layer *own = layer->state;

    *count = own->reads ? own->reads[head] : 0;
    return own->reads ? own->read + head * own->read_most : NULL;
}

const fv_policy fv_policy_landmark_cache = {
    .name = "landmark_cache",
    .title = "Landmark attention's cache",
    .paper = "arXiv 2305.16300",
    .sheet = 84,
    .traits = FV_POLICY_SCORES | FV_POLICY_SELECTS | FV_POLICY_INSERTS | FV_POLICY_PLAIN_KEYS,
    .keeps =
        "all rows, or the newest `memory` blocks of period rows; a query reads the `top` blocks whose landmarks it "
        "likes best, each by a softmax of its own that its landmark gates, and all rows behind the last complete "
        "block before its chunk",
    .cost = "a step reads top period rows, less than period newer ones, and a landmark for each block",
    .options = options,
    .options_size = sizeof(struct landmark_cache),
    .layer_bytes = sizeof(struct layer),
    .open = open,
    .close = close,
    .inserts = inserts,
    .plan = plan,
    .read = read,
    .after = after,
    .bound = bound,
    .drop = drop,
    .state_bytes = state_bytes,
    .selected = selected,
};
