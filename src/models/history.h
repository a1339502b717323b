/* What a session remembers under a policy that filters prompts: every token fed, since the next prompt is judged with
 * all of them, and where those that it holds stand in the text. */
#ifndef FV_HISTORY_H
#define FV_HISTORY_H

#include "base/memory.h"

typedef struct fv_history {
    int32_t *ids, *position;        /* [tokens], [held], ascending */
    int64_t tokens, held;           /* fed, and held */
    int64_t tokens_room, held_room; /* capacities */
} fv_history;

/* Room for `more` tokens, and where they will stand.  FV_E_MEMORY. */
fv_status fv_history_reserve(fv_history *history, int64_t more);
/* Tokens that were fed and are held, of those there is room for. */
void fv_history_add(fv_history *history, const int32_t *ids, int64_t count);
void fv_history_clear(fv_history *history);
void fv_history_free(fv_history *history);

#endif
