/* From a request to the scheduler, and from its callbacks to an answer.  Callbacks come from the scheduler's thread; a
 * connection that waits is suspended, and resumed when there is something to send. */
#include "app/serve_answer.h"

#include <string.h>
#include <sys/random.h>

#include "base/memory.h"

enum { WINDOW = 4 }; /* prompts of one call that the scheduler has at a time */

/* ---- prompts ---------------------------------------------------------------------------------------------------- */

static bool no_memory(serve_error *error)
{
    serve_fail(error, NULL, NULL, "out of memory");
    error->status = 503;
    error->type = "server_error";
    return false;
}

static const char *prompt_field(const serve_request *request)
{
    return request->kind == SERVE_CHAT ? "messages" : request->kind == SERVE_EMBEDDING ? "input" : "prompt";
}

static bool check_length(const serve_call *call, int64_t count, serve_error *error)
{
    const char *field = prompt_field(&call->request);

    if (count < 1)
        return serve_fail(error, field, "invalid_value", "'%s': expected one token at least, got none", field);
    if (count < call->server->context) return true;
    return serve_fail(error, field, "context_length_exceeded",
                      "the prompt is %lld tokens, and the context of %lld tokens has to hold it and an answer",
                      (long long)count, (long long)call->server->context);
}

static bool tokenize(serve_call *call, const char *text, size_t length, serve_job *job, serve_error *error)
{
    fv_status status = fv_model_tokenize_spans(
        call->server->model, text, length, FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL, &job->ids, &job->ends, &job->count);

    if (status == FV_E_MEMORY) return no_memory(error);
    if (status != FV_OK) return serve_fail(error, prompt_field(&call->request), "invalid_value", "%s", fv_error());
    if (job->count > 0 || call->request.kind == SERVE_CHAT) return true;
    /* an empty text is a beginning, where the model has one */
    fv_release(job->ids);
    fv_release(job->ends);
    job->ends = NULL;
    if (FV_ALLOC(job->ids, 1) != FV_OK) return no_memory(error);
    job->ids[0] = fv_model_begin_token(call->server->model);
    job->count = job->ids[0] >= 0;
    return true;
}

static bool render_chat(serve_call *call, serve_job *job, serve_error *error)
{
    serve_request *request = &call->request;
    char *text = NULL;
    size_t length;
    bool good;
    fv_status status = fv_model_chat_messages(call->server->model, request->message, request->messages, &text, &length);

    if (status == FV_E_UNSUPPORTED) {
        const char *why =
            call->server->info.has_chat_template ? "a chat template that is not known here" : "no chat template";
        return serve_fail(error, "messages", "no_chat_template",
                          "the model's file has %s: /v1/completions takes prompts as they are", why);
    }
    if (status != FV_OK) return no_memory(error);
    good = tokenize(call, text, length, job, error);
    fv_release(text);
    return good;
}

/* The prompt's text as it is to be repeated, and where its tokens stand in it. */
static bool make_echo(serve_call *call, const serve_prompt *prompt, serve_job *job, serve_error *error)
{
    int64_t at = 0;

    if (prompt->text) {
        if (FV_ALLOC(job->echo, (int64_t)prompt->length + 1) != FV_OK) return no_memory(error);
        memcpy(job->echo, prompt->text, prompt->length + 1);
        job->echo_length = prompt->length;
    } else if (fv_model_detokenize(call->server->model, job->ids, job->count, &job->echo, &job->echo_length) != FV_OK) {
        return no_memory(error);
    }
    if (!call->request.logprobs) return true;
    if (FV_ZALLOC(job->scored, job->count) != FV_OK) return no_memory(error);
    for (int64_t i = 0; i < job->count; i++) {
        const char *bytes;
        size_t length = 0;
        job->scored[i].id = job->ids[i];
        job->scored[i].start = fv_min(at, (int64_t)job->echo_length);
        (void)fv_model_piece(call->server->model, job->ids[i], &bytes, &length);
        at = job->ends ? job->ends[i] : at + (int64_t)length;
    }
    return true;
}

static bool make_job(serve_call *call, int64_t index, serve_job *job, serve_error *error)
{
    serve_request *request = &call->request;
    serve_prompt *prompt = request->kind == SERVE_CHAT ? NULL : &request->prompt[index];

    job->call = call;
    if (!prompt) {
        if (!render_chat(call, job, error)) return false;
    } else if (prompt->text) {
        if (!tokenize(call, prompt->text, prompt->length, job, error)) return false;
    } else {
        job->ids = prompt->ids;
        job->count = prompt->count;
        prompt->ids = NULL;
    }
    if (!check_length(call, job->count, error)) return false;
    if (request->echo && !make_echo(call, prompt, job, error)) return false;
    if (request->kind == SERVE_EMBEDDING) return true;
    if (FV_ZALLOC(job->choice, request->choices) != FV_OK) return no_memory(error);
    for (int c = 0; c < request->choices; c++) {
        job->choice[c].index = (int)index * request->choices + c;
        if (fv_answer_begin(&job->choice[c].text, call->server->model, request->stops, request->stop) != FV_OK)
            return no_memory(error);
    }
    return true;
}

/* ---- callbacks -------------------------------------------------------------------------------------------------- */

static void wake(serve_answer *answer)
{
    if (!answer->suspended) return;
    answer->suspended = false;
    MHD_resume_connection(answer->call->connection);
}

static void fail(serve_answer *answer, const serve_error *error)
{
    if (!answer->failed) answer->error = *error;
    answer->failed = true;
}

static void on_prompt(void *user, int64_t at, const float *logits)
{
    serve_job *job = user;
    serve_call *call = job->call;

    if (at + 1 >= job->count || !job->scored) return;
    pthread_mutex_lock(&call->answer->lock);
    serve_token_score(&job->scored[at + 1], logits, call->server->info.vocabulary, job->ids[at + 1], call->request.top);
    pthread_mutex_unlock(&call->answer->lock);
}

static bool take(serve_job *job, serve_choice *choice, int32_t id, const float *logits)
{
    const serve_request *request = &job->call->request;
    serve_answer *answer = job->call->answer;
    int64_t start = choice->text.text.length, length;

    if (request->logprobs) {
        if (FV_GROW(choice->scored, choice->capacity, choice->count + 1) != FV_OK) return false;
        serve_token_score(&choice->scored[choice->count], logits, job->call->server->info.vocabulary, id, request->top);
        choice->scored[choice->count++].start = start;
    }
    if (fv_answer_take(&choice->text, id, &choice->over) != FV_OK) return false;
    choice->tokens++;
    if (!request->stream || choice->over) return true; /* what is left is shown at the end */
    const char *text = fv_answer_show(&choice->text, false, &length);
    serve_write_piece(answer, job, choice, text, length);
    return fv_text_status(&answer->out) == FV_OK;
}

static bool on_token(void *user, int index, int32_t id, const float *logits)
{
    serve_job *job = user;
    serve_call *call = job->call;
    serve_answer *answer = call->answer;
    serve_metrics *metrics = &call->server->metrics;
    serve_choice *choice = &job->choice[index];
    serve_error error;
    double now = app_seconds();
    bool more = false;

    pthread_mutex_lock(&answer->lock);
    if (choice->tokens == 0 && choice == answer->job[0].choice)
        serve_metrics_observe(metrics, &metrics->first_token, now - call->started);
    else if (choice->tokens > 0)
        serve_metrics_observe(metrics, &metrics->token, now - choice->last);
    choice->last = now;
    if (!answer->gone && !answer->failed) {
        more = take(job, choice, id, logits);
        if (!more) {
            no_memory(&error);
            fail(answer, &error);
        }
        more = more && !choice->over;
        if (answer->out.length > answer->sent) wake(answer);
    }
    pthread_mutex_unlock(&answer->lock);
    return more;
}

static void end_choice(serve_answer *answer, serve_job *job, serve_choice *choice, fv_request_end end)
{
    const char *text;
    int64_t length;

    if (choice->finish) return;
    choice->finish = end == FV_REQUEST_STOP || choice->over ? "stop" : "length";
    text = fv_answer_show(&choice->text, true, &length);
    if (answer->call->request.stream) serve_write_piece(answer, job, choice, text, length);
}

static void on_choice(void *user, int index, fv_request_end end)
{
    serve_job *job = user;
    serve_answer *answer = job->call->answer;

    pthread_mutex_lock(&answer->lock);
    if (!answer->gone && !answer->failed && end <= FV_REQUEST_LENGTH) {
        end_choice(answer, job, &job->choice[index], end);
        if (answer->out.length > answer->sent) wake(answer);
    }
    pthread_mutex_unlock(&answer->lock);
}

static bool submit(serve_answer *answer, serve_error *error);

static void cancel_jobs(serve_answer *answer)
{
    for (int64_t j = 0; j < answer->next; j++)
        if (answer->job[j].live) fv_request_cancel(answer->call->server->scheduler, answer->job[j].request);
}

/* The last job is over, or none follows after a failure. */
static void finish(serve_answer *answer)
{
    serve_call *call = answer->call;

    answer->finished = true;
    for (int64_t j = 0; j < answer->jobs; j++) {
        call->prompt_tokens += answer->job[j].count;
        call->cached_tokens += answer->job[j].usage.cached_tokens;
        for (int c = 0; c < call->request.choices && answer->job[j].choice; c++)
            call->generated_tokens += answer->job[j].choice[c].tokens;
    }
    if (!call->request.stream) return;
    if (!answer->failed)
        serve_write_usage(answer);
    else if (answer->replied)
        serve_write_error(answer);
}

static void end_job(serve_answer *answer, serve_job *job, fv_request_end end, const char *why)
{
    serve_call *call = answer->call;
    serve_error error;

    answer->ended++;
    if (end > FV_REQUEST_LENGTH) {
        bool draining = end == FV_REQUEST_REFUSED || atomic_load(&call->server->state) == SERVE_DRAINING;
        serve_fail(&error, NULL, draining ? "draining" : NULL, "%s",
                   draining ? "the server is shutting down"
                   : why    ? why
                            : "the request was given up");
        error.status = draining ? 503 : 500;
        error.type = "server_error";
        fail(answer, &error);
    } else if (!answer->failed) {
        for (int c = 0; c < call->request.choices && job->choice; c++) {
            end_choice(answer, job, &job->choice[c], FV_REQUEST_LENGTH);
            if (call->request.stream)
                serve_write_end(answer, job, &job->choice[c],
                                answer->ended == answer->jobs && c + 1 == call->request.choices);
        }
        if (!submit(answer, &error)) fail(answer, &error);
    }
    if (answer->failed) cancel_jobs(answer);
    if (answer->ended == (answer->failed ? answer->next : answer->jobs)) finish(answer);
    if (answer->finished || answer->out.length > answer->sent) wake(answer);
}

static void on_done(void *user, fv_request_end end, const char *error, const fv_request_usage *usage,
                    const float *embedding)
{
    serve_job *job = user;
    serve_call *call = job->call;
    serve_answer *answer = call->answer;
    int64_t width = call->server->info.width;

    pthread_mutex_lock(&answer->lock);
    job->live = false;
    if (usage) job->usage = *usage;
    if (usage && usage->prefill_seconds > 0)
        serve_metrics_observe(&call->server->metrics, &call->server->metrics.queue, usage->queue_seconds);
    if (!answer->gone) {
        if (embedding && FV_ALLOC(job->embedding, width) == FV_OK)
            memcpy(job->embedding, embedding, (size_t)width * sizeof *embedding);
        end_job(answer, job, end, error);
    }
    pthread_mutex_unlock(&answer->lock);
    serve_call_release(call);
}

/* ---- handing over ----------------------------------------------------------------------------------------------- */

static int64_t limit_of(const serve_call *call, const serve_job *job)
{
    const serve_request *request = &call->request;
    int64_t room = call->server->context - job->count;
    int64_t wanted = request->limit >= 0 ? request->limit : request->kind == SERVE_CHAT ? room : 16;

    return fv_min(wanted, room);
}

static bool explain(const serve_call *call, fv_status status, serve_error *error)
{
    char why[sizeof error->message];
    const char *spec;

    snprintf(why, sizeof why, "%s", fv_error());
    spec = serve_blame_spec(&call->request);
    switch (status) {
    case FV_E_SHAPE: return serve_fail(error, prompt_field(&call->request), "context_length_exceeded", "%s", why);
    case FV_E_USAGE:
    case FV_E_IO:
    case FV_E_FORMAT: return serve_fail(error, spec, "invalid_value", "'%s': %s", spec ? spec : "request", why);
    case FV_E_ARGUMENT: return serve_fail(error, prompt_field(&call->request), "invalid_value", "%s", why);
    case FV_E_UNSUPPORTED:
        serve_fail(error, NULL, "queue_full", "%s", why);
        error->status = 429;
        error->type = "rate_limit_error";
        return false;
    default: return no_memory(error);
    }
}

static fv_status submit_job(serve_answer *answer, serve_job *job)
{
    serve_call *call = answer->call;
    const serve_request *request = &call->request;
    fv_request_options options = {
        .ids = job->ids,
        .count = job->count,
        .limit = request->kind == SERVE_EMBEDDING ? 0 : limit_of(call, job),
        .choices = request->choices,
        .sampling = request->sampling,
        .presence_penalty = (float)request->presence_penalty,
        .frequency_penalty = (float)request->frequency_penalty,
        .biases = request->biases,
        .bias_id = request->bias_id,
        .bias = request->bias,
        .ignore_end = request->ignore_end,
        .no_reuse = request->no_reuse,
        .all_logits = job->scored != NULL,
        .embed = request->kind == SERVE_EMBEDDING,
        .attention = request->attention,
        .cache = request->cache,
        .user = job,
        .prompt = on_prompt,
        .token = on_token,
        .choice = on_choice,
        .done = on_done,
    };
    fv_status status;

    serve_call_hold(call);
    job->live = true;
    status = fv_scheduler_submit(call->server->scheduler, &options, &job->request);
    if (status == FV_OK) return FV_OK;
    job->live = false;
    atomic_fetch_sub(&call->holders, 1); /* never the last: the caller holds it */
    return status;
}

/* Keeps the scheduler busy with the call's prompts, some at a time.  Locked: callbacks wait until we are done. */
static bool submit(serve_answer *answer, serve_error *error)
{
    while (answer->next < answer->jobs && answer->next - answer->ended < WINDOW) {
        fv_status status = submit_job(answer, &answer->job[answer->next]);
        if (status != FV_OK) return explain(answer->call, status, error);
        answer->next++;
    }
    return true;
}

static bool make_jobs(serve_call *call, serve_answer *answer, serve_error *error)
{
    int64_t count = call->request.kind == SERVE_CHAT ? 1 : call->request.prompts;

    if (FV_ZALLOC(answer->job, count) != FV_OK) return no_memory(error);
    for (; answer->jobs < count; answer->jobs++)
        if (!make_job(call, answer->jobs, &answer->job[answer->jobs], error)) {
            answer->jobs++; /* what there is of it is freed */
            return false;
        }
    return true;
}

bool serve_answer_begin(serve_call *call, serve_error *error)
{
    serve_request *request = &call->request;
    serve_answer *answer;
    bool good;

    if (!request->has_seed && getrandom(&request->sampling.seed, sizeof request->sampling.seed, 0) < 0)
        request->sampling.seed = call->server->random;
    if (FV_ZALLOC(answer, 1) != FV_OK) return no_memory(error);
    pthread_mutex_init(&answer->lock, NULL);
    answer->call = call;
    answer->spoke = app_seconds();
    if (!make_jobs(call, answer, error)) {
        serve_answer_free(answer);
        return false;
    }
    pthread_mutex_lock(&call->peer->lock); /* the guard may look from now on */
    call->answer = answer;
    pthread_mutex_unlock(&call->peer->lock);
    pthread_mutex_lock(&answer->lock);
    good = submit(answer, error);
    if (!good) {
        answer->gone = true;
        cancel_jobs(answer);
    }
    pthread_mutex_unlock(&answer->lock);
    return good;
}

void serve_answer_free(serve_answer *answer)
{
    if (!answer) return;
    for (int64_t j = 0; j < answer->jobs; j++) {
        serve_job *job = &answer->job[j];
        for (int c = 0; c < answer->call->request.choices && job->choice; c++) {
            fv_answer_free(&job->choice[c].text);
            fv_free(job->choice[c].scored);
        }
        fv_free(job->choice);
        fv_release(job->ids);
        fv_release(job->ends);
        fv_release(job->echo);
        fv_free(job->scored);
        fv_free(job->embedding);
    }
    fv_free(answer->job);
    fv_text_free(&answer->out);
    pthread_mutex_destroy(&answer->lock);
    fv_free(answer);
}

/* ---- the connection's side -------------------------------------------------------------------------------------- */

static ssize_t read_stream(void *user, uint64_t position, char *buffer, size_t most)
{
    serve_answer *answer = ((serve_call *)user)->answer;
    ssize_t count;

    (void)position;
    pthread_mutex_lock(&answer->lock);
    count = (ssize_t)fv_min(answer->out.length - answer->sent, (int64_t)most);
    if (count > 0) {
        memcpy(buffer, answer->out.data + answer->sent, (size_t)count);
        answer->sent += count;
        if (answer->sent == answer->out.length) answer->sent = answer->out.length = 0;
    } else if (answer->gone || fv_text_status(&answer->out) != FV_OK) {
        count = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (answer->finished) {
        count = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        answer->suspended = true;
        MHD_suspend_connection(answer->call->connection);
    }
    pthread_mutex_unlock(&answer->lock);
    return count;
}

enum MHD_Result serve_answer_reply(serve_call *call)
{
    enum { LEAVE, WAIT, REFUSE, STREAM, WHOLE } what = WAIT;
    serve_answer *answer = call->answer;
    json_t *whole = NULL;

    pthread_mutex_lock(&answer->lock);
    if (answer->gone)
        what = LEAVE;
    else if (answer->finished && answer->failed)
        what = REFUSE; /* nothing changes any more */
    else if (call->request.stream ? answer->out.length > 0 : answer->finished)
        what = call->request.stream ? STREAM : WHOLE;
    answer->replied = what == STREAM || what == WHOLE;
    if (what == WHOLE) whole = serve_write_answer(answer);
    if (what == WAIT) {
        answer->suspended = true;
        MHD_suspend_connection(call->connection);
    }
    pthread_mutex_unlock(&answer->lock);
    /* libmicrohttpd has locks of its own, and calls read_stream with one of them taken */
    switch (what) {
    case LEAVE: return MHD_NO;
    case WAIT: return MHD_YES;
    case REFUSE: return serve_reply_error(call, &answer->error);
    case STREAM: return serve_reply_stream(call, read_stream);
    default: return serve_reply_json(call, 200, whole);
    }
}

void serve_answer_cancel(serve_call *call)
{
    serve_answer *answer = call->answer;

    pthread_mutex_lock(&answer->lock);
    if (!answer->finished && !answer->gone) {
        answer->gone = true;
        call->cancelled = true;
        cancel_jobs(answer);
        wake(answer);
    }
    pthread_mutex_unlock(&answer->lock);
}

bool serve_answer_broke(const serve_call *call)
{
    serve_answer *answer = call->answer;
    bool broke;

    if (!answer) return false;
    pthread_mutex_lock(&answer->lock);
    broke = answer->failed && answer->replied;
    pthread_mutex_unlock(&answer->lock);
    return broke;
}

void serve_answer_ping(serve_call *call, double now)
{
    serve_answer *answer = call->answer;

    if (!call->request.stream) return;
    pthread_mutex_lock(&answer->lock);
    if (!answer->finished && !answer->gone && now - answer->spoke >= SERVE_PING_SECONDS) {
        fv_text_printf(&answer->out, ": ping\n\n");
        answer->spoke = now;
        wake(answer);
    }
    pthread_mutex_unlock(&answer->lock);
}
