/* One forward for all architectures.  Buffers are taken once per chunk; q, k and v of all heads lie side by side in a
 * token's row, and attention sees them as strided views. */
#include "models/session.h"

enum { MANY_TOKENS = 64 };

struct pass {
    fv_session *session;
    fv_ctx *ctx;
    const fv_sizes *sizes;
    int64_t count;        /* tokens */
    fv_tensor x, h;       /* [count, width]: the residual stream, and what goes into a part */
    fv_tensor q, k, v, o; /* [count, heads * dim] */
    fv_tensor hidden;     /* [count, hidden] */
};

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

/* x += a weight^T + bias, or x += norm(that) where the architecture norms what a part gives; then h = norm(x) for the
 * part that comes next, if one does. */
static fv_status add_part(const struct pass *p, const fv_tensor *a, const fv_weight *weight, const fv_tensor *bias,
                          const fv_tensor *norm, const fv_tensor *next)
{
    fv_linear_args args = {.x = *a, .parts = 1, .part = {part(weight, bias, fv_present(norm) ? &p->h : &p->x)}};

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

/* Norms and turns the heads of q or k, in place. */
static fv_status turn(const struct pass *p, const fv_layer *layer, const fv_tensor *norm, const fv_tensor *t,
                      int64_t heads)
{
    const fv_model *model = p->session->model;
    fv_tensor view = by_heads(t, heads, p->sizes->key_dim);

    if (fv_present(norm)) {
        fv_tensor rows = fv_reshaped(t, FV_DIMS(p->count * heads, p->sizes->key_dim));
        FV_TRY(rms_norm(p, &rows, norm, &rows));
    }
    return fv_rope(p->ctx, &(fv_rope_args){.x = view,
                                           .out = view,
                                           .offset = p->session->length,
                                           .rotary = p->sizes->rotary,
                                           .frequency = layer->rope->frequency,
                                           .magnitude = layer->rope->magnitude,
                                           .interleaved = (model->architecture->parts & FV_INTERLEAVED) != 0});
}

static fv_status store(const struct pass *p, const fv_tensor *rows, fv_tensor *cache)
{
    fv_tensor place = fv_slice(cache, 2, p->session->length, p->count);

    FV_TRY(fv_map_apply(p->ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *rows, .out = place}));
    *cache = fv_slice(cache, 2, 0, p->session->length + p->count);
    return FV_OK;
}

/* Pairs the layer would have as the model is. */
static double dense_pairs(const struct pass *p, const fv_layer *layer)
{
    double first = (double)p->session->length + 1, last = first + (double)p->count - 1, window = (double)layer->window;
    double sum = (double)p->count * (first + last) / 2;

    if (window > 0 && last > window) {
        double from = first > window ? first : window + 1; /* queries whose window is full */
        sum -= (last - from + 1) * ((from - window) + (last - window)) / 2;
    }
    return sum * (double)p->sizes->query_heads;
}

static fv_status attend(const struct pass *p, int64_t l)
{
    const fv_layer *layer = &p->session->model->layers[l];
    fv_session_layer *own = &p->session->layers[l];
    const fv_sizes *s = p->sizes;
    fv_tensor k = by_heads(&p->k, s->key_heads, s->key_dim), v = by_heads(&p->v, s->key_heads, s->value_dim);
    const float scale = (float)s->scale;
    fv_attend_args extra = {.logits = {.softcap = (float)s->attention_cap}};
    fv_call call;

    if (own->cache.memory) {
        fv_tensor keys = own->cache.keys, values = own->cache.values;
        FV_TRY(store(p, &k, &keys));
        FV_TRY(store(p, &v, &values));
        k = keys;
        v = values;
    }
    fv_attention_args args = {.q = by_heads(&p->q, s->query_heads, s->key_dim),
                              .k = k,
                              .v = v,
                              .o = by_heads(&p->o, s->query_heads, s->value_dim),
                              .causal = true,
                              .scale = own->no_scale ? NULL : &scale};
    FV_TRY(fv_call_chunk(own->attention, &args, &call));
    call.pairs = &p->session->pairs;
    p->session->dense_pairs += dense_pairs(p, layer);
    if (p->session->watch) FV_TRY(p->session->watch(p->session->watch_user, l, own->attention, &call, &extra.logits));
    return fv_attention_chunk(p->ctx, own->attention, &call, &own->state, s->attention_cap > 0 ? &extra : NULL);
}

/* h holds the normed x, and holds it for the next layer afterwards. */
static fv_status run_layer(const struct pass *p, int64_t l)
{
    static const fv_tensor none;
    const fv_layer *layer = &p->session->model->layers[l];
    const fv_sizes *s = p->sizes;
    bool gelu = (p->session->model->architecture->parts & FV_GELU) != 0;
    const fv_tensor *next = l + 1 < s->layers ? &layer[1].attention_norm : &none;

    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = p->h,
                                               .parts = 3,
                                               .part = {part(&layer->q, &layer->q_bias, &p->q),
                                                        part(&layer->k, &layer->k_bias, &p->k),
                                                        part(&layer->v, &layer->v_bias, &p->v)}}));
    FV_TRY(turn(p, layer, &layer->q_norm, &p->q, s->query_heads));
    FV_TRY(turn(p, layer, &layer->k_norm, &p->k, s->key_heads));
    FV_TRY(attend(p, l));
    FV_TRY(add_part(p, &p->o, &layer->o, &layer->o_bias, &layer->post_attention_norm, &layer->mlp_norm));

    FV_TRY(fv_linear(p->ctx, &(fv_linear_args){.x = p->h,
                                               .parts = 2,
                                               .part = {part(&layer->gate, &layer->gate_bias, &p->hidden),
                                                        part(&layer->up, &layer->up_bias, &p->hidden)},
                                               .gate = gelu ? FV_MAP_GELU_TANH_MUL : FV_MAP_SILU_MUL}));
    return add_part(p, &p->hidden, &layer->down, &layer->down_bias, &layer->post_mlp_norm, next);
}

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
        FV_TRY(fv_tensor_new(p->ctx, buffers[b].tensor, FV_F32, FV_DIMS(p->count, buffers[b].columns)));
    return FV_OK;
}

fv_status fv_forward_chunk(fv_session *session, const int32_t *ids, int64_t count, fv_tensor *x)
{
    const fv_model *model = session->model;
    fv_ctx *ctx = session->ctx;
    struct pass pass = {.session = session, .ctx = ctx, .sizes = &model->sizes, .count = count};

    FV_TRY(make_buffers(&pass));
    FV_TRY(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = model->embedding, .out = pass.x, .index = ids}));
    if (count >= MANY_TOKENS) fv_model_give_back_embedding(model);
    if (model->sizes.embedding_scale != 1)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){
                     .op = FV_MAP_COPY, .x = pass.x, .out = pass.x, .alpha = (float)model->sizes.embedding_scale}));
    FV_TRY(rms_norm(&pass, &pass.x, &model->layers[0].attention_norm, &pass.h));
    for (int64_t l = 0; l < model->sizes.layers; l++) {
        if (!session->recurrent || l == 0) FV_TRY(fv_ctx_check(ctx)); /* states cannot be taken back */
        FV_TRY(run_layer(&pass, l));
    }
    *x = pass.x;
    return FV_OK;
}

fv_status fv_forward_logits(fv_session *session, const fv_tensor *x, float *logits)
{
    const fv_model *model = session->model;
    struct pass pass = {.session = session, .ctx = session->ctx, .sizes = &model->sizes};
    static const fv_tensor no_bias;
    fv_tensor out;

    FV_TRY(fv_tensor_new(pass.ctx, &pass.h, FV_F32, 2, x->dims));
    FV_TRY(fv_tensor_wrap(&out, logits, FV_F32, FV_DIMS(x->dims[0], model->sizes.vocabulary)));
    FV_TRY(rms_norm(&pass, x, &model->output_norm, &pass.h));
    FV_TRY(fv_linear(pass.ctx,
                     &(fv_linear_args){.x = pass.h, .parts = 1, .part = {part(&model->output, &no_bias, &out)}}));
    if (model->sizes.final_cap == 0) return FV_OK;
    return fv_map_apply(
        pass.ctx, &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = out, .out = out, .alpha = (float)model->sizes.final_cap});
}
