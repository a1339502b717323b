/* Failing with a sentence. */
#ifndef FV_STATUS_H
#define FV_STATUS_H

#include "fovea/base.h"

/* Stores the thread's error sentence and returns `status`.  The sentence says what, where, expected, got. */
fv_status fv_fail(fv_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "where: " before the sentence of a failure that comes from below; returns `status`. */
fv_status fv_fail_in(fv_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define FV_TRY(expression)                                                                                             \
    do {                                                                                                               \
        fv_status fv_try_status_ = (expression);                                                                       \
        if (fv_try_status_ != FV_OK) return fv_try_status_;                                                            \
    } while (0)

/* As FV_TRY, where something taken must be released at `done`; needs a local `status`. */
#define FV_TRY_DONE(expression)                                                                                        \
    do {                                                                                                               \
        status = (expression);                                                                                         \
        if (status != FV_OK) goto done;                                                                                \
    } while (0)

#endif
