/* Sessions: choosing each layer's attention, feeding tokens in chunks, keeping count. */
#include "models/session.h"

#include <stdio.h>

enum { CHUNK = 512, LOGITS_AT_ONCE = 1 << 23 /* floats of a piece of fv_session_stream: 32 MB */ };

/* ---- the layers' attention -------------------------------------------------------------------------------------- */

/* The layer's attention as the model has it. */
static fv_status own_attention(const fv_layer *layer, fv_attention **attention)
{
    char spec[64] = "dense";

    if (layer->window) snprintf(spec, sizeof spec, "dense:window=%lld", (long long)layer->window);
    return fv_attention_new(spec, attention);
}

/* FV_E_USAGE for a mechanism that cannot read a text from left to right. */
static fv_status check_mechanism(const fv_attention *attention)
{
    const fv_mechanism *mechanism = fv_attention_mechanism(attention);

    if (mechanism->traits & FV_NEVER_CAUSAL)
        return fv_fail(FV_E_USAGE, "%s: cannot be causal, which a language model needs", mechanism->name);
    return FV_OK;
}

static fv_status make_state(const fv_session *session, fv_session_layer *layer, int64_t width)
{
    const fv_sizes *s = &session->model->sizes;
    int64_t sums = 0, counts = s->query_heads * width, all = 0;

    if (!fv_mul_i64(counts, s->value_dim, &sums) || !fv_add_i64(sums, counts, &all))
        return fv_fail(FV_E_MEMORY, "a state of %lld features is more than memory can hold", (long long)width);
    FV_TRY(fv_zalloc(&layer->memory, all, sizeof(float)));
    layer->state_bytes = (size_t)all * sizeof(float);
    FV_TRY(fv_tensor_wrap(&layer->state.s, layer->memory, FV_F32, FV_DIMS(1, s->query_heads, width, s->value_dim)));
    return fv_tensor_wrap(&layer->state.z, (float *)layer->memory + sums, FV_F32, FV_DIMS(1, s->query_heads, width));
}

/* Room for rows that a mechanism keeps; pages become resident when they are first written. */
static fv_status make_kept(const fv_session *session, fv_session_layer *layer)
{
    const fv_sizes *s = &session->model->sizes;

    for (int kind = 0; kind < FV_KEPT; kind++) {
        fv_kept_rows *kept = &layer->state.kept[kind];
        int64_t width, count = 0;
        int64_t rows = fv_attention_kept(layer->attention, s->key_dim, s->value_dim, kind, session->context, &width);
        if (rows == 0) continue;
        if (!fv_mul_i64(s->key_heads * width, rows, &count))
            return fv_fail(FV_E_MEMORY, "%lld kept rows are more than memory can hold", (long long)rows);
        FV_TRY(fv_alloc(&layer->kept[kind], count, sizeof(float)));
        FV_TRY(fv_tensor_wrap(&kept->rows, layer->kept[kind], FV_F32, FV_DIMS(1, s->key_heads, rows, width)));
    }
    return FV_OK;
}

static fv_status make_layer(fv_session *session, int64_t l, const fv_layer_plan *plan, fv_dtype dtype)
{
    const fv_layer *layer = &session->model->layers[l];
    const fv_sizes *s = &session->model->sizes;
    fv_session_layer *own = &session->layers[l];
    const fv_spec *spec = plan ? fv_layer_plan_at(plan, (int)l) : NULL;

    if (spec && plan->bare && layer->window) spec = NULL; /* it keeps its own window */
    if (spec) {
        FV_TRY(fv_attention_from(spec, &own->attention));
        FV_TRY(check_mechanism(own->attention));
    } else {
        FV_TRY(own_attention(layer, &own->attention));
    }
    own->no_scale = (fv_attention_mechanism(own->attention)->traits & FV_NO_SCALE) != 0;
    int64_t width = fv_attention_state_width(own->attention, s->key_dim);
    if (width == 0) FV_TRY(make_kept(session, own));
    if (width == 0) return fv_cache_new(&own->cache, dtype, s->key_heads, session->context, s->key_dim, s->value_dim);
    session->recurrent = true;
    return make_state(session, own, width);
}

static fv_status make_layers(fv_session *session, const fv_session_options *options)
{
    int64_t layers = session->model->sizes.layers;
    fv_dtype dtype = options->cache_dtype;
    fv_layer_plan plan;
    fv_status status = FV_OK;

    if (dtype == FV_F32 && !options->cache_f32) dtype = FV_F16;
    if (dtype != FV_F32 && dtype != FV_F16 && dtype != FV_BF16)
        return fv_fail(FV_E_DTYPE, "cache rows: expected f32, f16 or bf16, got %s", fv_dtype_name(dtype));
    FV_TRY(FV_ZALLOC(session->layers, layers));
    if (options->attention) FV_TRY(fv_layer_plan_parse(&plan, options->attention, (int)layers));
    for (int64_t l = 0; l < layers && status == FV_OK; l++)
        status = make_layer(session, l, options->attention ? &plan : NULL, dtype);
    if (options->attention) fv_layer_plan_free(&plan);
    return status;
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

fv_status fv_session_new(fv_ctx *ctx, const fv_model *model, const fv_session_options *options, fv_session **session)
{
    static const fv_session_options defaults;
    fv_session *s;

    *session = NULL;
    if (!options) options = &defaults;
    if (options->context < 0 || options->context > INT32_MAX)
        return fv_fail(FV_E_ARGUMENT, "context: expected 1 to %d tokens (0: the model's own), got %lld", INT32_MAX,
                       (long long)options->context);
    if (options->chunk < 0 || options->chunk > 65536)
        return fv_fail(FV_E_ARGUMENT, "chunk: expected 1 to 65536 tokens (0: chosen), got %lld",
                       (long long)options->chunk);
    FV_TRY(FV_ZALLOC(s, 1));
    s->ctx = ctx;
    s->model = model;
    s->precision = options->precision;
    s->context = options->context ? options->context : model->sizes.context;
    s->chunk = options->chunk ? options->chunk : CHUNK;
    fv_status status = make_layers(s, options);
    if (status == FV_OK && s->precision != FV_PRECISION_F32) fv_model_pack(ctx, model);
    if (status == FV_OK)
        *session = s;
    else
        fv_session_free(s);
    return status;
}

void fv_session_free(fv_session *session)
{
    if (!session) return;
    for (int64_t l = 0; session->layers && l < session->model->sizes.layers; l++) {
        fv_cache_free(&session->layers[l].cache);
        fv_free(session->layers[l].memory);
        for (int kind = 0; kind < FV_KEPT; kind++)
            fv_free(session->layers[l].kept[kind]);
        fv_attention_free(session->layers[l].attention);
    }
    fv_free(session->layers);
    fv_free(session);
}

void fv_session_clear(fv_session *session)
{
    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        fv_session_layer *layer = &session->layers[l];
        fv_cache_clear(&layer->cache);
        if (layer->memory) memset(layer->memory, 0, layer->state_bytes);
        for (int kind = 0; kind < FV_KEPT; kind++)
            layer->state.kept[kind].count = 0;
    }
    session->length = 0;
    session->broken = false;
    session->pairs = session->dense_pairs = 0;
}

int64_t fv_session_length(const fv_session *session)
{
    return session->length;
}

static size_t bytes_held(const fv_session *session)
{
    size_t bytes = 0;

    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        const fv_session_layer *layer = &session->layers[l];
        bytes += fv_cache_bytes(&layer->cache, session->length) + layer->state_bytes;
        for (int kind = 0; kind < FV_KEPT; kind++) {
            const fv_kept_rows *kept = &layer->state.kept[kind];
            bytes += (size_t)(kept->count * kept->rows.dims[1] * kept->rows.dims[3]) * sizeof(float);
        }
    }
    return bytes;
}

void fv_session_measure(const fv_session *session, fv_session_stats *stats)
{
    *stats = (fv_session_stats){.cache_bytes = bytes_held(session),
                                .peak_cache_bytes = session->peak_bytes,
                                .pairs = session->pairs,
                                .dense_pairs = session->dense_pairs};
}

/* ---- feeding ---------------------------------------------------------------------------------------------------- */

static fv_status check_ids(const fv_session *session, const int32_t *ids, int64_t count)
{
    int64_t room = session->context - session->length;

    if (count < 0) return fv_fail(FV_E_ARGUMENT, "feed: expected a count of tokens, got %lld", (long long)count);
    if (session->broken)
        return fv_fail(FV_E_ARGUMENT, "feed: a recurrent state was left half way when this session was stopped; "
                                      "clear the session and start again");
    if (count > room)
        return fv_fail(FV_E_SHAPE, "%lld tokens do not fit: the context of %lld holds %lld more", (long long)count,
                       (long long)session->context, (long long)room);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= session->model->sizes.vocabulary)
            return fv_fail(FV_E_ARGUMENT, "token %lld: expected an id of 0 to %lld, got %d", (long long)i,
                           (long long)session->model->sizes.vocabulary - 1, ids[i]);
    return FV_OK;
}

/* Gives the logits of hidden rows x, numbered from `first`, to the sink in pieces. */
static fv_status give_logits(fv_session *session, const fv_tensor *x, int64_t first, fv_logits_fn *sink, void *user)
{
    int64_t vocabulary = session->model->sizes.vocabulary, rows = x->dims[0];
    int64_t piece = fv_clamp(LOGITS_AT_ONCE / vocabulary, 1, rows);
    float *logits;

    FV_TRY(FV_SCRATCH(session->ctx, logits, piece * vocabulary));
    for (int64_t from = 0; from < rows; from += piece) {
        fv_tensor part = fv_slice(x, 0, from, fv_min(piece, rows - from));
        fv_mark mark = fv_scratch_mark(session->ctx);
        fv_status status = fv_forward_logits(session, &part, logits);
        fv_scratch_release(session->ctx, mark);
        FV_TRY(status);
        FV_TRY(sink(user, first + from, part.dims[0], logits));
        FV_TRY(fv_ctx_check(session->ctx));
    }
    return FV_OK;
}

/* What is wanted of the tokens of a call: logits of the last `rows` in memory, or of all to a sink. */
struct wanted {
    float *logits;
    int64_t rows;
    fv_logits_fn *sink;
    void *user;
};

/* One chunk: tokens at .. at+count-1 of `total`. */
static fv_status feed_chunk(fv_session *session, const int32_t *ids, int64_t at, int64_t count, int64_t total,
                            const struct wanted *wanted)
{
    int64_t from = fv_max(total - wanted->rows - at, 0); /* first row of the chunk whose logits are wanted */
    double pairs = session->pairs, dense_pairs = session->dense_pairs;
    fv_status status;
    fv_tensor x, rows;

    status = fv_forward_chunk(session, ids + at, count, &x);
    if (status != FV_OK) { /* rows past the length are of no account */
        session->broken = session->recurrent;
        session->pairs = pairs;
        session->dense_pairs = dense_pairs;
        return status;
    }
    session->length += count;
    size_t bytes = bytes_held(session);
    if (bytes > session->peak_bytes) session->peak_bytes = bytes;
    if (wanted->sink) return give_logits(session, &x, at, wanted->sink, wanted->user);
    if (from >= count) return FV_OK;
    rows = fv_slice(&x, 0, from, count - from);
    return fv_forward_logits(session, &rows,
                             wanted->logits + (at + from - (total - wanted->rows)) * session->model->sizes.vocabulary);
}

static fv_status feed(fv_session *session, const int32_t *ids, int64_t count, const struct wanted *wanted)
{
    fv_ctx *ctx = session->ctx;
    fv_precision before = ctx->precision;
    fv_status status = check_ids(session, ids, count);

    ctx->precision = session->precision;
    for (int64_t at = 0; at < count && status == FV_OK; at += session->chunk) {
        fv_mark mark = fv_scratch_mark(ctx);
        status = fv_ctx_check(ctx);
        if (status == FV_OK) status = feed_chunk(session, ids, at, fv_min(session->chunk, count - at), count, wanted);
        fv_scratch_release(ctx, mark);
        if (count > 1) fv_ctx_report(ctx, "tokens", (double)fv_min(at + session->chunk, count) / (double)count);
    }
    ctx->precision = before;
    return status;
}

fv_status fv_session_feed(fv_session *session, const int32_t *ids, int64_t count, float *logits, int64_t rows)
{
    if (rows < 0 || rows > fv_max(count, 0) || (rows > 0 && !logits))
        return fv_fail(FV_E_ARGUMENT, "logits: expected memory for 0 to %lld rows, got %lld", (long long)count,
                       (long long)rows);
    return feed(session, ids, count, &(struct wanted){.logits = logits, .rows = logits ? rows : 0});
}

fv_status fv_session_stream(fv_session *session, const int32_t *ids, int64_t count, fv_logits_fn *sink, void *user)
{
    return feed(session, ids, count, &(struct wanted){.sink = sink, .user = user});
}
