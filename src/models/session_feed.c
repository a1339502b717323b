/* Feeding sessions: steps, prompts in chunks or layer by layer, prompts that a policy filters. */
#include <stdio.h>
#include <string.h>

#include "models/session.h"

enum { LOGITS_AT_ONCE = 1 << 23 /* floats of a piece of fv_session_stream: 32 MB */ };

fv_status fv_session_check_ids(const fv_session *session, const int32_t *ids, int64_t count)
{
    int64_t room = session->context - fv_session_held(session);

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
    session->state_bytes = fv_session_state_bytes(session);
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

/* ---- tokens between those of the text --------------------------------------------------------------------------- */

/* Of `count` tokens that come next, as many as a forward takes: those of a piece of a prompt, or one. */
static int64_t piece_of(const fv_session *session, int64_t count, bool prompt)
{
    int64_t chunk = session->insert.chunk;

    return prompt ? fv_min(count, chunk - fv_session_held(session) % chunk) : fv_min(count, 1);
}

/* Tokens of a prompt with those that stand between them. */
static fv_status insert(fv_session *session, const int32_t *ids, int64_t count, fv_forward_part *part)
{
    int64_t period = session->insert.every + 1;
    int32_t *id;

    if (!session->insert.every || !part->prompt) return FV_OK;
    FV_TRY(FV_SCRATCH(session->ctx, id, count + count / session->insert.every + 1));
    part->ids = id;
    part->count = 0;
    for (int64_t i = 0; i < count; i++) {
        id[part->count++] = ids[i];
        if ((session->length + part->count + 1) % period == 0) id[part->count++] = session->insert.id;
    }
    return FV_OK;
}

/* Drops the hidden rows of inserted tokens, the first of which stands at `position`. */
static void drop_inserted(const fv_session *session, int64_t position, fv_tensor *x)
{
    int64_t period = session->insert.every + 1, width = x->dims[1], kept = 0;
    float *rows = x->data;

    if (!session->insert.every) return;
    for (int64_t r = 0; r < x->dims[0]; r++)
        if ((position + r + 1) % period != 0)
            memmove(rows + kept++ * width, rows + r * width, (size_t)width * sizeof *rows);
    x->dims[0] = kept;
}

bool fv_session_reads_alone(const fv_session *session, int64_t *tokens)
{
    *tokens = session->insert.chunk;
    return session->filter || session->insert.every;
}

fv_status fv_session_insert_due(fv_session *session)
{
    const fv_forward_part part = {session, &session->insert.id, 1, false};
    fv_tensor x;

    if (!session->insert.every || (session->length + 1) % (session->insert.every + 1) != 0) return FV_OK;
    FV_TRY(fv_forward(session->ctx, &part, 1, &x));
    session->length++;
    return FV_OK;
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

/* Tokens at .. at+count-1 of `total`; with `layers` one layer after the other. */
static fv_status feed_chunk(fv_session *session, const int32_t *ids, int64_t at, int64_t count, int64_t total,
                            bool prompt, bool layers, const struct wanted *wanted)
{
    double pairs = session->pairs, dense_pairs = session->dense_pairs;
    fv_forward_part part = {session, ids + at, count, prompt};
    fv_status status;
    fv_tensor x;

    FV_TRY(fv_session_insert_due(session)); /* where it failed before */
    FV_TRY(insert(session, ids + at, count, &part));
    status = layers ? fv_forward_layers(session, ids + at, count, &x) : fv_forward(session->ctx, &part, 1, &x);
    if (status != FV_OK) {
        char text[512];
        snprintf(text, sizeof text, "%s", fv_error());
        fv_session_undo(session);
        session->pairs = pairs;
        session->dense_pairs = dense_pairs;
        return fv_fail(status, "%s", text);
    }
    drop_inserted(session, session->length, &x);
    session->length += part.count;
    FV_TRY(fv_session_insert_due(session));
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
        if (session->insert.every) chunk = piece_of(session, count - at, prompt);
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
    session->prompt_tokens = kept;
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
    fv_session_drop_rows(session);
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
