/* An answer in the making, and its JSON. */
#ifndef APP_SERVE_ANSWER_H
#define APP_SERVE_ANSWER_H

#include "app/serve.h"

/* A token, and what the model thought of it. */
typedef struct serve_token {
    int32_t id;
    bool scored;   /* the first token of a prompt is not */
    float logprob; /* log-softmax of the raw logits */
    int64_t start; /* where its text starts, in bytes of the choice's (or prompt's) text */
    int tops;
    int32_t top_id[SERVE_TOP];
    float top_logprob[SERVE_TOP];
} serve_token;

/* Likelihood of `id`, and of the `top` likeliest tokens, ties to the lower id. */
void serve_token_score(serve_token *token, const float *logits, int64_t vocabulary, int32_t id, int top);

typedef struct serve_choice {
    int index;
    fv_answer text;
    int64_t tokens;     /* written, without an end token */
    bool over;          /* a stop text has come */
    bool opened;        /* a chunk of it was sent */
    const char *finish; /* NULL: it goes on */
    serve_token *scored;
    int64_t count, capacity, told; /* told: of them, those that chunks have had */
    double last;                   /* when its last token came */
} serve_choice;

/* One prompt: one request of the scheduler's. */
typedef struct serve_job {
    serve_call *call;
    int32_t *ids;
    int64_t *ends; /* of each id's text; NULL without a text */
    int64_t count;
    char *echo; /* the prompt's text, where it is to be repeated */
    size_t echo_length;
    serve_token *scored; /* [count], with echo and logprobs */
    fv_request *request; /* while live */
    bool live;
    serve_choice *choice;
    fv_request_usage usage;
    float *embedding; /* [width] */
} serve_job;

struct serve_answer {
    pthread_mutex_t lock;
    serve_call *call;
    serve_job *job;
    int64_t jobs, next, ended; /* next: of them, those handed over */
    bool finished;             /* nothing more will come */
    bool gone;                 /* nobody wants it any more */
    bool suspended;            /* the connection waits for us */
    bool replied;              /* the reply has begun */
    bool failed;
    serve_error error;
    fv_text out; /* events of a stream */
    int64_t sent;
    double spoke; /* when something was last added to out */
};

/* Everything below: the answer is locked, or nobody else has it. */

/* The whole answer of a chat, completion or embedding; NULL: out of memory. */
json_t *serve_write_answer(const serve_answer *answer);
/* Adds events: a piece of a choice's text (with the scores of its tokens) behind what opens the choice; the choice's
 * end, with figures in the last of all; figures alone; an error; the end. */
void serve_write_piece(serve_answer *answer, const serve_job *job, serve_choice *choice, const char *text,
                       int64_t length);
void serve_write_end(serve_answer *answer, const serve_job *job, serve_choice *choice, bool last);
void serve_write_usage(serve_answer *answer);
void serve_write_error(serve_answer *answer);

#endif
