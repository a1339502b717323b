/* The body of a request: bytes to a checked struct, or to the error that its sender gets.  Knows nothing of HTTP. */
#ifndef APP_SERVE_REQUEST_H
#define APP_SERVE_REQUEST_H

#include <jansson.h>

#include "base/text.h"
#include "fovea/model.h"

enum { SERVE_NESTING = 64, SERVE_STOPS = 4, SERVE_TOP = 20, SERVE_CHOICES = 16, SERVE_PROMPTS = 2048 };
#define SERVE_INTEGER 9007199254740992.0 /* 2^53: integers beyond it are not all numbers of JSON */

typedef enum serve_kind {
    SERVE_CHAT,
    SERVE_COMPLETION,
    SERVE_EMBEDDING,
    SERVE_TOKENIZE,
    SERVE_DETOKENIZE,
    SERVE_ATTENTION, /* which text an answer looked at */
} serve_kind;

/* What OpenAI's error object says, and the status beside it. */
typedef struct serve_error {
    int status;
    const char *type, *code; /* code NULL: none */
    char param[64];          /* "": none */
    char message[1024];
} serve_error;

/* Text, or ids. */
typedef struct serve_prompt {
    const char *text; /* NULL: ids */
    size_t length;
    int32_t *ids;
    int64_t count;
} serve_prompt;

typedef struct serve_request {
    serve_kind kind;
    char *held;                    /* all texts, one behind the other: no more than the body was */
    const char *model;             /* NULL: whatever there is */
    const char *attention, *cache; /* NULL: the server's */

    int64_t messages; /* of a chat */
    fv_chat_message *message;

    int64_t prompts; /* of completions, embeddings, tokenize, detokenize */
    serve_prompt *prompt;

    fv_sampler_options sampling;
    bool has_seed;
    int64_t limit; /* most tokens; -1: not said */
    double presence_penalty, frequency_penalty;
    int biases;
    int32_t *bias_id;
    float *bias;
    int stops;
    const char *stop[SERVE_STOPS];
    int choices;
    int top;       /* likeliest tokens told beside each token */
    bool logprobs; /* each token's own */
    bool echo, stream, include_usage, ignore_end, no_reuse;
    bool base64;                     /* of embeddings */
    bool add_special, plain_special; /* of tokenize: begin tokens; special texts are text like other */

    /* while it is read */
    json_t *root;
    int64_t texts; /* contents put together from parts */
    char **text;
} serve_request;

/* What a model says of itself that requests are checked against. */
typedef struct serve_limits {
    int64_t vocabulary, width;
} serve_limits;

/* False: *error says what is wrong.  Release with serve_request_free either way. */
bool serve_request_parse(serve_kind kind, const char *bytes, size_t length, const serve_limits *limits,
                         serve_request *request, serve_error *error);
void serve_request_free(serve_request *request);

/* Fills *error in, as 400 invalid_request_error where the type is NULL; returns false. */
bool serve_fail(serve_error *error, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* {"error":{"message","type","param","code"}}; NULL: no memory. */
json_t *serve_error_json(const serve_error *error);

#endif
