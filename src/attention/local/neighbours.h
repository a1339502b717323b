/* Windows of neighbours on a grid of one to three axes, as options give them: what gna and na share with the operators
 * na_qk and na_av. */
#ifndef FV_NEIGHBOURS_H
#define FV_NEIGHBOURS_H

#include "attention/mechanism.h"

enum { FV_NEIGHBOURS_AXES = 3 };

/* The first member of the options of whoever has FV_NEIGHBOURS_OPTIONS.  One value counts for every axis. */
typedef struct fv_neighbours {
    fv_tuple grid, window, dilation, causal;
    fv_tuple stride; /* without items: 1 */
} fv_neighbours;

#define FV_NEIGHBOURS_OPTIONS                                                                                          \
    FV_TUPLE(fv_neighbours, grid, NULL, 1, INT32_MAX, "tokens along each of 1 to 3 axes, row-major"),                  \
        FV_TUPLE(fv_neighbours, window, NULL, 0, INT32_MAX, "tokens of the window, per axis; 0: the whole axis"),      \
        FV_TUPLE(fv_neighbours, dilation, "1", 1, INT32_MAX, "distance of neighbours, per axis"),                      \
        FV_TUPLE(fv_neighbours, causal, "0", 0, 1, "per axis: nothing behind the query")

/* The bias of logits by offset. */
#define FV_NEIGHBOURS_BIAS                                                                                             \
    FV_PARAM("rpb", "[H, R0] or [H, R0, R1] or [H, R0, R1, R2]",                                                       \
             "bias of the logits by offset, R = 2 window - 1 on each axis of odd windows, none of them causal (none)")

static inline int64_t fv_neighbours_on_axis(const fv_tuple *tuple, int axis)
{
    return tuple->items[tuple->count == 1 ? 0 : axis];
}

int64_t fv_neighbours_stride(const fv_neighbours *n, int axis);
int64_t fv_neighbours_window(const fv_neighbours *n, int axis);
/* R0, R1, R2 of the bias; -1: another name. */
int64_t fv_neighbours_size(const fv_neighbours *n, const char *name);

/* Options that contradict one another: FV_E_USAGE.  `name` owns them. */
fv_status fv_neighbours_check(const char *name, const fv_neighbours *n);
/* A bias (or none) that fits the grid (FV_E_SHAPE) and the windows (FV_E_USAGE); `causal`: every axis is. */
fv_status fv_neighbours_check_bias(const char *name, const fv_neighbours *n, bool causal, const fv_tensor *bias);

void fv_neighbours_grid(const fv_neighbours *n, bool causal, fv_grid *grid);
/* Where the first N cells stand for the bias: the offset of key j from query i is place key[j] - query[i] of a table of
 * *offsets, row-major.  Scratch memory of ctx. */
fv_status fv_neighbours_places(fv_ctx *ctx, const fv_neighbours *n, int64_t N, fv_places *places, int64_t *offsets);

#endif
