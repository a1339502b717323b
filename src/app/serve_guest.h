/* A guest: a client's connection.  What it says is judged, head by head, and passed on to libmicrohttpd, and what that
 * answers is passed back: they speak over a pair of sockets.  Bytes stay in the socket they came from until the other
 * one has taken them, so nothing is kept here, and who does not read is not read from either. */
#ifndef APP_SERVE_GUEST_H
#define APP_SERVE_GUEST_H

#include <stdatomic.h>

#include <microhttpd.h>

#include "app/serve_request.h"

typedef enum serve_guest_stage {
    SERVE_GUEST_HEAD,
    SERVE_GUEST_CHUNK,     /* the line before one */
    SERVE_GUEST_CHUNK_END, /* the one behind it */
    SERVE_GUEST_TRAILER,   /* the lines behind the last one */
    SERVE_GUEST_REFUSED,   /* nothing more is passed on */
    SERVE_GUEST_LEAVING,   /* all has been said; what still comes is read and forgotten, so that closing does not take
                              the last answer away (a socket closed with unread bytes is reset) */
} serve_guest_stage;

typedef struct serve_guest {
    atomic_int holders; /* the door, and libmicrohttpd's connection */
    struct MHD_Daemon *http;
    int fd, inner; /* the client's socket; our end of the pair, -1: none yet, or none any more */
    int outer;     /* libmicrohttpd's end, until that has told of it; -1 */
    serve_guest_stage stage;
    int64_t pass;       /* bytes that may pass before the stage goes on */
    bool watched;       /* the door waits for words of libmicrohttpd */
    bool begun;         /* a part of a head has come */
    bool more;          /* there was more to do than was done at once */
    double since;       /* the last time that anybody was busy with it, and not it with us */
    double head_since;  /* a part of a head was seen; 0: none */
    double stuck_since; /* it does not read; 0: it does */
    int64_t requests;   /* that were passed on */
    serve_error error;  /* of request number `bad` */
    /* for any thread */
    atomic_int_fast64_t answered;
    atomic_int_fast64_t bad; /* the request, from 1 on, that is to be refused; 0: none */
    atomic_bool left;        /* the client closed its connection, or its sending half */
} serve_guest;

/* All of these are the door's. */
serve_guest *serve_guest_new(struct MHD_Daemon *http, int fd); /* NULL: no memory */
void serve_guest_release(serve_guest *guest);
/* Passes on what there is, both ways; false: there is nobody to pass to any more. */
bool serve_guest_pass(serve_guest *guest);
/* What the guest says next is not passed on, and its request refused when its turn comes. */
bool serve_guest_refuse(serve_guest *guest, const serve_error *error);

#endif
