#include <math.h>

#include "attention/sparse/core.h"
#include "attention/sparse/dhsa.h"

int64_t fv_dhsa_kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct fv_dhsa *o = call->options;
    bool keeps = o->score == FV_DHSA_BY_CHUNKS && o->pool != FV_DHSA_MAX;

    return fv_kept_means(call, keeps ? kind : 1, 0, o->chunk, keys, width);
}

struct choosing {
    const fv_call *call;
    const struct fv_dhsa_groups *groups;
    bool equal;      /* chunks */
    fv_tensor means; /* [B,1,n,D]: of whole ones, where they are equal and means stand for them */
    /* of one batch */
    int64_t batch, chunks;
    const int64_t *start; /* [chunks + 1]; behind the last key if the last of equal ones is cut */
    fv_tensor summary;    /* [1,1,chunks + blocks,D]: of chunks; and for each block, of what it may read of the chunk
                             that its end cuts */
    /* of some groups */
    int64_t from;
    fv_tensor order; /* [n,chunks] */
    uint8_t *taken;  /* [n,M] */
};

/* The chunk of the last key before `end`. */
static int64_t chunk_before(const struct choosing *c, int64_t end)
{
    int64_t low = 0, high = c->chunks;

    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (c->start[middle] < end)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Rows start[n] .. start[n+1] of x [B,Hx,R,D], averaged over heads, and pooled to out [B,1,cells,D]. */
static fv_status pool(fv_ctx *ctx, const struct fv_dhsa *o, const fv_tensor *x, const int64_t *start,
                      const fv_tensor *out)
{
    fv_tensor plain, mean;

    FV_TRY(fv_as_f32(ctx, x, &plain));
    FV_TRY(fv_pool_heads(ctx, FV_POOL_MEAN, &plain, 1, &mean));
    return fv_pool_rows(
        ctx, &(fv_pool_args){
                 .kind = o->pool == FV_DHSA_MAX ? FV_POOL_MAX : FV_POOL_MEAN, .x = mean, .out = *out, .start = start});
}

static fv_status summarise(fv_ctx *ctx, struct choosing *c)
{
    const fv_call *call = c->call;
    const struct fv_dhsa *o = call->options;
    int64_t D = call->head_dim, whole = c->equal ? call->keys / o->chunk : c->chunks;
    fv_tensor keys = fv_slice(&call->k, 0, c->batch, 1), rows, out;

    FV_TRY(fv_tensor_zeros(ctx, &c->summary, FV_F32, FV_DIMS(1, 1, c->chunks + c->groups->blocks, D)));
    out = fv_slice(&c->summary, 2, 0, whole);
    if (fv_present(&c->means)) {
        fv_tensor means = fv_slice(&c->means, 0, c->batch, 1);
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = means, .out = out}));
    } else if (whole > 0) {
        rows = fv_slice(&keys, 2, 0, c->start[whole]);
        FV_TRY(pool(ctx, o, &rows, c->start, &out));
    }
    for (int64_t i = 0; i < c->groups->blocks; i++) {
        int64_t end = fv_dhsa_keys(call, c->groups, i), chunk = chunk_before(c, end), from = c->start[chunk];
        if (c->start[chunk + 1] == end) continue;
        out = fv_slice(&c->summary, 2, c->chunks + i, 1);
        rows = fv_slice(&keys, 2, from, end - from);
        FV_TRY(pool(ctx, o, &rows, (const int64_t[]){0, end - from}, &out));
    }
    return FV_OK;
}

/* The list of the n-th group at hand: forced keys, and those of the best chunks until it is full. */
static void fill_list(void *user, int64_t n, int thread)
{
    const struct choosing *c = user;
    const struct fv_dhsa_groups *g = c->groups;
    const struct fv_dhsa *o = c->call->options;
    int64_t group = c->from + n, keys = fv_dhsa_keys(c->call, g, g->block[group]), row = c->batch * g->count + group;
    int64_t left = o->budget - o->global - o->local;
    const int32_t *order = (const int32_t *)c->order.data + n * c->chunks;
    uint8_t *taken = c->taken + n * c->call->keys;
    int32_t *entry = g->entry + g->row_start[row];

    (void)thread;
    if (keys <= o->budget) {
        fv_dhsa_list_all(g, row);
        return;
    }
    memset(taken, 0, (size_t)keys);
    memset(taken, 1, (size_t)o->global);
    memset(taken + keys - o->local, 1, (size_t)o->local);
    for (int64_t at = 0; at < c->chunks && order[at] >= 0 && left > 0; at++)
        for (int64_t j = c->start[order[at]]; j < fv_min(c->start[order[at] + 1], keys) && left > 0; j++) {
            left -= !taken[j];
            taken[j] = 1;
        }
    for (int64_t j = 0; j < keys; j++)
        if (taken[j]) *entry++ = (int32_t)j;
}

/* scores [1,1,n,chunks + blocks] of the groups' blocks. */
static fv_status choose_chunks(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct choosing *c = user;
    const struct fv_dhsa *o = c->call->options;
    int64_t count = scores->dims[2], width = scores->dims[3], first = c->groups->block[0] < 0, *valid;
    fv_tensor rows = fv_view(scores, FV_DIMS(count, c->chunks), (const int64_t[]){width, 1}, 0);

    c->from = first + from;
    FV_TRY(fv_tensor_new(ctx, &c->order, FV_I32, FV_DIMS(count, c->chunks)));
    FV_TRY(FV_SCRATCH(ctx, c->taken, count * c->call->keys));
    FV_TRY(FV_SCRATCH(ctx, valid, count));
    for (int64_t n = 0; n < count; n++) {
        float *score = (float *)scores->data + n * width;
        int64_t i = c->groups->block[c->from + n], end = fv_dhsa_keys(c->call, c->groups, i),
                cut = chunk_before(c, end);
        if (c->start[cut + 1] != end) score[cut] = score[c->chunks + i];
        for (int64_t chunk = 0; chunk <= cut; chunk++) {
            float length = (float)(fv_min(c->start[chunk + 1], end) - c->start[chunk]);
            score[chunk] = fv_dhsa_ordered(o->pool == FV_DHSA_AVG_NORM ? score[chunk] * sqrtf(length) : score[chunk]);
        }
        valid[n] = cut + 1;
    }
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = rows, .index = c->order, .by_score = true, .valid = valid}));
    fv_run(ctx, count, fill_list, c);
    return FV_OK;
}

/* Where the chunks of each batch begin. */
static fv_status cut_chunks(fv_ctx *ctx, const fv_tensor *logits, struct choosing *c)
{
    const fv_call *call = c->call;
    const struct fv_dhsa *o = call->options;
    int64_t *start;

    if (fv_present(logits)) {
        fv_tensor row = fv_plane(logits, 0, c->batch);
        return fv_dhsa_suppress(ctx,
                                &(fv_dhsa_suppression){.threshold = o->threshold,
                                                       .half_width = o->half_width,
                                                       .reach = o->reach,
                                                       .forced = o->instruction > 0 ? call->keys - o->instruction : 0,
                                                       .most = 8 * (call->keys / o->block)},
                                &row, &c->chunks, &c->start);
    }
    c->chunks = c->equal ? fv_ceil_div(call->keys, o->chunk) : call->param[FV_DHSA_BOUNDARIES].dims[0] - 1;
    FV_TRY(FV_SCRATCH(ctx, start, c->chunks + 1));
    for (int64_t n = 0; n <= c->chunks; n++)
        start[n] = c->equal ? n * o->chunk : fv_dhsa_boundary(call, n);
    c->start = start;
    return FV_OK;
}

/* What is there before batches are looked at one by one. */
static fv_status prepare(fv_ctx *ctx, struct choosing *c, fv_tensor *logits, fv_tensor *q)
{
    const fv_call *call = c->call;
    const struct fv_dhsa *o = call->options;
    const fv_tensor *p = call->param;
    int64_t whole = call->keys / o->chunk;
    fv_tensor means;

    *logits = p[FV_DHSA_LOGITS];
    if (fv_dhsa_has_network(call)) FV_TRY(fv_dhsa_predict(ctx, call, logits));
    c->equal = !fv_present(logits) && !fv_present(&p[FV_DHSA_BOUNDARIES]);
    if (c->equal && o->pool != FV_DHSA_MAX && whole > 0) {
        FV_TRY(fv_keep_means(ctx, call, 0, o->chunk, whole, &means));
        FV_TRY(fv_pool_heads(ctx, FV_POOL_MEAN, &means, 1, &c->means));
    }
    FV_TRY(fv_tensor_new(ctx, q, FV_F32, FV_DIMS(call->batch, 1, c->groups->blocks, call->head_dim)));
    return pool(ctx, o, &call->q, c->groups->start, q);
}

static fv_status choose_of_batch(fv_ctx *ctx, struct choosing *c, const fv_tensor *logits, const fv_tensor *q)
{
    const struct fv_dhsa_groups *g = c->groups;
    const struct fv_dhsa *o = c->call->options;
    int64_t first = g->block[g->block[0] < 0]; /* block of the first list */
    fv_tensor batch = fv_slice(q, 0, c->batch, 1), rows = fv_slice(&batch, 2, first - o->strict, g->listed);

    FV_TRY(cut_chunks(ctx, logits, c));
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, summarise(ctx, c));
    return fv_score_rows(ctx, &rows, &c->summary, 1, choose_chunks, c);
}

fv_status fv_dhsa_choose_by_chunks(fv_ctx *ctx, const fv_call *call, const struct fv_dhsa_groups *g)
{
    struct choosing c = {.call = call, .groups = g};
    fv_tensor logits, q;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, prepare(ctx, &c, &logits, &q));
    for (c.batch = 0; c.batch < call->batch; c.batch++)
        FV_TRY_SCRATCH(ctx, choose_of_batch(ctx, &c, &logits, &q));
    return FV_OK;
}
