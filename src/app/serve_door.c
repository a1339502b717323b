/* The door: takes connections, and lets those in whose first request has a head that is one.  It looks without taking:
 * bytes stay in the socket (MSG_PEEK) until libmicrohttpd reads them.  So floods, garbage and clients that never finish
 * a head cost one entry here, and every refusal is told in JSON. */
#define _GNU_SOURCE /* accept4, EPOLLRDHUP */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/serve.h"
#include "app/serve_head.h"
#include "base/memory.h"

enum { TICK_MILLISECONDS = 100, EVENTS = 64 };

struct guest {
    int fd;             /* -1: the place is free */
    double came, spoke; /* spoke: when its first byte was seen; 0: never */
};

struct serve_door {
    serve_server *server;
    pthread_t thread;
    atomic_bool stop;
    int listener, poller, guests;
    struct guest guest[SERVE_CONNECTIONS];
};

static void leave(struct serve_door *door, struct guest *guest, const serve_error *error)
{
    if (error) {
        serve_reply_raw(guest->fd, error);
        serve_metrics_request(&door->server->metrics, "other", (unsigned)error->status);
        serve_linger(door->server, guest->fd);
    }
    close(guest->fd);
    guest->fd = -1;
    door->guests--;
}

static void let_in(struct serve_door *door, struct guest *guest)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;

    epoll_ctl(door->poller, EPOLL_CTL_DEL, guest->fd, NULL);
    if (getpeername(guest->fd, (struct sockaddr *)&address, &size) != 0) {
        leave(door, guest, NULL);
        return;
    }
    /* closes it where it cannot take it */
    MHD_add_connection(door->server->http, guest->fd, (struct sockaddr *)&address, size);
    guest->fd = -1;
    door->guests--;
}

/* Judges what has come; nothing is taken out of the socket. */
static void look(struct serve_door *door, struct guest *guest, bool ended)
{
    char bytes[SERVE_HEAD_MOST];
    ssize_t count = recv(guest->fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
    serve_error error;

    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
        leave(door, guest, NULL);
        return;
    }
    if (guest->spoke == 0) guest->spoke = app_seconds();
    switch (serve_head_check(bytes, (size_t)count, &error)) {
    case SERVE_HEAD_GOOD: let_in(door, guest); break;
    case SERVE_HEAD_BAD: leave(door, guest, &error); break;
    case SERVE_HEAD_PART:
        if (ended) leave(door, guest, NULL);
        break;
    }
}

static void welcome(struct serve_door *door)
{
    int fd;

    while ((fd = accept4(door->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
        int place = 0;
        if (door->guests + atomic_load(&door->server->connections) >= SERVE_CONNECTIONS) {
            close(fd);
            continue;
        }
        while (door->guest[place].fd >= 0)
            place++;
        event.data.u32 = (uint32_t)place;
        if (epoll_ctl(door->poller, EPOLL_CTL_ADD, fd, &event) != 0) {
            close(fd);
            continue;
        }
        door->guest[place] = (struct guest){.fd = fd, .came = app_seconds()};
        door->guests++;
    }
}

static void send_slow_away(struct serve_door *door, double now)
{
    double timeout = door->server->options.timeout;
    serve_error error;

    for (int i = 0; i < SERVE_CONNECTIONS; i++) {
        struct guest *guest = &door->guest[i];
        if (guest->fd < 0) continue;
        if (guest->spoke > 0 && now - guest->spoke > timeout) {
            serve_fail_timeout(&error, "head", timeout);
            leave(door, guest, &error);
        } else if (guest->spoke == 0 && now - guest->came > SERVE_IDLE_SECONDS) {
            leave(door, guest, NULL);
        }
    }
}

static void *keep(void *user)
{
    struct serve_door *door = user;
    struct epoll_event events[EVENTS];
    double last = 0, now;

    while (!atomic_load(&door->stop)) {
        int count = epoll_wait(door->poller, events, EVENTS, TICK_MILLISECONDS);
        for (int i = 0; i < count; i++) {
            uint32_t place = events[i].data.u32;
            if (place == SERVE_CONNECTIONS)
                welcome(door);
            else if (door->guest[place].fd >= 0)
                look(door, &door->guest[place], (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
        }
        now = app_seconds();
        if (now - last < TICK_MILLISECONDS / 1e3) continue;
        send_slow_away(door, now);
        last = now;
    }
    return NULL;
}

fv_status serve_door_start(serve_server *server, int listener)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = SERVE_CONNECTIONS};
    struct serve_door *door;

    FV_TRY(FV_ZALLOC(door, 1));
    door->server = server;
    door->listener = listener;
    for (int i = 0; i < SERVE_CONNECTIONS; i++)
        door->guest[i].fd = -1;
    door->poller = epoll_create1(EPOLL_CLOEXEC);
    if (door->poller >= 0 && epoll_ctl(door->poller, EPOLL_CTL_ADD, listener, &event) == 0 &&
        pthread_create(&door->thread, NULL, keep, door) == 0) {
        server->door = door;
        return FV_OK;
    }
    fv_status status = fv_fail(FV_E_IO, "connections cannot be waited for: %s", strerror(errno));
    if (door->poller >= 0) close(door->poller);
    fv_free(door);
    return status;
}

void serve_door_close(serve_server *server)
{
    struct serve_door *door = server->door;

    if (!door) return;
    atomic_store(&door->stop, true);
    pthread_join(door->thread, NULL);
    for (int i = 0; i < SERVE_CONNECTIONS; i++)
        if (door->guest[i].fd >= 0) leave(door, &door->guest[i], NULL);
    close(door->listener);
    close(door->poller);
    fv_free(door);
    server->door = NULL;
}
