/* The server: what its files share.
 *
 * Threads: the door (serve_door.c) takes connections, judges heads and passes bytes on; those of libmicrohttpd read
 * requests and send answers; one runs the scheduler, and the callbacks of serve_answer.c with it; the guard
 * (serve_guard.c) watches requests.  Locks are taken in the order: the list of peers, a peer, a call. */
#ifndef APP_SERVE_H
#define APP_SERVE_H

#include <pthread.h>
#include <stdatomic.h>

#include <microhttpd.h>

#include "app/app.h"
#include "app/serve_guest.h"
#include "app/serve_metrics.h"
#include "app/serve_request.h"
#include "generate/answer.h"
#include "generate/scheduler.h"

enum { SERVE_CONNECTIONS = 1024 };
enum { SERVE_IDLE_SECONDS = 75, SERVE_STALL_SECONDS = 60, SERVE_PING_SECONDS = 5 };

typedef struct serve_server serve_server;
typedef struct serve_call serve_call;
typedef struct serve_answer serve_answer;

typedef struct serve_options {
    const char *host, *attention, *cache, *key, *alias, *cors; /* key, alias, cors: NULL for none */
    cli_texts hosts;                                           /* further names this server is called by */
    int64_t port, parallel, context, queue, max_body, kv_memory, dense_last;
    double timeout, drain;
    fv_precision precision;
} serve_options;

/* ---- connections ------------------------------------------------------------------------------------------------ */

typedef enum serve_phase {
    SERVE_WAITING, /* for a request */
    SERVE_BODY,    /* for the rest of a body */
    SERVE_WORKING, /* the scheduler has it */
    SERVE_SENDING,
} serve_phase;

typedef struct serve_peer {
    struct serve_peer *next, *before;
    serve_server *server;
    serve_guest *guest;
    int fd; /* libmicrohttpd's, whose other end the guest has */
    char remote[64];
    int64_t requests; /* so far */
    pthread_mutex_t lock;
    serve_phase phase;
    double since;     /* the last progress in this phase */
    bool expired;     /* nothing more is read from it */
    bool unread;      /* a body may still come in that nobody reads: the connection ends */
    serve_call *call; /* NULL: none */
} serve_peer;

/* ---- calls: a request and its answer ---------------------------------------------------------------------------- */

typedef struct serve_endpoint {
    const char *path;
    bool prefix; /* what follows the path is a name */
    bool post;
    bool open;       /* needs no key, and answers in any state of the server */
    serve_kind kind; /* of a post */
    enum MHD_Result (*get)(serve_call *call, const char *rest);
} serve_endpoint;

struct serve_call {
    serve_server *server;
    serve_peer *peer;
    struct MHD_Connection *connection;
    const serve_endpoint *endpoint; /* NULL: an unknown path */
    char id[40], method[16];
    double started;
    int64_t created; /* seconds since 1970 */
    unsigned status; /* of the answer; 0: none yet */
    char allow_origin[256];
    fv_text body;
    int64_t body_bytes; /* counted in the server's */
    bool begun;         /* the request has been read and acted on */
    serve_request request;
    serve_answer *answer;    /* of requests that the scheduler serves */
    struct serve_look *look; /* of POST /attention */
    atomic_int holders;      /* the connection, and the scheduler's requests */
    /* for the log */
    int64_t prompt_tokens, cached_tokens, generated_tokens;
    bool cancelled;
};

void serve_call_hold(serve_call *call);
void serve_call_release(serve_call *call);
void serve_call_drop_body(serve_call *call);

/* ---- the server ------------------------------------------------------------------------------------------------- */

enum { SERVE_LOADING, SERVE_READY, SERVE_DRAINING };

struct serve_server {
    struct app *app;
    serve_options options;
    fv_model *model;
    fv_model_info info;
    fv_scheduler *scheduler;
    struct MHD_Daemon *http;
    int64_t context;           /* tokens of a request */
    size_t longest;            /* bytes of a token, at most: longer texts than context * longest need not be read */
    const char *id;            /* the model's, as lists show it */
    char file[256], stem[256]; /* the model file's name without its folder, and without .gguf */
    bool loopback;             /* bound to an address that only this machine reaches */
    char address[128];
    int port;
    int64_t created;
    atomic_int state, calls, looks;
    atomic_uint_fast64_t serial;
    atomic_int_fast64_t body_bytes; /* of all bodies that are coming in */
    uint64_t random;                /* makes ids differ from run to run */
    serve_metrics metrics;
    pthread_mutex_t peers_lock, log_lock, look_lock;
    serve_peer *peers;
    struct serve_guard *guard;
    struct serve_door *door;
};

/* HTTP (serve_http.c): listens and answers.  FV_E_IO where the port is taken. */
fv_status serve_http_start(serve_server *server);
void serve_http_stop(serve_server *server);

/* ---- replies (serve_reply.c) ------------------------------------------------------------------------------------ */

/* Sends and releases; root NULL: out of memory. */
enum MHD_Result serve_reply_json(serve_call *call, unsigned status, json_t *root);
enum MHD_Result serve_reply_text(serve_call *call, unsigned status, const char *type, const char *text, size_t length);
enum MHD_Result serve_reply_error(serve_call *call, const serve_error *error);
/* Chunks as they come: `read` is a content reader of libmicrohttpd. */
enum MHD_Result serve_reply_stream(serve_call *call, MHD_ContentReaderCallback read);
/* An answer to a preflight: the origin's pages may send requests here. */
enum MHD_Result serve_reply_preflight(serve_call *call);
/* Writes a whole answer to the socket itself, where libmicrohttpd would not take one any more. */
void serve_reply_raw(int fd, const serve_error *error);

/* ---- endpoints --------------------------------------------------------------------------------------------------- */

const serve_endpoint *serve_endpoint_find(const char *path, const char **rest); /* serve_endpoints.c */
enum MHD_Result serve_post(serve_call *call);                                   /* a whole body has come */

/* Whether a model of that name is what is served; NULL is. */
bool serve_is_model(const serve_server *server, const char *name);

/* SPECs of a request (serve_spec.c): true if they may be used here; the scheduler judges the rest. */
bool serve_check_specs(const serve_server *server, const serve_request *request, serve_error *error);
/* The field of the request that a scheduler's failure is about. */
const char *serve_blame_spec(const serve_request *request);

/* POST /attention (serve_look.c): begins, and replies once it is done. */
enum MHD_Result serve_look(serve_call *call);
enum MHD_Result serve_look_reply(serve_call *call);
void serve_look_free(struct serve_look *look);

/* ---- generation (serve_answer.c) --------------------------------------------------------------------------------- */

/* Hands the request's prompts over to the scheduler; false: *error says why not. */
bool serve_answer_begin(serve_call *call, serve_error *error);
/* Replies once there is something to say, and suspends the connection until then. */
enum MHD_Result serve_answer_reply(serve_call *call);
/* The client is gone: the scheduler's requests are given up.  From any thread. */
void serve_answer_cancel(serve_call *call);
/* Whether it failed after its first byte: the connection ends with it. */
bool serve_answer_broke(const serve_call *call);
/* From the guard, now and then: keeps silent streams alive. */
void serve_answer_ping(serve_call *call, double now);
void serve_answer_free(serve_answer *answer);

/* ---- the door (serve_door.c) ------------------------------------------------------------------------------------- */

/* Takes connections from a listening socket, and gives libmicrohttpd what is said on them. */
fv_status serve_door_start(serve_server *server, int listener);
/* Takes no more; who has said nothing yet goes. */
void serve_door_shut(serve_server *server);
/* After libmicrohttpd has ended: passes its last words on, and lets everybody go. */
void serve_door_end(serve_server *server);
/* Who speaks to libmicrohttpd's socket `fd`, to be released; NULL: nobody does. */
serve_guest *serve_door_guest(serve_server *server, int fd);

/* ---- the guard (serve_guard.c) ----------------------------------------------------------------------------------- */

fv_status serve_guard_start(serve_server *server);
void serve_guard_stop(serve_server *server);
serve_peer *serve_peer_new(serve_server *server, struct MHD_Connection *connection, int fd);
/* Before the socket is closed. */
void serve_peer_end(serve_peer *peer);
void serve_peer_phase(serve_peer *peer, serve_phase phase);
/* 408: a part of a request did not come in time; returns false. */
bool serve_fail_timeout(serve_error *error, const char *part, double seconds);

#endif
