/* The head of a request, and what tells where its body ends: whether they are good, before libmicrohttpd sees them,
 * whose own refusals are pages of HTML. */
#ifndef APP_SERVE_HEAD_H
#define APP_SERVE_HEAD_H

#include "app/serve_request.h"

enum { SERVE_LINE = 8192, SERVE_HEAD = 16384, SERVE_HEADERS = 100 /* and arguments, and cookies */ };
enum { SERVE_HEAD_MOST = SERVE_LINE + SERVE_HEAD + 64 }; /* bytes that are enough to judge any head */

typedef enum serve_head_state { SERVE_HEAD_PART, SERVE_HEAD_GOOD, SERVE_HEAD_BAD } serve_head_state;

typedef struct serve_head {
    size_t bytes; /* of the head, with the empty line behind it */
    int64_t body; /* bytes of the body */
    bool chunked; /* they come in chunks; body is 0 */
} serve_head;

/* Judges the bytes that have come so far: part of a head, a whole one (*head; with or without more behind it), or none
 * that will ever be good (*error). */
serve_head_state serve_head_check(const char *bytes, size_t length, serve_head *head, serve_error *error);

/* The same of the line before a chunk, *size bytes of it to come, 0: the last; and of the lines behind the last one.
 * *used: bytes of them. */
serve_head_state serve_chunk_check(const char *bytes, size_t length, int64_t *size, size_t *used, serve_error *error);
serve_head_state serve_trailer_check(const char *bytes, size_t length, size_t *used, serve_error *error);

#endif
