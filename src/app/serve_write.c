/* OpenAI's objects. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/serve_answer.h"
#include "base/memory.h"

/* ---- scores ----------------------------------------------------------------------------------------------------- */

static void keep_top(serve_token *token, int top, int32_t id, float logit)
{
    int at = token->tops < top ? token->tops++ : top - 1;

    while (at > 0 && token->top_logprob[at - 1] < logit) {
        token->top_logprob[at] = token->top_logprob[at - 1];
        token->top_id[at] = token->top_id[at - 1];
        at--;
    }
    token->top_logprob[at] = logit;
    token->top_id[at] = id;
}

void serve_token_score(serve_token *token, const float *logits, int64_t vocabulary, int32_t id, int top)
{
    float best = -INFINITY;
    double sum = 0;

    for (int64_t i = 0; i < vocabulary; i++)
        best = fmaxf(best, logits[i]);
    for (int64_t i = 0; i < vocabulary; i++)
        if (!isnan(logits[i])) sum += exp((double)logits[i] - best);
    double normal = best + log(sum);
    token->id = id;
    token->scored = true;
    token->logprob = (float)(logits[id] - normal);
    token->tops = 0;
    for (int64_t i = 0; top > 0 && i < vocabulary; i++)
        if (token->tops < top || logits[i] > token->top_logprob[top - 1]) keep_top(token, top, (int32_t)i, logits[i]);
    for (int t = 0; t < token->tops; t++)
        token->top_logprob[t] = (float)(token->top_logprob[t] - normal);
}

/* A number JSON has: -inf is far below every other. */
static json_t *logprob(float value)
{
    return json_real(isfinite(value) ? value : -9999);
}

static void piece(const serve_answer *answer, int32_t id, const char **bytes, size_t *length)
{
    if (fv_model_piece(answer->call->server->model, id, bytes, length) == FV_OK) return;
    *bytes = "";
    *length = 0;
}

static json_t *bytes_json(const char *bytes, size_t length)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < length; i++)
        json_array_append_new(array, json_integer((unsigned char)bytes[i]));
    return array;
}

static json_t *chat_token(const serve_answer *answer, int32_t id, float value)
{
    const char *bytes;
    size_t length;

    piece(answer, id, &bytes, &length);
    return json_pack("{s:o,s:o,s:o}", "token", app_text(bytes, length), "logprob", logprob(value), "bytes",
                     bytes_json(bytes, length));
}

static json_t *chat_scores(const serve_answer *answer, const serve_token *tokens, int64_t count)
{
    json_t *content = json_array();

    for (int64_t i = 0; i < count; i++) {
        json_t *token = chat_token(answer, tokens[i].id, tokens[i].logprob), *tops = json_array();
        for (int t = 0; t < tokens[i].tops; t++)
            json_array_append_new(tops, chat_token(answer, tokens[i].top_id[t], tokens[i].top_logprob[t]));
        json_object_set_new(token, "top_logprobs", tops);
        json_array_append_new(content, token);
    }
    return json_pack("{s:o,s:n}", "content", content, "refusal");
}

/* A token's text as a key: bytes that are no text on their own are spelled out. */
static json_t *token_text(const serve_answer *answer, int32_t id)
{
    const char *bytes;
    size_t length;
    fv_text text = {0};
    json_t *json;

    piece(answer, id, &bytes, &length);
    if (fv_utf8_valid(bytes, length) == length && !memchr(bytes, 0, length)) return json_stringn(bytes, length);
    fv_text_printf(&text, "bytes:");
    for (size_t i = 0; i < length; i++)
        fv_text_printf(&text, "\\x%02x", (unsigned char)bytes[i]);
    json = json_string(fv_text_get(&text));
    fv_text_free(&text);
    return json;
}

static json_t *text_tops(const serve_answer *answer, const serve_token *token)
{
    json_t *tops = json_object(), *name;

    for (int t = 0; t <= token->tops; t++) { /* and the token itself, which need not be among them */
        bool own = t == token->tops;
        name = token_text(answer, own ? token->id : token->top_id[t]);
        if (name && !(own && json_object_get(tops, json_string_value(name))))
            json_object_set_new(tops, json_string_value(name), logprob(own ? token->logprob : token->top_logprob[t]));
        json_decref(name);
    }
    return tops;
}

static int64_t characters(const char *text, int64_t length)
{
    int64_t count = 0;

    for (int64_t i = 0; i < length; i++)
        count += (text[i] & 0xc0) != 0x80;
    return count;
}

struct scores {
    json_t *tokens, *logprobs, *tops, *offsets;
};

static void add_scores(const serve_answer *answer, struct scores *scores, const serve_token *tokens, int64_t count,
                       const char *text, int64_t before)
{
    for (int64_t i = 0; i < count; i++) {
        const serve_token *token = &tokens[i];
        bool tops = token->scored && answer->call->request.top > 0;
        json_array_append_new(scores->tokens, token_text(answer, token->id));
        json_array_append_new(scores->logprobs, token->scored ? logprob(token->logprob) : json_null());
        json_array_append_new(scores->tops, tops ? text_tops(answer, token) : json_null());
        json_array_append_new(scores->offsets, json_integer(before + characters(text, token->start)));
    }
}

/* Of a completion: the prompt's tokens first, where they are repeated and `first`. */
static json_t *text_scores(const serve_answer *answer, const serve_job *job, const serve_choice *choice, int64_t from,
                           int64_t to, bool first)
{
    struct scores scores = {json_array(), json_array(), json_array(), json_array()};
    bool tops = answer->call->request.top > 0;
    int64_t before = job->echo ? characters(job->echo, (int64_t)job->echo_length) : 0;

    if (first && job->scored) add_scores(answer, &scores, job->scored, job->count, job->echo, 0);
    add_scores(answer, &scores, choice->scored + from, to - from, fv_text_get(&choice->text.text), before);
    if (!tops) json_decref(scores.tops);
    return json_pack("{s:o,s:o,s:o,s:o}", "tokens", scores.tokens, "token_logprobs", scores.logprobs, "top_logprobs",
                     tops ? scores.tops : json_null(), "text_offset", scores.offsets);
}

/* How many of a choice's tokens stand in text that is decided. */
static int64_t decided(const serve_choice *choice)
{
    int64_t count = choice->count, end = choice->finish ? choice->text.text.length : choice->text.shown;

    if (choice->finish && !choice->over) return count;
    while (count > choice->told && choice->scored[count - 1].start >= end)
        count--;
    return count;
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

static json_t *usage_json(const serve_answer *answer)
{
    int64_t prompt = 0, cached = 0, written = 0;
    bool embedding = answer->call->request.kind == SERVE_EMBEDDING;

    for (int64_t j = 0; j < answer->jobs; j++) {
        prompt += answer->job[j].count;
        cached += answer->job[j].usage.cached_tokens;
        for (int c = 0; c < answer->call->request.choices && answer->job[j].choice; c++)
            written += answer->job[j].choice[c].tokens;
    }
    if (embedding)
        return json_pack("{s:I,s:I}", "prompt_tokens", (json_int_t)prompt, "total_tokens", (json_int_t)prompt);
    return json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", (json_int_t)prompt, "completion_tokens",
                     (json_int_t)written, "total_tokens", (json_int_t)(prompt + written), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)cached);
}

static json_t *figures_json(const serve_answer *answer)
{
    const serve_request *request = &answer->call->request;
    const serve_options *options = &answer->call->server->options;
    const char *attention = request->attention ? request->attention : options->attention;
    const char *cache = request->cache ? request->cache : options->cache;
    double queue = 0, prefill = 0, decode = 0;
    int64_t fed = 0;
    size_t bytes = 0;

    for (int64_t j = 0; j < answer->jobs; j++) {
        const fv_request_usage *usage = &answer->job[j].usage;
        queue = fmax(queue, usage->queue_seconds);
        prefill += usage->prefill_seconds;
        decode += usage->decode_seconds;
        if (usage->row_bytes > bytes) bytes = usage->row_bytes;
        for (int c = 0; c < request->choices && answer->job[j].choice; c++)
            fed += answer->job[j].choice[c].tokens;
    }
    return json_pack("{s:s,s:s,s:I,s:f,s:f,s:f}", "attention", attention ? attention : "dense", "cache",
                     cache ? cache : "full", "kv_bytes", (json_int_t)bytes, "queue_seconds", queue, "prefill_seconds",
                     prefill, "decode_tokens_per_second", decode > 0 ? (double)fed / decode : 0.0);
}

/* ---- whole answers ---------------------------------------------------------------------------------------------- */

static bool is_chat(const serve_answer *answer)
{
    return answer->call->request.kind == SERVE_CHAT;
}

static json_t *answer_object(const serve_answer *answer, const char *object)
{
    const serve_call *call = answer->call;
    char id[64];

    snprintf(id, sizeof id, "%s-%s", is_chat(answer) ? "chatcmpl" : "cmpl", call->id);
    return json_pack("{s:s,s:s,s:I,s:s,s:s}", "id", id, "object", object, "created", (json_int_t)call->created, "model",
                     call->server->id, "system_fingerprint", "fovea-" FOVEA_VERSION);
}

static json_t *choice_text(const serve_job *job, const serve_choice *choice)
{
    fv_text text = {0};
    json_t *json;

    if (job->echo) fv_text_add(&text, job->echo, (int64_t)job->echo_length);
    fv_text_add(&text, fv_text_get(&choice->text.text), choice->text.text.length);
    json = fv_text_status(&text) == FV_OK ? app_text(fv_text_get(&text), (size_t)text.length) : NULL;
    fv_text_free(&text);
    return json;
}

static json_t *whole_choice(const serve_answer *answer, const serve_job *job, const serve_choice *choice)
{
    bool scores = answer->call->request.logprobs;

    if (!is_chat(answer))
        return json_pack("{s:i,s:o,s:o,s:s}", "index", choice->index, "text", choice_text(job, choice), "logprobs",
                         scores ? text_scores(answer, job, choice, 0, decided(choice), true) : json_null(),
                         "finish_reason", choice->finish);
    return json_pack("{s:i,s:{s:s,s:o,s:n},s:o,s:s}", "index", choice->index, "message", "role", "assistant", "content",
                     choice_text(job, choice), "refusal", "logprobs",
                     scores ? chat_scores(answer, choice->scored, decided(choice)) : json_null(), "finish_reason",
                     choice->finish);
}

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Numbers as their four bytes, the lowest first. */
static json_t *base64_json(const float *values, int64_t count)
{
    fv_text text = {0};
    json_t *json;

    for (int64_t at = 0; at < 4 * count; at += 3) {
        uint32_t three = 0;
        char digits[4];
        for (int64_t i = at; i < at + 3; i++) {
            uint32_t bits = 0;
            if (i < 4 * count) memcpy(&bits, &values[i / 4], sizeof bits);
            three = three << 8 | (bits >> 8 * (i % 4) & 0xff);
        }
        for (int d = 0; d < 4; d++)
            digits[d] = at + d > 4 * count ? '=' : base64_digits[three >> (18 - 6 * d) & 63];
        fv_text_add(&text, digits, 4);
    }
    json = fv_text_status(&text) == FV_OK ? json_string(fv_text_get(&text)) : NULL;
    fv_text_free(&text);
    return json;
}

static json_t *embedding_json(const serve_answer *answer, const float *values)
{
    int64_t width = answer->call->server->info.width;
    json_t *array;

    if (!values) return NULL;
    if (answer->call->request.base64) return base64_json(values, width);
    array = json_array();
    for (int64_t i = 0; array && i < width; i++)
        json_array_append_new(array, json_real(values[i]));
    return array;
}

static json_t *write_embeddings(const serve_answer *answer)
{
    json_t *data = json_array();

    for (int64_t j = 0; j < answer->jobs; j++) {
        json_t *item = json_pack("{s:s,s:I,s:o}", "object", "embedding", "index", (json_int_t)j, "embedding",
                                 embedding_json(answer, answer->job[j].embedding));
        if (!item || json_array_append_new(data, item) != 0) {
            json_decref(data);
            return NULL;
        }
    }
    return json_pack("{s:s,s:o,s:s,s:o}", "object", "list", "data", data, "model", answer->call->server->id, "usage",
                     usage_json(answer));
}

json_t *serve_write_answer(const serve_answer *answer)
{
    json_t *root, *choices;

    if (answer->call->request.kind == SERVE_EMBEDDING) return write_embeddings(answer);
    root = answer_object(answer, is_chat(answer) ? "chat.completion" : "text_completion");
    choices = json_array();
    for (int64_t j = 0; j < answer->jobs; j++)
        for (int c = 0; c < answer->call->request.choices; c++) {
            json_t *choice = whole_choice(answer, &answer->job[j], &answer->job[j].choice[c]);
            if (!choice || json_array_append_new(choices, choice) != 0) {
                json_decref(choices);
                json_decref(root);
                return NULL;
            }
        }
    if (json_object_set_new(root, "choices", choices) == 0 &&
        json_object_set_new(root, "usage", usage_json(answer)) == 0 &&
        json_object_set_new(root, "fovea", figures_json(answer)) == 0)
        return root;
    json_decref(root);
    return NULL;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

static void add_event(serve_answer *answer, json_t *root)
{
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;

    if (text)
        fv_text_printf(&answer->out, "data: %s\n\n", text);
    else
        answer->out.status = FV_E_MEMORY;
    answer->spoke = app_seconds();
    free(text);
    json_decref(root);
}

/* `choice` NULL: none. */
static json_t *chunk(const serve_answer *answer, json_t *choice)
{
    json_t *root = answer_object(answer, is_chat(answer) ? "chat.completion.chunk" : "text_completion"),
           *choices = json_array();

    if (choice) json_array_append_new(choices, choice);
    json_object_set_new(root, "choices", choices);
    if (answer->call->request.include_usage) json_object_set_new(root, "usage", json_null());
    return root;
}

static json_t *chunk_choice(const serve_answer *answer, int index, const char *key, json_t *text, json_t *scores,
                            const char *finish)
{
    if (!is_chat(answer))
        return json_pack("{s:i,s:o,s:o,s:s?}", "index", index, "text", text, "logprobs", scores, "finish_reason",
                         finish);
    if (!text)
        return json_pack("{s:i,s:{},s:o,s:s?}", "index", index, "delta", "logprobs", scores, "finish_reason", finish);
    return json_pack("{s:i,s:{s:o},s:o,s:s?}", "index", index, "delta", key, text, "logprobs", scores, "finish_reason",
                     finish);
}

/* What comes before a choice's own text. */
static void open_choice(serve_answer *answer, const serve_job *job, serve_choice *choice)
{
    json_t *scores = json_null();

    if (choice->opened) return;
    choice->opened = true;
    if (is_chat(answer)) {
        json_t *delta = json_pack("{s:i,s:{s:s,s:s},s:n,s:n}", "index", choice->index, "delta", "role", "assistant",
                                  "content", "", "logprobs", "finish_reason");
        add_event(answer, chunk(answer, delta));
    } else if (job->echo) {
        if (answer->call->request.logprobs) scores = text_scores(answer, job, choice, 0, 0, true);
        add_event(answer, chunk(answer, chunk_choice(answer, choice->index, NULL, app_text(job->echo, job->echo_length),
                                                     scores, NULL)));
    }
}

void serve_write_piece(serve_answer *answer, const serve_job *job, serve_choice *choice, const char *text,
                       int64_t length)
{
    int64_t end = decided(choice), from = choice->told;
    json_t *scores = json_null();

    open_choice(answer, job, choice);
    if (length == 0 && (!answer->call->request.logprobs || !choice->finish || end == from)) return;
    if (answer->call->request.logprobs) {
        scores = is_chat(answer) ? chat_scores(answer, choice->scored + from, end - from)
                                 : text_scores(answer, job, choice, from, end, false);
        choice->told = end;
    }
    add_event(answer, chunk(answer, chunk_choice(answer, choice->index, "content", app_text(text, (size_t)length),
                                                 scores, NULL)));
}

void serve_write_end(serve_answer *answer, const serve_job *job, serve_choice *choice, bool last)
{
    json_t *root;

    open_choice(answer, job, choice);
    root = chunk(answer, chunk_choice(answer, choice->index, NULL, is_chat(answer) ? NULL : json_string(""),
                                      json_null(), choice->finish));
    if (last) json_object_set_new(root, "fovea", figures_json(answer));
    add_event(answer, root);
}

void serve_write_usage(serve_answer *answer)
{
    json_t *root;

    if (answer->call->request.include_usage) {
        root = chunk(answer, NULL);
        json_object_set_new(root, "usage", usage_json(answer));
        json_object_set_new(root, "fovea", figures_json(answer));
        add_event(answer, root);
    }
    fv_text_printf(&answer->out, "data: [DONE]\n\n");
}

void serve_write_error(serve_answer *answer)
{
    add_event(answer, serve_error_json(&answer->error));
}
