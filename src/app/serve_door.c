/* The door: takes connections, keeps watch over who says nothing, and passes on what is said (serve_guest.c).  So
 * floods, garbage and clients that never finish a head cost one entry here, and every refusal is told in JSON. */
#define _GNU_SOURCE /* accept4, EPOLLRDHUP */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/serve.h"
#include "base/memory.h"

enum { TICK_MILLISECONDS = 100, EVENTS = 64, LINGER_SECONDS = 2 };
enum { INNER = 1 << 16, PLACE = INNER - 1 }; /* of an event: whether of the pair's socket, and whose */

struct serve_door {
    serve_server *server;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    bool shut;
    double end; /* when the last words are not waited for any more; 0: it is not over */
    int listener, poller, guests;
    serve_guest *guest[SERVE_CONNECTIONS]; /* NULL: the place is free */
};

static void leave(struct serve_door *door, int place)
{
    serve_guest *guest = door->guest[place];

    atomic_store(&guest->left, true);
    close(guest->fd);
    if (guest->inner >= 0) close(guest->inner);
    guest->outer = -1;
    door->guest[place] = NULL;
    door->guests--;
    serve_guest_release(guest);
}

static bool watch(struct serve_door *door, int fd, int name)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = (uint32_t)name};

    return epoll_ctl(door->poller, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void pass(struct serve_door *door, int place)
{
    serve_guest *guest = door->guest[place];
    bool good = serve_guest_pass(guest);

    if (good && guest->inner >= 0 && !guest->watched) good = guest->watched = watch(door, guest->inner, place | INNER);
    if (!good) leave(door, place);
}

static void welcome(struct serve_door *door)
{
    int fd, on = 1;

    while ((fd = accept4(door->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        serve_guest *guest = door->guests < SERVE_CONNECTIONS ? serve_guest_new(door->server->http, fd) : NULL;
        int place = 0;
        while (guest && door->guest[place])
            place++;
        if (!guest || !watch(door, fd, place)) {
            if (guest) serve_guest_release(guest);
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        door->guest[place] = guest;
        door->guests++;
    }
}

/* ---- the clock -------------------------------------------------------------------------------------------------- */

/* Who has not finished a head in time is told so; others who keep us waiting go. */
static void check_time(struct serve_door *door, int place, double now)
{
    serve_guest *guest = door->guest[place];
    double timeout = door->server->options.timeout;
    serve_error error;

    if (guest->stage == SERVE_GUEST_LEAVING
            ? now - guest->since > LINGER_SECONDS
            : guest->stuck_since > 0 && now - guest->stuck_since > SERVE_STALL_SECONDS) {
        leave(door, place);
    } else if (guest->stage != SERVE_GUEST_HEAD || atomic_load(&guest->answered) < guest->requests) {
        if (guest->stage != SERVE_GUEST_LEAVING) guest->since = now;
        guest->head_since = 0;
    } else if (!guest->begun) {
        guest->head_since = 0;
        if (now - guest->since > SERVE_IDLE_SECONDS) leave(door, place);
    } else if (guest->head_since == 0) {
        guest->head_since = now;
    } else if (now - guest->head_since > timeout) {
        serve_fail_timeout(&error, "head", timeout);
        if (!serve_guest_refuse(guest, &error))
            leave(door, place);
        else
            pass(door, place);
    }
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static void take_events(struct serve_door *door, const struct epoll_event *events, int count)
{
    bool knocks = false;

    for (int i = 0; i < count; i++) {
        int place = (int)(events[i].data.u32 & PLACE);
        bool inner = events[i].data.u32 & INNER;
        if (place == SERVE_CONNECTIONS) {
            knocks = true;
        } else if (door->guest[place]) {
            if (!inner && (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
                atomic_store(&door->guest[place]->left, true);
            pass(door, place);
        }
    }
    if (knocks && !door->shut) welcome(door); /* now that no event is of somebody who had the place before */
}

/* Gives those their turn who had more to say than is passed on at once; true: some still have. */
static bool take_more(struct serve_door *door)
{
    bool more = false;

    for (int place = 0; place < SERVE_CONNECTIONS; place++) {
        if (door->guest[place] && door->guest[place]->more) pass(door, place);
        more |= door->guest[place] && door->guest[place]->more;
    }
    return more;
}

/* Whether words of libmicrohttpd, which has ended, are still on their way. */
static bool is_over(const struct serve_door *door)
{
    bool words = false;

    for (int place = 0; place < SERVE_CONNECTIONS; place++)
        words |= door->guest[place] && door->guest[place]->inner >= 0;
    return door->end > 0 && (!words || app_seconds() > door->end);
}

static void *keep(void *user)
{
    struct serve_door *door = user;
    struct epoll_event events[EVENTS];
    double last = 0;
    bool more = false, over = false;

    while (!over) {
        int count = epoll_wait(door->poller, events, EVENTS, more ? 0 : TICK_MILLISECONDS);
        double now = app_seconds();
        pthread_mutex_lock(&door->lock);
        take_events(door, events, count);
        more = take_more(door);
        for (int place = 0; place < SERVE_CONNECTIONS && now - last >= TICK_MILLISECONDS / 1e3; place++)
            if (door->guest[place]) check_time(door, place, now);
        if (now - last >= TICK_MILLISECONDS / 1e3) last = now;
        over = is_over(door);
        pthread_mutex_unlock(&door->lock);
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
    pthread_mutex_init(&door->lock, NULL);
    server->door = door; /* before a guest can be asked for */
    door->poller = epoll_create1(EPOLL_CLOEXEC);
    if (door->poller >= 0 && epoll_ctl(door->poller, EPOLL_CTL_ADD, listener, &event) == 0 &&
        pthread_create(&door->thread, NULL, keep, door) == 0)
        return FV_OK;
    fv_status status = fv_fail(FV_E_IO, "connections cannot be waited for: %s", strerror(errno));
    if (door->poller >= 0) close(door->poller);
    pthread_mutex_destroy(&door->lock);
    fv_free(door);
    server->door = NULL;
    return status;
}

serve_guest *serve_door_guest(serve_server *server, int fd)
{
    struct serve_door *door = server->door;
    serve_guest *found = NULL;

    pthread_mutex_lock(&door->lock);
    for (int place = 0; place < SERVE_CONNECTIONS && !found; place++)
        if (door->guest[place] && door->guest[place]->outer == fd) found = door->guest[place];
    if (found) found->outer = -1;
    if (found) atomic_fetch_add(&found->holders, 1);
    pthread_mutex_unlock(&door->lock);
    return found;
}

void serve_door_shut(serve_server *server)
{
    struct serve_door *door = server->door;

    if (!door || door->shut) return;
    pthread_mutex_lock(&door->lock);
    door->shut = true;
    close(door->listener);
    for (int place = 0; place < SERVE_CONNECTIONS; place++)
        if (door->guest[place] && door->guest[place]->inner < 0 && door->guest[place]->stage == SERVE_GUEST_HEAD)
            leave(door, place);
    pthread_mutex_unlock(&door->lock);
}

void serve_door_end(serve_server *server)
{
    struct serve_door *door = server->door;

    if (!door) return;
    pthread_mutex_lock(&door->lock);
    door->end = app_seconds() + LINGER_SECONDS;
    pthread_mutex_unlock(&door->lock);
    pthread_join(door->thread, NULL);
    for (int place = 0; place < SERVE_CONNECTIONS; place++)
        if (door->guest[place]) leave(door, place);
    close(door->poller);
    pthread_mutex_destroy(&door->lock);
    fv_free(door);
    server->door = NULL;
}
