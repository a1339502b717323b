/* The head of a request: whether it is one, before libmicrohttpd sees it, whose own refusals are pages of HTML. */
#ifndef APP_SERVE_HEAD_H
#define APP_SERVE_HEAD_H

#include "app/serve_request.h"

enum { SERVE_LINE = 8192, SERVE_HEAD = 16384, SERVE_HEADERS = 100 };
enum { SERVE_HEAD_MOST = SERVE_LINE + SERVE_HEAD + 64 }; /* bytes that are enough to judge any head */

typedef enum serve_head_state { SERVE_HEAD_PART, SERVE_HEAD_GOOD, SERVE_HEAD_BAD } serve_head_state;

/* Judges the bytes that have come so far: part of a head, a whole one (with or without more behind it), or none that
 * will ever be good (*error). */
serve_head_state serve_head_check(const char *bytes, size_t length, serve_error *error);

#endif
