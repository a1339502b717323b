/* POST /attention: which parts of a conversation the model read while it wrote its last answer.  The conversation is
 * read again, in a session of its own beside the scheduler's, and the answer's first tokens are fed one at a time. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/reads.h"
#include "app/serve.h"
#include "base/memory.h"

enum { STEPS = 32, EXCERPT = 80 };

struct serve_look {
    serve_call *call;
    pthread_mutex_t lock; /* of what follows */
    bool finished, suspended;
    json_t *result;
    serve_error error; /* where result is NULL */
};

struct conversation {
    char *text; /* up to where the answer starts */
    size_t length;
    int32_t *ids, *answer;
    int64_t *ends, count, answers;
};

static void free_conversation(struct conversation *c)
{
    fv_release(c->text);
    fv_release(c->ids);
    fv_release(c->ends);
    fv_release(c->answer);
}

static fv_status read_conversation(const serve_call *call, struct conversation *c)
{
    const serve_request *request = &call->request;
    const fv_model *model = call->server->model;
    const fv_chat_message *last = &request->message[request->messages - 1];

    if (last->role != FV_CHAT_ASSISTANT || !*last->content)
        return fv_fail(FV_E_ARGUMENT, "the last message is not an assistant's answer");
    FV_TRY(fv_model_chat_messages(model, request->message, request->messages - 1, &c->text, &c->length));
    FV_TRY(fv_model_tokenize_spans(model, c->text, c->length, FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL, &c->ids,
                                   &c->ends, &c->count));
    FV_TRY(fv_model_tokenize(model, last->content, strlen(last->content), 0, &c->answer, &c->answers));
    c->answers = fv_min(c->answers, STEPS);
    if (c->answers > 0 && c->count > 0 && c->count + c->answers <= call->server->context) return FV_OK;
    return fv_fail(FV_E_SHAPE, "the conversation is %lld tokens, and the context holds %lld", (long long)c->count,
                   (long long)call->server->context);
}

struct watching {
    app_reads reads;
    fv_ctx *ctx;
    fv_listener listener;
};

static fv_status hear(void *user, const fv_look *look)
{
    struct watching *watching = user;

    return app_reads_look(&watching->reads, watching->ctx, look);
}

static fv_status read_again(serve_call *call, const struct conversation *c, struct watching *watching)
{
    const serve_options *own = &call->server->options;
    const serve_request *request = &call->request;
    fv_session_options options = {
        .context = call->server->context,
        .attention = request->attention ? request->attention : own->attention,
        .cache = request->cache ? request->cache : own->cache,
        .precision = own->precision,
        .dense_last = own->dense_last,
    };
    fv_session *session = NULL;
    fv_status status;

    FV_TRY(fv_session_new(watching->ctx, call->server->model, &options, &session));
    FV_TRY_DONE(fv_session_prompt(session, c->ids, c->count, NULL, 0));
    watching->listener = (fv_listener){.points = FV_POINT_ATTEND, .hear = hear, .user = watching};
    fv_listen(&session->listeners, &watching->listener);
    for (int64_t i = 0; i < c->answers; i++)
        FV_TRY_DONE(fv_session_feed(session, &c->answer[i], 1, NULL, 0));
done:
    fv_session_free(session);
    return status;
}

/* Columns of the picture: bins, or tokens where those are fewer. */
static int64_t columns_of(const struct conversation *c)
{
    return fv_min(APP_READS_BINS, c->count + c->answers);
}

/* What stands at each column's start. */
static json_t *excerpts(const struct conversation *c)
{
    json_t *array = json_array();
    int64_t columns = columns_of(c);

    for (int64_t x = 0; x < columns; x++) {
        int64_t first = x * (c->count + c->answers) / columns;
        if (first >= c->count) {
            json_array_append_new(array, json_string("the answer"));
            continue;
        }
        size_t from = first > 0 ? (size_t)c->ends[first - 1] : 0, length = c->length - from;
        if (length > EXCERPT) length = EXCERPT;
        json_array_append_new(array, app_text(c->text + from, fv_utf8_valid(c->text + from, length)));
    }
    return array;
}

/* [layers * heads][columns] shares of attention; null where a column was never in sight. */
static json_t *shares(const app_reads *reads, int64_t columns)
{
    json_t *rows = json_array();

    for (int64_t r = 0; r < reads->layers * reads->heads; r++) {
        json_t *row = json_array();
        for (int64_t x = 0; x < columns; x++) {
            int64_t bin = x * APP_READS_BINS / columns;
            double weight = (double)reads->weight[r * APP_READS_BINS + bin] / (double)fv_max(reads->steps, 1);
            json_array_append_new(row, weight < 0 ? json_null() : json_real(round(weight * 1e4) / 1e4));
        }
        json_array_append_new(rows, row);
    }
    return rows;
}

static fv_status look(serve_call *call, json_t **result)
{
    serve_server *server = call->server;
    struct conversation c = {0};
    struct watching watching = {0};
    fv_ctx_options options = {.device = server->app->common->device,
                              .threads = (int)server->app->common->threads,
                              .precision = server->options.precision};
    fv_status status;

    *result = NULL;
    FV_TRY_DONE(read_conversation(call, &c));
    FV_TRY_DONE(fv_ctx_new(&options, &watching.ctx));
    FV_TRY_DONE(app_reads_new(&watching.reads, server->info.layers, server->info.query_heads, c.count + c.answers));
    FV_TRY_DONE(read_again(call, &c, &watching));
    *result = json_pack("{s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "layers", (json_int_t)server->info.layers, "heads",
                        (json_int_t)server->info.query_heads, "bins", (json_int_t)columns_of(&c), "tokens",
                        (json_int_t)c.count, "steps", (json_int_t)watching.reads.steps, "text", excerpts(&c), "weights",
                        shares(&watching.reads, columns_of(&c)));
    if (!*result) status = fv_fail(FV_E_MEMORY, "out of memory");
done:
    app_reads_free(&watching.reads);
    fv_ctx_free(watching.ctx);
    free_conversation(&c);
    return status;
}

static void explain(const serve_call *call, fv_status status, serve_error *error)
{
    bool spec = status == FV_E_USAGE || status == FV_E_IO || status == FV_E_FORMAT;
    char why[sizeof error->message];

    snprintf(why, sizeof why, "%s", fv_error());
    serve_fail(error, spec ? serve_blame_spec(&call->request) : "messages",
               status == FV_E_SHAPE         ? "context_length_exceeded"
               : status == FV_E_UNSUPPORTED ? "no_chat_template"
                                            : "invalid_value",
               "%s", why);
    if (status != FV_E_MEMORY) return;
    error->status = 503;
    error->type = "server_error";
    error->param[0] = 0;
    error->code = NULL;
}

static void *run_look(void *user)
{
    struct serve_look *job = user;
    serve_call *call = job->call;
    serve_server *server = call->server;
    json_t *result;
    serve_error error = {0};

    pthread_mutex_lock(&server->look_lock); /* one at a time: each takes a session's memory */
    fv_status status = look(call, &result);
    if (status != FV_OK) explain(call, status, &error);
    pthread_mutex_unlock(&server->look_lock);
    pthread_mutex_lock(&job->lock);
    job->result = result;
    job->error = error;
    job->finished = true;
    if (job->suspended) MHD_resume_connection(call->connection);
    job->suspended = false;
    pthread_mutex_unlock(&job->lock);
    serve_call_release(call);
    atomic_fetch_sub(&server->looks, 1);
    return NULL;
}

enum MHD_Result serve_look_reply(serve_call *call)
{
    struct serve_look *job = call->look;
    enum MHD_Result result = MHD_YES;

    pthread_mutex_lock(&job->lock);
    if (!job->finished) {
        job->suspended = true;
        MHD_suspend_connection(call->connection);
    } else if (job->result) {
        result = serve_reply_json(call, 200, job->result);
        job->result = NULL;
    } else {
        result = serve_reply_error(call, &job->error);
    }
    pthread_mutex_unlock(&job->lock);
    return result;
}

enum MHD_Result serve_look(serve_call *call)
{
    enum { MOST = 4 };
    serve_server *server = call->server;
    struct serve_look *job;
    pthread_t thread;
    serve_error error;

    if (atomic_fetch_add(&server->looks, 1) >= MOST || FV_ZALLOC(job, 1) != FV_OK) {
        atomic_fetch_sub(&server->looks, 1);
        serve_fail(&error, NULL, "queue_full", "%d requests of this kind wait already", MOST);
        error.status = 429;
        error.type = "rate_limit_error";
        return serve_reply_error(call, &error);
    }
    pthread_mutex_init(&job->lock, NULL);
    job->call = call;
    call->look = job;
    serve_call_hold(call);
    if (pthread_create(&thread, NULL, run_look, job) != 0) {
        atomic_fetch_sub(&call->holders, 1);
        atomic_fetch_sub(&server->looks, 1);
        return serve_reply_json(call, 503, NULL);
    }
    pthread_detach(thread);
    return serve_look_reply(call);
}

void serve_look_free(struct serve_look *job)
{
    if (!job) return;
    json_decref(job->result);
    pthread_mutex_destroy(&job->lock);
    fv_free(job);
}
