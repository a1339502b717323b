/* One forward for all architectures. */
#include "models/forward_inside.h"

/* Where a step's result goes: over what it was made of, or, while a tape records, to memory of its own. */
static fv_status renew(const struct fv_pass *p, fv_tensor *t)
{
    const fv_tensor old = *t;

    return p->ctx->recording ? fv_tensor_new(p->ctx, t, FV_F32, old.rank, old.dims) : FV_OK;
}

static fv_status rms_norm(const struct fv_pass *p, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *out)
{
    return fv_norm(p->ctx,
                   &(fv_norm_args){.x = *x, .weight = *weight, .out = *out, .epsilon = (float)p->sizes->epsilon});
}

/* What add_part does, step by step for the tape. */
static fv_status add_part_apart(struct fv_pass *p, const fv_tensor *a, const fv_weight *weight, const fv_tensor *bias,
                                const fv_tensor *norm, const fv_tensor *next)
{
    const fv_tensor x = p->x;
    fv_tensor gives, y;

    FV_TRY(fv_tensor_new(p->ctx, &gives, FV_F32, 2, x.dims));
    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = *a, .parts = 1, .part = {fv_pass_part(weight, bias, &gives)}}));
    y = gives;
    if (fv_present(norm)) {
        FV_TRY(renew(p, &gives));
        FV_TRY(rms_norm(p, &y, norm, &gives));
    }
    FV_TRY(renew(p, &p->x));
    FV_TRY(fv_map_apply(p->ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .y = gives, .out = p->x}));
    if (!fv_present(next)) return FV_OK;
    FV_TRY(renew(p, &p->h));
    return rms_norm(p, &p->x, next, &p->h);
}

/* x += a weight^T + bias, or x += norm(that) where the architecture norms what a part gives; then h = norm(x) for the
 * part that comes next, if one does. */
static fv_status add_part(struct fv_pass *p, const fv_tensor *a, const fv_weight *weight, const fv_tensor *bias,
                          const fv_tensor *norm, const fv_tensor *next)
{
    fv_linear_args args = {.x = *a, .parts = 1, .part = {fv_pass_part(weight, bias, fv_present(norm) ? &p->h : &p->x)}};

    if (p->ctx->recording) return add_part_apart(p, a, weight, bias, norm, next);
    args.part[0].add = !fv_present(norm);
    FV_TRY(fv_linear(p->ctx, &args));
    if (!fv_present(norm)) return fv_present(next) ? rms_norm(p, &p->x, next, &p->h) : FV_OK;
    if (fv_present(next))
        return fv_norm(p->ctx, &(fv_norm_args){.x = p->x,
                                               .add = p->h,
                                               .add_weight = *norm,
                                               .sum = p->x,
                                               .weight = *next,
                                               .out = p->h,
                                               .epsilon = (float)p->sizes->epsilon});
    FV_TRY(rms_norm(p, &p->h, norm, &p->h));
    return fv_map_apply(p->ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = p->x, .y = p->h, .out = p->x});
}

/* Norms and turns the heads of q or k; `plain`, if it is present, receives them as they are before they are turned. */
static fv_status turn(const struct fv_pass *p, const fv_layer *layer, const fv_tensor *norm, fv_tensor *t,
                      int64_t heads, const fv_tensor *plain)
{
    fv_rope_args rope = fv_pass_rope(p, layer);

    if (fv_present(norm)) {
        fv_tensor rows = fv_reshaped(t, FV_DIMS(p->tokens * heads, p->sizes->key_dim)), normed;
        FV_TRY(renew(p, t));
        normed = fv_reshaped(t, FV_DIMS(p->tokens * heads, p->sizes->key_dim));
        FV_TRY(rms_norm(p, &rows, norm, &normed));
    }
    if (fv_present(plain)) FV_TRY(fv_map_apply(p->ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *t, .out = *plain}));
    rope.x = fv_pass_heads(t, heads, p->sizes->key_dim);
    FV_TRY(renew(p, t));
    rope.out = fv_pass_heads(t, heads, p->sizes->key_dim);
    rope.offset = p->session->length;
    rope.position = p->position;
    return fv_rope(p->ctx, &rope);
}

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

static fv_status project(struct fv_pass *p, const fv_layer *layer)
{
    FV_TRY(renew(p, &p->q));
    FV_TRY(renew(p, &p->k));
    FV_TRY(renew(p, &p->v));
    const fv_linear_args products = fv_pass_products(p, layer);
    FV_TRY(fv_linear(p->ctx, &products));
    FV_TRY(turn(p, layer, &layer->q_norm, &p->q, p->sizes->query_heads, &(fv_tensor){0}));
    return turn(p, layer, &layer->k_norm, &p->k, p->sizes->key_heads, &p->plain);
}

/* h holds the normed x, and holds it for the next layer afterwards, if `next` is its norm. */
static fv_status run_layer(struct fv_pass *p, int64_t l, const fv_tensor *next)
{
    const fv_layer *layer = &p->session->model->layers[l];
    bool gelu = (p->session->model->architecture->parts & FV_GELU) != 0;

    FV_TRY(project(p, layer));
    FV_TRY(renew(p, &p->o));
    FV_TRY(fv_pass_attend(p, l));
    FV_TRY(add_part(p, &p->o, &layer->o, &layer->o_bias, &layer->post_attention_norm, &layer->mlp_norm));
    FV_TRY(renew(p, &p->hidden));
    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = p->h,
                                               .parts = 2,
                                               .part = {fv_pass_part(&layer->gate, &layer->gate_bias, &p->hidden),
                                                        fv_pass_part(&layer->up, &layer->up_bias, &p->hidden)},
                                               .gate = gelu ? FV_MAP_GELU_TANH_MUL : FV_MAP_SILU_MUL}));
    return add_part(p, &p->hidden, &layer->down, &layer->down_bias, &layer->post_mlp_norm, next);
}

/* Tells those who listen what goes into layer l, or comes out of the one below. */
static fv_status tell_hidden(const struct fv_pass *p, int64_t l)
{
    for (int64_t i = 0; i < p->count; i++) {
        const fv_forward_part *part = &p->parts[i];
        if (!fv_heard(part->session->listeners, FV_POINT_HIDDEN)) continue;
        FV_TRY(fv_tell(p->ctx, part->session->listeners,
                       &(fv_look){.point = FV_POINT_HIDDEN,
                                  .layer = l,
                                  .position = part->session->length,
                                  .prompt = part->prompt,
                                  .hidden = fv_slice(&p->x, 0, p->first[i], part->count)}));
    }
    return FV_OK;
}

/* Buffers for the tokens of all parts; x is its own where it is not given. */
static fv_status make_buffers(struct fv_pass *p)
{
    const fv_sizes *s = p->sizes;
    const struct {
        fv_tensor *tensor;
        int64_t columns;
    } buffers[] = {{&p->x, s->width},
                   {&p->h, s->width},
                   {&p->q, s->query_heads * s->key_dim},
                   {&p->k, s->key_heads * s->key_dim},
                   {&p->v, s->key_heads * s->value_dim},
                   {&p->o, s->query_heads * s->value_dim},
                   {&p->hidden, s->hidden}};

    for (size_t b = 0; b < sizeof buffers / sizeof *buffers; b++)
        if (!fv_present(buffers[b].tensor))
            FV_TRY(fv_tensor_new(p->ctx, buffers[b].tensor, FV_F32, FV_DIMS(p->tokens, buffers[b].columns)));
    for (int64_t i = 0; p->parts && i < p->count; i++)
        if (fv_cache_plan_traits(&p->parts[i].session->cache) & FV_POLICY_PLAIN_KEYS && !fv_present(&p->plain))
            FV_TRY(fv_tensor_new(p->ctx, &p->plain, FV_F32, FV_DIMS(p->tokens, s->key_heads * s->key_dim)));
    return FV_OK;
}

/* Rows of the embedding for ids, scaled, into x. */
static fv_status embed(fv_ctx *ctx, const fv_model *model, const int32_t *ids, const fv_tensor *x)
{
    FV_TRY(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = model->embedding, .out = *x, .index = ids}));
    if (x->dims[0] >= FV_MANY_TOKENS) fv_model_give_back_embedding(model);
    if (model->sizes.embedding_scale == 1) return FV_OK;
    return fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *x, .alpha = (float)model->sizes.embedding_scale});
}

static fv_status begin(fv_ctx *ctx, const fv_forward_part *parts, int64_t count, struct fv_pass *p)
{
    const fv_model *model = parts[0].session->model;
    int64_t *first, tokens = 0;
    int32_t *position;

    *p = (struct fv_pass){
        .session = parts[0].session, .ctx = ctx, .sizes = &model->sizes, .parts = parts, .count = count};
    FV_TRY(FV_SCRATCH(ctx, first, count));
    for (int64_t i = 0; i < count; i++) {
        parts[i].session->failure = FV_OK;
        first[i] = tokens;
        tokens += parts[i].count;
    }
    p->first = first;
    p->tokens = tokens;
    if (count == 1) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, position, tokens));
    for (int64_t i = 0; i < count; i++)
        for (int64_t t = 0; t < parts[i].count; t++)
            position[first[i] + t] = (int32_t)(parts[i].session->length + t);
    p->position = position;
    return FV_OK;
}

fv_status fv_forward(fv_ctx *ctx, const fv_forward_part *parts, int64_t count, fv_tensor *x)
{
    static const fv_tensor none;
    const fv_model *model = parts[0].session->model;
    const fv_layer *layers = model->layers;
    struct fv_pass pass;
    bool recurrent = false;

    FV_TRY(begin(ctx, parts, count, &pass));
    FV_TRY(make_buffers(&pass));
    for (int64_t i = 0; i < count; i++) {
        fv_tensor rows = fv_slice(&pass.x, 0, pass.first[i], parts[i].count);
        FV_TRY(embed(ctx, model, parts[i].ids, &rows));
        recurrent = recurrent || parts[i].session->recurrent;
    }
    FV_TRY(rms_norm(&pass, &pass.x, &layers[0].attention_norm, &pass.h));
    for (int64_t l = 0; l < model->sizes.layers; l++) {
        if (!recurrent || l == 0) FV_TRY(fv_ctx_check(ctx)); /* states cannot be taken back */
        FV_TRY(tell_hidden(&pass, l));
        FV_TRY(run_layer(&pass, l, l + 1 < model->sizes.layers ? &layers[l + 1].attention_norm : &none));
    }
    *x = pass.x;
    return tell_hidden(&pass, model->sizes.layers);
}

/* ---- layer by layer ---------------------------------------------------------------------------------------------- */

/* Chunk by chunk through one layer.  The session's length moves with the chunks, and back.  Where a norm of what the
 * layer gives is one pass with the next layer's norm, it is so here too, so that x has the same bits. */
static fv_status run_layer_alone(fv_session *session, struct fv_pass *buffers, const fv_tensor *x, int64_t l)
{
    static const fv_tensor none;
    const fv_layer *layer = &session->model->layers[l];
    bool together = fv_present(&layer->post_mlp_norm) && l + 1 < session->model->sizes.layers;
    const fv_tensor *next = together ? &layer[1].attention_norm : &none;
    int64_t before = session->length, tokens = x->dims[0], chunk = buffers->tokens;
    fv_status status = FV_OK;

    for (int64_t at = 0; at < tokens && status == FV_OK; at += chunk) {
        int64_t count = fv_min(chunk, tokens - at), first = 0;
        fv_forward_part part = {.session = session, .count = count, .prompt = true};
        fv_mark mark = fv_scratch_mark(session->ctx);
        struct fv_pass p = *buffers;
        p.parts = &part;
        p.first = &first;
        p.count = 1;
        p.tokens = count;
        p.x = fv_slice(x, 0, at, count);
        fv_tensor *own[] = {&p.h, &p.q, &p.k, &p.v, &p.o, &p.hidden};
        for (size_t b = 0; b < sizeof own / sizeof *own; b++)
            *own[b] = fv_slice(own[b], 0, 0, count);
        status = tell_hidden(&p, l);
        if (status == FV_OK) status = rms_norm(&p, &p.x, &layer->attention_norm, &p.h);
        if (status == FV_OK) status = run_layer(&p, l, next);
        if (status == FV_OK && l + 1 == session->model->sizes.layers) status = tell_hidden(&p, l + 1);
        fv_scratch_release(session->ctx, mark);
        session->length += count;
        fv_ctx_report(session->ctx, "tokens",
                      (double)(l * tokens + at + count) / (double)(session->model->sizes.layers * tokens));
    }
    session->length = before;
    return status;
}

/* Embeds the tokens and makes buffers for a chunk of them. */
static fv_status begin_layers(fv_session *session, const int32_t *ids, int64_t count, struct fv_pass *buffers,
                              fv_tensor *x)
{
    const fv_forward_part part = {session, ids, fv_min(session->chunk, count), true};
    fv_ctx *ctx = session->ctx;

    FV_TRY(fv_tensor_new(ctx, x, FV_F32, FV_DIMS(count, session->model->sizes.width)));
    FV_TRY(embed(ctx, session->model, ids, x));
    FV_TRY(begin(ctx, &part, 1, buffers));
    buffers->parts = NULL;
    buffers->x = *x;
    return make_buffers(buffers);
}

fv_status fv_forward_layers(fv_session *session, const int32_t *ids, int64_t count, fv_tensor *x)
{
    struct fv_pass buffers;

    FV_TRY(begin_layers(session, ids, count, &buffers, x));
    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        if (!session->recurrent || l == 0) FV_TRY(fv_ctx_check(session->ctx));
        FV_TRY(run_layer_alone(session, &buffers, x, l));
        FV_TRY(fv_session_act(session, l, session->length + count));
    }
    return FV_OK;
}

/* What q and k of a layer are for the tokens from `at` on: k among all `keys`, q in its buffer. */
static fv_status project_alone(fv_session *session, const struct fv_pass *buffers, const fv_tensor *x,
                               const fv_tensor *keys, int64_t at, int64_t l)
{
    const fv_layer *layer = &session->model->layers[l];
    int64_t count = fv_min(buffers->tokens, x->dims[0] - at);
    struct fv_pass p = *buffers;
    fv_status status;

    p.tokens = count;
    p.x = fv_slice(x, 0, at, count);
    p.h = fv_slice(&p.h, 0, 0, count);
    p.q = fv_slice(&p.q, 0, 0, count);
    p.k = fv_slice(keys, 0, at, count);
    p.v = fv_slice(&p.v, 0, 0, count);
    FV_TRY(rms_norm(&p, &p.x, &layer->attention_norm, &p.h));
    session->length = at; /* the positions they are rotated for */
    status = project(&p, layer);
    session->length = 0;
    return status;
}

fv_status fv_forward_filter(fv_session *session, const int32_t *ids, int64_t count, int64_t layer, fv_tensor *q,
                            fv_tensor *k)
{
    const fv_sizes *s = &session->model->sizes;
    struct fv_pass buffers;
    fv_tensor x, keys, last;

    FV_TRY(begin_layers(session, ids, count, &buffers, &x));
    FV_TRY(fv_tensor_new(session->ctx, &keys, FV_F32, FV_DIMS(count, s->key_heads * s->key_dim)));
    FV_TRY(fv_tensor_new(session->ctx, &last, FV_F32, FV_DIMS(1, s->query_heads * s->key_dim)));
    for (int64_t l = 0; l < layer; l++) {
        FV_TRY(fv_ctx_check(session->ctx));
        FV_TRY(run_layer_alone(session, &buffers, &x, l));
        fv_session_clear_layer(session, l);
    }
    for (int64_t at = 0; at < count; at += buffers.tokens) {
        fv_mark mark = fv_scratch_mark(session->ctx);
        FV_TRY(project_alone(session, &buffers, &x, &keys, at, layer));
        fv_scratch_release(session->ctx, mark);
    }
    x = fv_slice(&buffers.q, 0, (count - 1) % buffers.tokens, 1);
    FV_TRY(fv_map_apply(session->ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = x, .out = last}));
    *q = fv_pass_heads(&last, s->query_heads, s->key_dim);
    *k = fv_pass_heads(&keys, s->key_heads, s->key_dim);
    return FV_OK;
}

/* ---- rows once more ---------------------------------------------------------------------------------------------- */

static fv_status project_again(struct fv_pass *p, const fv_layer *layer)
{
    fv_linear_args products = fv_pass_products(p, layer);
    bool packed = layer->q.packed.data && layer->k.packed.data && layer->v.packed.data; /* then all were, or none */

    products.parts = 2;
    for (int n = 0; n < products.parts; n++) {
        products.part[n] = products.part[n + 1];
        if (!packed) products.part[n].packed = NULL;
    }
    FV_TRY(fv_linear(p->ctx, &products));
    return turn(p, layer, &layer->k_norm, &p->k, p->sizes->key_heads, &(fv_tensor){0});
}

fv_status fv_forward_project(fv_ctx *ctx, void *session, int64_t l, const fv_tensor *input, const int32_t *position,
                             bool few, fv_tensor *k, fv_tensor *v)
{
    const fv_session *own = session;
    const fv_sizes *s = &own->model->sizes;
    struct fv_pass p = {
        .session = own, .ctx = ctx, .sizes = s, .tokens = input->dims[0], .position = position, .h = *input};
    fv_precision precision = ctx->precision;
    fv_batching batching = ctx->batching;
    fv_status status;

    FV_TRY(fv_tensor_new(ctx, &p.k, FV_F32, FV_DIMS(p.tokens, s->key_heads * s->key_dim)));
    FV_TRY(fv_tensor_new(ctx, &p.v, FV_F32, FV_DIMS(p.tokens, s->key_heads * s->value_dim)));
    ctx->precision = own->precision;
    ctx->batching = few ? FV_BATCH_STEPS : FV_BATCH_PROMPT;
    status = project_again(&p, &own->model->layers[l]);
    ctx->precision = precision;
    ctx->batching = batching;
    *k = p.k;
    *v = p.v;
    return status;
}

/* ---- logits ------------------------------------------------------------------------------------------------------ */

static fv_status logits_of(const fv_session *session, const fv_tensor *x, fv_tensor *logits)
{
    const fv_model *model = session->model;
    struct fv_pass pass = {.session = session, .ctx = session->ctx, .sizes = &model->sizes};
    static const fv_tensor no_bias;
    fv_tensor out;

    FV_TRY(fv_tensor_new(pass.ctx, &pass.h, FV_F32, 2, x->dims));
    FV_TRY(rms_norm(&pass, x, &model->output_norm, &pass.h));
    FV_TRY(fv_linear(pass.ctx, &(fv_linear_args){
                                   .x = pass.h, .parts = 1, .part = {fv_pass_part(&model->output, &no_bias, logits)}}));
    if (model->sizes.final_cap == 0) return FV_OK;
    out = *logits;
    FV_TRY(renew(&pass, logits));
    return fv_map_apply(
        pass.ctx,
        &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = out, .out = *logits, .alpha = (float)model->sizes.final_cap});
}

fv_status fv_forward_logits(fv_session *session, const fv_tensor *x, float *logits)
{
    fv_tensor out;

    FV_TRY(fv_tensor_wrap(&out, logits, FV_F32, FV_DIMS(x->dims[0], session->model->sizes.vocabulary)));
    return logits_of(session, x, &out);
}

/* ---- for gradients ----------------------------------------------------------------------------------------------- */

fv_status fv_forward_embed(fv_session *session, const int32_t *ids, const fv_tensor *x)
{
    return embed(session->ctx, session->model, ids, x);
}

fv_status fv_forward_open(fv_session *session, int64_t l, const fv_tensor *x, fv_open_layer *open)
{
    static const fv_tensor none;
    const fv_sizes *s = &session->model->sizes;
    int64_t first = 0;
    struct fv_pass p = {.session = session, .ctx = session->ctx, .sizes = s, .count = 1, .tokens = x->dims[0], .x = *x};

    p.first = &first;
    p.open = true;
    FV_TRY(make_buffers(&p));
    FV_TRY(rms_norm(&p, &p.x, &session->model->layers[l].attention_norm, &p.h));
    FV_TRY(run_layer(&p, l, &none));
    *open = (fv_open_layer){.q = fv_pass_heads(&p.q, s->query_heads, s->key_dim),
                            .k = fv_pass_heads(&p.k, s->key_heads, s->key_dim),
                            .v = fv_pass_heads(&p.v, s->key_heads, s->value_dim),
                            .o = fv_pass_heads(&p.o, s->query_heads, s->value_dim),
                            .x = p.x};
    return FV_OK;
}

fv_status fv_forward_open_logits(fv_session *session, const fv_tensor *x, fv_tensor *logits)
{
    FV_TRY(fv_tensor_new(session->ctx, logits, FV_F32, FV_DIMS(x->dims[0], session->model->sizes.vocabulary)));
    return logits_of(session, x, logits);
}
