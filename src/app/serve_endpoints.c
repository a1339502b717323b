/* What there is under which path. */
#include <string.h>

#include "app/serve.h"
#include "app/serve_page.h"

/* ---- models ----------------------------------------------------------------------------------------------------- */

bool serve_is_model(const serve_server *server, const char *name)
{
    size_t stem = strlen(server->file);

    if (!name) return true;
    if (server->options.alias && strcmp(name, server->options.alias) == 0) return true;
    if (*server->info.name && strcmp(name, server->info.name) == 0) return true;
    if (strcmp(name, server->file) == 0) return true;
    if (stem > 5 && strcmp(server->file + stem - 5, ".gguf") == 0) stem -= 5;
    return strlen(name) == stem && strncmp(name, server->file, stem) == 0;
}

static bool unknown_model(const char *name, serve_error *error)
{
    serve_fail(error, "model", "model_not_found", "there is no model '%.200s' here", name);
    error->status = 404;
    return false;
}

static json_t *model_json(const serve_server *server)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:{s:I,s:I,s:s}}", "id", server->id, "object", "model", "created",
                     (json_int_t)server->created, "owned_by", "fovea", "meta", "context", (json_int_t)server->context,
                     "parameters", (json_int_t)server->info.parameters, "architecture", server->info.architecture);
}

static enum MHD_Result get_models(serve_call *call, const char *rest)
{
    (void)rest;
    return serve_reply_json(call, 200, json_pack("{s:s,s:[o]}", "object", "list", "data", model_json(call->server)));
}

static enum MHD_Result get_model(serve_call *call, const char *rest)
{
    serve_error error;

    if (serve_is_model(call->server, rest)) return serve_reply_json(call, 200, model_json(call->server));
    unknown_model(rest, &error);
    return serve_reply_error(call, &error);
}

/* ---- the server itself ------------------------------------------------------------------------------------------ */

static enum MHD_Result get_health(serve_call *call, const char *rest)
{
    static const char *const words[] = {"loading", "ok", "draining"};
    int state = atomic_load(&call->server->state);

    (void)rest;
    return serve_reply_json(call, state == SERVE_READY ? 200 : 503, json_pack("{s:s}", "status", words[state]));
}

static enum MHD_Result get_metrics(serve_call *call, const char *rest)
{
    fv_scheduler_stats stats = {0};
    fv_text text = {0};
    enum MHD_Result result;

    (void)rest;
    fv_scheduler_measure(call->server->scheduler, &stats);
    serve_metrics_write(&call->server->metrics, &stats, call->server->options.kv_memory, &text);
    if (fv_text_status(&text) == FV_OK)
        result = serve_reply_text(call, 200, "text/plain; version=0.0.4; charset=utf-8", fv_text_get(&text),
                                  (size_t)text.length);
    else
        result = serve_reply_json(call, 500, NULL);
    fv_text_free(&text);
    return result;
}

static enum MHD_Result get_page(serve_call *call, const char *rest)
{
    (void)rest;
    return serve_reply_text(call, 200, "text/html; charset=utf-8", serve_page, serve_page_bytes);
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static enum MHD_Result tokenize(serve_call *call)
{
    const serve_request *request = &call->request;
    unsigned flags =
        (request->plain_special ? 0U : FV_TOKENIZE_SPECIAL) | (request->add_special ? FV_TOKENIZE_MODEL : 0U);
    serve_error error;
    int32_t *ids;
    int64_t count;
    json_t *root;

    if (fv_model_tokenize(call->server->model, request->prompt->text, request->prompt->length, flags, &ids, &count) !=
        FV_OK) {
        serve_fail(&error, "content", "invalid_value", "%s", fv_error());
        return serve_reply_error(call, &error);
    }
    root = json_pack("{s:o}", "tokens", app_ids(ids, count));
    fv_release(ids);
    return serve_reply_json(call, 200, root);
}

static enum MHD_Result detokenize(serve_call *call)
{
    const serve_prompt *prompt = call->request.prompt;
    serve_error error;
    char *text;
    size_t length;
    json_t *root;

    if (fv_model_detokenize(call->server->model, prompt->ids, prompt->count, &text, &length) != FV_OK) {
        serve_fail(&error, "tokens", "invalid_value", "%s", fv_error());
        return serve_reply_error(call, &error);
    }
    root = json_pack("{s:o}", "content", app_text(text, length));
    fv_release(text);
    return serve_reply_json(call, 200, root);
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static const serve_endpoint endpoints[] = {
    {.path = "/", .open = true, .get = get_page},
    {.path = "/health", .open = true, .get = get_health},
    {.path = "/metrics", .get = get_metrics},
    {.path = "/v1/models", .get = get_models},
    {.path = "/v1/models/", .prefix = true, .get = get_model},
    {.path = "/v1/chat/completions", .post = true, .kind = SERVE_CHAT},
    {.path = "/v1/completions", .post = true, .kind = SERVE_COMPLETION},
    {.path = "/v1/embeddings", .post = true, .kind = SERVE_EMBEDDING},
    {.path = "/tokenize", .post = true, .kind = SERVE_TOKENIZE},
    {.path = "/detokenize", .post = true, .kind = SERVE_DETOKENIZE},
    {.path = "/attention", .post = true, .kind = SERVE_ATTENTION},
};

const serve_endpoint *serve_endpoint_find(const char *path, const char **rest)
{
    for (size_t i = 0; i < sizeof endpoints / sizeof *endpoints; i++) {
        const serve_endpoint *endpoint = &endpoints[i];
        size_t length = strlen(endpoint->path);
        if (strncmp(path, endpoint->path, length) != 0 || (path[length] != 0) != endpoint->prefix) continue;
        *rest = path + length;
        return endpoint;
    }
    return NULL;
}

enum MHD_Result serve_post(serve_call *call)
{
    const serve_server *server = call->server;
    serve_limits limits = {server->info.vocabulary, server->info.width};
    serve_request *request = &call->request;
    serve_error error;

    bool good = serve_request_parse(call->endpoint->kind, fv_text_get(&call->body), (size_t)call->body.length, &limits,
                                    request, &error);
    serve_call_drop_body(call);
    if (!good) return serve_reply_error(call, &error);
    if (!serve_is_model(server, request->model)) {
        unknown_model(request->model, &error);
        return serve_reply_error(call, &error);
    }
    if (!serve_check_specs(server, request, &error)) return serve_reply_error(call, &error);
    switch (request->kind) {
    case SERVE_TOKENIZE: return tokenize(call);
    case SERVE_DETOKENIZE: return detokenize(call);
    case SERVE_ATTENTION: return serve_look(call);
    default: break;
    }
    if (!serve_answer_begin(call, &error)) return serve_reply_error(call, &error);
    return serve_answer_reply(call);
}
