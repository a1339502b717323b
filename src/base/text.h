/* Text that grows.  A failed append leaves what was there and is remembered until fv_text_status is asked. */
#ifndef FV_TEXT_H
#define FV_TEXT_H

#include "base/status.h"

typedef struct fv_text {
    char *data; /* always ends with 0 once something was appended */
    int64_t length, capacity;
    fv_status status;
} fv_text;

void fv_text_add(fv_text *text, const char *bytes, int64_t count);
void fv_text_printf(fv_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
fv_status fv_text_status(const fv_text *text);
const char *fv_text_get(const fv_text *text); /* "" when empty */
void fv_text_free(fv_text *text);

/* Bytes of the well-formed UTF-8 character at `bytes` (1 to 4), or 0: cut short, overlong, a surrogate, above U+10FFFF.
 * fv_utf8_valid: how many leading bytes are whole, well-formed characters. */
int fv_utf8_length(const char *bytes, size_t count);
size_t fv_utf8_valid(const char *bytes, size_t count);

/* Bytes as a sentence can show them: shortened, with '?' for what is no character; in a ring of thread-local buffers.
 */
const char *fv_shown(const char *bytes, int64_t length);

/* Edit distance, for "did you mean"; the cost of long words is capped. */
int fv_edit_distance(const char *a, const char *b);

#endif
