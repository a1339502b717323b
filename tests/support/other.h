/* Some heads of a twin's call by another definition, where two names must agree. */
#ifndef FV_OTHER_H
#define FV_OTHER_H

#include "support/beside.h"

struct other {
    sheet_option option[6];
    double values[6][4];
    double *o, *lse; /* [heads, N, Dv] and [heads, N] */
};

struct other *other_make(const struct twin *f, int64_t heads);
void other_drop(struct other *other);
/* Another option, of up to three ints. */
void other_set(struct other *other, const char *name, int count, int64_t a, int64_t b, int64_t c);
/* Query heads head .. head+heads-1 of f, which has one batch. */
void other_forward(struct other *other, const sheet *definition, const struct twin *f, int64_t head, int64_t heads);
/* These came out of f as by the other definition. */
void other_agrees(const struct twin *f, const struct other *other, int64_t head, int64_t heads);

/* f, asked for its lse too. */
struct twin *other_with_lse(struct twin *f);

#endif
