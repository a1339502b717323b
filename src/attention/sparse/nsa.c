/* Native sparse attention: a gated sum of attention over compressed keys, over selected blocks and over a window.
 * arXiv 2502.11089; the schedule that turns the selected branch round is that of arXiv 2508.18224. */
#include "attention/sparse/core.h"

struct nsa {
    int compress;
    int64_t compress_block, compress_stride, block, top, init, local, window;
    int schedule;
    double rope_base;
};

enum { COMPRESS_LINEAR, COMPRESS_MEAN };
enum { SCHEDULE_AUTO, SCHEDULE_NSA, SCHEDULE_FSA };
enum { COMPRESS_K, COMPRESS_V, COMPRESS_POSITION, GATE };

/* Weights of compressed keys held at once, and the widest group the turned schedule is for. */
#define WEIGHTS ((int64_t)1 << 19)
enum { FSA_GROUP = 8 };

static const char *const compressions[] = {"linear", "mean", NULL};
static const char *const schedules[] = {"auto", "nsa", "fsa", NULL};

static const fv_option options[] = {
    FV_ENUM(struct nsa, compress, "linear", compressions, "how a compressed key is made; linear without weights: mean"),
    FV_INT(struct nsa, compress_block, 32, 1, 65536, "tokens in a compressed key"),
    FV_INT(struct nsa, compress_stride, 16, 1, 65536, "tokens from one compressed key to the next"),
    FV_INT(struct nsa, block, 64, 1, 1 << 20, "tokens in a selected block"),
    FV_INT(struct nsa, top, 16, 1, 1 << 20, "blocks a query reads, first and local ones included"),
    FV_INT(struct nsa, init, 1, 0, 1 << 20, "first blocks, always read"),
    FV_INT(struct nsa, local, 2, 1, 1 << 20, "blocks up to the query's own, always read"),
    FV_INT(struct nsa, window, 512, 0, INT32_MAX,
           "latest tokens of the window branch, the query's own included; 0: none"),
    FV_ENUM(struct nsa, schedule, "auto", schedules, "of the selected branch; fsa turns the loops round; same result"),
    FV_FLOAT(struct nsa, rope_base, 0, 0, 1e12, "rotate q and k inside, compressing before; 0: they come as used"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("compress_k", "[Hkv, compress_block*D, D]", "makes compressed keys (mean of the block)"),
    FV_PARAM("compress_v", "[Hkv, compress_block*Dv, Dv]", "makes compressed values (mean of the block)"),
    FV_PARAM("compress_position", "[Hkv, compress_block, D]", "added to keys before compression (0)"),
    FV_PARAM("gate", "[B, H, N, 3]", "logits of the gates: compressed, selected, window (0)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    (void)call;
    return strcmp(name, "compress_block") == 0 ? ((const struct nsa *)values)->compress_block : -1;
}

static fv_status check(const void *values)
{
    const struct nsa *o = values;

    if (o->compress_block % o->compress_stride != 0 || o->block % o->compress_stride != 0)
        return fv_fail(
            FV_E_USAGE,
            "nsa: options 'compress_block' and 'block': expected multiples of compress_stride %lld, got %lld and %lld",
            (long long)o->compress_stride, (long long)o->compress_block, (long long)o->block);
    if (o->top < o->init + o->local)
        return fv_fail(FV_E_USAGE, "nsa: option 'top': expected at least init + local = %lld, got %lld",
                       (long long)(o->init + o->local), (long long)o->top);
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct nsa *o = call->options;

    if (o->compress == COMPRESS_MEAN && (fv_present(&call->param[COMPRESS_K]) || fv_present(&call->param[COMPRESS_V])))
        return fv_fail(FV_E_USAGE, "nsa: params 'compress_k' and 'compress_v' need compress=linear, got mean");
    if (o->rope_base > 0 && call->head_dim % 2 != 0)
        return fv_fail(FV_E_SHAPE, "nsa: rope_base: expected an even head dim, got %lld", (long long)call->head_dim);
    return FV_OK;
}

/* ---- compression ------------------------------------------------------------------------------------------------ */

/* What the branches read: the call with q and k rotated, and that with compressed keys and values. */
struct operands {
    fv_call turned, compressed;
    int32_t *last; /* position of each compressed key's last member */
};

/* Compressed keys that `keys` positions complete. */
static int64_t compressed_of(const struct nsa *o, int64_t keys)
{
    return keys < o->compress_block ? 0 : (keys - o->compress_block) / o->compress_stride + 1;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    *width = kind == 0 ? call->head_dim : call->value_dim;
    return compressed_of(call->options, keys);
}

/* out [B,Hkv,C,D]: each compressed row is W^T (rows + position), flattened. */
static fv_status compress_linear(fv_ctx *ctx, const struct nsa *o, const fv_tensor *x, const fv_tensor *weight,
                                 const fv_tensor *position, const fv_tensor *out)
{
    int64_t B = x->dims[0], heads = x->dims[1], D = x->dims[3], block = o->compress_block, C = out->dims[2];
    fv_tensor index, rows;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(1, 1, C * block)));
    for (int64_t r = 0; r < C * block; r++)
        ((int32_t *)index.data)[r] = (int32_t)(r / block * o->compress_stride + r % block);
    FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, FV_DIMS(B, heads, C * block, D)));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = *x, .index = index, .out = rows}));
    rows = fv_reshaped(&rows, FV_DIMS(B, heads, C, block, D));
    if (fv_present(position))
        FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = rows, .y = fv_expanded(position, 1)}, &rows));
    return fv_gemm(ctx,
                   &(fv_gemm_args){.a = fv_reshaped(&rows, FV_DIMS(B, heads, C, block * D)), .b = *weight, .c = *out});
}

/* out [B,Hkv,C,D]: the mean of each block's rows plus that of position. */
static fv_status compress_mean(fv_ctx *ctx, const struct nsa *o, const fv_tensor *x, const fv_tensor *position,
                               const fv_tensor *out)
{
    fv_tensor means = *out, shift;

    if (fv_present(position)) FV_TRY(fv_tensor_new(ctx, &means, FV_F32, 4, out->dims));
    FV_TRY(fv_pool_rows(
        ctx, &(fv_pool_args){.x = *x, .out = means, .block = o->compress_block, .stride = o->compress_stride}));
    if (!fv_present(position)) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &shift, FV_F32, FV_DIMS(position->dims[0], 1, position->dims[2])));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = *position, .out = shift, .block = o->compress_block}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = means, .y = shift, .out = *out});
}

/* Compressed rows from.. of x (k or v); those are made of rows from * compress_stride on. */
static fv_status compress(fv_ctx *ctx, const struct nsa *o, const fv_tensor *x, const fv_tensor *weight,
                          const fv_tensor *position, int64_t from, const fv_tensor *out)
{
    int64_t rows = (out->dims[2] - 1) * o->compress_stride + o->compress_block;
    fv_tensor part = fv_slice(x, 2, from * o->compress_stride, rows), plain;

    FV_TRY(fv_as_f32(ctx, &part, &plain));
    if (fv_present(weight)) return compress_linear(ctx, o, &plain, weight, position, out);
    return compress_mean(ctx, o, &plain, position, out);
}

static fv_status rotate(fv_ctx *ctx, const struct nsa *o, const int32_t *position, int64_t offset, const fv_tensor *x,
                        const fv_tensor *out)
{
    return fv_rope(ctx, &(fv_rope_args){
                            .x = *x, .out = *out, .position = position, .offset = offset, .base = (float)o->rope_base});
}

/* Keys are compressed before rotation and then stand at the position of their first member. */
static fv_status make_keys(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const struct nsa *o = call->options;
    const fv_tensor *weight = &call->param[COMPRESS_K], *position = &call->param[COMPRESS_POSITION];
    fv_tensor before;
    int32_t *first;

    if (o->rope_base == 0) return compress(ctx, o, &call->k, weight, position, from, out);
    FV_TRY(FV_SCRATCH(ctx, first, out->dims[2]));
    for (int64_t j = 0; j < out->dims[2]; j++)
        first[j] = (int32_t)((from + j) * o->compress_stride);
    FV_TRY(fv_tensor_new(ctx, &before, FV_F32, 4, out->dims));
    FV_TRY(compress(ctx, o, &call->k, weight, position, from, &before));
    return rotate(ctx, o, first, 0, &before, out);
}

static fv_status make_values(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    return compress(ctx, call->options, &call->v, &call->param[COMPRESS_V], &(fv_tensor){0}, from, out);
}

static fv_status prepare(fv_ctx *ctx, const fv_call *call, struct operands *p)
{
    const struct nsa *o = call->options;
    int64_t compressed = compressed_of(o, call->keys);
    fv_tensor k;

    p->turned = *call;
    if (o->rope_base > 0) {
        FV_TRY(fv_plain(ctx, &call->k, &k));
        FV_TRY(fv_tensor_new(ctx, &p->turned.q, FV_F32, 4, call->q.dims));
        FV_TRY(fv_tensor_new(ctx, &p->turned.k, FV_F32, 4, call->k.dims));
        FV_TRY(rotate(ctx, o, NULL, call->offset, &call->q, &p->turned.q));
        FV_TRY(rotate(ctx, o, NULL, 0, &k, &p->turned.k));
    }
    p->compressed = p->turned;
    p->compressed.keys = compressed;
    FV_TRY(fv_keep(ctx, call, kept, 0, compressed, make_keys, &p->compressed.k));
    FV_TRY(fv_keep(ctx, call, kept, 1, compressed, make_values, &p->compressed.v));
    FV_TRY(FV_SCRATCH(ctx, p->last, compressed));
    for (int64_t j = 0; j < compressed; j++)
        p->last[j] = (int32_t)(j * o->compress_stride + o->compress_block - 1);
    return FV_OK;
}

/* ---- the compressed branch, and the choice by its weights ------------------------------------------------------- */

/* A call's choice, a stretch of queries at a time.  Weights stand in a row for each compressed key and a column for
 * each query, so that queries go by in vectors.  Before the first key are `pad` rows of zeros: the importance of a
 * block, the sum of the weights of the compressed keys that share a stride with it, each counted as often as it shares
 * one, is then the sum of `overlap` sums over `strides` rows, each of them a row farther down. */
struct stretches {
    const fv_call *call;
    const int32_t *last; /* position of each compressed key's last member */
    fv_choice *choice;
    int64_t overlap, strides, blocks, pad, width;
    bool by_product;   /* the weights come with attention, which knows what is hidden from a query */
    fv_tensor weights; /* [B,H,width,n] */
};

static fv_status new_stretches(fv_ctx *ctx, const fv_call *call, struct stretches *s)
{
    const struct nsa *o = call->options;
    int64_t heads = call->batch * call->query_heads;

    s->overlap = o->compress_block / o->compress_stride;
    s->strides = o->block / o->compress_stride;
    s->blocks = fv_ceil_div(call->keys, o->block);
    s->pad = s->overlap - 1;
    s->width = s->blocks * s->strides + s->pad;
    s->by_product = o->compress_block - o->compress_stride > (o->local - 1) * o->block || call->scale == 0 ||
                    call->softcap > 0 || call->gain != 0;
    return fv_tensor_zeros(
        ctx, &s->weights, FV_F32,
        FV_DIMS(call->batch, call->query_heads, s->width, fv_clamp(WEIGHTS / (heads * s->width), 16, call->queries)));
}

/* Weights exp(scale q.k - lse) [B,H,C,n] in one product, if blocks before the local ones share with no key that is
 * hidden from the query: what stands in the rows of hidden keys is then never read. */
static fv_status multiply(fv_ctx *ctx, const fv_call *part, const fv_tensor *weights)
{
    int64_t Hkv = part->key_heads;
    fv_tensor k = fv_grouped(&part->k, Hkv), q = fv_grouped(&part->q, Hkv), c = fv_grouped(weights, Hkv);
    fv_tensor lse = fv_expanded(&part->lse, 2);
    fv_gemm_args product = {.a = k, .b = fv_transposed(&q), .c = c, .alpha = part->scale};

    if (part->queries == 1) /* a row, not a column */
        product.a = q, product.b = fv_transposed(&k), product.c = fv_transposed(&c);
    FV_TRY(fv_gemm(ctx, &product));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = *weights, .y = lse, .out = *weights}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = *weights, .out = *weights});
}

/* Weights summed over the heads of a group, and over what each block shares: scores [B,Hkv,blocks,n]. */
static fv_status score(fv_ctx *ctx, const struct stretches *s, const fv_tensor *scores)
{
    int64_t B = s->call->batch, Hkv = s->call->key_heads, n = s->weights.dims[3];
    fv_tensor heads = fv_reshaped(&s->weights, FV_DIMS(B, s->call->query_heads, 1, s->width * n)), sums, part;

    FV_TRY(fv_pool_heads(ctx, FV_POOL_SUM, &heads, Hkv, &sums));
    sums = fv_reshaped(&sums, FV_DIMS(B, Hkv, s->width, n));
    FV_TRY(fv_tensor_new(ctx, &part, FV_F32, 4, scores->dims));
    for (int64_t shift = 0; shift < s->overlap; shift++) {
        fv_pool_args pool = {.kind = FV_POOL_SUM,
                             .x = fv_slice(&sums, 2, shift, s->blocks * s->strides),
                             .out = shift ? part : *scores,
                             .block = s->strides};
        FV_TRY(fv_pool_rows(ctx, &pool));
        if (shift) FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *scores, .y = part, .out = *scores}));
    }
    return FV_OK;
}

static fv_status choose_rows(fv_ctx *ctx, const struct stretches *s, const fv_call *part, const fv_tensor *weights)
{
    const fv_call *call = s->call;
    int64_t count = part->queries, init = s->choice->init;
    fv_tensor scores, rows;

    if (!s->by_product && part->keys > 0) FV_TRY(multiply(ctx, part, weights));
    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(call->batch, call->key_heads, s->blocks, s->weights.dims[3])));
    FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, FV_DIMS(call->batch, call->key_heads, count, s->blocks)));
    FV_TRY(score(ctx, s, &scores));
    scores = fv_slice(&scores, 3, 0, count);
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = fv_transposed(&scores), .out = rows}));
    rows = fv_slice(&rows, 3, init, s->blocks - init); /* there are more: some are chosen */
    return fv_choose(ctx, call, s->choice, part->offset - call->offset, &rows);
}

static fv_status attend_stretch(fv_ctx *ctx, const fv_call *part, void *user)
{
    const struct stretches *s = user;
    fv_plan plan = {.causal = true, .offset = part->offset, .key_position = s->last};
    fv_attend_args attend = fv_call_attend(part, &plan);
    fv_tensor columns = fv_slice(&s->weights, 3, 0, part->queries), weights = fv_slice(&columns, 2, s->pad, part->keys);
    bool chooses = s->choice->index.dims[3] > 0;

    if (chooses && s->by_product) attend.weights = fv_transposed(&weights);
    if (part->keys > 0) FV_TRY(fv_attend_counted(ctx, part, &attend));
    if (chooses) FV_TRY_CHOOSING(ctx, choose_rows(ctx, s, part, &weights));
    return FV_OK;
}

/* Branch 1 into o; its weights choose the blocks. */
static fv_status attend_compressed(fv_ctx *ctx, const fv_call *call, const struct operands *p, const fv_tensor *o_out,
                                   fv_choice *choice)
{
    const struct nsa *o = call->options;
    fv_call compressed = p->compressed;
    struct stretches s = {.call = call, .last = p->last, .choice = choice};

    FV_TRY(fv_choice_between(ctx, call, o->block, o->top, o->init, o->local, choice));
    FV_TRY(new_stretches(ctx, call, &s));
    compressed.o = *o_out;
    FV_TRY(fv_tensor_zeros(ctx, &compressed.lse, FV_F32, 3, call->o.dims));
    return fv_run_stretches(ctx, &compressed, s.weights.dims[3], attend_stretch, &s);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static bool by_block(const fv_call *call)
{
    const struct nsa *o = call->options;

    if (o->schedule != SCHEDULE_AUTO) return o->schedule == SCHEDULE_FSA;
    return call->queries > 1 && call->query_heads / call->key_heads <= FSA_GROUP;
}

/* o = sum of sigmoid(gate) * branch. */
static fv_status gate(fv_ctx *ctx, const fv_call *call, const fv_tensor *branches)
{
    static const float half = 0.5f;
    const fv_tensor *logits = &call->param[GATE];
    fv_merge_args merge = {.parts = 3, .o = call->o};
    fv_tensor gates;

    if (fv_present(logits)) {
        FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SIGMOID, .x = *logits}, &gates));
    } else {
        gates = (fv_tensor){.data = (void *)&half,
                            .dtype = FV_F32,
                            .rank = 4,
                            .dims = {call->batch, call->query_heads, call->queries, 3}};
    }
    for (int b = 0; b < 3; b++) {
        merge.o_part[b] = branches[b];
        merge.weight[b] = fv_plane(&gates, 3, b);
    }
    return fv_merge(ctx, &merge);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct nsa *o = call->options;
    struct operands p;
    fv_tensor branch[3];
    fv_choice choice;
    fv_attend_args attend;
    fv_plan window = {.causal = true, .offset = call->offset, .window = {.window = o->window}};

    FV_TRY(prepare(ctx, call, &p));
    for (int b = 0; b < 3; b++)
        FV_TRY(fv_tensor_zeros(ctx, &branch[b], FV_F32, 4, call->o.dims));
    FV_TRY(attend_compressed(ctx, call, &p, &branch[0], &choice));
    p.turned.o = branch[1];
    FV_TRY(fv_choice_attend(ctx, &p.turned, &choice, by_block(call)));
    attend = fv_call_attend(&p.turned, &window);
    attend.o = branch[2];
    if (o->window > 0) FV_TRY(fv_attend_counted(ctx, call, &attend));
    return gate(ctx, call, branch);
}

/* --plan is the selected branch. */
static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct operands p;
    fv_tensor o;
    fv_choice choice;

    FV_TRY(prepare(ctx, call, &p));
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, 4, call->o.dims));
    FV_TRY(attend_compressed(ctx, call, &p, &o, &choice));
    return fv_choice_plan(ctx, call, &choice, &pairs->plan);
}

const fv_mechanism fv_mechanism_nsa = {
    .name = "nsa",
    .title = "Native sparse attention",
    .paper = "arXiv 2502.11089, 2508.18224",
    .sheet = 99,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_SELF_ONLY | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "o = g1 softmax over compressed keys + g2 softmax over the top blocks by the weights of the first, summed "
        "over a group + g3 softmax over the window; g = sigmoid(gate)",
    .cost = "each query reads N / compress_stride compressed keys, top * block selected and window local ones",
    .options = options,
    .options_size = sizeof(struct nsa),
    .params = params,
    .check = check,
    .size = size,
    .accept = accept,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
