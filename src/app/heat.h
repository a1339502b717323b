/* Maps of numbers as inline SVG for pages: rows from top to bottom, columns from left to right, colours from the least
 * to the most, numbers under the pointer. */
#ifndef APP_HEAT_H
#define APP_HEAT_H

#include "base/text.h"

typedef struct heat_map {
    const char *title, *help;        /* words for people */
    const char *row, *column, *axes; /* what they are: "layer", "head", "layers down, heads across" */
    int64_t rows, columns;
    const double *value;                /* [rows, columns]; NAN: there is none */
    const char *(*words)(double value); /* a number, in the ring of app_words */
} heat_map;

/* A figure of a grid. */
void heat_draw(fv_text *out, const heat_map *map);

#endif
