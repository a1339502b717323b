/* The keys and values of one layer of one stream: for each key-value head, rows in the order of their positions, dense
 * from a base address, in address space reserved for the longest context.  Pages become resident when a row is first
 * written there and go back when the rows of whole pages are gone, so kernels see plain strided tensors, what is
 * reserved costs nothing, and heads may hold different rows.  A row is stored once, in the storage type; everybody
 * reads what was stored. */
#ifndef FV_ROWS_H
#define FV_ROWS_H

#include "base/tensor.h"

typedef struct fv_rows_options {
    int64_t heads, key_dim, value_dim;
    int64_t capacity;              /* most rows of a head */
    fv_dtype key_type, value_type; /* f16, bf16, f32, q8_0, q4_0; blocks lie along the dim, which they must divide */
    int64_t page;                  /* bytes that are taken and given back together; 0: the system's page */
    bool shared;                   /* whole pages can be lent to other streams (fv_rows_fork) */
} fv_rows_options;

/* Keys or values: a span of `reserved` bytes for each head. */
typedef struct fv_rows_side {
    char *memory;
    size_t row_bytes, reserved;
    fv_dtype type;
    int64_t dim;
} fv_rows_side;

/* Rows first .. first+count-1 of a head's span hold something; those from `bottom` to `top` have pages. */
typedef struct fv_rows_head {
    int64_t first, count, bottom, top;
} fv_rows_head;

typedef struct fv_rows {
    fv_rows_options options;
    fv_rows_side side[2]; /* keys, values */
    int32_t *position;    /* [heads, capacity], of rows as they lie in their span */
    fv_rows_head *head;   /* [heads] */
    size_t page;
    void *lent; /* pages of others that this one reads (rows_share.c) */
} fv_rows;

/* FV_E_DTYPE, FV_E_SHAPE (a dim that blocks do not divide), FV_E_MEMORY. */
fv_status fv_rows_new(fv_rows *rows, const fv_rows_options *options);
void fv_rows_free(fv_rows *rows);  /* also of a zeroed one */
void fv_rows_clear(fv_rows *rows); /* no rows; pages go back */

static inline int64_t fv_rows_count(const fv_rows *rows, int64_t head)
{
    return rows->head[head].count;
}

/* Bytes of all rows held; of a zeroed one 0. */
static inline size_t fv_rows_used(const fv_rows *rows)
{
    size_t bytes = 0;

    for (int64_t g = 0; g < rows->options.heads; g++)
        bytes += (size_t)rows->head[g].count * (rows->side[0].row_bytes + rows->side[1].row_bytes);
    return bytes;
}

/* Positions of a head's rows, ascending. */
static inline const int32_t *fv_rows_positions(const fv_rows *rows, int64_t head)
{
    return rows->position + head * rows->options.capacity + rows->head[head].first;
}

/* Whether all heads hold rows of the same positions at the same places, so that one tensor shows them all. */
bool fv_rows_alike(const fv_rows *rows);
/* Whether heads hold exactly the positions 0 .. count-1. */
bool fv_rows_complete(const fv_rows *rows, int64_t head);

/* The place of a head's first row whose position is not below `position`. */
int64_t fv_rows_below(const fv_rows *rows, int64_t head, int64_t position);

/* Keys [1,heads,count,D] and values [1,heads,count,Dv] of `heads` heads that are alike, from `head` on. */
void fv_rows_view(const fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values);

/* Rows of positions position .. position+N-1 for every head: k [1,heads,N,D], v [1,heads,N,Dv] f32.  FV_E_MEMORY. */
fv_status fv_rows_append(fv_ctx *ctx, fv_rows *rows, const fv_tensor *k, const fv_tensor *v, int64_t position);

/* Drops rows of a head by place: `count` from `from` on; or all but keep[0..count), ascending.  The rows stay dense,
 * whole free pages go back. */
void fv_rows_erase(fv_rows *rows, int64_t head, int64_t from, int64_t count);
void fv_rows_keep(fv_rows *rows, int64_t head, const int32_t *keep, int64_t count);

/* Drops all rows of positions >= `length`, as if no more than `length` tokens had been fed.  `window` (0: none): a
 * fresh layer of that length would hold the last `window` positions, otherwise `held` says what it would hold (NULL:
 * all).  FV_E_ARGUMENT, and nothing changes, if a row that it would hold is gone. */
typedef bool fv_rows_held_fn(void *user, int64_t head, int64_t position);
fv_status fv_rows_truncate(fv_rows *rows, int64_t length, int64_t window, fv_rows_held_fn *held, void *user);

/* Replaces rows place[0..count) of a head by one, at the place and position of the last: the weighted sums of keys and
 * of values (weights NULL: the mean). */
fv_status fv_rows_merge(fv_ctx *ctx, fv_rows *rows, int64_t head, const int32_t *place, const float *weight,
                        int64_t count);

/* Stores all rows again in other types.  FV_E_DTYPE, FV_E_SHAPE, FV_E_MEMORY: nothing changes. */
fv_status fv_rows_convert(fv_ctx *ctx, fv_rows *rows, fv_dtype key_type, fv_dtype value_type);

/* Rows of positions 0 .. length-1 of `from` for an empty `to` of the same options.  FV_E_ARGUMENT: some are gone. */
fv_status fv_rows_share(fv_rows *to, fv_rows *from, int64_t length);

typedef struct fv_rows_bytes {
    size_t used;      /* of rows held */
    size_t committed; /* of pages behind them, whole pages */
    size_t reserved;  /* of address space */
} fv_rows_bytes;
void fv_rows_measure(const fv_rows *rows, fv_rows_bytes *bytes);

/* Gives back the pages that hold no row. */
void fv_rows_release(fv_rows *rows);

#endif
