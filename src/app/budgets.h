/* SPECs of mechanisms and policies that read or keep a given share of a text. */
#ifndef APP_BUDGETS_H
#define APP_BUDGETS_H

#include "cache/policy.h"

enum { BUDGET_SPEC = 256 };

/* Options with a place for a number: the keys that a query may read, less those it reads anyway, in units, and at least
 * so many of these.  No options: it has no such number. */
typedef struct budget {
    const char *options; /* "block=64,top=%lld" */
    int unit, anyway, least;
    bool in_keys; /* the number counts keys all the same */
} budget;

/* "moba:block=64,top=4"; the number in it. */
long long budget_spec(const char *name, const budget *of, double keys, char spec[BUDGET_SPEC]);

/* "snapkv:budget=512", of a policy with a sweep. */
void budget_policy_spec(const fv_policy *policy, int64_t percent, int64_t rows, char spec[BUDGET_SPEC]);

/* Whether a name stands in a list "a,b". */
bool budget_named(const char *list, const char *name);

#endif
