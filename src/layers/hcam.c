/* Hierarchical chunk attention over a stored memory (HCAM).  arXiv 2105.14039.
 *
 * Where the definition leaves it open: positions are added to what keys and values are made of, as in the authors'
 * code; chunks of the memory are those of the option `chunk`, so contents of another length do not fit; a query whose
 * chunks are all masked gives 0, without out_bias. */
#include <math.h>
#include <stdio.h>

#include "layers/layer.h"

struct hcam {
    int64_t chunk, top, heads;
    bool position;
};

static const fv_option options[] = {
    FV_INT(struct hcam, chunk, 32, 1, INT32_MAX, "vectors of a chunk"),
    FV_INT(struct hcam, top, 8, 1, INT32_MAX, "chunks that a query reads"),
    FV_INT(struct hcam, heads, 8, 1, INT32_MAX, "of the attention within a chunk; they divide E"),
    FV_BOOL(struct hcam, position, 1, "add sinusoids that count down to 0 at the newest vector of a chunk"),
    FV_OPTIONS_END,
};

enum { X, KEYS, CONTENTS, MASK };
static const fv_param inputs[] = {
    FV_PARAM_NEEDED("x", "[B, Q, E]", "what asks"),
    FV_PARAM_NEEDED_FIXED("keys", "[B, Mc, E]", "summaries of the chunks"),
    FV_PARAM_NEEDED_FIXED("contents", "[B, Mc, Cn, E]", "what the chunks hold, oldest first"),
    FV_PARAM_OF(FV_U8, "mask", "[B, Q, Mc]", "0: the query may not read the chunk (1)"),
    {0},
};

enum { SUMMARY_Q, SUMMARY_K, Q_WEIGHT, K_WEIGHT, V_WEIGHT, OUT_WEIGHT, Q_BIAS, K_BIAS, V_BIAS, OUT_BIAS };
static const fv_param params[] = {
    FV_PARAM_NEEDED("summary_q_weight", "[E, E]", "of what picks and weighs chunks"),
    FV_PARAM_NEEDED("summary_k_weight", "[E, E]", "of their summaries"),
    FV_PARAM_NEEDED("q_weight", "[E, E]", "of queries within chunks"),
    FV_PARAM_NEEDED("k_weight", "[E, E]", "of keys"),
    FV_PARAM_NEEDED("v_weight", "[E, E]", "of values"),
    FV_PARAM_NEEDED("out_weight", "[E, E]", "of the result"),
    FV_PARAM("q_bias", "[E]", "(0)"),
    FV_PARAM("k_bias", "[E]", "(0)"),
    FV_PARAM("v_bias", "[E]", "(0)"),
    FV_PARAM("out_bias", "[E]", "(0)"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("y", "[B, Q, E]", "what was read, to be added to the residual stream"),
    {0},
};

static int64_t size(const fv_layer_call *call, const char *name)
{
    return strcmp(name, "Cn") == 0 ? ((const struct hcam *)call->options)->chunk : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    const struct hcam *o = call->options;
    int64_t E = fv_size_of(&call->sizes, "E");

    FV_TRY(fv_layer_check_heads(call, o->heads, "E"));
    if (o->position && E % 2 != 0)
        return fv_fail(FV_E_SHAPE, "hcam: position: expected an even number of channels, got %lld", (long long)E);
    return FV_OK;
}

/* ---- the memory ------------------------------------------------------------------------------------------------- */

/* What is read of the memory: all of it, or the chunks that somebody chose. */
struct memory {
    int64_t chunks;
    fv_tensor summary_q, summary_k, contents, mask; /* [B,Q,E], [B,chunks,E], [B,chunks,Cn,E], [B,Q,chunks] or absent */
};

/* x [B,R,E] as one head. */
static fv_tensor one_head(const fv_tensor *x)
{
    return fv_reshaped(x, FV_DIMS(x->dims[0], 1, x->dims[1], x->dims[2]));
}

/* The chunks that each query chooses, u8 [B,1,Q,Mc]: those of attention over summaries, a key for each chunk. */
static fv_status map_chosen(fv_ctx *ctx, int64_t top, const struct memory *m, fv_tensor *map, void **owned)
{
    fv_attention_args args = {.q = one_head(&m->summary_q), .k = one_head(&m->summary_k)};
    fv_named_tensor mask = {"chunk_mask", m->mask};
    fv_attention *attention;
    fv_status status;
    char spec[64];

    args.v = args.k;
    FV_TRY(fv_tensor_new(ctx, &args.o, FV_F32, 4, args.q.dims));
    args.params = fv_present(&m->mask);
    args.param = &mask;
    snprintf(spec, sizeof spec, "hcam:chunk=1,top=%lld", (long long)top);
    FV_TRY(fv_attention_new(spec, &attention));
    status = fv_attention_map(ctx, attention, &args, map, owned);
    fv_attention_free(attention);
    return status;
}

/* The chunks that some query of a batch chooses, ascending, and as many others as make the batches equal: index [B,U].
 */
static fv_status list_chosen(fv_ctx *ctx, const fv_tensor *map, fv_tensor *index)
{
    int64_t B = map->dims[0], Q = map->dims[2], Mc = map->dims[3], most = 1;
    const uint8_t *chosen = map->data;
    uint8_t *used;
    int64_t *count;

    FV_TRY(FV_SCRATCH(ctx, used, B * Mc));
    FV_TRY(FV_SCRATCH(ctx, count, B));
    memset(used, 0, (size_t)(B * Mc));
    for (int64_t row = 0; row < B * Q; row++)
        for (int64_t c = 0; c < Mc; c++)
            used[row / Q * Mc + c] |= chosen[row * Mc + c];
    for (int64_t b = 0; b < B; b++) {
        count[b] = 0;
        for (int64_t c = 0; c < Mc; c++)
            count[b] += used[b * Mc + c];
        most = fv_max(most, count[b]);
    }
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(B, most)));
    for (int64_t b = 0; b < B; b++) {
        int32_t *to = (int32_t *)index->data + b * most;
        int64_t others = most - count[b];
        for (int64_t c = 0; c < Mc; c++)
            if (used[b * Mc + c] || others-- > 0) *to++ = (int32_t)c;
    }
    return FV_OK;
}

/* Rows of the chunks listed take the place of those of all, [B,Mc,W]. */
static fv_status gather(fv_ctx *ctx, const fv_tensor *index, fv_tensor *rows)
{
    fv_gather_args g = {.x = *rows, .index = *index};

    FV_TRY(fv_tensor_new(ctx, rows, FV_F32, FV_DIMS(g.x.dims[0], index->dims[1], g.x.dims[2])));
    g.out = *rows;
    return fv_gather(ctx, &g);
}

/* The same for the mask [B,Q,Mc]. */
static fv_status gather_mask(fv_ctx *ctx, const fv_tensor *index, fv_tensor *mask)
{
    const fv_tensor all = *mask;
    int64_t B = all.dims[0], Q = all.dims[1], U = index->dims[1];

    FV_TRY(fv_tensor_new(ctx, mask, FV_U8, FV_DIMS(B, Q, U)));
    for (int64_t at = 0; at < B * Q * U; at++) {
        int64_t row = at / U, b = row / Q, c = ((int32_t *)index->data)[b * U + at % U];
        ((uint8_t *)mask->data)[at] = *(uint8_t *)fv_at(&all, b, row % Q, c, 0);
    }
    return FV_OK;
}

enum { MAP_MOST = 1 << 26 }; /* elements of a map */

/* Few queries choose few chunks, and keys and values of the others need not be made. */
static fv_status keep_chosen(fv_ctx *ctx, const fv_layer_call *call, struct memory *m)
{
    const int64_t *d = call->in[CONTENTS].dims;
    int64_t Q = call->in[X].dims[1], Mc = d[1], top = ((const struct hcam *)call->options)->top;
    fv_tensor map, index;
    fv_choosing before;
    fv_status status;
    void *owned;

    if (Q >= Mc / top || Mc > MAP_MOST / Q) return FV_OK;
    before = fv_choosing_begin(ctx);
    status = map_chosen(ctx, top, m, &map, &owned);
    if (status == FV_OK) {
        status = list_chosen(ctx, &map, &index);
        fv_release(owned);
    }
    fv_choosing_end(ctx, before);
    FV_TRY(status);
    m->chunks = index.dims[1];
    m->contents = fv_reshaped(&m->contents, FV_DIMS(d[0], Mc, d[2] * d[3]));
    FV_TRY(gather(ctx, &index, &m->contents));
    m->contents = fv_reshaped(&m->contents, FV_DIMS(d[0], m->chunks, d[2], d[3]));
    FV_TRY(gather(ctx, &index, &m->summary_k));
    return fv_present(&m->mask) ? gather_mask(ctx, &index, &m->mask) : FV_OK;
}

/* contents + sinusoids: row u of a chunk stands at position Cn - 1 - u, sines in the first half of the channels. */
static fv_status add_positions(fv_ctx *ctx, fv_tensor *contents)
{
    int64_t Cn = contents->dims[2], E = contents->dims[3], half = E / 2;
    fv_tensor position, sum;

    FV_TRY(fv_tensor_new(ctx, &position, FV_F32, FV_DIMS(Cn, E)));
    for (int64_t at = 0; at < Cn * half; at++) {
        int64_t u = at / half, n = at % half;
        double angle = (double)(Cn - 1 - u) * pow(10000, -2.0 * (double)n / (double)E);
        ((float *)position.data)[u * E + n] = (float)sin(angle);
        ((float *)position.data)[u * E + half + n] = (float)cos(angle);
    }
    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, 4, contents->dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *contents, .y = position, .out = sum}));
    *contents = sum;
    return FV_OK;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* Heads joined [B,Q,E]: the attention within each chosen chunk, summed by the weights of the chunks. */
static fv_status read_chunks(fv_ctx *ctx, const fv_layer_call *call, const struct memory *m, fv_tensor *read)
{
    const struct hcam *o = call->options;
    const fv_tensor *w = call->param;
    int64_t B = m->contents.dims[0], E = m->contents.dims[3];
    fv_tensor rows = fv_reshaped(&m->contents, FV_DIMS(B, m->chunks * o->chunk, E));
    fv_named_tensor param[] = {{"summary_q", m->summary_q}, {"summary_k", m->summary_k}, {"chunk_mask", m->mask}};
    fv_attention_args args = {.params = fv_present(&m->mask) ? 3 : 2, .param = param};

    FV_TRY(fv_layer_project(ctx, &call->in[X], &w[Q_WEIGHT], &w[Q_BIAS], o->heads, &args.q));
    FV_TRY(fv_layer_project(ctx, &rows, &w[K_WEIGHT], &w[K_BIAS], o->heads, &args.k));
    FV_TRY(fv_layer_project(ctx, &rows, &w[V_WEIGHT], &w[V_BIAS], o->heads, &args.v));
    FV_TRY(fv_tensor_new(ctx, read, FV_F32, 3, call->in[X].dims));
    args.o = fv_layer_heads(read, o->heads);
    return fv_layer_attend(ctx, &args, "hcam:chunk=%lld,top=%lld", (long long)o->chunk, (long long)o->top);
}

/* 1 for each query [B,Q,1] that may read a chunk, 0 for others; absent if all may. */
static fv_status find_blind(fv_ctx *ctx, const fv_tensor *mask, fv_tensor *sees)
{
    bool blind = false;

    *sees = (fv_tensor){0};
    if (!fv_present(mask)) return FV_OK;
    FV_TRY(fv_tensor_zeros(ctx, sees, FV_F32, FV_DIMS(mask->dims[0], mask->dims[1], 1)));
    for (int64_t row = 0; row < mask->dims[0] * mask->dims[1]; row++) {
        float *to = (float *)sees->data + row;
        for (int64_t c = 0; c < mask->dims[2] && *to == 0; c++)
            *to = *(uint8_t *)fv_at(mask, row / mask->dims[1], row % mask->dims[1], c, 0) != 0;
        blind |= *to == 0;
    }
    if (!blind) *sees = (fv_tensor){0};
    return FV_OK;
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const fv_tensor *in = call->in, *w = call->param;
    struct memory m = {.chunks = in[CONTENTS].dims[1], .contents = in[CONTENTS], .mask = in[MASK]};
    fv_tensor read, sees, product = {0}, bias, y = call->out[0];

    FV_TRY(fv_layer_linear(ctx, &in[X], &w[SUMMARY_Q], NULL, &m.summary_q));
    FV_TRY(fv_layer_linear(ctx, &in[KEYS], &w[SUMMARY_K], NULL, &m.summary_k));
    FV_TRY(keep_chosen(ctx, call, &m));
    if (((const struct hcam *)call->options)->position) FV_TRY(add_positions(ctx, &m.contents));
    FV_TRY(read_chunks(ctx, call, &m, &read));
    FV_TRY(find_blind(ctx, &in[MASK], &sees));
    if (!fv_present(&sees) || !fv_present(&w[OUT_BIAS]))
        return fv_layer_linear(ctx, &read, &w[OUT_WEIGHT], &w[OUT_BIAS], &y);
    FV_TRY(fv_layer_linear(ctx, &read, &w[OUT_WEIGHT], NULL, &product));
    FV_TRY(fv_tensor_new(ctx, &bias, FV_F32, 3, y.dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = sees, .y = w[OUT_BIAS], .out = bias}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = product, .y = bias, .out = y});
}

const fv_layer_type fv_layer_hcam = {
    .name = "hcam",
    .title = "Hierarchical chunk attention over a memory (HCAM)",
    .paper = "arXiv 2105.14039",
    .sheet = 36,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "r = (x Wsq).(keys Wsk) E^-1/2; y = sum over the top chunks of softmax(r)_c MHA(x; contents_c + "
               "position) Wo + bo; no gradient to the memory",
    .cost = "keys and values of the chunks chosen by somebody: 4 chunk E^2 flops each; Mc E per query for summaries, "
            "2 top chunk E within chunks",
    .options = options,
    .options_size = sizeof(struct hcam),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .size = size,
    .accept = accept,
    .forward = forward,
};
