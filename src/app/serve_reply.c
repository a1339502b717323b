/* Answers on their way out: status, headers, bytes. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "app/serve.h"

enum { STREAM_BLOCK = 16384 };

static void add_headers(serve_call *call, unsigned status, const char *type, struct MHD_Response *response)
{
    const serve_endpoint *endpoint = call->endpoint;

    if (type) MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Request-Id", call->id);
    if (status == 401) MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (status == 429) MHD_add_response_header(response, "Retry-After", "1");
    if (status == 503) MHD_add_response_header(response, "Retry-After", "5");
    if (status == 405 && endpoint) MHD_add_response_header(response, "Allow", endpoint->post ? "POST" : "GET, HEAD");
    if (*call->allow_origin) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", call->allow_origin);
        MHD_add_response_header(response, "Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
        if (strcmp(call->allow_origin, "*") != 0) MHD_add_response_header(response, "Vary", "Origin");
    }
}

static enum MHD_Result send_response(serve_call *call, unsigned status, const char *type, struct MHD_Response *response)
{
    enum MHD_Result result;

    if (!response) return MHD_NO;
    add_headers(call, status, type, response);
    if (call->peer->unread) MHD_add_response_header(response, "Connection", "close");
    MHD_set_connection_option(call->connection, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)SERVE_STALL_SECONDS);
    call->status = status;
    result = MHD_queue_response(call->connection, status, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result serve_reply_text(serve_call *call, unsigned status, const char *type, const char *text, size_t length)
{
    return send_response(call, status, type,
                         MHD_create_response_from_buffer(length, (void *)text, MHD_RESPMEM_MUST_COPY));
}

static const char no_memory[] = "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\",\"param\":null,"
                                "\"code\":null}}";

enum MHD_Result serve_reply_json(serve_call *call, unsigned status, json_t *root)
{
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    struct MHD_Response *response;

    json_decref(root);
    if (!text) return serve_reply_text(call, 500, "application/json", no_memory, sizeof no_memory - 1);
    response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!response) free(text);
    return send_response(call, status, "application/json", response);
}

enum MHD_Result serve_reply_error(serve_call *call, const serve_error *error)
{
    return serve_reply_json(call, (unsigned)error->status, serve_error_json(error));
}

enum MHD_Result serve_reply_stream(serve_call *call, MHD_ContentReaderCallback read)
{
    return send_response(call, 200, "text/event-stream",
                         MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read, call, NULL));
}

enum MHD_Result serve_reply_preflight(serve_call *call)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT);

    if (!response) return MHD_NO;
    MHD_add_response_header(response, "Access-Control-Allow-Methods",
                            call->endpoint && call->endpoint->post ? "POST" : "GET, HEAD");
    MHD_add_response_header(response, "Access-Control-Allow-Headers", "Authorization, Content-Type");
    MHD_add_response_header(response, "Access-Control-Max-Age", "600");
    return send_response(call, 204, NULL, response);
}

void serve_reply_raw(int fd, const serve_error *error)
{
    json_t *root = serve_error_json(error);
    char *body = root ? json_dumps(root, JSON_COMPACT) : NULL;
    fv_text text = {0};
    size_t length = strlen(body ? body : no_memory);

    fv_text_printf(
        &text, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
        error->status, MHD_get_reason_phrase_for((unsigned)error->status), length);
    fv_text_add(&text, body ? body : no_memory, (int64_t)length);
    if (fv_text_status(&text) == FV_OK) {
        ssize_t sent = send(fd, fv_text_get(&text), (size_t)text.length, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)sent; /* a courtesy: the connection ends either way */
    }
    fv_text_free(&text);
    free(body);
    json_decref(root);
}
