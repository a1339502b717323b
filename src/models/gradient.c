#include "models/gradient.h"

#include <math.h>

#include "ops/tape.h"

struct walk {
    fv_session *session;
    fv_ctx *ctx;
    const int32_t *ids;
    int64_t count, answer;
    fv_tensor x; /* [layers + 1, count, width]: what goes into each layer, and what the last one gives */
    fv_tensor d; /* [count, width]: d loss / d of what goes into the layer above */
};

static fv_status copy(fv_ctx *ctx, const fv_tensor *from, const fv_tensor *to)
{
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *from, .out = *to});
}

/* [count, width] of x. */
static fv_tensor rows_of(const struct walk *w, int64_t layer)
{
    fv_tensor rows = fv_slice(&w->x, 0, layer, 1);

    return fv_reshaped(&rows, FV_DIMS(w->count, w->x.dims[2]));
}

static void report(const struct walk *w, int64_t layers)
{
    fv_ctx_report(w->ctx, "layers", (double)layers / (double)(2 * w->session->model->sizes.layers));
}

static fv_status forward(struct walk *w)
{
    fv_tensor x = rows_of(w, 0);

    FV_TRY(fv_forward_embed(w->session, w->ids, &x));
    for (int64_t l = 0; l < w->session->model->sizes.layers; l++) {
        fv_mark mark = fv_scratch_mark(w->ctx);
        fv_tensor next = rows_of(w, l + 1);
        fv_open_layer open;
        FV_TRY(fv_ctx_check(w->ctx));
        FV_TRY(copy(w->ctx, &x, &next));
        FV_TRY(fv_forward_open(w->session, l, &next, &open));
        fv_scratch_release(w->ctx, mark);
        x = next;
        report(w, l + 1);
    }
    return FV_OK;
}

/* Turns logits [answer, vocabulary] into d loss / d logits; returns the loss. */
static double cross_entropy(const struct walk *w, const fv_tensor *logits, float *d)
{
    int64_t vocabulary = logits->dims[1];
    const int32_t *next = w->ids + w->count - w->answer;
    double loss = 0, share = 1 / (double)w->answer;

    for (int64_t i = 0; i < w->answer; i++) {
        const float *row = (const float *)logits->data + i * vocabulary;
        double top = -INFINITY, sum = 0;
        for (int64_t t = 0; t < vocabulary; t++)
            top = fmax(top, row[t]);
        for (int64_t t = 0; t < vocabulary; t++)
            sum += exp(row[t] - top);
        loss += share * (top + log(sum) - row[next[i]]);
        for (int64_t t = 0; t < vocabulary; t++)
            d[i * vocabulary + t] = (float)(share * exp(row[t] - top) / sum);
        d[i * vocabulary + next[i]] -= (float)share;
    }
    return loss;
}

/* The loss and d loss / d of what the last layer gives; a tape records. */
static fv_status begin_backward(struct walk *w, double *loss)
{
    fv_tensor all = rows_of(w, w->session->model->sizes.layers), x, logits, d, d_x, into;

    x = fv_slice(&all, 0, w->count - w->answer - 1, w->answer);
    FV_TRY(fv_tape_watch(w->ctx, &x));
    FV_TRY(fv_forward_open_logits(w->session, &x, &logits));
    FV_TRY(fv_tensor_new(w->ctx, &d, FV_F32, 2, logits.dims));
    *loss = cross_entropy(w, &logits, d.data);
    FV_TRY(fv_tape_seed(w->ctx, &logits, &d));
    FV_TRY(fv_tape_backward(w->ctx));
    fv_tape_gradient(w->ctx, &x, &d_x);
    into = fv_slice(&w->d, 0, w->count - w->answer - 1, w->answer);
    return copy(w->ctx, &d_x, &into);
}

/* Tells those who listen. */
static fv_status tell(const struct walk *w, int64_t l, const fv_open_layer *open)
{
    const fv_sizes *s = &w->session->model->sizes;
    const fv_plan plan = {.causal = true, .window.window = w->session->model->layers[l].window};
    const fv_logits logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap};
    const fv_call call = {.q = open->q,
                          .k = open->k,
                          .v = open->v,
                          .o = open->o,
                          .batch = 1,
                          .query_heads = s->query_heads,
                          .key_heads = s->key_heads,
                          .queries = w->count,
                          .keys = w->count,
                          .head_dim = s->key_dim,
                          .value_dim = s->value_dim,
                          .causal = true,
                          .scale = logits.scale,
                          .softcap = logits.softcap};
    fv_look look = {.point = FV_POINT_BACKWARD,
                    .layer = l,
                    .prompt = true,
                    .attention = w->session->layers[l].attention,
                    .call = &call,
                    .plan = &plan,
                    .extra = &logits};

    fv_tape_gradient(w->ctx, &open->o, &look.d_o);
    w->ctx->recording = false;
    return fv_tell(w->ctx, w->session->listeners, &look);
}

/* Computes a layer again, and walks back through it; a tape records. */
static fv_status layer_backward(struct walk *w, int64_t l)
{
    fv_tensor x = rows_of(w, l), d_x;
    fv_open_layer open;

    FV_TRY(fv_tape_watch(w->ctx, &x));
    FV_TRY(fv_forward_open(w->session, l, &x, &open));
    FV_TRY(fv_tape_seed(w->ctx, &open.x, &w->d));
    FV_TRY(fv_tape_backward(w->ctx));
    fv_tape_gradient(w->ctx, &x, &d_x);
    FV_TRY(copy(w->ctx, &d_x, &w->d));
    return fv_heard(w->session->listeners, FV_POINT_BACKWARD) ? tell(w, l, &open) : FV_OK;
}

static fv_status backward(struct walk *w, double *loss)
{
    int64_t layers = w->session->model->sizes.layers;
    fv_status status;

    FV_TRY(fv_tape_begin(w->ctx));
    status = begin_backward(w, loss);
    fv_tape_end(w->ctx);
    for (int64_t l = layers - 1; l >= 0 && status == FV_OK; l--) {
        status = fv_ctx_check(w->ctx);
        if (status == FV_OK) status = fv_tape_begin(w->ctx);
        if (status == FV_OK) status = layer_backward(w, l);
        fv_tape_end(w->ctx);
        report(w, 2 * layers - l);
    }
    return status;
}

static fv_status there_and_back(struct walk *w, double *loss)
{
    const fv_sizes *s = &w->session->model->sizes;

    FV_TRY(fv_tensor_new(w->ctx, &w->x, FV_F32, FV_DIMS(s->layers + 1, w->count, s->width)));
    FV_TRY(fv_tensor_zeros(w->ctx, &w->d, FV_F32, FV_DIMS(w->count, s->width)));
    FV_TRY(forward(w));
    return backward(w, loss);
}

fv_status fv_gradient(fv_session *session, const int32_t *ids, int64_t count, int64_t answer, double *loss)
{
    struct walk w = {.session = session, .ctx = session->ctx, .ids = ids, .count = count, .answer = answer};
    fv_precision before = session->ctx->precision;
    fv_mark mark = fv_scratch_mark(session->ctx);
    double own;
    fv_status status;

    if (answer < 1 || answer >= count)
        return fv_fail(FV_E_SHAPE, "gradient: expected an answer of 1 to %lld tokens, got %lld", (long long)count - 1,
                       (long long)answer);
    FV_TRY(fv_session_check_ids(session, ids, count));
    session->ctx->precision = session->precision;
    status = there_and_back(&w, loss ? loss : &own);
    session->ctx->precision = before;
    fv_scratch_release(session->ctx, mark);
    return status;
}
