/* Scores of a prompt's last queries from their definition (SnapKV and its kin), in doubles. */
#ifndef FV_WINDOW_TWIN_H
#define FV_WINDOW_TWIN_H

#include "policies/policies.h"

typedef struct window_twin {
    int64_t window, kernel; /* window: given, or found from the prompt before its first token */
    bool max;
    double *sum; /* [heads, count]: of the layer's window so far */
} window_twin;

void window_twin_begin(window_twin *w, const tiny_model *m, int64_t window, int64_t kernel, bool max);
void window_twin_end(window_twin *w);
/* After each token: adds the weights of those in the window. */
void window_twin_add(window_twin *w, const tiny_cache *c);
/* Adds a head's smoothed sums, divided by `among`, to score [columns]. */
void window_twin_score(const window_twin *w, const tiny_cache *c, int64_t h, double among, int64_t columns,
                       double *score);
/* Marks the `count` largest of score [columns], lower places first.  Returns how clear that was: what lies between the
 * least of them and the largest other one, relative to it; infinite where they are equal, and places decide. */
double window_twin_best(const double *score, int64_t columns, int64_t count, bool *kept);
/* Holds, of each key-value head, the `chosen` best by the mean of its query heads (of all: layer), and the window. */
void window_twin_keep(const window_twin *w, tiny_cache *c, bool layer, int64_t chosen);

#endif
