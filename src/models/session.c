/* Sessions: choosing each layer's attention, feeding tokens in chunks, keeping count. */
#include "models/session.h"

#include <stdio.h>
#include <string.h>

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

/* Whether a SPEC is dense attention as the model's own is, but for windows. */
static bool is_dense(const fv_spec *spec)
{
    return strcmp(fv_spec_name(spec), "dense") == 0 && spec->count == 0;
}

static fv_status make_attention(fv_session *session, int64_t l, const fv_layer_plan *plan)
{
    const fv_layer *layer = &session->model->layers[l];
    fv_session_layer *own = &session->layers[l];
    const fv_spec *spec = plan ? fv_layer_plan_at(plan, (int)l) : NULL;

    if (spec && plan->bare && layer->window) spec = NULL; /* it keeps its own window */
    own->dense = !spec || is_dense(spec);
    own->window = spec ? 0 : layer->window;
    if (!spec) return own_attention(layer, &own->attention);
    FV_TRY(fv_attention_from(spec, &own->attention));
    own->no_scale = (fv_attention_mechanism(own->attention)->traits & FV_NO_SCALE) != 0;
    return check_mechanism(own->attention);
}

/* Most rows that a layer may have to hold. */
static int64_t capacity(const fv_session *session, int64_t l)
{
    const fv_session_layer *own = &session->layers[l];
    const fv_policy_use *use = own->policy ? own->policy->use : NULL;
    int64_t bound = INT64_MAX;

    if (own->window > 0 && !session->keep_windows) bound = own->window;
    if (use && use->policy->bound) bound = use->policy->bound(use, own->policy->place);
    return bound >= session->context ? session->context : fv_min(bound + session->chunk, session->context);
}

/* Rows in tensors of a page pool that all sessions of the context use. */
static fv_status use_pool(const fv_session *session, const fv_policy_layer *policy, fv_rows_options *options)
{
    const fv_policy_use *use = policy->use;
    fv_pages_options pool = {0};
    bool one = false;

    if (!use->policy->pool) return FV_OK;
    use->policy->pool(use, &pool, &one);
    FV_TRY(fv_pages_of(session->ctx, &pool, &options->pages));
    if (!one) return FV_OK;
    options->layers = use->layers;
    options->layer = policy->place;
    if (policy->place > 0) options->beside = &session->layers[use->layer[0]].rows;
    return FV_OK;
}

static fv_status make_rows(fv_session *session, int64_t l)
{
    const fv_sizes *s = &session->model->sizes;
    const fv_policy_common *common = fv_cache_plan_types(&session->cache, l);
    fv_session_layer *own = &session->layers[l];
    fv_rows_options options = {.heads = s->key_heads,
                               .key_dim = s->key_dim,
                               .value_dim = s->value_dim,
                               .capacity = capacity(session, l),
                               .key_type = fv_policy_type(common->k),
                               .value_type = fv_policy_type(common->v),
                               .page = common->page,
                               .shared = session->lender != NULL,
                               .lender = session->lender};
    int64_t width = fv_attention_state_width(own->attention, s->key_dim);

    if (own->policy && !own->dense)
        return fv_fail(FV_E_USAGE, "layer %lld: the cache policy '%s' acts on the model's own attention, not on '%s'",
                       (long long)l, own->policy->use->policy->name, fv_attention_mechanism(own->attention)->name);
    if (own->policy) FV_TRY(use_pool(session, own->policy, &options));
    if (width == 0) FV_TRY(make_kept(session, own));
    if (width == 0) return fv_rows_new(&own->rows, &options);
    session->recurrent = true;
    return make_state(session, own, width);
}

/* Places, and room for state, where policies act. */
static fv_status make_policies(fv_session *session)
{
    const fv_cache_plan *plan = &session->cache;
    int64_t layers = 0, at = 0;
    size_t bytes = 0;

    for (int u = 0; u < plan->uses; u++) {
        layers += plan->use[u].layers;
        bytes +=
            (size_t)plan->use[u].layers * ((plan->use[u].policy->layer_bytes + FV_ALIGN - 1) / FV_ALIGN * FV_ALIGN);
    }
    FV_TRY(FV_ZALLOC(session->policies, layers));
    FV_TRY(fv_zalloc(&session->policy_state, (int64_t)bytes, 1));
    bytes = 0;
    for (int u = 0; u < plan->uses; u++) {
        fv_policy_layer *all = &session->policies[at];
        for (int64_t n = 0; n < plan->use[u].layers; n++, at++) {
            int64_t l = plan->use[u].layer[n];
            session->policies[at] = (fv_policy_layer){.use = &plan->use[u],
                                                      .layer = l,
                                                      .place = n,
                                                      .rows = &session->layers[l].rows,
                                                      .state = (char *)session->policy_state + bytes,
                                                      .all = all,
                                                      .project = fv_forward_project,
                                                      .model = session};
            session->layers[l].policy = &session->policies[at];
            bytes += (plan->use[u].policy->layer_bytes + FV_ALIGN - 1) / FV_ALIGN * FV_ALIGN;
        }
    }
    return FV_OK;
}

static fv_status make_cache(fv_session *session, const char *spec)
{
    const fv_sizes *s = &session->model->sizes;
    fv_cache_model model = {.layers = s->layers,
                            .query_heads = s->query_heads,
                            .key_heads = s->key_heads,
                            .key_dim = s->key_dim,
                            .value_dim = s->value_dim,
                            .context = session->context};
    fv_mark mark = fv_scratch_mark(session->ctx);
    int64_t *window;
    fv_status status;

    FV_TRY(FV_SCRATCH(session->ctx, window, s->layers));
    for (int64_t l = 0; l < s->layers; l++)
        window[l] = session->layers[l].window;
    model.window = window;
    status = fv_cache_plan_new(spec, &model, &session->cache);
    fv_scratch_release(session->ctx, mark);
    FV_TRY(status);
    session->filter = fv_cache_plan_filter(&session->cache);
    if (fv_cache_plan_traits(&session->cache) & FV_POLICY_BOUNDED)
        session->chunk = fv_min(session->chunk, FV_POLICY_CHUNK);
    return make_policies(session);
}

static fv_status make_layers(fv_session *session, const fv_session_options *options)
{
    int64_t layers = session->model->sizes.layers;
    fv_layer_plan plan;
    fv_status status = FV_OK;

    FV_TRY(FV_ZALLOC(session->layers, layers));
    if (options->attention) FV_TRY(fv_layer_plan_parse(&plan, options->attention, (int)layers));
    for (int64_t l = 0; l < layers && status == FV_OK; l++)
        status = make_attention(session, l, options->attention ? &plan : NULL);
    if (options->attention) fv_layer_plan_free(&plan);
    FV_TRY(status);
    FV_TRY(make_cache(session, options->cache));
    for (int64_t l = 0; l < layers; l++)
        FV_TRY(make_rows(session, l));
    return FV_OK;
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
    s->keep_windows = options->keep_windows;
    s->context = options->context ? options->context : model->sizes.context;
    s->chunk = options->chunk ? options->chunk : CHUNK;
    if (options->lends) (void)fv_lender_new(&s->lender); /* otherwise rows are copied where they would be lent */
    fv_status status = make_layers(s, options);
    if (status == FV_OK && s->precision != FV_PRECISION_F32) fv_model_pack(ctx, model);
    if (status == FV_OK)
        *session = s;
    else
        fv_session_free(s);
    return status;
}

/* What policies remember goes. */
static void drop_policies(fv_session *session)
{
    for (int64_t l = 0; session->layers && l < session->model->sizes.layers; l++) {
        fv_policy_layer *policy = session->layers[l].policy;
        if (!policy) continue;
        if (policy->use->policy->drop) policy->use->policy->drop(policy);
        memset(policy->state, 0, policy->use->policy->layer_bytes);
    }
}

void fv_session_free(fv_session *session)
{
    if (!session) return;
    drop_policies(session);
    for (int64_t l = 0; session->layers && l < session->model->sizes.layers; l++) {
        fv_rows_free(&session->layers[l].rows);
        fv_free(session->layers[l].memory);
        for (int kind = 0; kind < FV_KEPT; kind++)
            fv_free(session->layers[l].kept[kind]);
        fv_attention_free(session->layers[l].attention);
    }
    fv_free(session->layers);
    fv_free(session->policies);
    fv_free(session->policy_state);
    fv_cache_plan_free(&session->cache);
    fv_history_free(&session->history);
    fv_lender_drop(session->lender);
    fv_free(session);
}

void fv_session_clear_layer(fv_session *session, int64_t l)
{
    fv_session_layer *layer = &session->layers[l];

    fv_rows_clear(&layer->rows);
    if (layer->memory) memset(layer->memory, 0, layer->state_bytes);
    for (int kind = 0; kind < FV_KEPT; kind++)
        layer->state.kept[kind].count = 0;
    session->row_bytes = 0;
    for (int64_t other = 0; other < session->model->sizes.layers; other++)
        session->row_bytes += fv_rows_used(&session->layers[other].rows);
}

static void drop_rows(fv_session *session)
{
    drop_policies(session);
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        fv_session_clear_layer(session, l);
    session->length = session->left_out = session->prompt_tokens = 0;
}

void fv_session_clear(fv_session *session)
{
    drop_rows(session);
    fv_history_clear(&session->history);
    session->broken = false;
    session->pairs = session->dense_pairs = 0;
}

int64_t fv_session_length(const fv_session *session)
{
    return session->length;
}

int64_t fv_session_tokens(const fv_session *session)
{
    return session->length + session->left_out;
}

/* Of recurrent states, and of rows that mechanisms keep. */
static size_t state_bytes(const fv_session *session)
{
    size_t bytes = 0;

    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        const fv_session_layer *layer = &session->layers[l];
        bytes += layer->state_bytes;
        for (int kind = 0; kind < FV_KEPT; kind++) {
            const fv_kept_rows *kept = &layer->state.kept[kind];
            bytes += (size_t)(kept->count * kept->rows.dims[1] * kept->rows.dims[3]) * sizeof(float);
        }
    }
    return bytes;
}

void fv_session_measure(const fv_session *session, fv_session_stats *stats)
{
    size_t states = state_bytes(session);

    *stats = (fv_session_stats){.cache_bytes = session->row_bytes + states,
                                .committed_bytes = states,
                                .peak_cache_bytes = session->peak_bytes,
                                .pairs = session->pairs,
                                .dense_pairs = session->dense_pairs};
    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        const fv_session_layer *layer = &session->layers[l];
        const fv_policy *policy = layer->policy ? layer->policy->use->policy : NULL;
        fv_rows_bytes bytes;
        fv_rows_measure(&layer->rows, &bytes);
        stats->committed_bytes += bytes.committed;
        stats->reserved_bytes += bytes.reserved;
        stats->host_bytes += bytes.host;
        if (policy) stats->policy_bytes += policy->layer_bytes;
        if (policy && policy->state_bytes) stats->policy_bytes += policy->state_bytes(layer->policy);
    }
}

const int32_t *fv_session_positions(const fv_session *session, int64_t layer, int64_t head, int64_t *count)
{
    const fv_rows *rows = &session->layers[layer].rows;

    *count = rows->head ? fv_rows_all(rows, head) : 0;
    if (session->filter && *count > 0) /* one after the other among the tokens held */
        return session->history.position + fv_rows_positions(rows, head)[0];
    return rows->head ? fv_rows_all_positions(rows, head) : NULL;
}

const int32_t *fv_session_selected(const fv_session *session, int64_t layer, int64_t head, int64_t *count)
{
    const fv_policy_layer *policy = session->layers[layer].policy;

    *count = 0;
    return policy && policy->use->policy->selected ? policy->use->policy->selected(policy, head, count) : NULL;
}

bool fv_session_renumbers(const fv_session *session)
{
    return session->filter != NULL;
}

const char *fv_session_warning(const fv_session *session, int index)
{
    for (int u = 0; u < session->cache.uses; u++) {
        const fv_text *warning = &session->cache.use[u].warning;
        if (warning->length > 0 && index-- == 0) return fv_text_get(warning);
    }
    return NULL;
}

bool fv_session_selects(const fv_session *session)
{
    return (fv_cache_plan_traits(&session->cache) & FV_POLICY_SELECTS) != 0;
}

/* ---- feeding ---------------------------------------------------------------------------------------------------- */

fv_status fv_session_check_ids(const fv_session *session, const int32_t *ids, int64_t count)
{
    int64_t room = session->context - session->length;

    if (count < 0) return fv_fail(FV_E_ARGUMENT, "feed: expected a count of tokens, got %lld", (long long)count);
    if (session->broken)
        return fv_fail(FV_E_ARGUMENT, "feed: this session was stopped half way through something that cannot be taken "
                                      "back; clear the session and start again");
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

/* Logits of hidden rows x of tokens at .. of `total`, where they are wanted. */
static fv_status give(fv_session *session, const fv_tensor *x, int64_t at, int64_t total, const struct wanted *wanted)
{
    int64_t count = x->dims[0], from = fv_max(total - wanted->rows - at, 0); /* first row of x that is wanted */
    fv_tensor rows;

    if (wanted->sink) return give_logits(session, x, at, wanted->sink, wanted->user);
    if (from >= count) return FV_OK;
    rows = fv_slice(x, 0, from, count - from);
    return fv_forward_logits(session, &rows,
                             wanted->logits + (at + from - (total - wanted->rows)) * session->model->sizes.vocabulary);
}

static void note_peak(fv_session *session)
{
    session->state_bytes = state_bytes(session);
    if (session->row_bytes + session->state_bytes > session->peak_bytes)
        session->peak_bytes = session->row_bytes + session->state_bytes;
}

void fv_session_recount(fv_session *session)
{
    session->row_bytes = 0;
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        session->row_bytes += fv_rows_used(&session->layers[l].rows);
    note_peak(session);
}

void fv_session_undo(fv_session *session)
{
    session->broken = session->recurrent;
    for (int64_t l = 0; l < session->model->sizes.layers && !session->broken; l++) {
        fv_rows *rows = &session->layers[l].rows;
        bool begun = false;
        for (int64_t g = 0; rows->head && g < rows->options.heads; g++)
            begun = begun || fv_rows_below(rows, g, session->length) < fv_rows_count(rows, g);
        if (!begun) continue;
        session->broken = session->layers[l].policy ||
                          fv_rows_truncate(rows, session->length, session->layers[l].window, NULL, NULL) != FV_OK;
    }
    fv_session_recount(session);
}

/* Tokens at .. at+count-1 of `total`; with `layers` one layer after the other. */
static fv_status feed_chunk(fv_session *session, const int32_t *ids, int64_t at, int64_t count, int64_t total,
                            bool prompt, bool layers, const struct wanted *wanted)
{
    double pairs = session->pairs, dense_pairs = session->dense_pairs;
    const fv_forward_part part = {session, ids + at, count, prompt};
    fv_status status;
    fv_tensor x;

    status = layers ? fv_forward_layers(session, ids + at, count, &x) : fv_forward(session->ctx, &part, 1, &x);
    if (status != FV_OK) {
        char text[512];
        snprintf(text, sizeof text, "%s", fv_error());
        fv_session_undo(session);
        session->pairs = pairs;
        session->dense_pairs = dense_pairs;
        return fv_fail(status, "%s", text);
    }
    session->length += count;
    note_peak(session);
    return give(session, &x, at, total, wanted);
}

/* `chunk` tokens at a time. */
static fv_status feed_chunks(fv_session *session, const int32_t *ids, int64_t count, int64_t chunk, bool prompt,
                             bool layers, const struct wanted *wanted)
{
    fv_ctx *ctx = session->ctx;
    fv_precision before = ctx->precision;
    fv_status status = fv_session_check_ids(session, ids, count);

    ctx->precision = session->precision;
    for (int64_t at = 0; at < count && status == FV_OK; at += chunk) {
        fv_mark mark = fv_scratch_mark(ctx);
        status = fv_ctx_check(ctx);
        if (status == FV_OK)
            status = feed_chunk(session, ids, at, fv_min(chunk, count - at), count, prompt, layers, wanted);
        fv_scratch_release(ctx, mark);
        if (count > 1) fv_ctx_report(ctx, "tokens", (double)fv_min(at + chunk, count) / (double)count);
    }
    ctx->precision = before;
    return status;
}

/* Whether what several tokens leave at once is not what they leave one by one. */
static bool one_by_one(const fv_session *session)
{
    for (int u = 0; u < session->cache.uses; u++) {
        const fv_policy_use *use = &session->cache.use[u];
        if (use->layers > 0 && !(use->policy->traits & FV_POLICY_CHUNKS)) return true;
    }
    return false;
}

bool fv_session_in_steps(const fv_session *session)
{
    return session->filter || one_by_one(session);
}

/* Notes the tokens that went in. */
static fv_status feed_tokens(fv_session *session, const int32_t *ids, int64_t count, int64_t chunk, bool prompt,
                             bool layers, const struct wanted *wanted)
{
    int64_t before = session->length;
    fv_status status;

    if (session->filter) FV_TRY(fv_history_reserve(&session->history, fv_clamp(count, 0, session->context)));
    status = feed_chunks(session, ids, count, chunk, prompt, layers, wanted);
    if (session->filter) fv_history_add(&session->history, ids, session->length - before);
    return status;
}

static fv_status feed_steps(fv_session *session, const int32_t *ids, int64_t count, const struct wanted *wanted)
{
    return feed_tokens(session, ids, count, one_by_one(session) ? 1 : session->chunk, false, false, wanted);
}

fv_status fv_session_act(fv_session *session, int64_t l, int64_t prompt)
{
    fv_session_layer *layer = &session->layers[l];
    fv_status status = FV_OK;

    if (!layer->policy || !layer->policy->use->policy->act) return FV_OK;
    size_t before = fv_rows_used(&layer->rows);
    fv_mark mark = fv_scratch_mark(session->ctx);
    status = layer->policy->use->policy->act(session->ctx, layer->policy, prompt);
    fv_scratch_release(session->ctx, mark);
    session->row_bytes -= before - fv_rows_used(&layer->rows);
    return status;
}

/* ---- prompts that are filtered ----------------------------------------------------------------------------------- */

/* Refuses what cannot be given where not every token is read through the model. */
static fv_status check_filtered(const fv_session *session, const int32_t *ids, int64_t count,
                                const struct wanted *wanted)
{
    int64_t before = session->history.tokens;

    FV_TRY(fv_session_check_ids(session, ids, fv_min(count, session->context - session->length)));
    if (count > session->context - before)
        return fv_fail(FV_E_SHAPE,
                       "%lld tokens do not fit: a context of %lld is judged as a whole, and %lld tokens came before",
                       (long long)count, (long long)session->context, (long long)before);
    if (wanted->sink || wanted->rows > 1)
        return fv_fail(FV_E_USAGE,
                       "%s: leaves some of the %lld tokens out, so there are no logits behind each token of the prompt",
                       session->filter->policy->name, (long long)(before + count));
    return FV_OK;
}

/* The first layers read the whole text and choose from it; the session is left empty. */
static fv_status choose(fv_session *session, int64_t layer, int64_t total, int32_t *keep, int64_t *kept)
{
    const fv_sizes *s = &session->model->sizes;
    const fv_logits logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap};
    fv_ctx *ctx = session->ctx;
    fv_precision before = ctx->precision;
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor q, k;
    fv_status status;

    ctx->precision = session->precision;
    status = fv_forward_filter(session, session->history.ids, total, layer, &q, &k);
    if (status == FV_OK) status = session->filter->policy->filter(ctx, session->filter, &logits, &q, &k, keep, kept);
    ctx->precision = before;
    fv_scratch_release(ctx, mark);
    return status;
}

/* What was chosen is read as a prompt of its own. */
static fv_status read_chosen(fv_session *session, int64_t layer, int64_t total, const struct wanted *wanted)
{
    int32_t *keep, *ids;
    int64_t kept;

    FV_TRY(FV_SCRATCH(session->ctx, keep, total));
    FV_TRY(FV_SCRATCH(session->ctx, ids, total));
    FV_TRY(choose(session, layer, total, keep, &kept));
    for (int64_t i = 0; i < kept; i++)
        ids[i] = session->history.ids[keep[i]];
    FV_TRY(feed_chunks(session, ids, kept, session->chunk, true, false, wanted));
    memcpy(session->history.position, keep, (size_t)kept * sizeof *keep);
    session->history.held = kept;
    return FV_OK;
}

/* All that was fed before is judged again, together with the prompt.  What fails leaves a session that was empty empty,
 * and any other broken. */
static fv_status feed_filtered(fv_session *session, int64_t layer, const int32_t *ids, int64_t count,
                               const struct wanted *wanted)
{
    int64_t before = session->history.tokens, total = before + count;
    double pairs = session->pairs, dense = session->dense_pairs;
    fv_mark mark = fv_scratch_mark(session->ctx);
    fv_status status;

    FV_TRY(check_filtered(session, ids, count, wanted));
    FV_TRY(fv_history_reserve(&session->history, count));
    memcpy(session->history.ids + before, ids, (size_t)count * sizeof *ids);
    drop_rows(session);
    status = read_chosen(session, layer, total, wanted);
    fv_scratch_release(session->ctx, mark);
    if (status == FV_OK) {
        session->history.tokens = total;
        session->left_out = total - session->length;
        for (int64_t l = 0; l < session->model->sizes.layers; l++)
            dense += fv_dense_pairs(&session->model->sizes, before, count, session->model->layers[l].window);
    } else {
        fv_session_clear(session);
        session->pairs = pairs;
        session->broken = before > 0;
    }
    session->dense_pairs = dense;
    return status;
}

static fv_status feed_prompt(fv_session *session, const int32_t *ids, int64_t count, const struct wanted *wanted)
{
    bool once = (fv_cache_plan_traits(&session->cache) & FV_POLICY_ONCE) != 0;
    int64_t layer = -1;

    if (count == 0) return FV_OK;
    if (session->filter)
        layer = session->filter->policy->filter_layer(session->filter, session->history.tokens + fv_max(count, 0));
    if (layer >= 0) return feed_filtered(session, layer, ids, count, wanted);
    session->prompt_tokens = session->length + fv_max(count, 0);
    fv_status status = feed_tokens(session, ids, count, once ? count : session->chunk, true, once, wanted);
    if (status != FV_OK) session->prompt_tokens = session->length;
    FV_TRY(status);
    for (int64_t l = 0; l < session->model->sizes.layers && !once && status == FV_OK; l++)
        status = fv_session_act(session, l, session->length);
    session->broken = status != FV_OK; /* some layers have dropped rows */
    return status;
}

static fv_status check_rows(const float *logits, int64_t rows, int64_t count)
{
    if (rows < 0 || rows > fv_max(count, 0) || (rows > 0 && !logits))
        return fv_fail(FV_E_ARGUMENT, "logits: expected memory for 0 to %lld rows, got %lld", (long long)count,
                       (long long)rows);
    return FV_OK;
}

fv_status fv_session_feed(fv_session *session, const int32_t *ids, int64_t count, float *logits, int64_t rows)
{
    FV_TRY(check_rows(logits, rows, count));
    return feed_steps(session, ids, count, &(struct wanted){.logits = logits, .rows = logits ? rows : 0});
}

fv_status fv_session_prompt(fv_session *session, const int32_t *ids, int64_t count, float *logits, int64_t rows)
{
    FV_TRY(check_rows(logits, rows, count));
    return feed_prompt(session, ids, count, &(struct wanted){.logits = logits, .rows = logits ? rows : 0});
}

fv_status fv_session_stream(fv_session *session, const int32_t *ids, int64_t count, fv_logits_fn *sink, void *user)
{
    return feed_prompt(session, ids, count, &(struct wanted){.sink = sink, .user = user});
}
