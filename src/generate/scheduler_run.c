/* Steps: who takes part in one, and what comes of it. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "generate/scheduler_parts.h"

enum { MOST_PARTS = 256, MOST_REFUSALS = 2 };
#define COUNT_SECONDS 0.02 /* rows are counted no more often where nothing limits them */

/* ---- a prompt --------------------------------------------------------------------------------------------------- */

static int64_t vocabulary_of(const fv_scheduler *s)
{
    return s->model->sizes.vocabulary;
}

static fv_status make_choice(fv_scheduler *s, fv_request *request, int i)
{
    struct choice *choice = &request->choice[i];
    const fv_request_options *o = &request->options;
    fv_sampler_options sampling = o->sampling;
    bool changed = o->biases > 0 || o->presence_penalty != 0 || o->frequency_penalty != 0;

    sampling.seed += (uint64_t)i;
    FV_TRY(fv_scheduler_session(s, request, &choice->session));
    FV_TRY(fv_sampler_new(&sampling, vocabulary_of(s), &choice->sampler));
    FV_TRY(FV_ALLOC(choice->logits, vocabulary_of(s)));
    if (changed) FV_TRY(FV_ALLOC(choice->work, vocabulary_of(s)));
    if (changed) FV_TRY(FV_ZALLOC(choice->times, vocabulary_of(s)));
    for (int64_t t = fv_max(o->count - 64, 0); t < o->count; t++)
        fv_sampler_accept(choice->sampler, o->ids[t]);
    choice->stage = READING;
    return FV_OK;
}

/* Takes the rows of whoever began most alike: a prompt that has ended, or one that runs. */
static void borrow(fv_scheduler *s, fv_request *request)
{
    const fv_request_options *o = &request->options;
    struct choice *choice = &request->choice[0];
    int64_t most = o->all_logits ? 0 : o->count - 1, common = 0;
    fv_session *from = NULL;
    int at;

    if (most == 0 || !fv_request_lends(request)) return;
    at = fv_prefixes_find(&s->prefixes, request->setup, o->ids, most, &common);
    if (at >= 0) from = s->prefixes.at[at].session;
    for (fv_request *other = s->running; other; other = other->next) {
        int64_t own = fv_common_tokens(other->options.ids, other->choice[0].read, o->ids, most);
        if (other == request || own <= common || !fv_request_lends(other) || strcmp(other->setup, request->setup) != 0)
            continue;
        from = other->choice[0].session;
        common = own;
    }
    if (common > 0 && fv_session_lend(choice->session, from, common) == FV_OK) choice->read = common;
    if (request->usage.cached_tokens == 0) request->usage.cached_tokens = choice->read;
}

static fv_status begin_request(fv_scheduler *s, fv_request *request)
{
    request->began = fv_scheduler_now();
    FV_TRY(make_choice(s, request, 0));
    borrow(s, request);
    return FV_OK;
}

/* Chunks end at multiples of FV_STEP_TOKENS, wherever others end, or of the pieces that a policy reads. */
static int64_t next_chunk(const fv_request *request, const struct choice *choice)
{
    int64_t step = FV_STEP_TOKENS, piece, left = request->options.count - choice->read;

    if (fv_session_reads_alone(choice->session, &piece)) {
        if (piece == 0) return left;
        step = fv_max(FV_STEP_TOKENS / piece, 1) * piece;
    }
    return fv_min(left, step - choice->read % step);
}

static fv_status add_hidden(fv_scheduler *s, fv_request *request, const fv_tensor *rows)
{
    fv_tensor normed;

    FV_TRY(fv_tensor_new(s->ctx, &normed, FV_F32, 2, rows->dims));
    FV_TRY(fv_norm(s->ctx, &(fv_norm_args){.x = *rows,
                                           .weight = s->model->output_norm,
                                           .out = normed,
                                           .epsilon = (float)s->model->sizes.epsilon}));
    for (int64_t i = 0; i < rows->dims[0]; i++)
        for (int64_t c = 0; c < rows->dims[1]; c++)
            request->sum[c] +=
                (double)((const float *)normed.data)[i * rows->dims[1] + c] / (double)request->options.count;
    return FV_OK;
}

/* Logits of every row of a chunk go to the caller. */
static fv_status tell_prompt(fv_scheduler *s, fv_request *request, const fv_tensor *rows, int64_t first)
{
    int64_t vocabulary = vocabulary_of(s), piece = fv_clamp((1 << 23) / vocabulary, 1, rows->dims[0]);
    float *logits;

    FV_TRY(FV_SCRATCH(s->ctx, logits, piece * vocabulary));
    s->ctx->batching = FV_BATCH_PROMPT;
    for (int64_t from = 0; from < rows->dims[0]; from += piece) {
        fv_tensor part = fv_slice(rows, 0, from, fv_min(piece, rows->dims[0] - from));
        FV_TRY(fv_forward_logits(request->choice[0].session, &part, logits));
        for (int64_t i = 0; i < part.dims[0]; i++)
            request->options.prompt(request->options.user, first + from + i, logits + i * vocabulary);
    }
    return FV_OK;
}

/* What a chunk of a prompt gives: hidden rows, logits, and at its end the logits of the answer's first token. */
static fv_status take_chunk(fv_scheduler *s, fv_request *request, int i, const fv_tensor *rows)
{
    const fv_request_options *o = &request->options;
    struct choice *choice = &request->choice[i];
    bool first_time = i == 0 && choice->count == 0;
    int64_t first = choice->read, count = rows->dims[0];
    fv_tensor last = fv_slice(rows, 0, count - 1, 1);

    choice->session->length += count;
    choice->read += count;
    fv_session_recount(choice->session);
    if (first_time && request->sum) FV_TRY(add_hidden(s, request, rows));
    if (first_time && o->all_logits && o->prompt && first >= request->told) {
        FV_TRY(tell_prompt(s, request, rows, first));
        request->told = first + count;
    }
    if (choice->read < o->count) return FV_OK;
    s->ctx->batching = FV_BATCH_STEPS;
    if (o->limit > 0) FV_TRY(fv_forward_logits(choice->session, &last, choice->logits));
    for (int64_t l = 0; l < s->model->sizes.layers; l++)
        FV_TRY(fv_session_act(choice->session, l, choice->session->length));
    return FV_OK;
}

/* ---- an answer -------------------------------------------------------------------------------------------------- */

static void end_choice(fv_request *request, int i, fv_request_end end)
{
    request->choice[i].stage = OVER;
    if (request->options.choice && !request->options.embed) request->options.choice(request->options.user, i, end);
}

/* Logits with biases, and with penalties for the answer's own tokens. */
static const float *changed_logits(const fv_scheduler *s, const fv_request *request, struct choice *choice)
{
    const fv_request_options *o = &request->options;

    if (!choice->work) return choice->logits;
    memcpy(choice->work, choice->logits, (size_t)vocabulary_of(s) * sizeof *choice->work);
    for (int i = 0; i < o->biases; i++)
        choice->work[o->bias_id[i]] += o->bias[i];
    for (int64_t i = 0; i < vocabulary_of(s); i++)
        if (choice->times[i] > 0)
            choice->work[i] -= o->presence_penalty + o->frequency_penalty * (float)choice->times[i];
    return choice->work;
}

/* Draws the next token of a choice from its logits. */
static fv_status draw(fv_scheduler *s, fv_request *request, int i)
{
    const fv_request_options *o = &request->options;
    struct choice *choice = &request->choice[i];
    int32_t id = fv_sampler_pick(choice->sampler, changed_logits(s, request, choice));

    if (fv_model_is_end(s->model, id) && !o->ignore_end) {
        end_choice(request, i, FV_REQUEST_STOP);
        return FV_OK;
    }
    FV_TRY(FV_GROW(choice->ids, choice->capacity, choice->count + 1));
    choice->ids[choice->count++] = id;
    if (choice->times) choice->times[id]++;
    s->counts.generated_tokens++;
    if (o->token && !o->token(o->user, i, id, choice->logits))
        end_choice(request, i, FV_REQUEST_STOP);
    else if (choice->count >= o->limit || o->count + choice->count >= s->options.context)
        end_choice(request, i, FV_REQUEST_LENGTH);
    return FV_OK;
}

/* A choice has read the prompt: it writes, or reads its own tokens again where it wrote before. */
static fv_status begin_writing(fv_scheduler *s, fv_request *request, int i)
{
    struct choice *choice = &request->choice[i];

    if (request->wrote == 0) request->wrote = fv_scheduler_now();
    choice->stage = WRITING;
    if (request->options.limit == 0)
        end_choice(request, i, FV_REQUEST_LENGTH);
    else if (choice->count == 0)
        FV_TRY(draw(s, request, i));
    return FV_OK;
}

/* The other choices take what the first one has read, or read it themselves where rows cannot be lent. */
static fv_status begin_others(fv_scheduler *s, fv_request *request)
{
    struct choice *first = &request->choice[0];
    bool lent = fv_request_lends(request);

    for (int i = 1; i < request->options.choices; i++) {
        struct choice *choice = &request->choice[i];
        if (choice->stage == NOT_BEGUN && request->options.limit == 0) end_choice(request, i, FV_REQUEST_LENGTH);
        if (choice->stage != NOT_BEGUN) continue;
        FV_TRY(make_choice(s, request, i));
        if (!lent) continue;
        FV_TRY(fv_session_lend(choice->session, first->session, request->options.count));
        choice->read = request->options.count;
        memcpy(choice->logits, first->logits, (size_t)vocabulary_of(s) * sizeof *choice->logits);
        FV_TRY(begin_writing(s, request, i));
    }
    return FV_OK;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static fv_session *nth_session(const fv_scheduler *s, int64_t n)
{
    for (fv_request *r = s->running; r; r = r->next)
        for (int i = 0; i < r->options.choices; i++)
            if (r->choice[i].session && n-- == 0) return r->choice[i].session;
    return n < s->prefixes.count ? s->prefixes.at[n].session : NULL;
}

/* Rows held by all, and pages behind them: what several hold counts once. */
static fv_status measure_rows(fv_scheduler *s, fv_rows_bytes *bytes)
{
    const fv_rows **rows;
    int64_t sessions = 0, layers = s->model->sizes.layers;

    while (nth_session(s, sessions))
        sessions++;
    FV_TRY(FV_SCRATCH(s->ctx, rows, sessions * layers));
    for (int64_t n = 0; n < sessions; n++) {
        const fv_session *session = nth_session(s, n);
        for (int64_t l = 0; l < layers; l++)
            rows[n * layers + l] = &session->layers[l].rows;
    }
    return fv_rows_measure_all(rows, sessions * layers, bytes);
}

static void count_rows(fv_scheduler *s)
{
    fv_mark mark = fv_scratch_mark(s->ctx);
    fv_rows_bytes bytes;

    if (measure_rows(s, &bytes) == FV_OK) { /* otherwise the figures stay for a step */
        s->counts.row_bytes = bytes.used;
        s->counts.committed_bytes = bytes.committed + fv_pages_idle(s->ctx);
    }
    fv_scratch_release(s->ctx, mark);
    s->counted = fv_scheduler_now();
}

/* A choice's rows are given up: it reads everything again, and then goes on. */
static void give_up_rows(const fv_scheduler *s, fv_request *request, int i)
{
    struct choice *choice = &request->choice[i];

    if (choice->stage == OVER || choice->stage == NOT_BEGUN) return;
    fv_session_clear(choice->session);
    choice->read = choice->fed = 0;
    choice->stage = READING;
    if (i == 0 && request->sum) memset(request->sum, 0, (size_t)s->model->sizes.width * sizeof *request->sum);
}

/* All of them, and the memory mapped for them; sessions are made again when it goes on. */
static void give_up_sessions(const fv_scheduler *s, fv_request *request)
{
    request->held = 0;
    for (int i = 0; i < request->options.choices; i++) {
        struct choice *choice = &request->choice[i];
        if (!choice->session) continue;
        request->held += choice->session->row_bytes;
        if (choice->session->row_bytes > request->usage.row_bytes)
            request->usage.row_bytes = choice->session->row_bytes;
        give_up_rows(s, request, i);
        fv_session_free(choice->session);
        choice->session = NULL;
    }
}

static fv_status go_on(fv_scheduler *s, fv_request *request)
{
    int64_t cached = request->usage.cached_tokens;

    for (int i = 0; i < request->options.choices; i++)
        if (request->choice[i].stage == READING) FV_TRY(fv_scheduler_session(s, request, &request->choice[i].session));
    if (request->choice[0].stage == READING) borrow(s, request);
    request->usage.cached_tokens = cached;
    return FV_OK;
}

/* The request that came last goes back to the head of the queue, without its rows. */
static bool send_back_youngest(fv_scheduler *s)
{
    fv_request *youngest = NULL;

    for (fv_request *r = s->running; r; r = r->next)
        if (!youngest || r->order > youngest->order) youngest = r;
    if (!youngest || s->runs < 2) return false;
    give_up_sessions(s, youngest);
    s->counts.sent_back++;
    pthread_mutex_lock(&s->mutex);
    for (fv_request **at = &s->running; *at; at = &(*at)->next)
        if (*at == youngest) {
            *at = youngest->next;
            break;
        }
    youngest->next = s->waiting;
    youngest->runs = false;
    s->waiting = youngest;
    s->runs--;
    s->waits++;
    pthread_mutex_unlock(&s->mutex);
    return true;
}

static bool drop_prompt(fv_scheduler *s)
{
    if (!fv_prefixes_drop_oldest(&s->prefixes)) return false;
    s->counts.given_back++;
    return true;
}

static bool make_room(fv_scheduler *s)
{
    return fv_pages_trim(s->ctx) || drop_prompt(s) || send_back_youngest(s);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

struct member {
    fv_request *request;
    int i;
};

static struct choice *choice_of(const struct member *m)
{
    return &m->request->choice[m->i];
}

static fv_status finish_reading(fv_scheduler *s, const struct member *m)
{
    if (choice_of(m)->read < m->request->options.count) return FV_OK;
    if (m->i == 0) FV_TRY(begin_others(s, m->request));
    return begin_writing(s, m->request, m->i);
}

struct telling {
    fv_request *request;
    struct choice *choice;
    int64_t first, count, vocabulary;
};

/* Logits of a prompt's rows go to the caller, and the last ones to the choice. */
static fv_status tell_rows(void *user, int64_t row, int64_t rows, const float *logits)
{
    const struct telling *t = user;
    const fv_request_options *o = &t->request->options;

    for (int64_t i = 0; i < rows; i++)
        o->prompt(o->user, t->first + row + i, logits + i * t->vocabulary);
    if (row + rows == t->count)
        memcpy(t->choice->logits, logits + (rows - 1) * t->vocabulary, (size_t)t->vocabulary * sizeof *logits);
    t->request->told = t->first + row + rows;
    return FV_OK;
}

/* A policy that chooses among the tokens of the whole prompt reads it at once; one that puts tokens between them in its
 * own pieces. */
static fv_status read_alone(fv_scheduler *s, const struct member *m)
{
    const fv_request_options *o = &m->request->options;
    struct choice *choice = choice_of(m);
    int64_t count = next_chunk(m->request, choice);
    struct telling telling = {m->request, choice, choice->read, count, vocabulary_of(s)};
    bool tell = choice->session->insert.every && m->i == 0 && choice->count == 0 && o->all_logits && o->prompt &&
                choice->read >= m->request->told;

    s->ctx->batching = FV_BATCH_PROMPT;
    if (tell)
        FV_TRY(fv_session_stream(choice->session, o->ids + choice->read, count, tell_rows, &telling));
    else
        FV_TRY(fv_session_prompt(choice->session, o->ids + choice->read, count, choice->logits, 1));
    choice->read += count;
    return finish_reading(s, m);
}

/* A step of a choice: its next token has a row, and these are its logits. */
static fv_status take_step(fv_scheduler *s, const struct member *m, const float *logits)
{
    struct choice *c = choice_of(m);

    memcpy(c->logits, logits, (size_t)vocabulary_of(s) * sizeof *logits);
    c->session->length++;
    FV_TRY(fv_session_insert_due(c->session));
    fv_session_recount(c->session);
    return ++c->fed == c->count ? draw(s, m->request, m->i) : FV_OK;
}

/* A failure that is one request's own: it ends after the step. */
static void note_failure_as(fv_request *request, const char *text)
{
    if (request->failed) return;
    request->failed = true;
    snprintf(request->error, sizeof request->error, "%s", text);
}

static void note_failure(fv_request *request, fv_status status)
{
    if (status != FV_OK) note_failure_as(request, fv_error());
}

/* One forward for all members, and what comes of it. */
static fv_status forward(fv_scheduler *s, const struct member *members, int64_t count, bool prompt)
{
    fv_forward_part parts[MOST_PARTS];
    float *logits = NULL;
    fv_tensor x;

    for (int64_t n = 0; n < count; n++) {
        const struct choice *c = choice_of(&members[n]);
        const int32_t *ids = prompt ? members[n].request->options.ids + c->read : c->ids + c->fed;
        parts[n] = (fv_forward_part){c->session, ids, prompt ? next_chunk(members[n].request, c) : 1, prompt};
        if (prompt) c->session->prompt_tokens = members[n].request->options.count;
    }
    s->ctx->batching = prompt ? FV_BATCH_PROMPT : FV_BATCH_STEPS;
    FV_TRY(fv_forward(s->ctx, parts, count, &x));
    if (!prompt) {
        FV_TRY(FV_SCRATCH(s->ctx, logits, count * vocabulary_of(s)));
        FV_TRY(fv_forward_logits(parts[0].session, &x, logits));
    }
    for (int64_t n = 0, row = 0; n < count; row += parts[n++].count) {
        fv_tensor rows = fv_slice(&x, 0, row, parts[n].count);
        fv_status status;
        if (prompt) {
            status = take_chunk(s, members[n].request, members[n].i, &rows);
            if (status == FV_OK) status = finish_reading(s, &members[n]);
        } else {
            status = take_step(s, &members[n], logits + n * vocabulary_of(s));
        }
        note_failure(members[n].request, status);
    }
    return FV_OK;
}

static fv_status run_members(fv_scheduler *s, const struct member *members, int64_t count, bool prompt)
{
    fv_mark mark = fv_scratch_mark(s->ctx);
    int64_t piece;
    fv_status status;

    s->ctx->precision = s->options.precision;
    if (prompt && fv_session_reads_alone(choice_of(members)->session, &piece))
        status = read_alone(s, members);
    else
        status = forward(s, members, count, prompt);
    s->ctx->batching = FV_BATCH_FREE;
    s->ctx->precision = FV_PRECISION_AUTO;
    fv_scratch_release(s->ctx, mark);
    return status;
}

/* A member whose own part failed in a forward of several.  A file that fails will fail again; refused memory may be
 * there the next time, but not for ever. */
static void judge_member(const struct member *m)
{
    struct choice *c = choice_of(m);
    fv_status own = c->session->failure;

    if (own == FV_OK || own == FV_E_INTERRUPTED) return;
    if (own != FV_E_MEMORY || ++c->refused > MOST_REFUSALS) note_failure_as(m->request, c->session->failure_text);
}

/* Whoever fails alone fails; the others go on.  Where memory was short, room is made first. */
static void run_or_fail(fv_scheduler *s, const struct member *members, int64_t count, bool prompt)
{
    fv_status status = run_members(s, members, count, prompt);
    char text[512];

    if (status == FV_OK) return;
    snprintf(text, sizeof text, "%s", fv_error());
    for (int64_t n = 0; n < count; n++) {
        struct choice *c = choice_of(&members[n]);
        if (count > 1) judge_member(&members[n]);
        fv_session_undo(c->session);
        if (c->session->broken) give_up_rows(s, members[n].request, members[n].i);
    }
    if (count == 1) {
        if (status == FV_E_MEMORY && make_room(s)) return; /* the next step tries again */
        note_failure(members->request, fv_fail(status, "%s", text));
        return;
    }
    for (int64_t n = 0; n < count; n++)
        if (members[n].request->runs && !members[n].request->failed &&
            choice_of(&members[n])->stage == (prompt ? READING : WRITING))
            run_or_fail(s, &members[n], 1, prompt);
}

/* Members in one stage, in the order they came; of prompts as many as a step takes. */
static int64_t gather(const fv_scheduler *s, enum stage stage, struct member *members)
{
    int64_t count = 0, tokens = 0;

    for (fv_request *r = s->running; r; r = r->next)
        for (int i = 0; i < r->options.choices && count < MOST_PARTS; i++) {
            const struct choice *c = &r->choice[i];
            if (c->stage != stage) continue;
            if (stage == READING) {
                int64_t piece;
                bool alone = fv_session_reads_alone(c->session, &piece);
                if (count > 0 && (alone || tokens + next_chunk(r, c) > FV_STEP_TOKENS)) return count;
                tokens += alone ? FV_STEP_TOKENS : next_chunk(r, c);
            }
            members[count++] = (struct member){r, i};
        }
    return count;
}

static bool all_over(const fv_request *request)
{
    for (int i = 0; i < request->options.choices; i++)
        if (request->choice[i].stage != OVER) return false;
    return true;
}

static void end_those_over(fv_scheduler *s)
{
    for (fv_request *r = s->running, *next; r; r = next) {
        next = r->next;
        if (r->failed)
            fv_request_end_with(s, r, FV_REQUEST_FAILED, r->error);
        else if (all_over(r))
            fv_request_end_with(s, r, FV_REQUEST_STOP, NULL);
    }
}

static void step(fv_scheduler *s)
{
    struct member members[MOST_PARTS];
    int64_t count = gather(s, WRITING, members);

    if (count > 0) run_or_fail(s, members, count, false);
    end_those_over(s);
    count = gather(s, READING, members);
    if (count > 0) run_or_fail(s, members, count, true);
    end_those_over(s);
    if (s->counts.committed_bytes < s->most_bytes / 2 && s->running && fv_scheduler_now() < s->counted + COUNT_SECONDS)
        return;
    count_rows(s);
    while (s->counts.committed_bytes > s->most_bytes && make_room(s))
        count_rows(s);
    pthread_mutex_lock(&s->mutex);
    s->stats = s->counts;
    pthread_mutex_unlock(&s->mutex);
}

/* ---- joining and leaving ---------------------------------------------------------------------------------------- */

/* The first of a list that is to leave; NULL: none. */
static fv_request *first_to_leave(fv_scheduler *s, fv_request *const *list, bool fresh, bool all)
{
    fv_request *found;

    pthread_mutex_lock(&s->mutex);
    for (found = *list; found; found = found->next)
        if (found->cancelled || all || (fresh && found->began == 0)) break;
    pthread_mutex_unlock(&s->mutex);
    return found;
}

/* Those who were cancelled leave, and, when the scheduler stops, those who have not begun, or all. */
static void sweep(fv_scheduler *s, bool draining, bool stopping)
{
    fv_request *r;

    while ((r = first_to_leave(s, &s->waiting, draining, stopping)))
        fv_request_end_with(s, r, r->cancelled || r->began > 0 ? FV_REQUEST_CANCELLED : FV_REQUEST_REFUSED, NULL);
    while ((r = first_to_leave(s, &s->running, false, stopping)))
        fv_request_end_with(s, r, FV_REQUEST_CANCELLED, NULL);
}

/* One that was sent back takes at least what it had. */
static bool fits(const fv_scheduler *s, const fv_request *request)
{
    return s->counts.committed_bytes < s->most_bytes && request->held <= s->most_bytes - s->counts.committed_bytes;
}

/* Prompts that were kept are no reason for a request to wait. */
static void make_room_for_first(fv_scheduler *s)
{
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        bool waits = s->waiting && s->runs < s->options.parallel && !fits(s, s->waiting);
        pthread_mutex_unlock(&s->mutex);
        if (!waits || !drop_prompt(s)) return;
        fv_pages_trim(s->ctx);
        count_rows(s);
    }
}

/* The head of the queue, if there is a place for it: taken out of the queue. */
static fv_request *admit(fv_scheduler *s)
{
    fv_request *r = NULL, **end;

    pthread_mutex_lock(&s->mutex);
    if (s->waiting && s->runs < s->options.parallel && (s->runs == 0 || fits(s, s->waiting))) {
        r = s->waiting;
        s->waiting = r->next;
        r->next = NULL;
        r->runs = true;
        for (end = &s->running; *end; end = &(*end)->next) {
        }
        *end = r;
        s->waits--;
        s->runs++;
    }
    pthread_mutex_unlock(&s->mutex);
    return r;
}

static void admit_all(fv_scheduler *s)
{
    make_room_for_first(s);
    for (fv_request *r; (r = admit(s));) {
        if (r->began > 0) { /* it was sent back, and has all but its rows */
            note_failure(r, go_on(s, r));
            continue;
        }
        note_failure(r, begin_request(s, r));
        s->counts.prompt_tokens += r->options.count;
        s->counts.cached_tokens += r->usage.cached_tokens;
    }
}

fv_status fv_scheduler_run(fv_scheduler *s)
{
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (!s->waiting && !s->running && !s->draining)
            pthread_cond_wait(&s->wake, &s->mutex);
        bool draining = s->draining, stopping = s->stopping;
        pthread_mutex_unlock(&s->mutex);
        sweep(s, draining, stopping);
        admit_all(s);
        end_those_over(s); /* what failed to begin */
        pthread_mutex_lock(&s->mutex);
        bool idle = !s->running && !s->waiting;
        pthread_mutex_unlock(&s->mutex);
        if (draining && idle) return FV_OK;
        step(s);
    }
}
