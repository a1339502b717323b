/* The guard watches every connection a few times a second: clients that left, heads and bodies that do not come,
 * streams that have been silent.  It also reads what refused clients still send, so that closing does not take the
 * answer away from them (a socket closed with unread bytes is reset, and with it what was sent last). */
#define _GNU_SOURCE /* POLLRDHUP */
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/serve.h"
#include "base/memory.h"

enum { TICK_MILLISECONDS = 100, LINGER_TICK_MILLISECONDS = 5, LINGERS = 64, LINGER_SECONDS = 2 };

struct serve_guard {
    serve_server *server;
    pthread_t thread;
    atomic_bool stop;
    pthread_mutex_t lock; /* of lingers */
    int lingers;
    struct {
        int fd;
        double until;
    } linger[LINGERS];
};

static uint64_t bytes_received(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;

    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_received : 0;
}

/* ---- peers ------------------------------------------------------------------------------------------------------ */

serve_peer *serve_peer_new(serve_server *server, struct MHD_Connection *connection, int fd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    serve_peer *peer;

    if (FV_ZALLOC(peer, 1) != FV_OK) return NULL;
    *peer = (serve_peer){.server = server, .fd = fd, .since = app_seconds()};
    pthread_mutex_init(&peer->lock, NULL);
    if (!info || getnameinfo(info->client_addr, sizeof(struct sockaddr_in6), peer->remote, sizeof peer->remote, NULL, 0,
                             NI_NUMERICHOST) != 0)
        peer->remote[0] = 0;
    pthread_mutex_lock(&server->peers_lock);
    peer->next = server->peers;
    if (peer->next) peer->next->before = peer;
    server->peers = peer;
    pthread_mutex_unlock(&server->peers_lock);
    return peer;
}

void serve_linger(serve_server *server, int fd)
{
    struct serve_guard *guard = server->guard;
    int own = dup(fd);

    if (own < 0) return;
    shutdown(own, SHUT_WR);
    pthread_mutex_lock(&guard->lock);
    if (guard->lingers < LINGERS) {
        guard->linger[guard->lingers].fd = own;
        guard->linger[guard->lingers++].until = app_seconds() + LINGER_SECONDS;
        own = -1;
    }
    pthread_mutex_unlock(&guard->lock);
    if (own >= 0) close(own);
}

void serve_peer_end(serve_peer *peer)
{
    serve_server *server = peer->server;

    pthread_mutex_lock(&server->peers_lock);
    if (peer->before)
        peer->before->next = peer->next;
    else
        server->peers = peer->next;
    if (peer->next) peer->next->before = peer->before;
    pthread_mutex_unlock(&server->peers_lock);
    if (peer->unread) serve_linger(server, peer->fd);
    pthread_mutex_destroy(&peer->lock);
    fv_free(peer);
}

/* The peer is locked. */
void serve_peer_phase(serve_peer *peer, serve_phase phase)
{
    peer->phase = phase;
    peer->since = app_seconds();
    peer->head_since = 0;
    if (phase == SERVE_WORKING) peer->received = bytes_received(peer->fd);
}

/* ---- watching --------------------------------------------------------------------------------------------------- */

bool serve_fail_timeout(serve_error *error, const char *part, double seconds)
{
    serve_fail(error, NULL, "request_timeout", "the request's %s did not come within %g s", part, seconds);
    error->status = 408;
    return false;
}

/* Ends a connection that has kept us waiting, with a word where no answer has begun. */
static void expire(serve_peer *peer, bool tell, const char *what)
{
    serve_error error;

    peer->expired = true;
    if (tell) {
        serve_fail_timeout(&error, what, peer->server->options.timeout);
        serve_reply_raw(peer->fd, &error);
        serve_metrics_request(&peer->server->metrics, "other", 408);
    }
    shutdown(peer->fd, SHUT_RDWR); /* libmicrohttpd sees the end, and closes */
}

static bool has_left(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLRDHUP};

    return poll(&poller, 1, 0) > 0 && (poller.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static void watch_head(serve_peer *peer, double now)
{
    if (peer->head_since == 0 && bytes_received(peer->fd) > peer->received) peer->head_since = now;
    if (peer->head_since > 0 && now - peer->head_since > peer->server->options.timeout)
        expire(peer, true, "head");
    else if (peer->head_since == 0 && now - peer->since > SERVE_IDLE_SECONDS)
        expire(peer, false, NULL);
}

static void watch_peer(serve_peer *peer, double now)
{
    pthread_mutex_lock(&peer->lock);
    if (!peer->expired) {
        switch (peer->phase) {
        case SERVE_WAITING: watch_head(peer, now); break;
        case SERVE_BODY:
            if (now - peer->since > peer->server->options.timeout) expire(peer, true, "body");
            break;
        case SERVE_WORKING:
        case SERVE_SENDING:
            if (!peer->call || !peer->call->answer) break;
            if (has_left(peer->fd)) {
                peer->expired = true;
                serve_answer_cancel(peer->call);
            } else {
                serve_answer_ping(peer->call, now);
            }
            break;
        }
    }
    pthread_mutex_unlock(&peer->lock);
}

/* Reads on from refused clients; false: none is left. */
static bool read_lingers(struct serve_guard *guard, double now)
{
    char bytes[65536];
    bool any;

    pthread_mutex_lock(&guard->lock);
    for (int i = 0; i < guard->lingers;) {
        ssize_t count = 1;
        for (int round = 0; round < 16 && count > 0; round++)
            count = recv(guard->linger[i].fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (count == 0 || now > guard->linger[i].until || atomic_load(&guard->stop)) {
            close(guard->linger[i].fd);
            guard->linger[i] = guard->linger[--guard->lingers];
        } else {
            i++;
        }
    }
    any = guard->lingers > 0;
    pthread_mutex_unlock(&guard->lock);
    return any;
}

static void *watch(void *user)
{
    struct serve_guard *guard = user;
    serve_server *server = guard->server;
    double last = 0;

    while (!atomic_load(&guard->stop)) {
        double now = app_seconds();
        bool lingering = read_lingers(guard, now);
        if (now - last > TICK_MILLISECONDS / 1e3) {
            pthread_mutex_lock(&server->peers_lock);
            for (serve_peer *peer = server->peers; peer; peer = peer->next)
                watch_peer(peer, now);
            pthread_mutex_unlock(&server->peers_lock);
            last = now;
        }
        poll(NULL, 0, lingering ? LINGER_TICK_MILLISECONDS : TICK_MILLISECONDS / 2);
    }
    read_lingers(guard, app_seconds());
    return NULL;
}

fv_status serve_guard_start(serve_server *server)
{
    struct serve_guard *guard;

    FV_TRY(FV_ZALLOC(guard, 1));
    guard->server = server;
    pthread_mutex_init(&guard->lock, NULL);
    server->guard = guard;
    if (pthread_create(&guard->thread, NULL, watch, guard) == 0) return FV_OK;
    server->guard = NULL;
    pthread_mutex_destroy(&guard->lock);
    fv_free(guard);
    return fv_fail(FV_E_MEMORY, "a thread cannot be started");
}

void serve_guard_stop(serve_server *server)
{
    struct serve_guard *guard = server->guard;

    if (!guard) return;
    atomic_store(&guard->stop, true);
    pthread_join(guard->thread, NULL);
    pthread_mutex_destroy(&guard->lock);
    fv_free(guard);
    server->guard = NULL;
}
