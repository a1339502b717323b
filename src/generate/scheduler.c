/* Requests and their queue. */
#include "generate/scheduler_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"

double fv_scheduler_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static void free_choice(struct choice *choice)
{
    fv_session_free(choice->session);
    fv_sampler_free(choice->sampler);
    fv_free(choice->ids);
    fv_free(choice->logits);
    fv_free(choice->work);
    fv_free(choice->times);
    *choice = (struct choice){0};
}

static void free_request(fv_request *request)
{
    if (!request) return;
    for (int i = 0; request->choice && i < request->options.choices; i++)
        free_choice(&request->choice[i]);
    fv_free(request->choice);
    fv_free((void *)(uintptr_t)request->options.ids);
    fv_free((void *)(uintptr_t)request->options.bias_id);
    fv_free((void *)(uintptr_t)request->options.bias);
    fv_free(request->attention);
    fv_free(request->cache);
    fv_free(request->setup);
    fv_free(request->sum);
    fv_free(request);
}

static fv_status copy(void **to, const void *from, int64_t count, size_t size)
{
    FV_TRY(fv_alloc(to, count, size));
    if (count) memcpy(*to, from, (size_t)count * size);
    return FV_OK;
}

static fv_status copy_text(char **to, const char *text)
{
    return text ? copy((void **)to, text, (int64_t)strlen(text) + 1, 1) : FV_OK;
}

static fv_status check_request(const fv_scheduler *s, const fv_request_options *o)
{
    if (o->count < 1) return fv_fail(FV_E_ARGUMENT, "a prompt of one token or more is expected");
    if (o->count > s->options.context || (o->count == s->options.context && o->limit > 0))
        return fv_fail(FV_E_SHAPE, "the prompt is %lld tokens, but the context holds %lld, answer included",
                       (long long)o->count, (long long)s->options.context);
    if (o->choices < 1 || o->choices > FV_MOST_CHOICES)
        return fv_fail(FV_E_USAGE, "choices: expected 1 to %d, got %d", FV_MOST_CHOICES, o->choices);
    for (int64_t i = 0; i < o->count; i++)
        if (o->ids[i] < 0 || o->ids[i] >= s->model->sizes.vocabulary)
            return fv_fail(FV_E_ARGUMENT, "token %lld: expected an id of 0 to %lld, got %d", (long long)i,
                           (long long)s->model->sizes.vocabulary - 1, o->ids[i]);
    for (int i = 0; i < o->biases; i++)
        if (o->bias_id[i] < 0 || o->bias_id[i] >= s->model->sizes.vocabulary)
            return fv_fail(FV_E_ARGUMENT, "bias: expected an id of 0 to %lld, got %d",
                           (long long)s->model->sizes.vocabulary - 1, o->bias_id[i]);
    return FV_OK;
}

fv_status fv_scheduler_session(const fv_scheduler *s, const fv_request *request, fv_session **session)
{
    fv_session_options options = {.context = s->options.context,
                                  .attention = request->attention,
                                  .cache = request->cache,
                                  .precision = s->options.precision,
                                  .chunk = FV_STEP_TOKENS,
                                  .dense_last = s->options.dense_last,
                                  .keep_windows = true,
                                  .lends = true};

    return fv_session_new(s->ctx, s->model, &options, session);
}

/* Copies what the options point to, and tries the SPECs and the sampling. */
static fv_status make_request(const fv_scheduler *s, const fv_request_options *options, fv_request *r)
{
    fv_sampler *sampler;
    int64_t length;

    r->options = *options;
    r->options.ids = NULL;
    r->options.bias_id = NULL;
    r->options.bias = NULL;
    FV_TRY(copy((void **)&r->options.ids, options->ids, options->count, sizeof *options->ids));
    FV_TRY(copy((void **)&r->options.bias_id, options->bias_id, options->biases, sizeof *options->bias_id));
    FV_TRY(copy((void **)&r->options.bias, options->bias, options->biases, sizeof *options->bias));
    FV_TRY(copy_text(&r->attention, options->attention ? options->attention : s->options.attention));
    FV_TRY(copy_text(&r->cache, options->cache ? options->cache : s->options.cache));
    length = 2 + (r->attention ? (int64_t)strlen(r->attention) : 0) + (r->cache ? (int64_t)strlen(r->cache) : 0);
    FV_TRY(FV_ALLOC(r->setup, length));
    snprintf(r->setup, (size_t)length, "%s %s", r->attention ? r->attention : "", r->cache ? r->cache : "");
    FV_TRY(FV_ZALLOC(r->choice, options->choices));
    if (options->embed) FV_TRY(FV_ZALLOC(r->sum, s->model->sizes.width));
    FV_TRY(fv_sampler_new(&options->sampling, s->model->sizes.vocabulary, &sampler));
    fv_sampler_free(sampler);
    return FV_OK;
}

/* Whether a model's session can be made of the SPECs: parsed and checked where the caller waits. */
static fv_status check_setup(const fv_scheduler *s, const fv_request *request)
{
    fv_ctx *ctx;
    fv_session *session;
    fv_status status;
    fv_session_options options = {.context = s->options.context,
                                  .attention = request->attention,
                                  .cache = request->cache,
                                  .precision = FV_PRECISION_F32,
                                  .dense_last = s->options.dense_last};

    FV_TRY(fv_ctx_new(&(fv_ctx_options){.threads = 1}, &ctx));
    status = fv_session_new(ctx, s->model, &options, &session);
    if (status == FV_OK) fv_session_free(session);
    fv_ctx_free(ctx);
    return status;
}

fv_status fv_scheduler_submit(fv_scheduler *s, const fv_request_options *options, fv_request **request)
{
    fv_request *r, **end;
    fv_status status;

    *request = NULL;
    FV_TRY(check_request(s, options));
    FV_TRY(FV_ZALLOC(r, 1));
    status = make_request(s, options, r);
    if (status == FV_OK && (options->attention || options->cache)) status = check_setup(s, r);
    if (status != FV_OK) {
        free_request(r);
        return status;
    }
    pthread_mutex_lock(&s->mutex);
    if (s->draining || s->stopping)
        status = fv_fail(FV_E_INTERRUPTED, "no requests are taken any more");
    else if (s->waits >= s->options.queue)
        status = fv_fail(FV_E_UNSUPPORTED, "%lld requests wait already", (long long)s->waits);
    if (status == FV_OK) {
        r->came = fv_scheduler_now();
        r->order = ++s->orders;
        for (end = &s->waiting; *end; end = &(*end)->next) {
        }
        *end = r;
        s->waits++;
        *request = r;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->mutex);
    if (status != FV_OK) free_request(r);
    return status;
}

void fv_request_cancel(fv_scheduler *s, fv_request *request)
{
    pthread_mutex_lock(&s->mutex);
    request->cancelled = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- making and ending ------------------------------------------------------------------------------------------ */

fv_status fv_scheduler_new(fv_ctx *ctx, const fv_model *model, const fv_scheduler_options *options,
                           fv_scheduler **scheduler)
{
    fv_request none = {0};
    fv_scheduler *s;
    fv_status status;

    *scheduler = NULL;
    FV_TRY(FV_ZALLOC(s, 1));
    s->ctx = ctx;
    s->model = model;
    s->options = *options;
    if (s->options.parallel == 0) s->options.parallel = 4;
    if (s->options.context == 0) s->options.context = model->sizes.context;
    if (s->options.queue == 0) s->options.queue = 64;
    s->most_bytes = options->kv_memory ? options->kv_memory : SIZE_MAX;
    none.attention = (char *)(uintptr_t)options->attention;
    none.cache = (char *)(uintptr_t)options->cache;
    status = check_setup(s, &none);
    if (status == FV_OK && options->precision != FV_PRECISION_F32) fv_model_pack(ctx, model);
    if (status != FV_OK) {
        fv_free(s);
        return status;
    }
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->wake, NULL);
    *scheduler = s;
    return FV_OK;
}

void fv_scheduler_free(fv_scheduler *s)
{
    if (!s) return;
    for (fv_request **list = &s->running; list; list = list == &s->running ? &s->waiting : NULL)
        while (*list) {
            fv_request *next = (*list)->next;
            free_request(*list);
            *list = next;
        }
    fv_prefixes_clear(&s->prefixes);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->wake);
    fv_free(s);
}

void fv_scheduler_stop(fv_scheduler *s, bool drain)
{
    pthread_mutex_lock(&s->mutex);
    s->draining = true;
    s->stopping = s->stopping || !drain;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->mutex);
}

void fv_scheduler_measure(fv_scheduler *s, fv_scheduler_stats *stats)
{
    pthread_mutex_lock(&s->mutex);
    *stats = s->stats;
    stats->running = s->runs;
    stats->waiting = s->waits;
    pthread_mutex_unlock(&s->mutex);
}

/* Takes a request out of its list. */
static void unlink_request(fv_scheduler *s, fv_request *request)
{
    fv_request **at = request->runs ? &s->running : &s->waiting;

    while (*at != request)
        at = &(*at)->next;
    *at = request->next;
    if (request->runs)
        s->runs--;
    else
        s->waits--;
}

bool fv_request_lends(const fv_request *request)
{
    const fv_session *session = request->choice[0].session;

    if (request->options.no_reuse || request->options.embed || !session || session->recurrent || session->broken ||
        fv_cache_plan_traits(&session->cache) & ~(FV_POLICY_POSITION | FV_POLICY_CHUNKS))
        return false;
    for (int64_t l = 0; l < session->model->sizes.layers; l++) {
        const fv_policy_layer *policy = session->layers[l].policy;
        if (!session->layers[l].dense || (policy && fv_policy_acts(policy->use->policy))) return false;
    }
    return true;
}

/* The prompt stays for those that begin like it. */
static void keep_prompt(fv_scheduler *s, fv_request *request)
{
    fv_session *session = request->choice[0].session;
    int64_t count = request->choice[0].read;
    fv_prefix prefix = {.session = session, .count = count};

    if (count == 0 || !fv_request_lends(request)) return;
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        if (fv_rows_truncate(&session->layers[l].rows, count, 0, NULL, NULL) != FV_OK) return;
    if (copy((void **)&prefix.ids, request->options.ids, count, sizeof *prefix.ids) != FV_OK) return;
    session->length = count;
    fv_session_recount(session);
    prefix.setup = request->setup;
    request->setup = NULL;
    request->choice[0].session = NULL;
    fv_prefixes_add(&s->prefixes, &prefix);
}

void fv_request_end_with(fv_scheduler *s, fv_request *request, fv_request_end end, const char *error)
{
    const fv_request_options *o = &request->options;
    float *embedding = NULL;
    double length = 0, time = fv_scheduler_now();

    pthread_mutex_lock(&s->mutex);
    unlink_request(s, request);
    s->stats = s->counts; /* whoever hears of the end can read of it */
    pthread_mutex_unlock(&s->mutex);
    for (int i = 0; i < o->choices; i++)
        if (request->choice[i].session && request->choice[i].session->row_bytes > request->usage.row_bytes)
            request->usage.row_bytes = request->choice[i].session->row_bytes;
    if (request->sum && end == FV_REQUEST_STOP && FV_ALLOC(embedding, s->model->sizes.width) == FV_OK) {
        for (int64_t c = 0; c < s->model->sizes.width; c++)
            length += request->sum[c] * request->sum[c];
        for (int64_t c = 0; c < s->model->sizes.width; c++)
            embedding[c] = length > 0 ? (float)(request->sum[c] / sqrt(length)) : 0;
    }
    request->usage.prompt_tokens = o->count;
    request->usage.queue_seconds = (request->began > 0 ? request->began : time) - request->came;
    request->usage.prefill_seconds = request->wrote > 0 ? request->wrote - request->began : 0;
    request->usage.decode_seconds = request->wrote > 0 ? time - request->wrote : 0;
    if (o->done) o->done(o->user, end, error, &request->usage, embedding);
    fv_free(embedding);
    if (end != FV_REQUEST_FAILED) keep_prompt(s, request);
    free_request(request);
}
