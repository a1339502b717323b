/* The page under GET /, from serve_page.html (made by cmake/command.cmake). */
#ifndef APP_SERVE_PAGE_H
#define APP_SERVE_PAGE_H

#include <stddef.h>

extern const char serve_page[];
extern const size_t serve_page_bytes;

#endif
