/* The text of an answer as its tokens come: bytes are held back while they may be the start of a character, and
 * characters while they may be the start of a stop text.  Bytes that are no character become U+FFFD. */
#ifndef FV_ANSWER_H
#define FV_ANSWER_H

#include "base/text.h"
#include "models/model.h"

typedef struct fv_answer {
    const fv_model *model;
    int stops;
    const char *const *stop; /* texts that end the answer; they are not part of it */
    fv_text raw;             /* the bytes of tokens so far */
    int64_t read;            /* of them, those that became text */
    fv_text text;            /* whole characters */
    int64_t shown;           /* bytes that nothing can take back */
    int32_t *ids;
    int64_t count, capacity;
} fv_answer;

/* `stop` stays the caller's. */
fv_status fv_answer_begin(fv_answer *answer, const fv_model *model, int stops, const char *const *stop);
void fv_answer_free(fv_answer *answer);

/* Takes a token in.  *over: a stop text has come, and the text ends before it. */
fv_status fv_answer_take(fv_answer *answer, int32_t id, bool *over);

/* Text that was decided since the last call (with `all`: whatever is left, once the answer is over). */
const char *fv_answer_show(fv_answer *answer, bool all, int64_t *length);

#endif
