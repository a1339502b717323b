/* What the ways of attention on the CPU share: tiles of queries (attend.c), few rows (few.c), and gradients. */
#ifndef FV_CPU_ATTEND_H
#define FV_CPU_ATTEND_H

#include <stdatomic.h>

#include "ops/cpu/tiles.h"

/* Unnormalised result of the rows of an item over a piece of the keys. */
struct attend_part {
    float *o; /* [rows, width] */
    float *maximum;
    float *total; /* [rows, kernels->width]: in lanes */
    float *best;  /* largest logit, NULL if nobody asks */
    int64_t *best_key;
};

struct attend {
    const fv_attend_args *args;
    const fv_plan_view *view;
    bool given; /* the normaliser is */
    fv_tensor lse;
    fv_tiles_source source;
    fv_panel_store panels;
    fv_tiles *tiles;          /* per thread */
    float **few;              /* per thread: logits of few rows */
    float **normaliser;       /* per thread: of a tile's rows */
    struct attend_part *part; /* per item and piece, or per thread where there is one piece */
    int64_t rows, width;      /* of a part; width is Dv rounded up to whole micro-tiles */
    int64_t pieces;
    int64_t *cut;                 /* [items, pieces + 1]: first keys of an item's pieces, if there are several */
    atomic_int *done;             /* [items]: how many of an item's pieces are */
    int64_t first_item, end_item; /* those whose heads' panels are held now */
};

/* Whether products are taken in bf16: on request, or where keys and values are stored in no more than 16 bits (unless
 * the caller wants f32 throughout). */
bool fv_attend_takes_pairs(const fv_ctx *ctx, const struct fv_kernels *kernels, const fv_attend_args *args);

/* Floats of `few` for a thread. */
int64_t fv_attend_few_floats(const struct attend *a);

/* The keys [from, to) for the rows in tiles->tile, at most FV_FEW_ROWS. */
void fv_attend_few(const struct attend *a, fv_tiles *tiles, const struct attend_part *part, const float *normaliser,
                   float *logits, int64_t from, int64_t to);

#endif
