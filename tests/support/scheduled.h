/* Requests under test: a tiny model behind a scheduler in a thread of its own, and what its callbacks say. */
#ifndef FV_TEST_SCHEDULED_H
#define FV_TEST_SCHEDULED_H

#include <pthread.h>

#include "generate/scheduler.h"
#include "support/tiny_model.h"

enum { SCHEDULED_VOCABULARY = 50, SCHEDULED_TOKENS = 40, SCHEDULED_CONTEXT = 900 };

struct scheduled {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    fv_scheduler *scheduler;
    pthread_t thread;
};

/* What callbacks have said about a request. */
struct outcome {
    int count[FV_MOST_CHOICES];
    int32_t ids[FV_MOST_CHOICES][SCHEDULED_TOKENS];
    int choices_over, done;
    fv_request_end end, choice_end[FV_MOST_CHOICES];
    fv_request_usage usage;
    char error[200];
    float embedding[64];
    int64_t width;
    int prompt_rows;
    int stop_after; /* 0: never */
    int hold_at;    /* the token at which it holds the scheduler's thread up until it is released; 0: none */
    bool held, released;
    fv_scheduler *cancel_in; /* where it cancels itself once it is released; NULL: it goes on */
    fv_request *request;
};

/* A llama, and a gemma with windows. */
extern const tiny_model scheduled_models[2];

void scheduled_begin(struct scheduled *f, const tiny_model *tiny, int threads);
void scheduled_end(struct scheduled *f);
/* The scheduler and its thread; the context is SCHEDULED_CONTEXT. */
void scheduled_start(struct scheduled *f, const fv_scheduler_options *options);
void scheduled_stop(struct scheduled *f, bool drain);

/* A request of 12 tokens, whatever they are. */
fv_request_options scheduled_request(const int32_t *ids, int64_t count, struct outcome *o);
fv_status scheduled_submit(const struct scheduled *f, const fv_request_options *options, struct outcome *o);
/* Until it is done, or held. */
void scheduled_wait(const struct outcome *o);
void scheduled_wait_held(const struct outcome *o);
void scheduled_release(struct outcome *o);
/* For fv_request_options.prompt: counts rows. */
void scheduled_on_prompt(void *user, int64_t at, const float *logits);

void scheduled_ids(fv_random *random, int32_t *ids, int64_t count);
void scheduled_same(const char *what, const struct outcome *a, const struct outcome *b, int choices);

#endif
