#define _GNU_SOURCE /* SOCK_CLOEXEC */
#include "app/serve_guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/app.h"
#include "app/serve_head.h"
#include "base/memory.h"

enum { BLOCK = 1 << 15, ROUNDS = 16 }; /* bytes at once, and how often before others have their turn */
_Static_assert((int)BLOCK >= (int)SERVE_HEAD_MOST, "a block has to hold any head");

serve_guest *serve_guest_new(struct MHD_Daemon *http, int fd)
{
    serve_guest *guest;

    if (FV_ZALLOC(guest, 1) != FV_OK) return NULL;
    atomic_init(&guest->holders, 1);
    guest->http = http;
    guest->fd = fd;
    guest->inner = guest->outer = -1;
    guest->since = app_seconds();
    return guest;
}

void serve_guest_release(serve_guest *guest)
{
    if (atomic_fetch_sub(&guest->holders, 1) == 1) fv_free(guest);
}

/* Brings the guest and libmicrohttpd together, when there is something to say. */
static bool join(serve_guest *guest)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    int pair[2];

    if (getpeername(guest->fd, (struct sockaddr *)&address, &size) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    guest->inner = pair[0];
    guest->outer = pair[1];
    /* closes its end where it cannot take it */
    MHD_add_connection(guest->http, guest->outer, (struct sockaddr *)&address, size);
    return true;
}

/* ---- what the client says --------------------------------------------------------------------------------------- */

/* A few bytes of our own, all or none.  Who does not listen any more is as good as one who does. */
static bool say(const serve_guest *guest, const char *text)
{
    return send(guest->inner, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           (errno != EAGAIN && errno != EINTR);
}

/* libmicrohttpd gets a request in place of the bad one, or in the middle of a body a chunk more, and asks when its turn
 * comes what to answer.  false: it takes nothing at the moment. */
static bool send_refusal(serve_guest *guest)
{
    bool head = guest->stage == SERVE_GUEST_HEAD;

    atomic_store(&guest->bad, guest->requests + head);
    if (!say(guest, head                                    ? "- / HTTP/1.0\r\n\r\n"
                    : guest->stage == SERVE_GUEST_CHUNK_END ? "\r\n1\r\n \r\n"
                                                            : "1\r\n \r\n"))
        return false;
    guest->requests += head;
    guest->stage = SERVE_GUEST_REFUSED;
    return true;
}

bool serve_guest_refuse(serve_guest *guest, const serve_error *error)
{
    if (guest->inner < 0 && !join(guest)) return false;
    if (atomic_load(&guest->bad) == 0) guest->error = *error;
    (void)send_refusal(guest); /* otherwise it is judged again */
    return true;
}

/* What to do with the bytes that come next. */
enum verdict { GO_ON, WAIT, END };

static enum verdict refuse(serve_guest *guest, const serve_error *error)
{
    return serve_guest_refuse(guest, error) ? WAIT : END;
}

static enum verdict judge_head(serve_guest *guest, const char *bytes, size_t count)
{
    serve_error error;
    serve_head head;
    serve_head_state state = serve_head_check(bytes, count, &head, &error);

    guest->begun = true;
    if (state == SERVE_HEAD_PART) return atomic_load(&guest->left) ? END : WAIT;
    if (state == SERVE_HEAD_BAD) return refuse(guest, &error);
    if (guest->inner < 0 && !join(guest)) return END;
    guest->begun = false;
    guest->head_since = 0;
    guest->since = app_seconds();
    guest->requests++;
    guest->pass = (int64_t)head.bytes + head.body;
    if (head.chunked) guest->stage = SERVE_GUEST_CHUNK;
    return GO_ON;
}

/* Chunks are told with lines of our own: there is one way to read those. */
static enum verdict judge_chunk(serve_guest *guest, const char *bytes, size_t count, size_t *drop)
{
    int64_t size;
    char line[32];
    serve_error error;
    serve_head_state state = serve_chunk_check(bytes, count, &size, drop, &error);

    if (state == SERVE_HEAD_BAD) return refuse(guest, &error);
    if (state == SERVE_HEAD_PART) return WAIT;
    snprintf(line, sizeof line, "%llx\r\n", (unsigned long long)size);
    if (size > 0 && !say(guest, line)) return WAIT;
    guest->pass = size;
    guest->stage = size > 0 ? SERVE_GUEST_CHUNK_END : SERVE_GUEST_TRAILER;
    return GO_ON;
}

static enum verdict judge_chunk_end(serve_guest *guest, const char *bytes, size_t count, size_t *drop)
{
    serve_error error;

    if (bytes[0] != '\r' || (count > 1 && bytes[1] != '\n')) {
        serve_fail(&error, NULL, "bad_request", "a chunk does not end where its size says");
        return refuse(guest, &error);
    }
    if (count < 2 || !say(guest, "\r\n")) return WAIT;
    *drop = 2;
    guest->stage = SERVE_GUEST_CHUNK;
    return GO_ON;
}

static enum verdict judge_trailer(serve_guest *guest, const char *bytes, size_t count, size_t *drop)
{
    serve_error error;
    serve_head_state state = serve_trailer_check(bytes, count, drop, &error);

    if (state == SERVE_HEAD_BAD) return refuse(guest, &error);
    if (state == SERVE_HEAD_PART || !say(guest, "0\r\n\r\n")) return WAIT;
    guest->stage = SERVE_GUEST_HEAD;
    return GO_ON;
}

/* GO_ON: guest->pass bytes pass, or *drop bytes are read and forgotten. */
static enum verdict judge(serve_guest *guest, const char *bytes, size_t count, size_t *drop)
{
    switch (guest->stage) {
    case SERVE_GUEST_HEAD: return judge_head(guest, bytes, count);
    case SERVE_GUEST_CHUNK: return judge_chunk(guest, bytes, count, drop);
    case SERVE_GUEST_CHUNK_END: return judge_chunk_end(guest, bytes, count, drop);
    case SERVE_GUEST_TRAILER: return judge_trailer(guest, bytes, count, drop);
    case SERVE_GUEST_REFUSED: return WAIT;
    case SERVE_GUEST_LEAVING: *drop = count;
    }
    return GO_ON;
}

static size_t pass_on(serve_guest *guest, const char *bytes, size_t count)
{
    size_t most = (int64_t)count < guest->pass ? count : (size_t)guest->pass;
    ssize_t sent = send(guest->inner, bytes, most, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent <= 0) return 0;
    guest->pass -= sent;
    return (size_t)sent;
}

/* Takes from the client; false: nothing will come any more. */
static bool hear(serve_guest *guest, char *bytes)
{
    for (int round = 0; round < ROUNDS; round++) {
        ssize_t count = recv(guest->fd, bytes, BLOCK, MSG_PEEK | MSG_DONTWAIT);
        size_t used = 0;
        enum verdict verdict = GO_ON;
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
        if (count <= 0) return false;
        if (guest->pass == 0) verdict = judge(guest, bytes, (size_t)count, &used);
        if (verdict != GO_ON) return verdict == WAIT;
        if (used == 0) used = pass_on(guest, bytes, (size_t)count);
        if (used == 0) return true;
        (void)recv(guest->fd, NULL, used, MSG_TRUNC | MSG_DONTWAIT);
    }
    guest->more = true;
    return true;
}

/* ---- what it is told -------------------------------------------------------------------------------------------- */

/* Takes from libmicrohttpd; false: the client takes no more. */
static bool tell(serve_guest *guest, char *bytes)
{
    for (int round = 0; guest->inner >= 0 && round < ROUNDS; round++) {
        ssize_t count = recv(guest->inner, bytes, BLOCK, MSG_PEEK | MSG_DONTWAIT), sent;
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
        if (count <= 0) { /* a reset only says that not all was read */
            close(guest->inner);
            guest->inner = -1;
            guest->stage = SERVE_GUEST_LEAVING;
            guest->pass = 0;
            guest->since = app_seconds();
            shutdown(guest->fd, SHUT_WR);
            return true;
        }
        sent = send(guest->fd, bytes, (size_t)count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
        if (sent > 0) (void)recv(guest->inner, bytes, (size_t)sent, MSG_DONTWAIT);
        if (sent > 0) guest->stuck_since = 0;
        if (sent < count && guest->stuck_since == 0) guest->stuck_since = app_seconds();
        if (sent < 0) return true;
    }
    guest->more = guest->inner >= 0;
    return true;
}

bool serve_guest_pass(serve_guest *guest)
{
    char bytes[BLOCK];

    guest->more = false;
    if (!tell(guest, bytes)) return false;
    if (hear(guest, bytes)) return true;
    if (guest->inner < 0) return false;
    /* libmicrohttpd sees the end of what is said, but may have something to say itself */
    atomic_store(&guest->left, true);
    shutdown(guest->inner, SHUT_WR);
    return true;
}
