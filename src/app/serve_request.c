#include "app/serve_request.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/spec.h"

bool serve_fail(serve_error *error, const char *param, const char *code, const char *format, ...)
{
    va_list arguments;

    *error = (serve_error){.status = 400, .type = "invalid_request_error", .code = code};
    if (param) snprintf(error->param, sizeof error->param, "%s", param);
    error->param[fv_utf8_valid(error->param, strlen(error->param))] = 0; /* cut within no character */
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    error->message[fv_utf8_valid(error->message, strlen(error->message))] = 0;
    return false;
}

json_t *serve_error_json(const serve_error *error)
{
    return json_pack("{s:{s:s,s:s,s:s?,s:s?}}", "error", "message", error->message, "type", error->type, "param",
                     *error->param ? error->param : NULL, "code", error->code);
}

static bool no_memory(serve_error *error)
{
    serve_fail(error, NULL, NULL, "out of memory while the request was read");
    error->status = 500;
    error->type = "server_error";
    return false;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

/* Whether brackets nest no deeper than they may; the parser would go on for thousands of levels. */
static bool shallow(const char *bytes, size_t length)
{
    bool text = false;
    int depth = 0;

    for (size_t i = 0; i < length; i++) {
        char c = bytes[i];
        if (text) {
            if (c == '\\')
                i++;
            else if (c == '"')
                text = false;
        } else if (c == '"') {
            text = true;
        } else if (c == '{' || c == '[') {
            if (++depth > SERVE_NESTING) return false;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return true;
}

static bool read_json(const char *bytes, size_t length, serve_request *request, serve_error *error)
{
    size_t valid = fv_utf8_valid(bytes, length);
    json_error_t where;

    if (valid < length)
        return serve_fail(error, NULL, "invalid_json", "the body is not UTF-8 text at byte offset %zu", valid);
    if (!shallow(bytes, length))
        return serve_fail(error, NULL, "invalid_json", "the body nests deeper than %d levels", SERVE_NESTING);
    /* Every number as a double, so that large integers are out of a field's range and not errors of syntax. */
    request->root = json_loadb(bytes, length, JSON_DECODE_INT_AS_REAL, &where);
    if (!request->root)
        return json_error_code(&where) == json_error_out_of_memory
                   ? no_memory(error)
                   : serve_fail(error, NULL, "invalid_json", "the body is not JSON: line %d, column %d: %s", where.line,
                                where.column, where.text);
    if (!json_is_object(request->root)) return serve_fail(error, NULL, "invalid_json", "the body is not a JSON object");
    return true;
}

/* A field's value; NULL where it is absent or null. */
static json_t *get(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);

    return json_is_null(value) ? NULL : value;
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a text";
    case JSON_INTEGER:
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a truth value";
    default: return "null";
    }
}

static bool wrong_type(serve_error *error, const char *param, const char *expected, const json_t *value)
{
    return serve_fail(error, param, "invalid_type", "'%s': expected %s, got %s", param, expected, type_name(value));
}

static bool missing(serve_error *error, const char *param)
{
    return serve_fail(error, param, "missing_required_parameter", "'%s' is missing", param);
}

/* ---- single fields ---------------------------------------------------------------------------------------------- */

static bool check_number(const json_t *value, const char *param, bool whole, double min, double max, double *number,
                         serve_error *error)
{
    double got;

    if (!json_is_number(value)) return wrong_type(error, param, whole ? "a whole number" : "a number", value);
    got = json_number_value(value);
    if (!isfinite(got) || got < min || got > max)
        return serve_fail(error, param, "invalid_value", "'%s': expected %.16g to %.16g, got %.17g", param, min, max,
                          got);
    if (whole && got != floor(got))
        return serve_fail(error, param, "invalid_type", "'%s': expected a whole number, got %.17g", param, got);
    *number = got;
    return true;
}

/* Leaves *number where the field is absent. */
static bool read_number(const json_t *object, const char *param, bool whole, double min, double max, double *number,
                        serve_error *error)
{
    const json_t *value = get(object, param);

    return !value || check_number(value, param, whole, min, max, number, error);
}

static bool read_bool(const json_t *object, const char *param, bool *flag, serve_error *error)
{
    const json_t *value = get(object, param);

    if (!value) return true;
    if (!json_is_boolean(value)) return wrong_type(error, param, "true or false", value);
    *flag = json_is_true(value);
    return true;
}

static bool read_text(const json_t *object, const char *param, size_t most, const char **text, serve_error *error)
{
    const json_t *value = get(object, param);

    if (!value) return true;
    if (!json_is_string(value)) return wrong_type(error, param, "a text", value);
    if (json_string_length(value) > most)
        return serve_fail(error, param, "invalid_value", "'%s': expected at most %zu bytes, got %zu", param, most,
                          json_string_length(value));
    *text = json_string_value(value);
    return true;
}

/* ---- prompts ---------------------------------------------------------------------------------------------------- */

static bool read_ids(const json_t *array, const char *param, const serve_limits *limits, serve_prompt *prompt,
                     serve_error *error)
{
    size_t index;
    json_t *item;

    if (FV_ALLOC(prompt->ids, (int64_t)json_array_size(array)) != FV_OK) return no_memory(error);
    json_array_foreach((json_t *)array, index, item)
    {
        double id = 0;
        if (!check_number(item, param, true, 0, (double)(limits->vocabulary - 1), &id, error)) return false;
        prompt->ids[prompt->count++] = (int32_t)id;
    }
    return true;
}

static bool read_prompt(const json_t *value, const char *param, const serve_limits *limits, serve_prompt *prompt,
                        serve_error *error)
{
    if (json_is_array(value)) return read_ids(value, param, limits, prompt, error);
    if (!json_is_string(value)) return wrong_type(error, param, "texts, or arrays of token ids,", value);
    prompt->text = json_string_value(value);
    prompt->length = json_string_length(value);
    return true;
}

/* A text, [texts], [ids] or [[ids]]. */
static bool read_prompts(const char *param, const serve_limits *limits, serve_request *request, serve_error *error)
{
    const json_t *value = get(request->root, param), *first;
    size_t index, count;
    json_t *item;

    if (!value) return missing(error, param);
    if (!json_is_string(value) && !json_is_array(value)) return wrong_type(error, param, "a text or an array", value);
    first = json_is_array(value) ? json_array_get(value, 0) : NULL;
    if (json_is_array(value) && !first)
        return serve_fail(error, param, "invalid_value", "'%s': expected a text or ids, got an empty array", param);
    count = json_is_array(value) && !json_is_number(first) ? json_array_size(value) : 1;
    if (count > SERVE_PROMPTS)
        return serve_fail(error, param, "invalid_value", "'%s': expected at most %d texts, got %zu", param,
                          SERVE_PROMPTS, count);
    if (FV_ZALLOC(request->prompt, (int64_t)count) != FV_OK) return no_memory(error);
    if (json_is_string(value) || json_is_number(first)) {
        request->prompts = 1;
        return read_prompt(value, param, limits, request->prompt, error);
    }
    json_array_foreach((json_t *)value, index, item)
    {
        if (!read_prompt(item, param, limits, &request->prompt[request->prompts++], error)) return false;
    }
    return true;
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

static const char *const roles[] = {"system", "user", "assistant", "tool"};

/* A field of a message or of one of its parts, as in "messages[2].content". */
static const char *field_of(char name[64], size_t index, const char *field)
{
    snprintf(name, 64, "messages[%zu].%s", index, field);
    return name;
}

static bool join_parts(const json_t *parts, const char *param, serve_request *request, fv_chat_message *message,
                       serve_error *error)
{
    fv_text joined = {0};
    size_t index;
    json_t *part;

    json_array_foreach((json_t *)parts, index, part)
    {
        const json_t *text = get(part, "text");
        const char *type = json_string_value(get(part, "type"));
        if (!type || strcmp(type, "text") != 0) {
            fv_text_free(&joined);
            return serve_fail(error, param, "unsupported_parameter", "'%s': only parts of type text are read, got '%s'",
                              param, type ? type : "nothing");
        }
        if (!json_is_string(text)) {
            fv_text_free(&joined);
            return serve_fail(error, param, "invalid_type", "'%s': a part of type text has no text", param);
        }
        fv_text_add(&joined, json_string_value(text), (int64_t)json_string_length(text));
    }
    fv_text_add(&joined, "", 0);
    if (fv_text_status(&joined) != FV_OK) {
        fv_text_free(&joined);
        return no_memory(error);
    }
    message->content = fv_text_get(&joined);
    if (joined.data) request->text[request->texts++] = joined.data;
    return true;
}

static bool read_message(const json_t *value, size_t index, serve_request *request, serve_error *error)
{
    fv_chat_message *message = &request->message[request->messages];
    const json_t *content = get(value, "content"), *role = get(value, "role");
    const char *refused[] = {"tool_calls", "function_call", "audio"};
    char name[64];
    int r = 0;

    snprintf(name, sizeof name, "messages[%zu]", index);
    if (!json_is_object(value)) return wrong_type(error, name, "an object", value);
    field_of(name, index, "role");
    if (!role) return missing(error, name);
    if (!json_is_string(role)) return wrong_type(error, name, "a text", role);
    const char *word = json_string_value(role);
    if (strcmp(word, "developer") == 0) word = "system";
    while (r < 4 && strcmp(word, roles[r]) != 0)
        r++;
    if (r == 4)
        return serve_fail(error, name, "invalid_value",
                          "'%s': expected system, developer, user, assistant or tool, got '%.40s'", name, word);
    message->role = (fv_chat_role)r;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (!get(value, refused[i])) continue;
        return serve_fail(error, field_of(name, index, refused[i]), "unsupported_parameter",
                          "'%s' is not supported: a message is its content", name);
    }
    field_of(name, index, "content");
    if (!content) return missing(error, name);
    request->messages++;
    if (json_is_array(content)) return join_parts(content, name, request, message, error);
    if (!json_is_string(content)) return wrong_type(error, name, "a text or an array of parts", content);
    message->content = json_string_value(content);
    return true;
}

static bool read_messages(serve_request *request, serve_error *error)
{
    const json_t *value = get(request->root, "messages");
    size_t index, count = json_array_size(value);
    json_t *item;

    if (!value) return missing(error, "messages");
    if (!json_is_array(value)) return wrong_type(error, "messages", "an array", value);
    if (count == 0) return serve_fail(error, "messages", "invalid_value", "'messages': expected one at least");
    if (FV_ZALLOC(request->message, (int64_t)count) != FV_OK || FV_ZALLOC(request->text, (int64_t)count) != FV_OK)
        return no_memory(error);
    json_array_foreach((json_t *)value, index, item)
    {
        if (!read_message(item, index, request, error)) return false;
    }
    return true;
}

/* ---- how to answer ---------------------------------------------------------------------------------------------- */

/* No wish at all: absent, false, empty. */
static bool is_nothing(const json_t *value)
{
    return !value || json_is_false(value) || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

/* Fields that would change the answer, and which nothing here does. */
static bool refuse_unknown_wishes(const serve_request *request, serve_error *error)
{
    static const char *const refused[] = {"tools",  "functions", "tool_choice", "function_call", "audio",
                                          "images", "suffix",    "grammar",     "guided_json",   "web_search_options"};
    const json_t *format = get(request->root, "response_format"), *modes = get(request->root, "modalities");
    const char *type = json_is_string(format) ? json_string_value(format) : json_string_value(get(format, "type"));

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const json_t *value = get(request->root, refused[i]);
        const char *word = i == 2 || i == 3 ? json_string_value(value) : NULL; /* without tools they say nothing */
        if (is_nothing(value) || (word && (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0))) continue;
        return serve_fail(error, refused[i], "unsupported_parameter", "'%s' is not supported", refused[i]);
    }
    if (format && (!type || strcmp(type, "text") != 0))
        return serve_fail(error, "response_format", "unsupported_parameter",
                          "'response_format': only type text is supported");
    if (modes && (json_array_size(modes) != 1 || !json_is_string(json_array_get(modes, 0)) ||
                  strcmp(json_string_value(json_array_get(modes, 0)), "text") != 0))
        return serve_fail(error, "modalities", "unsupported_parameter", "'modalities': only [\"text\"] is supported");
    return true;
}

static bool read_stops(serve_request *request, serve_error *error)
{
    const json_t *value = get(request->root, "stop");
    size_t count = json_is_array(value) ? json_array_size(value) : 1;

    if (!value) return true;
    if (!json_is_string(value) && !json_is_array(value)) return wrong_type(error, "stop", "a text or an array", value);
    if (count > SERVE_STOPS)
        return serve_fail(error, "stop", "invalid_value", "'stop': expected at most %d texts, got %zu", SERVE_STOPS,
                          count);
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(item)) return wrong_type(error, "stop", "texts", item);
        if (*json_string_value(item)) request->stop[request->stops++] = json_string_value(item);
    }
    return true;
}

static bool read_biases(const serve_limits *limits, serve_request *request, serve_error *error)
{
    const json_t *value = get(request->root, "logit_bias");
    int64_t count = (int64_t)json_object_size(value);
    const char *key;
    json_t *item;

    if (!value) return true;
    if (!json_is_object(value)) return wrong_type(error, "logit_bias", "an object of token ids and numbers", value);
    if (FV_ALLOC(request->bias_id, count) != FV_OK || FV_ALLOC(request->bias, count) != FV_OK) return no_memory(error);
    json_object_foreach((json_t *)value, key, item)
    {
        int64_t id = 0;
        double bias = 0;
        size_t digits = strspn(key, "0123456789");
        for (size_t i = 0; i < digits && id < limits->vocabulary; i++)
            id = 10 * id + (key[i] - '0');
        if (digits == 0 || key[digits] || id >= limits->vocabulary)
            return serve_fail(error, "logit_bias", "invalid_value",
                              "'logit_bias': expected token ids of 0 to %lld, got '%.40s'",
                              (long long)limits->vocabulary - 1, key);
        if (!check_number(item, "logit_bias", false, -100, 100, &bias, error)) return false;
        request->bias_id[request->biases] = (int32_t)id;
        request->bias[request->biases++] = (float)bias;
    }
    return true;
}

static bool read_sampling(serve_request *request, serve_error *error)
{
    const json_t *root = request->root;
    double temperature = 1, top_p = 1, min_p = 0, top_k = 0, penalty = 1, seed = 0;

    if (!read_number(root, "temperature", false, 0, 2, &temperature, error) ||
        !read_number(root, "top_p", false, 0, 1, &top_p, error) ||
        !read_number(root, "min_p", false, 0, 1, &min_p, error) ||
        !read_number(root, "top_k", true, 0, 1 << 24, &top_k, error) ||
        !read_number(root, "repeat_penalty", false, 0.01, 100, &penalty, error) ||
        !read_number(root, "seed", true, -SERVE_INTEGER, SERVE_INTEGER, &seed, error) ||
        !read_number(root, "presence_penalty", false, -2, 2, &request->presence_penalty, error) ||
        !read_number(root, "frequency_penalty", false, -2, 2, &request->frequency_penalty, error))
        return false;
    request->has_seed = get(root, "seed") != NULL;
    request->sampling = (fv_sampler_options){
        .temperature = (float)temperature,
        .top_k = (int)top_k,
        .top_p = top_p > 0 ? (float)top_p : 1e-30F, /* the sampler's 0 is off; here it is the likeliest token alone */
        .min_p = (float)min_p,
        .repeat_penalty = (float)penalty,
        .seed = (uint64_t)(int64_t)seed,
    };
    return true;
}

static bool read_logprobs(serve_request *request, serve_error *error)
{
    const json_t *root = request->root;
    double top = -1;

    if (request->kind == SERVE_COMPLETION) {
        if (json_is_false(get(root, "logprobs"))) return true;
        if (!read_number(root, "logprobs", true, 0, SERVE_TOP, &top, error)) return false;
        request->logprobs = top >= 0;
    } else {
        if (!read_bool(root, "logprobs", &request->logprobs, error) ||
            !read_number(root, "top_logprobs", true, 0, SERVE_TOP, &top, error))
            return false;
        if (top > 0 && !request->logprobs)
            return serve_fail(error, "top_logprobs", "invalid_value", "'top_logprobs' needs 'logprobs' to be true");
    }
    request->top = top > 0 ? (int)top : 0;
    return true;
}

static bool read_limit(serve_request *request, serve_error *error)
{
    double old_name = -1, limit = -1, choices = 1, best = 1, least = request->echo ? 0 : 1;

    if (!read_number(request->root, "max_tokens", true, least, SERVE_INTEGER, &old_name, error) ||
        !read_number(request->root, "max_completion_tokens", true, least, SERVE_INTEGER, &limit, error) ||
        !read_number(request->root, "n", true, 1, SERVE_CHOICES, &choices, error) ||
        !read_number(request->root, "best_of", true, 1, SERVE_CHOICES, &best, error))
        return false;
    if (best > 1)
        return serve_fail(error, "best_of", "unsupported_parameter", "'best_of': only 1 is supported, got %g", best);
    request->choices = (int)choices;
    request->limit = (int64_t)(limit >= 0 ? limit : old_name);
    return true;
}

static bool read_stream(serve_request *request, serve_error *error)
{
    const json_t *options = get(request->root, "stream_options"), *usage = get(options, "include_usage");

    if (!read_bool(request->root, "stream", &request->stream, error)) return false;
    if (!options) return true;
    if (!json_is_object(options)) return wrong_type(error, "stream_options", "an object", options);
    if (usage && !json_is_boolean(usage))
        return wrong_type(error, "stream_options.include_usage", "true or false", usage);
    request->include_usage = json_is_true(usage);
    return true;
}

static bool read_answer(const serve_limits *limits, serve_request *request, serve_error *error)
{
    const json_t *root = request->root;
    bool cache_prompt = true;

    if (request->kind == SERVE_COMPLETION && !read_bool(root, "echo", &request->echo, error)) return false;
    if (!read_sampling(request, error) || !read_limit(request, error) || !read_logprobs(request, error) ||
        !read_stops(request, error) || !read_biases(limits, request, error) || !read_stream(request, error) ||
        !read_bool(root, "ignore_eos", &request->ignore_end, error) ||
        !read_bool(root, "cache_prompt", &cache_prompt, error))
        return false;
    request->no_reuse = !cache_prompt;
    return refuse_unknown_wishes(request, error);
}

static bool read_embedding(const serve_limits *limits, serve_request *request, serve_error *error)
{
    const char *format = "float";
    double dimensions = (double)limits->width;

    if (!read_text(request->root, "encoding_format", 16, &format, error) ||
        !read_number(request->root, "dimensions", true, 1, SERVE_INTEGER, &dimensions, error))
        return false;
    if (strcmp(format, "float") != 0 && strcmp(format, "base64") != 0)
        return serve_fail(error, "encoding_format", "invalid_value",
                          "'encoding_format': expected float or base64, got '%s'", format);
    if (dimensions != (double)limits->width)
        return serve_fail(error, "dimensions", "unsupported_parameter",
                          "'dimensions': this model gives %lld and cannot be cut, got %g", (long long)limits->width,
                          dimensions);
    request->base64 = strcmp(format, "base64") == 0;
    return read_prompts("input", limits, request, error);
}

static bool read_content(serve_request *request, serve_error *error)
{
    bool special = true;
    const json_t *value = get(request->root, "content");

    if (!read_bool(request->root, "add_special", &request->add_special, error) ||
        !read_bool(request->root, "parse_special", &special, error))
        return false;
    request->plain_special = !special;
    if (!value) return missing(error, "content");
    if (!json_is_string(value)) return wrong_type(error, "content", "a text", value);
    if (FV_ZALLOC(request->prompt, 1) != FV_OK) return no_memory(error);
    request->prompts = 1;
    return read_prompt(value, "content", NULL, request->prompt, error);
}

static bool read_tokens(const serve_limits *limits, serve_request *request, serve_error *error)
{
    const json_t *value = get(request->root, "tokens");

    if (!value) return missing(error, "tokens");
    if (!json_is_array(value)) return wrong_type(error, "tokens", "an array of token ids", value);
    if (FV_ZALLOC(request->prompt, 1) != FV_OK) return no_memory(error);
    request->prompts = 1;
    return read_ids(value, "tokens", limits, request->prompt, error);
}

static bool read_kind(const serve_limits *limits, serve_request *request, serve_error *error)
{
    switch (request->kind) {
    case SERVE_CHAT: return read_messages(request, error) && read_answer(limits, request, error);
    case SERVE_COMPLETION: return read_prompts("prompt", limits, request, error) && read_answer(limits, request, error);
    case SERVE_EMBEDDING: return read_embedding(limits, request, error);
    case SERVE_TOKENIZE: return read_content(request, error);
    case SERVE_DETOKENIZE: return read_tokens(limits, request, error);
    case SERVE_ATTENTION: return read_messages(request, error);
    }
    return false;
}

/* Moves a text to `at`, where there is room. */
static void hold(const char **text, size_t length, char **at)
{
    if (!*text) return;
    memcpy(*at, *text, length);
    (*at)[length] = 0;
    *text = *at;
    *at += length + 1;
}

static size_t length_of(const char *text)
{
    return text ? strlen(text) + 1 : 0;
}

/* Copies what a request says and lets go of the JSON it came in, which may be large for reasons of its own. */
static bool settle(serve_request *request, serve_error *error)
{
    const char **single[] = {&request->model, &request->attention, &request->cache};
    size_t bytes = 1;
    char *at;

    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        bytes += length_of(*single[i]);
    for (int i = 0; i < request->stops; i++)
        bytes += length_of(request->stop[i]);
    for (int64_t i = 0; i < request->messages; i++)
        bytes += length_of(request->message[i].content);
    for (int64_t i = 0; i < request->prompts; i++)
        bytes += request->prompt[i].length + 1;
    if (FV_ALLOC(request->held, (int64_t)bytes) != FV_OK) return no_memory(error);
    at = request->held;
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        hold(single[i], *single[i] ? strlen(*single[i]) : 0, &at);
    for (int i = 0; i < request->stops; i++)
        hold(&request->stop[i], strlen(request->stop[i]), &at);
    for (int64_t i = 0; i < request->messages; i++)
        hold(&request->message[i].content, strlen(request->message[i].content), &at);
    for (int64_t i = 0; i < request->prompts; i++)
        hold(&request->prompt[i].text, request->prompt[i].length, &at);
    return true;
}

static void free_reading(serve_request *request)
{
    for (int64_t i = 0; i < request->texts; i++)
        fv_free(request->text[i]);
    fv_free(request->text);
    json_decref(request->root);
    request->texts = 0;
    request->text = NULL;
    request->root = NULL;
}

static bool read_request(const char *bytes, size_t length, const serve_limits *limits, serve_request *request,
                         serve_error *error)
{
    return read_json(bytes, length, request, error) &&
           read_text(request->root, "model", 1024, &request->model, error) &&
           read_text(request->root, "attention", FV_SPEC_TEXT - 1, &request->attention, error) &&
           read_text(request->root, "cache", FV_SPEC_TEXT - 1, &request->cache, error) &&
           read_kind(limits, request, error) && settle(request, error);
}

bool serve_request_parse(serve_kind kind, const char *bytes, size_t length, const serve_limits *limits,
                         serve_request *request, serve_error *error)
{
    bool good;

    *request = (serve_request){.kind = kind, .limit = -1, .choices = 1};
    *error = (serve_error){0};
    good = read_request(bytes, length, limits, request, error);
    free_reading(request);
    return good;
}

void serve_request_free(serve_request *request)
{
    for (int64_t i = 0; i < request->prompts; i++)
        fv_free(request->prompt[i].ids);
    fv_free(request->prompt);
    fv_free(request->message);
    fv_free(request->bias_id);
    fv_free(request->bias);
    fv_free(request->held);
    *request = (serve_request){0};
}
