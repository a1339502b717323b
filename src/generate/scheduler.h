/* A scheduler: many requests over one model.  First come, first served; requests join and leave between steps.  A step
 * is one forward for all streams that write, and one for up to FV_STEP_TOKENS tokens of prompts, so that a long prompt
 * never holds the others up for more than a chunk.  Rows that a request's prompt shares with an earlier one's are lent
 * to it.  A request's tokens are the same alone, in any company, at any place in the queue, with or without rows lent.
 *
 * All functions may be called from any thread; callbacks come from the thread that runs steps, with nothing locked. */
#ifndef FV_SCHEDULER_H
#define FV_SCHEDULER_H

#include "models/session.h"

enum { FV_STEP_TOKENS = 512, FV_MOST_CHOICES = 16 };

typedef struct fv_scheduler fv_scheduler;
typedef struct fv_request fv_request;

typedef struct fv_scheduler_options {
    int64_t parallel;              /* streams that run together; 0: 4 */
    int64_t context;               /* tokens of a request, prompt and answer; 0: the model's own */
    int64_t queue;                 /* requests that may wait; 0: 64 */
    const char *attention, *cache; /* of requests that bring none; as in fv_session_options */
    int64_t dense_last;            /* of all requests; as in fv_session_options */
    fv_precision precision;
    size_t kv_memory; /* bytes that may be mapped for keys and values between steps; 0: no limit.  Beyond it prompts
                         that were kept are given back, the longest unused first, and then the youngest request goes
                         back to the queue and is computed again.  One that runs alone goes on whatever it takes */
} fv_scheduler_options;

/* FV_E_USAGE for bad SPECs, FV_E_MEMORY.  Context and model stay the caller's; ctx is used by the thread that runs
 * steps alone. */
fv_status fv_scheduler_new(fv_ctx *ctx, const fv_model *model, const fv_scheduler_options *options,
                           fv_scheduler **scheduler);
void fv_scheduler_free(fv_scheduler *scheduler); /* nothing runs any more; requests left are freed without a word */

typedef enum fv_request_end {
    FV_REQUEST_STOP = 0,  /* an end token, or `token` said so */
    FV_REQUEST_LENGTH,    /* its limit, or the context is full */
    FV_REQUEST_CANCELLED, /* fv_request_cancel */
    FV_REQUEST_REFUSED,   /* the scheduler stops, and it had not begun */
    FV_REQUEST_FAILED,    /* error says why */
} fv_request_end;

typedef struct fv_request_usage {
    int64_t prompt_tokens, cached_tokens; /* cached: of rows lent by earlier prompts */
    double queue_seconds, prefill_seconds, decode_seconds;
    size_t row_bytes; /* at the end, of the largest choice */
} fv_request_usage;

typedef struct fv_request_options {
    const int32_t *ids; /* copied */
    int64_t count;      /* 1 .. context - 1 */
    int64_t limit;      /* most tokens of a choice; 0: none, the prompt only */
    int choices;        /* 1 .. FV_MOST_CHOICES: one prompt, choice i draws with seed + i */
    fv_sampler_options sampling;
    float presence_penalty, frequency_penalty; /* over the choice's own tokens so far */
    int biases;                                /* added to the logits of `bias_id` */
    const int32_t *bias_id;
    const float *bias;
    bool ignore_end;               /* end tokens are tokens like others */
    bool no_reuse;                 /* takes no rows of others, and lends none */
    bool all_logits;               /* `prompt` is called for every token of the prompt */
    bool embed;                    /* no choice is made; `done` has the embedding */
    const char *attention, *cache; /* NULL: the scheduler's */

    void *user;
    /* The raw logits of prompt token `at`, which predict the next one. */
    void (*prompt)(void *user, int64_t at, const float *logits);
    /* A token of a choice, and the raw logits (before penalties, biases and temperature) it was drawn from; false ends
     * the choice. */
    bool (*token)(void *user, int choice, int32_t id, const float *logits);
    /* A choice has ended. */
    void (*choice)(void *user, int choice, fv_request_end end);
    /* All choices have ended, or the request is given up; the last call.  error: NULL but for FV_REQUEST_FAILED.
     * embedding [width]: the mean of the prompt's hidden rows behind the last norm, of length 1; NULL otherwise. */
    void (*done)(void *user, fv_request_end end, const char *error, const fv_request_usage *usage,
                 const float *embedding);
} fv_request_options;

/* FV_E_SHAPE: the prompt does not fit the context; FV_E_USAGE: a bad SPEC or option; FV_E_ARGUMENT: ids outside the
 * vocabulary; FV_E_UNSUPPORTED: the queue is full.  *request is good until `done` has been called. */
fv_status fv_scheduler_submit(fv_scheduler *scheduler, const fv_request_options *options, fv_request **request);
/* The request leaves within one step; `done` is called (FV_REQUEST_CANCELLED). */
void fv_request_cancel(fv_scheduler *scheduler, fv_request *request);

/* Runs steps until fv_scheduler_stop; waits where there is nothing to do.  FV_E_MEMORY and the like only where no
 * request can be blamed. */
fv_status fv_scheduler_run(fv_scheduler *scheduler);
/* drain: requests that run finish, those that wait are failed; otherwise all are cancelled.  Returns at once. */
void fv_scheduler_stop(fv_scheduler *scheduler, bool drain);

typedef struct fv_scheduler_stats {
    int64_t running, waiting;
    int64_t prompt_tokens, cached_tokens, generated_tokens; /* so far */
    int64_t sent_back, given_back;                          /* requests, and kept prompts, for want of memory; so far */
    size_t row_bytes, committed_bytes;                      /* now; shared rows once */
} fv_scheduler_stats;
void fv_scheduler_measure(fv_scheduler *scheduler, fv_scheduler_stats *stats);

#endif
