/* Sessions: choosing each layer's attention, making them, what they hold. */
#include "models/session.h"

#include <stdio.h>
#include <string.h>

#include "models/tokenizer.h"

enum { CHUNK = 512 };

/* ---- the layers' attention -------------------------------------------------------------------------------------- */

/* The layer's attention as the model has it. */
static fv_status own_attention(const fv_layer *layer, fv_attention **attention)
{
    char spec[64] = "dense";

    if (layer->window) snprintf(spec, sizeof spec, "dense:window=%lld", (long long)layer->window);
    return fv_attention_new(spec, attention);
}

/* FV_E_USAGE for a mechanism that cannot read a text from left to right. */
static fv_status check_mechanism(const fv_session *session, const fv_attention *attention)
{
    const fv_mechanism *mechanism = fv_attention_mechanism(attention);

    if (session->dense_last > 0 && mechanism->traits & (FV_RECURRENT | FV_NEEDS_KEPT))
        return fv_fail(FV_E_USAGE, "%s: the last tokens of a prompt cannot read everything: %s", mechanism->name,
                       mechanism->traits & FV_RECURRENT ? "it has a state in place of keys"
                                                        : "what it keeps is made of every query");

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

/* Room for rows and a choice that a mechanism keeps; pages become resident when they are first written. */
static fv_status make_kept(const fv_session *session, fv_session_layer *layer, const fv_rows_options *options)
{
    const fv_sizes *s = &session->model->sizes;
    const fv_call sizes = {
        .query_heads = s->query_heads, .key_heads = s->key_heads, .head_dim = s->key_dim, .value_dim = s->value_dim};
    const fv_mechanism *mechanism = fv_attention_mechanism(layer->attention);
    fv_dtype type = fv_kept_type(mechanism, session->precision, options->key_type, options->value_type);
    int64_t choice = fv_attention_choice(layer->attention, session->context);

    for (int kind = 0; kind < FV_KEPT; kind++) {
        fv_kept_rows *kept = &layer->state.kept[kind];
        int64_t width, count = 0;
        int64_t rows = fv_attention_kept(layer->attention, &sizes, kind, session->context, &width);
        if (rows == 0) continue;
        if (!fv_mul_i64(s->key_heads * width, rows, &count))
            return fv_fail(FV_E_MEMORY, "%lld kept rows are more than memory can hold", (long long)rows);
        FV_TRY(fv_alloc(&layer->kept[kind], count, fv_dtype_size(type)));
        FV_TRY(fv_tensor_wrap(&kept->rows, layer->kept[kind], type, FV_DIMS(1, s->key_heads, rows, width)));
    }
    if (choice == 0) return FV_OK;
    FV_TRY(fv_alloc(&layer->choice, s->query_heads * choice, sizeof(int32_t)));
    return fv_tensor_wrap(&layer->state.choice.index, layer->choice, FV_I32, FV_DIMS(1, s->query_heads, choice));
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
    return check_mechanism(session, own->attention);
}

/* Rows of a text as long as the context. */
static int64_t most_rows(const fv_session *session)
{
    return session->context + (session->insert.every ? session->context / session->insert.every + 1 : 0);
}

/* Most rows that a layer may have to hold. */
static int64_t capacity(const fv_session *session, int64_t l)
{
    const fv_session_layer *own = &session->layers[l];
    const fv_policy_use *use = own->policy ? own->policy->use : NULL;
    int64_t bound = INT64_MAX;

    if (own->window > 0 && !session->keep_windows) bound = own->window;
    if (use && use->policy->bound) bound = use->policy->bound(use, own->policy->place);
    return bound >= most_rows(session) ? most_rows(session) : fv_min(bound + session->chunk, most_rows(session));
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
    if (width == 0) FV_TRY(make_kept(session, own, &options));
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

static int32_t find_token(const void *model_, const char *piece)
{
    const fv_model *model = model_;
    size_t length;
    const char *bytes;

    for (int64_t id = 0; model->tokenizer && id < fv_tokenizer_count(model->tokenizer); id++)
        if (fv_tokenizer_piece(model->tokenizer, (int32_t)id, &bytes, &length) == FV_OK && length == strlen(piece) &&
            memcmp(bytes, piece, length) == 0)
            return (int32_t)id;
    return -1;
}

/* Where rows stand in a text between whose tokens others were inserted; those stand with the token before. */
static fv_status make_text(fv_session *session)
{
    int64_t period = session->insert.every + 1, rows = most_rows(session);

    if (!session->insert.every) return FV_OK;
    FV_TRY(FV_ALLOC(session->text, rows));
    FV_TRY(FV_ALLOC(session->shown, rows));
    for (int64_t r = 0; r < rows; r++)
        session->text[r] = (int32_t)(r - (r + 1) / period);
    session->chunk = fv_max(session->chunk, session->insert.chunk + session->insert.chunk / session->insert.every + 1);
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
                            .context = session->context,
                            .vocabulary = s->vocabulary,
                            .model = session->model,
                            .find_token = find_token};
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
    session->insert = fv_cache_plan_insert(&session->cache);
    if (fv_cache_plan_traits(&session->cache) & FV_POLICY_BOUNDED)
        session->chunk = fv_min(session->chunk, FV_POLICY_CHUNK);
    FV_TRY(make_text(session));
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
    if (options->dense_last < 0)
        return fv_fail(FV_E_ARGUMENT, "dense_last: expected a count of tokens, got %lld",
                       (long long)options->dense_last);
    FV_TRY(FV_ZALLOC(s, 1));
    s->ctx = ctx;
    s->model = model;
    s->precision = options->precision;
    s->dense_last = options->dense_last;
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
        fv_free(session->layers[l].choice);
        fv_attention_free(session->layers[l].attention);
    }
    fv_free(session->layers);
    fv_free(session->policies);
    fv_free(session->policy_state);
    fv_cache_plan_free(&session->cache);
    fv_history_free(&session->history);
    fv_free(session->text);
    fv_free(session->shown);
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
    layer->state.choice.end = 0;
    session->row_bytes = 0;
    for (int64_t other = 0; other < session->model->sizes.layers; other++)
        session->row_bytes += fv_rows_used(&session->layers[other].rows);
}

void fv_session_drop_rows(fv_session *session)
{
    drop_policies(session);
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        fv_session_clear_layer(session, l);
    session->length = session->left_out = session->prompt_tokens = 0;
}

void fv_session_clear(fv_session *session)
{
    fv_session_drop_rows(session);
    fv_history_clear(&session->history);
    session->broken = false;
    session->pairs = session->dense_pairs = 0;
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        memset(session->layers[l].spent, 0, sizeof session->layers[l].spent);
}

bool fv_session_replaces(const fv_session *session, int64_t l)
{
    const fv_session_layer *own = &session->layers[l];

    return !own->dense || own->policy || own->window != session->model->layers[l].window;
}

int64_t fv_session_length(const fv_session *session)
{
    return session->length;
}

int64_t fv_session_tokens(const fv_session *session)
{
    return fv_session_held(session) + session->left_out;
}

/* Of recurrent states, and of rows and choices that mechanisms keep. */
size_t fv_session_state_bytes(const fv_session *session)
{
    size_t bytes = 0;

    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        const fv_session_layer *layer = &session->layers[l];
        bytes += layer->state_bytes;
        for (int kind = 0; kind < FV_KEPT; kind++) {
            const fv_kept_rows *kept = &layer->state.kept[kind];
            bytes += (size_t)(kept->count * kept->rows.dims[1] * kept->rows.dims[3]) * fv_dtype_size(kept->rows.dtype);
        }
        if (layer->state.choice.end > 0) bytes += (size_t)fv_tensor_count(&layer->state.choice.index) * sizeof(int32_t);
    }
    return bytes;
}

void fv_session_measure(const fv_session *session, fv_session_stats *stats)
{
    size_t states = fv_session_state_bytes(session);

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

/* Rows by where their tokens stand in the text, without those that were inserted. */
static const int32_t *in_text(const fv_session *session, const int32_t *position, int64_t *count)
{
    int64_t kept = 0;

    if (!session->insert.every || !position) return position;
    for (int64_t i = 0; i < *count; i++)
        if ((position[i] + 1) % (session->insert.every + 1) != 0) session->shown[kept++] = session->text[position[i]];
    *count = kept;
    return session->shown;
}

const int32_t *fv_session_positions(const fv_session *session, int64_t layer, int64_t head, int64_t *count)
{
    const fv_rows *rows = &session->layers[layer].rows;

    *count = rows->head ? fv_rows_all(rows, head) : 0;
    if (session->filter && *count > 0) /* one after the other among the tokens held */
        return session->history.position + fv_rows_positions(rows, head)[0];
    return rows->head ? in_text(session, fv_rows_all_positions(rows, head), count) : NULL;
}

const int32_t *fv_session_selected(const fv_session *session, int64_t layer, int64_t head, int64_t *count)
{
    const fv_policy_layer *policy = session->layers[layer].policy;

    *count = 0;
    if (!policy || !policy->use->policy->selected) return NULL;
    const int32_t *position = policy->use->policy->selected(policy, head, count);
    return in_text(session, position, count);
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
