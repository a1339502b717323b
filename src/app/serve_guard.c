/* The guard watches every request a few times a second: clients that left, bodies that do not come, streams that have
 * been silent. */
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "app/serve.h"
#include "base/memory.h"

enum { TICK_MILLISECONDS = 100 };

struct serve_guard {
    serve_server *server;
    pthread_t thread;
    atomic_bool stop;
};

/* ---- peers ------------------------------------------------------------------------------------------------------ */

serve_peer *serve_peer_new(serve_server *server, struct MHD_Connection *connection, int fd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    serve_guest *guest = serve_door_guest(server, fd);
    serve_peer *peer;

    if (!guest) return NULL;
    if (FV_ZALLOC(peer, 1) != FV_OK) {
        serve_guest_release(guest);
        return NULL;
    }
    *peer = (serve_peer){.server = server, .guest = guest, .fd = fd, .since = app_seconds()};
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
    serve_guest_release(peer->guest);
    pthread_mutex_destroy(&peer->lock);
    fv_free(peer);
}

/* The peer is locked. */
void serve_peer_phase(serve_peer *peer, serve_phase phase)
{
    peer->phase = phase;
    peer->since = app_seconds();
}

/* ---- watching --------------------------------------------------------------------------------------------------- */

bool serve_fail_timeout(serve_error *error, const char *part, double seconds)
{
    serve_fail(error, NULL, "request_timeout", "the request's %s did not come within %g s", part, seconds);
    error->status = 408;
    return false;
}

/* Ends a connection whose body keeps us waiting: no answer has begun. */
static void expire(serve_peer *peer)
{
    serve_error error;

    peer->expired = true;
    serve_fail_timeout(&error, "body", peer->server->options.timeout);
    serve_reply_raw(peer->fd, &error);
    serve_metrics_request(&peer->server->metrics, "other", 408);
    shutdown(peer->fd, SHUT_RDWR); /* libmicrohttpd sees the end, and closes */
}

static void watch_peer(serve_peer *peer, double now)
{
    pthread_mutex_lock(&peer->lock);
    if (!peer->expired) {
        switch (peer->phase) {
        case SERVE_WAITING: break; /* the door's */
        case SERVE_BODY:
            if (now - peer->since > peer->server->options.timeout) expire(peer);
            break;
        case SERVE_WORKING:
        case SERVE_SENDING:
            if (!peer->call || !peer->call->answer) break;
            if (atomic_load(&peer->guest->left)) {
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

static void *watch(void *user)
{
    struct serve_guard *guard = user;
    serve_server *server = guard->server;

    while (!atomic_load(&guard->stop)) {
        double now = app_seconds();
        pthread_mutex_lock(&server->peers_lock);
        for (serve_peer *peer = server->peers; peer; peer = peer->next)
            watch_peer(peer, now);
        pthread_mutex_unlock(&server->peers_lock);
        poll(NULL, 0, TICK_MILLISECONDS);
    }
    return NULL;
}

fv_status serve_guard_start(serve_server *server)
{
    struct serve_guard *guard;

    FV_TRY(FV_ZALLOC(guard, 1));
    guard->server = server;
    server->guard = guard;
    if (pthread_create(&guard->thread, NULL, watch, guard) == 0) return FV_OK;
    server->guard = NULL;
    fv_free(guard);
    return fv_fail(FV_E_MEMORY, "a thread cannot be started");
}

void serve_guard_stop(serve_server *server)
{
    struct serve_guard *guard = server->guard;

    if (!guard) return;
    atomic_store(&guard->stop, true);
    pthread_join(guard->thread, NULL);
    fv_free(guard);
    server->guard = NULL;
}
