/* Prompts that were read, with their rows, for those that begin the same way. */
#ifndef FV_PREFIX_H
#define FV_PREFIX_H

#include "models/session.h"

enum { FV_MOST_PREFIXES = 48 };

typedef struct fv_prefix {
    fv_session *session; /* holds the rows of `count` tokens at least */
    int32_t *ids;
    int64_t count;
    char *setup;  /* attention and cache: rows of others are of no use */
    int64_t used; /* when it last was */
} fv_prefix;

/* Owned prompts of requests that have ended. */
typedef struct fv_prefixes {
    int count;
    fv_prefix at[FV_MOST_PREFIXES];
    int64_t clock;
} fv_prefixes;

int64_t fv_common_tokens(const int32_t *a, int64_t a_count, const int32_t *b, int64_t b_count);

/* The prompt that shares most of its beginning with ids, at most `most` tokens; *common receives how many.  -1: none.
 */
int fv_prefixes_find(fv_prefixes *prefixes, const char *setup, const int32_t *ids, int64_t most, int64_t *common);
/* Takes session, ids and setup over; what another begins with is forgotten, and the longest unused if there is no room.
 */
void fv_prefixes_add(fv_prefixes *prefixes, const fv_prefix *prefix);
bool fv_prefixes_drop_oldest(fv_prefixes *prefixes); /* false: there is none */
void fv_prefixes_clear(fv_prefixes *prefixes);

/* An empty session receives the rows of the first `count` tokens of another of the same set-up. */
fv_status fv_session_lend(fv_session *to, fv_session *from, int64_t count);

#endif
