/* One forward for all architectures.  Buffers are taken once per chunk; q, k and v of all heads lie side by side in a
 * token's row, and attention sees them as strided views. */
#include "models/session.h"

#include <stdio.h>

enum { MANY_TOKENS = 64 };

struct pass {
    const fv_session *session; /* the first of all */
    fv_ctx *ctx;
    const fv_sizes *sizes;
    const fv_forward_part *parts; /* [count] */
    int64_t count, tokens;
    const int64_t *first;    /* [count] row of a part's first token */
    const int32_t *position; /* [tokens]; NULL: those of the only part */
    fv_tensor x, h;          /* [tokens, width]: the residual stream, and what goes into a part */
    fv_tensor q, k, v, o;    /* [tokens, heads * dim] */
    fv_tensor hidden;        /* [tokens, hidden] */
    bool open; /* attention is to the tokens themselves, as they were before they became rows of a cache */
};

/* Where a step's result goes: over what it was made of, or, while a tape records, to memory of its own. */
static fv_status renew(const struct pass *p, fv_tensor *t)
{
    const fv_tensor old = *t;

    return p->ctx->recording ? fv_tensor_new(p->ctx, t, FV_F32, old.rank, old.dims) : FV_OK;
}

/* [count, heads * dim] as [1, heads, count, dim]. */
static fv_tensor by_heads(const fv_tensor *t, int64_t heads, int64_t dim)
{
    return fv_view(t, 4, (const int64_t[]){1, heads, t->dims[0], dim}, (const int64_t[]){0, dim, t->strides[0], 1}, 0);
}

static fv_linear_part part(const fv_weight *weight, const fv_tensor *bias, const fv_tensor *out)
{
    return (fv_linear_part){.weight = weight->tensor, .packed = &weight->packed, .bias = *bias, .out = *out};
}

static fv_status rms_norm(const struct pass *p, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *out)
{
    return fv_norm(p->ctx,
                   &(fv_norm_args){.x = *x, .weight = *weight, .out = *out, .epsilon = (float)p->sizes->epsilon});
}

/* What add_part does, step by step for the tape. */
static fv_status add_part_apart(struct pass *p, const fv_tensor *a, const fv_weight *weight, const fv_tensor *bias,
                                const fv_tensor *norm, const fv_tensor *next)
{
    const fv_tensor x = p->x;
    fv_tensor gives, y;

    FV_TRY(fv_tensor_new(p->ctx, &gives, FV_F32, 2, x.dims));
    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = *a, .parts = 1, .part = {part(weight, bias, &gives)}}));
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
static fv_status add_part(struct pass *p, const fv_tensor *a, const fv_weight *weight, const fv_tensor *bias,
                          const fv_tensor *norm, const fv_tensor *next)
{
    fv_linear_args args = {.x = *a, .parts = 1, .part = {part(weight, bias, fv_present(norm) ? &p->h : &p->x)}};

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

/* How a layer rotates, but for what and where. */
static fv_rope_args rope_of(const struct pass *p, const fv_layer *layer)
{
    return (fv_rope_args){.rotary = p->sizes->rotary,
                          .frequency = layer->rope->frequency,
                          .magnitude = layer->rope->magnitude,
                          .interleaved = (p->session->model->architecture->parts & FV_INTERLEAVED) != 0};
}

/* Norms and turns the heads of q or k. */
static fv_status turn(const struct pass *p, const fv_layer *layer, const fv_tensor *norm, fv_tensor *t, int64_t heads)
{
    fv_rope_args rope = rope_of(p, layer);

    if (fv_present(norm)) {
        fv_tensor rows = fv_reshaped(t, FV_DIMS(p->tokens * heads, p->sizes->key_dim)), normed;
        FV_TRY(renew(p, t));
        normed = fv_reshaped(t, FV_DIMS(p->tokens * heads, p->sizes->key_dim));
        FV_TRY(rms_norm(p, &rows, norm, &normed));
    }
    rope.x = by_heads(t, heads, p->sizes->key_dim);
    FV_TRY(renew(p, t));
    rope.out = by_heads(t, heads, p->sizes->key_dim);
    rope.offset = p->session->length;
    rope.position = p->position;
    return fv_rope(p->ctx, &rope);
}

double fv_dense_pairs(const fv_sizes *sizes, int64_t position, int64_t tokens, int64_t own_window)
{
    double count = (double)tokens, window = (double)own_window;
    double first = (double)position + 1, last = first + count - 1, sum = count * (first + last) / 2;

    if (window > 0 && last > window) {
        double from = first > window ? first : window + 1; /* queries whose window is full */
        sum -= (last - from + 1) * ((from - window) + (last - window)) / 2;
    }
    return sum * (double)sizes->query_heads;
}

/* The products that q, k and v are. */
static fv_linear_args products_of(const struct pass *p, const fv_layer *layer)
{
    return (fv_linear_args){.x = p->h,
                            .parts = 3,
                            .part = {part(&layer->q, &layer->q_bias, &p->q), part(&layer->k, &layer->k_bias, &p->k),
                                     part(&layer->v, &layer->v_bias, &p->v)}};
}

/* ---- attention over the rows of a stream ------------------------------------------------------------------------- */

/* One layer of one stream, for the tokens of a part. */
struct reading {
    const struct pass *pass;
    const fv_forward_part *part;
    fv_session_layer *own;
    int64_t layer;
    fv_tensor k, v; /* [1,Hkv,count,..] of the part */
    fv_policy_call call;
    int64_t heads; /* key-value heads taken together: 1, or all */
    double *pairs; /* [calls] */
};

/* Where tokens stand in the text, if that is not where they stand in the cache. */
static const int32_t *text_positions(const fv_session *session)
{
    return session->left_out > 0 ? session->history.position : NULL;
}

static fv_status look_at(const struct reading *r, int64_t head, const fv_attend_args *args)
{
    const fv_session *session = r->part->session;
    const fv_plan *plan = args->plan;
    const fv_call call = {.q = args->q,
                          .k = args->k,
                          .v = args->v,
                          .o = args->o,
                          .batch = 1,
                          .query_heads = args->q.dims[1],
                          .key_heads = args->k.dims[1],
                          .queries = args->q.dims[2],
                          .keys = args->k.dims[2],
                          .head_dim = args->q.dims[3],
                          .value_dim = args->v.dims[3],
                          .offset = plan->offset,
                          .causal = true,
                          .scale = args->logits.scale,
                          .softcap = args->logits.softcap};

    return session->watch(session->watch_user, &(fv_session_look){.layer = r->layer,
                                                                  .head = head,
                                                                  .attention = r->own->attention,
                                                                  .call = &call,
                                                                  .plan = plan,
                                                                  .extra = &args->logits,
                                                                  .position = text_positions(session)});
}

/* Attends to the rows of `heads` key-value heads, the index-th of those there are. */
static fv_status read_heads(fv_ctx *ctx, void *user, int64_t index)
{
    struct reading *r = user;
    const fv_sizes *s = r->pass->sizes;
    fv_rows *rows = &r->own->rows;
    fv_policy_layer *policy = r->own->policy;
    const fv_policy *acts = policy ? policy->use->policy : NULL;
    int64_t g = index * r->heads, group = s->query_heads / s->key_heads, h = g * group, count = r->heads * group;
    fv_plan plan = {.causal = true, .offset = r->call.offset};
    fv_attend_args args = {.q = fv_slice(&r->call.q, 1, h, count),
                           .o = fv_slice(&r->call.o, 1, h, count),
                           .plan = &plan,
                           .logits = r->call.logits};
    int64_t held = fv_rows_all(rows, g), pairs = 0;

    if (fv_present(&r->call.lse)) args.lse = fv_slice(&r->call.lse, 1, h, count);
    bool cold = held > fv_rows_count(rows, g);
    if (!cold && !fv_rows_complete(rows, g)) plan.key_position = fv_rows_positions(rows, g);
    if (r->own->window > 0) plan.window.window = r->own->window;
    if (acts && acts->plan)
        FV_TRY(acts->plan(ctx, policy, &r->call, r->heads == 1 && s->key_heads > 1 ? g : -1, &plan));
    FV_TRY(fv_plan_pairs(ctx, &plan, 1, count, r->call.queries, held, &pairs));
    r->pairs[index] = (double)pairs;
    if (!cold || !plan.lists.row_start || r->part->session->watch)
        FV_TRY(fv_rows_view_all(ctx, rows, g, r->heads, &args.k, &args.v));
    if (r->part->session->watch) FV_TRY(look_at(r, h, &args));
    return acts && acts->read ? acts->read(ctx, policy, &r->call, &args) : fv_attend(ctx, &args);
}

/* Heads that hold different rows are read one by one: side by side where each is little work. */
static fv_status read_rows(fv_ctx *ctx, struct reading *r)
{
    const fv_policy_layer *policy = r->own->policy;
    const fv_policy *acts = policy ? policy->use->policy : NULL;
    bool apart = acts && acts->plan && acts->traits & FV_POLICY_PER_HEAD && !(acts->alike && acts->alike(policy));
    int64_t heads = r->pass->sizes->key_heads, calls;
    fv_status status = FV_OK;

    r->heads = !apart && fv_rows_alike(&r->own->rows) ? heads : 1;
    calls = heads / r->heads;
    FV_TRY(FV_SCRATCH(ctx, r->pairs, calls));
    if (calls > 1 && fv_ctx_threads(ctx) > 1 && r->part->count < MANY_TOKENS && !r->part->session->watch) {
        FV_TRY(fv_run_apart(ctx, calls, read_heads, r));
    } else {
        for (int64_t c = 0; c < calls && status == FV_OK; c++) {
            fv_mark mark = fv_scratch_mark(ctx);
            status = read_heads(ctx, r, c);
            fv_scratch_release(ctx, mark);
        }
        FV_TRY(status);
    }
    for (int64_t c = 0; c < calls; c++)
        r->part->session->pairs += r->pairs[c];
    return FV_OK;
}

/* Rows that nobody's window reaches any more. */
static fv_status leave_window(fv_session_layer *own, int64_t last)
{
    for (int64_t g = 0; own->window > 0 && g < own->rows.options.heads; g++)
        FV_TRY(fv_rows_erase(&own->rows, g, 0, fv_rows_below(&own->rows, g, last - own->window + 1)));
    return FV_OK;
}

static fv_status attend_rows(fv_ctx *ctx, struct reading *r)
{
    fv_session *session = r->part->session;
    fv_session_layer *own = r->own;
    const fv_policy *policy = own->policy ? own->policy->use->policy : NULL;
    size_t before = fv_rows_used(&own->rows);

    FV_TRY(fv_rows_append(ctx, &own->rows, &r->k, &r->v, session->length));
    session->row_bytes += fv_rows_used(&own->rows) - before;
    if (session->row_bytes + session->state_bytes > session->peak_bytes)
        session->peak_bytes = session->row_bytes + session->state_bytes;
    if (policy && policy->traits & FV_POLICY_LSE) FV_TRY(fv_tensor_new(ctx, &r->call.lse, FV_F32, 3, r->call.q.dims));
    FV_TRY(read_rows(ctx, r));
    before = fv_rows_used(&own->rows);
    if (policy && policy->after) FV_TRY(policy->after(ctx, own->policy, &r->call));
    if (!session->keep_windows) FV_TRY(leave_window(own, session->length + r->part->count - 1));
    session->row_bytes -= before - fv_rows_used(&own->rows);
    return FV_OK;
}

/* ---- attention by a mechanism ------------------------------------------------------------------------------------ */

static fv_status attend_by_mechanism(fv_ctx *ctx, struct reading *r)
{
    const fv_sizes *s = r->pass->sizes;
    fv_session *session = r->part->session;
    fv_session_layer *own = r->own;
    const float scale = (float)s->scale;
    fv_attend_args extra = {.logits = {.softcap = (float)s->attention_cap}};
    fv_attention_args args = {
        .q = r->call.q, .k = r->k, .v = r->v, .o = r->call.o, .causal = true, .scale = own->no_scale ? NULL : &scale};
    fv_call call;

    if (own->rows.head) {
        size_t before = fv_rows_used(&own->rows);
        FV_TRY(fv_rows_append(ctx, &own->rows, &r->k, &r->v, session->length));
        session->row_bytes += fv_rows_used(&own->rows) - before;
        fv_rows_view(&own->rows, 0, s->key_heads, &args.k, &args.v);
    }
    FV_TRY(fv_call_chunk(own->attention, &args, &call));
    call.pairs = &session->pairs;
    if (session->watch)
        FV_TRY(session->watch(session->watch_user, &(fv_session_look){.layer = r->layer,
                                                                      .attention = own->attention,
                                                                      .call = &call,
                                                                      .extra = &extra.logits,
                                                                      .position = text_positions(session)}));
    return fv_attention_chunk(ctx, own->attention, &call, &own->state, s->attention_cap > 0 ? &extra : NULL);
}

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

struct layer_work {
    const struct pass *pass;
    int64_t layer;
};

static fv_status attend_part(fv_ctx *ctx, void *user, int64_t index)
{
    const struct layer_work *work = user;
    const struct pass *p = work->pass;
    const fv_sizes *s = p->sizes;
    const fv_forward_part *part = &p->parts[index];
    fv_session *session = part->session;
    fv_session_layer *own = &session->layers[work->layer];
    fv_tensor q = fv_slice(&p->q, 0, p->first[index], part->count),
              o = fv_slice(&p->o, 0, p->first[index], part->count);
    fv_tensor k = fv_slice(&p->k, 0, p->first[index], part->count),
              v = fv_slice(&p->v, 0, p->first[index], part->count);
    const fv_layer *layer = &p->session->model->layers[work->layer];
    const fv_linear_args products = products_of(p, layer);
    fv_rope_args rope = rope_of(p, layer);
    struct reading r = {.pass = p,
                        .part = part,
                        .own = own,
                        .layer = work->layer,
                        .k = by_heads(&k, s->key_heads, s->key_dim),
                        .v = by_heads(&v, s->key_heads, s->value_dim),
                        .call = {.q = by_heads(&q, s->query_heads, s->key_dim),
                                 .o = by_heads(&o, s->query_heads, s->value_dim),
                                 .input = fv_slice(&p->h, 0, p->first[index], part->count),
                                 .residual = fv_slice(&p->x, 0, p->first[index], part->count),
                                 .few = fv_linear_few(p->ctx, &products),
                                 .offset = session->length,
                                 .queries = part->count,
                                 .prompt = part->prompt,
                                 .prompt_tokens = session->prompt_tokens,
                                 .logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap},
                                 .rope = &rope}};

    session->dense_pairs += fv_dense_pairs(s, session->length + session->left_out, part->count, layer->window);
    session->failure = own->dense ? attend_rows(ctx, &r) : attend_by_mechanism(ctx, &r);
    if (session->failure != FV_OK) snprintf(session->failure_text, sizeof session->failure_text, "%s", fv_error());
    return session->failure;
}

/* Among the tokens themselves. */
static fv_status attend_open(const struct pass *p, int64_t l)
{
    const fv_sizes *s = p->sizes;
    fv_plan *plan;

    FV_TRY(FV_SCRATCH(p->ctx, plan, 1));
    *plan = (fv_plan){.causal = true, .window.window = p->session->model->layers[l].window};
    return fv_attend(p->ctx,
                     &(fv_attend_args){.q = by_heads(&p->q, s->query_heads, s->key_dim),
                                       .k = by_heads(&p->k, s->key_heads, s->key_dim),
                                       .v = by_heads(&p->v, s->key_heads, s->value_dim),
                                       .o = by_heads(&p->o, s->query_heads, s->value_dim),
                                       .plan = plan,
                                       .logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap}});
}

/* Streams side by side where each brings little. */
static fv_status attend(const struct pass *p, int64_t l)
{
    struct layer_work work = {p, l};
    fv_status status = FV_OK;

    if (p->open) return attend_open(p, l);
    if (p->count > 1 && p->tokens < MANY_TOKENS * p->count) return fv_run_apart(p->ctx, p->count, attend_part, &work);
    for (int64_t i = 0; i < p->count && status == FV_OK; i++) {
        fv_mark mark = fv_scratch_mark(p->ctx);
        status = attend_part(p->ctx, &work, i);
        fv_scratch_release(p->ctx, mark);
    }
    return status;
}

static fv_status project(struct pass *p, const fv_layer *layer)
{
    FV_TRY(renew(p, &p->q));
    FV_TRY(renew(p, &p->k));
    FV_TRY(renew(p, &p->v));
    const fv_linear_args products = products_of(p, layer);
    FV_TRY(fv_linear(p->ctx, &products));
    FV_TRY(turn(p, layer, &layer->q_norm, &p->q, p->sizes->query_heads));
    return turn(p, layer, &layer->k_norm, &p->k, p->sizes->key_heads);
}

/* h holds the normed x, and holds it for the next layer afterwards, if `next` is its norm. */
static fv_status run_layer(struct pass *p, int64_t l, const fv_tensor *next)
{
    const fv_layer *layer = &p->session->model->layers[l];
    bool gelu = (p->session->model->architecture->parts & FV_GELU) != 0;

    FV_TRY(project(p, layer));
    FV_TRY(renew(p, &p->o));
    FV_TRY(attend(p, l));
    FV_TRY(add_part(p, &p->o, &layer->o, &layer->o_bias, &layer->post_attention_norm, &layer->mlp_norm));
    FV_TRY(renew(p, &p->hidden));
    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = p->h,
                                               .parts = 2,
                                               .part = {part(&layer->gate, &layer->gate_bias, &p->hidden),
                                                        part(&layer->up, &layer->up_bias, &p->hidden)},
                                               .gate = gelu ? FV_MAP_GELU_TANH_MUL : FV_MAP_SILU_MUL}));
    return add_part(p, &p->hidden, &layer->down, &layer->down_bias, &layer->post_mlp_norm, next);
}

/* Buffers for the tokens of all parts; x is its own where it is not given. */
static fv_status make_buffers(struct pass *p)
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
    return FV_OK;
}

/* Rows of the embedding for ids, scaled, into x. */
static fv_status embed(fv_ctx *ctx, const fv_model *model, const int32_t *ids, const fv_tensor *x)
{
    FV_TRY(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = model->embedding, .out = *x, .index = ids}));
    if (x->dims[0] >= MANY_TOKENS) fv_model_give_back_embedding(model);
    if (model->sizes.embedding_scale == 1) return FV_OK;
    return fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *x, .alpha = (float)model->sizes.embedding_scale});
}

static fv_status begin(fv_ctx *ctx, const fv_forward_part *parts, int64_t count, struct pass *p)
{
    const fv_model *model = parts[0].session->model;
    int64_t *first, tokens = 0;
    int32_t *position;

    *p = (struct pass){.session = parts[0].session, .ctx = ctx, .sizes = &model->sizes, .parts = parts, .count = count};
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
    struct pass pass;
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
        FV_TRY(run_layer(&pass, l, l + 1 < model->sizes.layers ? &layers[l + 1].attention_norm : &none));
    }
    *x = pass.x;
    return FV_OK;
}

/* ---- layer by layer ---------------------------------------------------------------------------------------------- */

/* Chunk by chunk through one layer.  The session's length moves with the chunks, and back.  Where a norm of what the
 * layer gives is one pass with the next layer's norm, it is so here too, so that x has the same bits. */
static fv_status run_layer_alone(fv_session *session, struct pass *buffers, const fv_tensor *x, int64_t l)
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
        struct pass p = *buffers;
        p.parts = &part;
        p.first = &first;
        p.count = 1;
        p.tokens = count;
        p.x = fv_slice(x, 0, at, count);
        fv_tensor *own[] = {&p.h, &p.q, &p.k, &p.v, &p.o, &p.hidden};
        for (size_t b = 0; b < sizeof own / sizeof *own; b++)
            *own[b] = fv_slice(own[b], 0, 0, count);
        status = rms_norm(&p, &p.x, &layer->attention_norm, &p.h);
        if (status == FV_OK) status = run_layer(&p, l, next);
        fv_scratch_release(session->ctx, mark);
        session->length += count;
        fv_ctx_report(session->ctx, "tokens",
                      (double)(l * tokens + at + count) / (double)(session->model->sizes.layers * tokens));
    }
    session->length = before;
    return status;
}

/* Embeds the tokens and makes buffers for a chunk of them. */
static fv_status begin_layers(fv_session *session, const int32_t *ids, int64_t count, struct pass *buffers,
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
    struct pass buffers;

    FV_TRY(begin_layers(session, ids, count, &buffers, x));
    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        if (!session->recurrent || l == 0) FV_TRY(fv_ctx_check(session->ctx));
        FV_TRY(run_layer_alone(session, &buffers, x, l));
        FV_TRY(fv_session_act(session, l, session->length + count));
    }
    return FV_OK;
}

/* What q and k of a layer are for the tokens from `at` on: k among all `keys`, q in its buffer. */
static fv_status project_alone(fv_session *session, const struct pass *buffers, const fv_tensor *x,
                               const fv_tensor *keys, int64_t at, int64_t l)
{
    const fv_layer *layer = &session->model->layers[l];
    int64_t count = fv_min(buffers->tokens, x->dims[0] - at);
    struct pass p = *buffers;
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
    struct pass buffers;
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
    *q = by_heads(&last, s->query_heads, s->key_dim);
    *k = by_heads(&keys, s->key_heads, s->key_dim);
    return FV_OK;
}

/* ---- rows once more ---------------------------------------------------------------------------------------------- */

static fv_status project_again(struct pass *p, const fv_layer *layer)
{
    fv_linear_args products = products_of(p, layer);
    bool packed = layer->q.packed.data && layer->k.packed.data && layer->v.packed.data; /* then all were, or none */

    products.parts = 2;
    for (int n = 0; n < products.parts; n++) {
        products.part[n] = products.part[n + 1];
        if (!packed) products.part[n].packed = NULL;
    }
    FV_TRY(fv_linear(p->ctx, &products));
    return turn(p, layer, &layer->k_norm, &p->k, p->sizes->key_heads);
}

fv_status fv_forward_project(fv_ctx *ctx, void *session, int64_t l, const fv_tensor *input, const int32_t *position,
                             bool few, fv_tensor *k, fv_tensor *v)
{
    const fv_session *own = session;
    const fv_sizes *s = &own->model->sizes;
    struct pass p = {
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
    struct pass pass = {.session = session, .ctx = session->ctx, .sizes = &model->sizes};
    static const fv_tensor no_bias;
    fv_tensor out;

    FV_TRY(fv_tensor_new(pass.ctx, &pass.h, FV_F32, 2, x->dims));
    FV_TRY(rms_norm(&pass, x, &model->output_norm, &pass.h));
    FV_TRY(fv_linear(pass.ctx,
                     &(fv_linear_args){.x = pass.h, .parts = 1, .part = {part(&model->output, &no_bias, logits)}}));
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
    struct pass p = {.session = session, .ctx = session->ctx, .sizes = s, .count = 1, .tokens = x->dims[0], .x = *x};

    p.first = &first;
    p.open = true;
    FV_TRY(make_buffers(&p));
    FV_TRY(rms_norm(&p, &p.x, &session->model->layers[l].attention_norm, &p.h));
    FV_TRY(run_layer(&p, l, &none));
    *open = (fv_open_layer){.q = by_heads(&p.q, s->query_heads, s->key_dim),
                            .k = by_heads(&p.k, s->key_heads, s->key_dim),
                            .v = by_heads(&p.v, s->key_heads, s->value_dim),
                            .o = by_heads(&p.o, s->query_heads, s->value_dim),
                            .x = p.x};
    return FV_OK;
}

fv_status fv_forward_open_logits(fv_session *session, const fv_tensor *x, fv_tensor *logits)
{
    FV_TRY(fv_tensor_new(session->ctx, logits, FV_F32, FV_DIMS(x->dims[0], session->model->sizes.vocabulary)));
    return logits_of(session, x, logits);
}
