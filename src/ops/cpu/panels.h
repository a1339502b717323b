/* Keys and values in the layout of the micro-kernel ("panels"), FV_KEY_TILE keys at a time, as floats or as pairs of
 * bf16:
 *   keys   [FV_KEY_TILE / tile_columns][depth][tile_columns], depth D or its pairs;
 *   values [width / tile_columns][FV_KEY_TILE or half as many pairs][tile_columns], width Dv rounded up.
 * Keys are filled up with 0 to whole columns, values to whole panels and pairs.  The blocks of a head are brought into
 * it once, by the first tile of queries that needs them, so that blocks nobody sees cost nothing.  A block is
 * FV_KEY_TILE keys that follow each other, or that follow each other in a strip of the plan's grid. */
#ifndef FV_PANELS_H
#define FV_PANELS_H

#include <stdatomic.h>

#include "ops/cpu/kernels.h"
#include "ops/plan.h"

typedef struct fv_panels {
    const float *keys, *values;
    bool finite; /* no value is NaN or infinite */
} fv_panels;

typedef struct fv_panel_store {
    const struct fv_kernels *kernels;
    fv_tensor k, v; /* v may be absent */
    bool pairs;
    int64_t depth, width;
    int64_t key_floats, value_floats; /* of a block */
    int64_t blocks;                   /* of a head */
    const fv_plan_view *strips;       /* whose strips the blocks hold; NULL: keys in their order */
    int64_t slots;                    /* heads held at a time; 0: none, panels are filled for each tile of queries */
    int64_t beside;                   /* threads that fill blocks */
    int32_t *slot;                    /* [B * Hkv]; -1: not held now */
    float *memory;                    /* [slots, blocks, key_floats + value_floats] */
    atomic_uchar *state;              /* [slots, blocks] */
} fv_panel_store;

/* Sizes; `slots` becomes 0. */
void fv_panels_open(const struct fv_kernels *kernels, const fv_tensor *k, const fv_tensor *v, bool pairs,
                    fv_panel_store *store);
/* Before memory is taken: blocks are those of a view's strips. */
void fv_panels_follow(fv_panel_store *store, const fv_plan_view *view);
/* Memory for `slots` heads, from the context's arena. */
fv_status fv_panels_hold(fv_ctx *ctx, fv_panel_store *store, int64_t slots);
/* All slots are empty again. */
void fv_panels_clear(fv_panel_store *store);

/* Floats of staging that filling needs. */
int64_t fv_panels_staging(const fv_panel_store *store);

/* Fills panels from the given rows of head h of batch b, in any order; whether no value is NaN or infinite.  Bound by
 * reading the rows: 11 to 16 ns a key (D = Dv = 64, bf16 to f32), where 64 rows of queries meet a key in 60 ns. */
bool fv_panels_fill(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count, float *staging,
                    float *keys, float *values);

/* Asks for rows that are going to be filled in: memory sees no pattern in those that lie apart, and does not look
 * across pages. */
void fv_panels_ask(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count);

/* A block of a head that is held. */
fv_panels fv_panels_block(const fv_panel_store *store, int64_t b, int64_t h, int64_t block, float *staging);

/* Row n of head h of batch b. */
const char *fv_panels_row(const fv_tensor *t, int64_t b, int64_t h, int64_t n);

#endif
