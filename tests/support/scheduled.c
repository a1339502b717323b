#include "support/scheduled.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

const tiny_model scheduled_models[2] = {
    {.architecture = "llama", .layers = 2, .heads = 6, .key_heads = 3, .context = SCHEDULED_CONTEXT},
    {.architecture = "gemma3", .layers = 7, .context = SCHEDULED_CONTEXT, .window = 30},
};

/* ---- what callbacks do ------------------------------------------------------------------------------------------- */

static void hold(struct outcome *o)
{
    pthread_mutex_lock(&mutex);
    o->held = true;
    pthread_cond_broadcast(&changed);
    while (!o->released)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    if (o->cancel_in) fv_request_cancel(o->cancel_in, o->request);
}

static bool on_token(void *user, int choice, int32_t id, const float *logits)
{
    struct outcome *o = user;

    assert_true(isfinite(logits[id]));
    assert_true(o->count[choice] < SCHEDULED_TOKENS);
    o->ids[choice][o->count[choice]++] = id;
    if (o->hold_at && o->count[choice] == o->hold_at) hold(o);
    return !o->stop_after || o->count[choice] < o->stop_after;
}

static void on_choice(void *user, int choice, fv_request_end end)
{
    struct outcome *o = user;

    o->choice_end[choice] = end;
    o->choices_over++;
}

void scheduled_on_prompt(void *user, int64_t at, const float *logits)
{
    struct outcome *o = user;

    assert_int_equal(at, o->prompt_rows++);
    assert_true(isfinite(logits[0]));
}

static void on_done(void *user, fv_request_end end, const char *error, const fv_request_usage *usage,
                    const float *embedding)
{
    struct outcome *o = user;

    pthread_mutex_lock(&mutex);
    o->end = end;
    o->usage = *usage;
    snprintf(o->error, sizeof o->error, "%s", error ? error : "");
    for (int64_t c = 0; embedding && c < o->width; c++)
        o->embedding[c] = embedding[c];
    o->done++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

fv_request_options scheduled_request(const int32_t *ids, int64_t count, struct outcome *o)
{
    return (fv_request_options){.ids = ids,
                                .count = count,
                                .limit = 12,
                                .choices = 1,
                                .ignore_end = true,
                                .user = o,
                                .token = on_token,
                                .choice = on_choice,
                                .done = on_done};
}

fv_status scheduled_submit(const struct scheduled *f, const fv_request_options *options, struct outcome *o)
{
    memset(o->count, 0, sizeof o->count);
    o->done = o->choices_over = 0;
    o->held = o->released = false;
    return fv_scheduler_submit(f->scheduler, options, &o->request);
}

void scheduled_wait(const struct outcome *o)
{
    pthread_mutex_lock(&mutex);
    while (!o->done)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(o->done, 1);
}

void scheduled_wait_held(const struct outcome *o)
{
    pthread_mutex_lock(&mutex);
    while (!o->held)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

void scheduled_release(struct outcome *o)
{
    pthread_mutex_lock(&mutex);
    o->released = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

void scheduled_ids(fv_random *random, int32_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)fv_random_below(random, SCHEDULED_VOCABULARY);
}

void scheduled_same(const char *what, const struct outcome *a, const struct outcome *b, int choices)
{
    for (int c = 0; c < choices; c++) {
        assert_int_equal(a->count[c], b->count[c]);
        for (int i = 0; i < a->count[c]; i++)
            if (a->ids[c][i] != b->ids[c][i])
                fail_msg("%s: choice %d, token %d: expected %d, got %d", what, c, i, a->ids[c][i], b->ids[c][i]);
    }
}

/* ---- the scheduler ----------------------------------------------------------------------------------------------- */

static void *run(void *user)
{
    struct scheduled *f = user;
    static fv_status status;

    status = fv_scheduler_run(f->scheduler);
    return &status;
}

void scheduled_start(struct scheduled *f, const fv_scheduler_options *options)
{
    fv_scheduler_options own = *options;

    own.context = SCHEDULED_CONTEXT;
    assert_ok(fv_scheduler_new(f->ctx, f->model, &own, &f->scheduler));
    assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
}

void scheduled_stop(struct scheduled *f, bool drain)
{
    void *status;

    fv_scheduler_stop(f->scheduler, drain);
    pthread_join(f->thread, &status);
    assert_int_equal(*(fv_status *)status, FV_OK);
    fv_scheduler_free(f->scheduler);
    f->scheduler = NULL;
}

void scheduled_begin(struct scheduled *f, const tiny_model *tiny, int threads)
{
    const char *path;

    f->tiny = *tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    f->ctx = test_ctx("cpu", threads);
}

void scheduled_end(struct scheduled *f)
{
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}
