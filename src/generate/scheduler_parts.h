/* Between the files of the scheduler. */
#ifndef FV_SCHEDULER_PARTS_H
#define FV_SCHEDULER_PARTS_H

#include <pthread.h>

#include "generate/prefix.h"
#include "generate/scheduler.h"

enum stage { NOT_BEGUN, READING, WRITING, OVER };

/* One choice: a stream of tokens. */
struct choice {
    enum stage stage;
    fv_session *session;
    fv_sampler *sampler;
    int64_t read;    /* tokens of the prompt that have rows */
    int64_t refused; /* times that memory was refused to it in company */
    int32_t *ids;    /* the answer so far */
    int64_t count, capacity;
    int64_t fed;    /* of them, how many have rows: all but the last, or fewer where rows were given up */
    float *logits;  /* [vocabulary], of the last row */
    float *work;    /* the same, where penalties or biases change them */
    int32_t *times; /* [vocabulary] with it: how often the answer has each token */
};

struct fv_request {
    fv_request_options options;
    fv_request *next;
    bool runs;
    char *attention, *cache, *setup;
    struct choice *choice; /* [choices]: the others take what the first one has read, if they can */
    double *sum;           /* [width] of hidden rows, for an embedding */
    bool cancelled;
    double came, began, wrote, ended; /* seconds */
    int64_t order;
    fv_request_usage usage;
    int64_t told; /* tokens of the prompt whose logits the caller has */
    size_t held;  /* bytes of rows when it was sent back */
    bool failed;
    char error[512];
};

struct fv_scheduler {
    fv_ctx *ctx;
    const fv_model *model;
    fv_scheduler_options options;
    pthread_mutex_t mutex; /* of all that follows but prefixes */
    pthread_cond_t wake;
    fv_request *waiting, *running; /* in the order they came */
    int64_t waits, runs, orders;
    bool stopping, draining;
    fv_scheduler_stats stats;
    fv_scheduler_stats counts; /* the same, of the thread that runs steps */
    fv_prefixes prefixes;      /* of the thread that runs steps */
    double counted;            /* seconds: when rows last were */
    size_t most_bytes;         /* mapped for rows */
};

double fv_scheduler_now(void); /* seconds */

fv_status fv_scheduler_session(const fv_scheduler *scheduler, const fv_request *request, fv_session **session);
/* Whether rows of the prompt can be lent: they are those of dense attention, all of them, and no state is needed. */
bool fv_request_lends(const fv_request *request);
/* Says that a request is over, keeps its prompt, and frees it. */
void fv_request_end_with(fv_scheduler *scheduler, fv_request *request, fv_request_end end, const char *error);

#endif
