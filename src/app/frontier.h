/* What each cache policy costs and loses, at several budgets: what fovea eval cache measures and shows. */
#ifndef APP_FRONTIER_H
#define APP_FRONTIER_H

#include "app/compare.h"

typedef struct frontier_row {
    const char *policy; /* rows of one policy are a line; run->spec says the rest */
    const compare_run *run;
    double needle; /* mean score */
    bool best;     /* no other has less memory and as little distance, or less of both */
} frontier_row;

typedef struct frontier {
    const comparison *comparison;
    const char *lengths; /* of needles, as given */
    int count;
    frontier_row *row;
} frontier;

void frontier_mark(frontier *frontier);
/* One HTML file that needs nothing else. */
fv_status frontier_report(const char *path, const frontier *frontier);

#endif
