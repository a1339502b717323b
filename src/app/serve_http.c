/* HTTP: which requests are let in, their bodies, and what is written about them afterwards. */
#include "app/serve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"

enum { POOL_BYTES = 1 << 17, HTTP_THREADS = 4, BACKLOG = 512 };
enum { BODIES = 32 }; /* of the largest size, which may come in together */

/* ---- calls ------------------------------------------------------------------------------------------------------ */

void serve_call_hold(serve_call *call)
{
    atomic_fetch_add(&call->holders, 1);
}

void serve_call_drop_body(serve_call *call)
{
    atomic_fetch_sub(&call->server->body_bytes, call->body_bytes);
    call->body_bytes = 0;
    fv_text_free(&call->body);
    call->body = (fv_text){0};
}

void serve_call_release(serve_call *call)
{
    if (atomic_fetch_sub(&call->holders, 1) != 1) return;
    serve_answer_free(call->answer);
    serve_look_free(call->look);
    serve_request_free(&call->request);
    serve_call_drop_body(call);
    fv_free(call);
}

static serve_call *new_call(serve_server *server, serve_peer *peer, struct MHD_Connection *connection,
                            const char *method)
{
    serve_call *call;
    uint64_t serial = atomic_fetch_add(&server->serial, 1);

    if (FV_ZALLOC(call, 1) != FV_OK) return NULL;
    call->server = server;
    call->peer = peer;
    call->connection = connection;
    call->started = app_seconds();
    call->created = (int64_t)time(NULL);
    atomic_init(&call->holders, 1);
    snprintf(call->method, sizeof call->method, "%s", method);
    snprintf(call->id, sizeof call->id, "%016llx%08llx", (unsigned long long)server->random,
             (unsigned long long)serial);
    return call;
}

/* ---- what a head must be ---------------------------------------------------------------------------------------- */

static const char *header(serve_call *call, const char *name)
{
    return MHD_lookup_connection_value(call->connection, MHD_HEADER_KIND, name);
}

static bool fail_as(serve_error *error, int status, const char *type, const char *code, const char *message)
{
    serve_fail(error, NULL, code, "%s", message);
    error->status = status;
    error->type = type;
    return false;
}

static const char invalid[] = "invalid_request_error";

/* The name in "NAME:PORT" or "[NAME]:PORT". */
static void host_name(const char *host, char name[256])
{
    size_t length = *host == '[' ? strcspn(++host, "]") : strcspn(host, ":");

    snprintf(name, 256, "%.*s", (int)fv_min((int64_t)length, 255), host);
}

/* A page that some other site serves under a name that leads here must not be able to talk to a server of this machine
 * (DNS rebinding): the name it was asked by is that site's. */
static bool check_host(serve_call *call, serve_error *error)
{
    const serve_server *server = call->server;
    const char *host = header(call, "Host");
    char name[256];
    struct in_addr address;

    if (!server->loopback || !host) return true;
    host_name(host, name);
    if (strcasecmp(name, "localhost") == 0 || strcmp(name, "::1") == 0 || strcasecmp(name, server->options.host) == 0 ||
        strcmp(name, server->address) == 0)
        return true;
    if (inet_pton(AF_INET, name, &address) == 1 && ntohl(address.s_addr) >> 24 == 127) return true;
    for (int i = 0; i < server->options.hosts.count; i++)
        if (strcasecmp(name, server->options.hosts.items[i]) == 0) return true;
    return fail_as(error, 403, invalid, "forbidden_host",
                   "Host is none of this server's names; --allow-host NAME adds one");
}

/* Takes the same time wherever the difference is; how long the key is shows. */
static bool same_key(const char *a, const char *b)
{
    size_t length = strlen(a), other = strlen(b);
    volatile unsigned char difference = length != other;

    for (size_t i = 0; i < length; i++)
        difference |= (unsigned char)(a[i] ^ (other ? b[i % other] : 1));
    return difference == 0;
}

static bool check_key(serve_call *call, serve_error *error)
{
    const char *key = call->server->options.key, *given = header(call, "Authorization");

    if (!key || (call->endpoint && call->endpoint->open)) return true;
    if (given && strncasecmp(given, "Bearer ", 7) == 0 && same_key(given + 7, key)) return true;
    return fail_as(error, 401, "authentication_error", "invalid_api_key",
                   given ? "the API key is wrong" : "an API key is missing (Authorization: Bearer KEY)");
}

static bool is_get(const char *method)
{
    return strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
}

static bool check_route(serve_call *call, serve_error *error)
{
    const serve_endpoint *endpoint = call->endpoint;

    if (!endpoint) return fail_as(error, 404, invalid, "not_found", "there is nothing under this path");
    if (endpoint->post ? strcmp(call->method, "POST") == 0 : is_get(call->method)) return true;
    return fail_as(error, 405, invalid, "method_not_allowed",
                   endpoint->post ? "this path takes POST" : "this path takes GET and HEAD");
}

static bool check_body(serve_call *call, serve_error *error)
{
    const char *type = header(call, "Content-Type"), *encoding = header(call, "Content-Encoding");
    const char *length = header(call, "Content-Length"), json[] = "application/json";
    int64_t most = call->server->options.max_body;

    if (length && (strlen(length) > 18 || strtoll(length, NULL, 10) > most)) {
        fail_as(error, 413, invalid, "body_too_large", "");
        snprintf(error->message, sizeof error->message, "the body is larger than %lld bytes", (long long)most);
        return false;
    }
    if (!call->endpoint->post) return true;
    if (!type || strncasecmp(type, json, sizeof json - 1) != 0 ||
        (type[sizeof json - 1] && !strchr("; \t", type[sizeof json - 1])))
        return fail_as(error, 415, invalid, "unsupported_media_type", "Content-Type: expected application/json");
    if (encoding && strcasecmp(encoding, "identity") != 0)
        return fail_as(error, 415, invalid, "unsupported_media_type", "Content-Encoding: expected none");
    return true;
}

static bool check_state(serve_call *call, serve_error *error)
{
    int state = atomic_load(&call->server->state);

    if (state == SERVE_READY || call->endpoint->open) return true;
    return fail_as(error, 503, "server_error", state == SERVE_LOADING ? "loading" : "draining",
                   state == SERVE_LOADING ? "the model is being loaded" : "the server is shutting down");
}

static void allow_origin(serve_call *call)
{
    const char *origin = header(call, "Origin"), *allowed = call->server->options.cors;

    if (!allowed || !origin) return;
    if (strcmp(allowed, "*") == 0 || strcmp(allowed, origin) == 0)
        snprintf(call->allow_origin, sizeof call->allow_origin, "%s", allowed);
}

/* What the door found wrong with the request that is being read; NULL: nothing. */
static const serve_error *find_fault(const serve_peer *peer)
{
    return atomic_load(&peer->guest->bad) == peer->requests ? &peer->guest->error : NULL;
}

static enum MHD_Result begin(serve_call *call, const char *path)
{
    const char *length = header(call, "Content-Length"), *rest;
    const serve_error *fault = find_fault(call->peer);
    serve_error error;

    call->peer->unread = fault || header(call, "Transfer-Encoding") || (length && strspn(length, "0") < strlen(length));
    if (fault) return serve_reply_error(call, fault);
    call->endpoint = serve_endpoint_find(path, &rest);
    if (!check_host(call, &error)) return serve_reply_error(call, &error);
    allow_origin(call);
    if (*call->allow_origin && call->endpoint && strcmp(call->method, "OPTIONS") == 0 &&
        header(call, "Access-Control-Request-Method"))
        return serve_reply_preflight(call);
    if (!check_key(call, &error) || !check_route(call, &error) || !check_body(call, &error) ||
        !check_state(call, &error))
        return serve_reply_error(call, &error);
    call->peer->unread = false;
    return MHD_YES;
}

/* ---- bodies ----------------------------------------------------------------------------------------------------- */

/* Answers in the middle of a body, where libmicrohttpd takes no answer: it closes the connection. */
static enum MHD_Result refuse_rest(serve_call *call, const serve_error *error)
{
    serve_reply_raw(call->peer->fd, error);
    call->status = (unsigned)error->status;
    call->peer->unread = true;
    pthread_mutex_lock(&call->peer->lock);
    call->peer->expired = true;
    pthread_mutex_unlock(&call->peer->lock);
    return MHD_NO;
}

static enum MHD_Result take_body(serve_call *call, const char *bytes, size_t *size)
{
    const serve_error *fault = find_fault(call->peer);
    serve_error error;

    if (call->status) { /* already refused */
        *size = 0;
        return MHD_YES;
    }
    if (fault) return refuse_rest(call, fault);
    if (call->body.length + (int64_t)*size > call->server->options.max_body) {
        fail_as(&error, 413, invalid, "body_too_large", "the body is larger than this server takes");
        return refuse_rest(call, &error);
    }
    call->body_bytes += (int64_t)*size;
    if (atomic_fetch_add(&call->server->body_bytes, (int64_t)*size) > BODIES * call->server->options.max_body) {
        fail_as(&error, 503, "server_error", NULL, "too many large requests are coming in");
        return refuse_rest(call, &error);
    }
    fv_text_add(&call->body, bytes, (int64_t)*size);
    *size = 0;
    pthread_mutex_lock(&call->peer->lock);
    call->peer->since = app_seconds();
    pthread_mutex_unlock(&call->peer->lock);
    return MHD_YES;
}

static enum MHD_Result finish(serve_call *call, const char *path)
{
    serve_error error;
    const char *rest;

    if (call->begun) return call->look ? serve_look_reply(call) : serve_answer_reply(call);
    call->begun = true;
    if (fv_text_status(&call->body) != FV_OK) {
        fail_as(&error, 503, "server_error", NULL, "out of memory for the body");
        return serve_reply_error(call, &error);
    }
    serve_endpoint_find(path, &rest);
    return call->endpoint->post ? serve_post(call) : call->endpoint->get(call, rest);
}

static void enter(serve_peer *peer, serve_call *call, serve_phase phase)
{
    pthread_mutex_lock(&peer->lock);
    peer->call = call;
    serve_peer_phase(peer, phase);
    pthread_mutex_unlock(&peer->lock);
}

/* libmicrohttpd calls this for a head, for each piece of a body, behind the body, and after a connection was resumed.
 */
static enum MHD_Result handle(void *user, struct MHD_Connection *connection, const char *path, const char *method,
                              const char *version, const char *bytes, size_t *size, void **state)
{
    serve_server *server = user;
    serve_call *call = *state;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    serve_peer *peer = info ? info->socket_context : NULL;
    bool expired;

    (void)version;
    if (!peer) return MHD_NO;
    pthread_mutex_lock(&peer->lock);
    expired = peer->expired;
    pthread_mutex_unlock(&peer->lock);
    if (expired) return MHD_NO;
    if (!call) {
        *state = call = new_call(server, peer, connection, method);
        if (!call) return MHD_NO;
        peer->requests++;
        atomic_fetch_add(&server->calls, 1);
        enter(peer, call, SERVE_BODY);
        return begin(call, path);
    }
    if (*size) return take_body(call, bytes, size);
    if (!call->begun) enter(peer, call, SERVE_WORKING);
    return finish(call, path);
}

/* ---- afterwards ------------------------------------------------------------------------------------------------- */

static void write_log(serve_call *call)
{
    serve_server *server = call->server;
    json_t *line = json_pack("{s:I,s:s,s:s,s:s,s:s,s:i,s:f,s:I,s:I,s:I,s:b}", "time", (json_int_t)call->created, "id",
                             call->id, "remote", call->peer->remote, "method", call->method, "path",
                             call->endpoint ? call->endpoint->path : "other", "status", (int)call->status, "seconds",
                             app_seconds() - call->started, "prompt_tokens", (json_int_t)call->prompt_tokens,
                             "cached_tokens", (json_int_t)call->cached_tokens, "generated_tokens",
                             (json_int_t)call->generated_tokens, "cancelled", call->cancelled);
    char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;

    pthread_mutex_lock(&server->log_lock);
    if (text) fprintf(stderr, "%s\n", text);
    pthread_mutex_unlock(&server->log_lock);
    free(text);
    json_decref(line);
}

static void completed(void *user, struct MHD_Connection *connection, void **state, enum MHD_RequestTerminationCode why)
{
    serve_server *server = user;
    serve_call *call = *state;
    serve_peer *peer;

    *state = NULL;
    if (!call) return;
    peer = call->peer;
    if (call->answer) {
        if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) serve_answer_cancel(call);
        if (call->cancelled) serve_metrics_cancelled(&server->metrics);
    }
    serve_metrics_request(&server->metrics, call->endpoint ? call->endpoint->path : "other",
                          call->status ? call->status : 499);
    if (!call->status) call->status = 499; /* nobody was left to answer */
    if (!server->app->common->quiet) write_log(call);
    if (why == MHD_REQUEST_TERMINATED_COMPLETED_OK) /* from now on the guard has an eye on it */
        MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0U);
    if (serve_answer_broke(call)) shutdown(peer->fd, SHUT_RDWR);
    enter(peer, NULL, SERVE_WAITING);
    atomic_fetch_add(&peer->guest->answered, 1);
    serve_call_release(call);
    atomic_fetch_sub(&server->calls, 1);
}

static void notify(void *user, struct MHD_Connection *connection, void **context,
                   enum MHD_ConnectionNotificationCode code)
{
    const union MHD_ConnectionInfo *info;

    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*context) serve_peer_end(*context);
        *context = NULL;
        return;
    }
    info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    *context = info ? serve_peer_new(user, connection, info->connect_fd) : NULL;
}

/* ---- listening -------------------------------------------------------------------------------------------------- */

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static fv_status bind_to(serve_server *server, const struct addrinfo *info, int *fd)
{
    int on = 1;

    *fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0) return fv_fail(FV_E_IO, "no socket can be opened: %s", strerror(errno));
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(*fd, info->ai_addr, info->ai_addrlen) == 0 && listen(*fd, BACKLOG) == 0) return FV_OK;
    fv_status status = fv_fail(FV_E_IO, "%s port %lld: cannot listen there: %s", server->options.host,
                               (long long)server->options.port, strerror(errno));
    close(*fd);
    return status;
}

static fv_status open_socket(serve_server *server, int *fd)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *info = NULL;
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char port[16];
    int failure;
    fv_status status;

    snprintf(port, sizeof port, "%lld", (long long)server->options.port);
    failure = getaddrinfo(server->options.host, port, &hints, &info);
    if (failure != 0)
        return fv_fail(FV_E_IO, "--host %s: is no address of this machine: %s", server->options.host,
                       gai_strerror(failure));
    status = bind_to(server, info, fd);
    if (status == FV_OK) {
        server->loopback = is_loopback(info->ai_addr);
        getnameinfo(info->ai_addr, info->ai_addrlen, server->address, sizeof server->address, NULL, 0, NI_NUMERICHOST);
        getsockname(*fd, (struct sockaddr *)&bound, &size);
        server->port = ntohs(bound.ss_family == AF_INET ? ((struct sockaddr_in *)&bound)->sin_port
                                                        : ((struct sockaddr_in6 *)&bound)->sin6_port);
    }
    freeaddrinfo(info);
    return status;
}

fv_status serve_http_start(serve_server *server)
{
    int fd = -1;
    fv_status status;

    FV_TRY(open_socket(server, &fd));
    /* The door takes connections, and counts them; libmicrohttpd never listens. */
    server->http = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ITC | MHD_ALLOW_SUSPEND_RESUME, 0, NULL,
        NULL, handle, server, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)HTTP_THREADS, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(HTTP_THREADS * (SERVE_CONNECTIONS + 64)), MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
        MHD_OPTION_STRICT_FOR_CLIENT, 0, MHD_OPTION_NOTIFY_CONNECTION, notify, server, MHD_OPTION_NOTIFY_COMPLETED,
        completed, server, MHD_OPTION_END);
    status = server->http ? serve_door_start(server, fd) : fv_fail(FV_E_MEMORY, "libmicrohttpd cannot start");
    if (status != FV_OK) close(fd);
    return status;
}

void serve_http_stop(serve_server *server)
{
    if (server->http) MHD_stop_daemon(server->http);
    server->http = NULL;
}
