/* Pictures of who reads whom: the pairs a mechanism reads, and beside them what attention gives each. */
#ifndef APP_PICTURE_H
#define APP_PICTURE_H

#include <stdio.h>

#include "attention/attention.h"
#include "base/text.h"

/* Queries from top to bottom, keys from left to right, a square of cells; one for each head. */
typedef struct app_picture {
    int64_t size, cells; /* queries and keys, and cells along a side: of as many queries and keys, but for rounding */
    int64_t first, heads;
    bool causal, weighed; /* dense attention would be; attention was looked at */
    bool thin;            /* one query of each line of cells is looked at, not all */
    /* [heads,cells,cells] but for the first, which is for all heads: sums over the queries looked at, to each of which
     * all keys it may see are worth 1 together: every key alike; of that, the keys that are read; attention. */
    float *even, *seen, *weight;
    double *read, *reached; /* [heads]: pairs read; attention on them */
    double possible;        /* pairs that dense attention has */
    int64_t queries;        /* looked at */
    uint8_t *map;           /* [size,size] of a picture of one head, whether a pair is read; NULL: not kept */
    double seconds;         /* that whoever looks spends on it */
} app_picture;

enum { APP_PICTURE_CELLS = 256 };

/* size, first, heads, causal, weighed and thin are set; as many cells as there are queries, at most
 * APP_PICTURE_CELLS. */
fv_status app_picture_new(app_picture *picture, bool keep_map);
void app_picture_free(app_picture *picture);

/* Looks at the queries of a causal call: the pairs that are read, and attention as the call has it, with the terms of
 * `extra`, to all keys or those in a window (0: none). */
fv_status app_picture_look(app_picture *picture, fv_ctx *ctx, const fv_call *call, const fv_logits *extra,
                           int64_t window, const fv_pairs *pairs);
/* The same of a map u8 [1,1,size,size], without attention. */
void app_picture_map(app_picture *picture, const fv_tensor *map);

double app_picture_density(const app_picture *picture, int64_t head); /* pairs read, of dense's */
double app_picture_reached(const app_picture *picture, int64_t head); /* mean share of attention on what is read */

/* ---- drawing (picture_draw.c); `head` counts from the picture's first ---------------------------------------------
 */

/* Lines of block characters, at most 80 columns wide, and what they mean. */
fv_status app_picture_print(const app_picture *picture, int64_t head, FILE *stream);
/* Files that need nothing else; `title` and `words` are text.  FV_E_IO, FV_E_MEMORY. */
fv_status app_picture_svg(const app_picture *picture, int64_t head, const char *title, const char *words,
                          const char *path);
fv_status app_picture_png(const app_picture *picture, int64_t head, const char *path);
/* Two images side by side, for pages. */
void app_picture_html(fv_text *out, const app_picture *picture, int64_t head);

#endif
