/* The keys and values of one layer of one stream: for each key-value head, rows in the order of their positions, dense
 * from a base address, in address space reserved for the longest context.  Pages become resident when a row is first
 * written there and go back when the rows of whole pages are gone, so kernels see plain strided tensors, what is
 * reserved costs nothing, and heads may hold different rows.  A row is stored once, in the storage type; everybody
 * reads what was stored.
 *
 * Places where rows may lie: pages of the stream's own; pages that several streams read (fv_rows_share) and that nobody
 * writes, since who wants to write gets a copy of those pages first; a file (fv_rows_offload); and, for the oldest rows
 * of all heads, whatever takes less memory (cold.h).  Different streams may be changed by different threads at the same
 * time, also where they share pages. */
#ifndef FV_ROWS_H
#define FV_ROWS_H

#include "base/tensor.h"
#include "cache/lender.h"
#include "cache/offload.h"
#include "cache/pages.h"

struct fv_rows;
struct fv_rows_map;             /* rows_share.c */
struct fv_rows_away;            /* rows_offload.c */
typedef struct fv_cold fv_cold; /* cold.h */

typedef struct fv_rows_options {
    int64_t heads, key_dim, value_dim;
    int64_t capacity;              /* most rows of a head */
    fv_dtype key_type, value_type; /* f16, bf16, f32, q8_0, q4_0; blocks lie along the dim, which they must divide */
    int64_t page;                  /* bytes that are taken and given back together; 0: the system's page */
    bool shared;                   /* whole pages can be lent to other streams (fv_rows_share) */
    fv_lender *lender;             /* the file they lie in; NULL: one of their own */
    fv_pages *pages;               /* not NULL: rows lie in tensors of this pool, [tokens, layers, heads, dim] */
    int64_t layers, layer;         /* of one tensor, 0: 1; this is which of them */
    const struct fv_rows *beside;  /* rows of another layer in the same tensors; NULL: new ones */
} fv_rows_options;

/* Keys or values: row i of head g begins at memory + g * apart + i * stride. */
typedef struct fv_rows_side {
    char *memory;
    size_t row_bytes, stride, apart;
    size_t reserved;  /* bytes of a head's span, 0 in a pool's tensor */
    size_t alignment; /* bytes that were reserved before memory, to align it */
    fv_slab *slab;    /* the pool's tensor */
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
    struct fv_rows_map *map;   /* where pages lie that may be shared; NULL: all are its own */
    struct fv_rows_away *away; /* rows in a file; NULL: none ever were */
    fv_cold *cold;             /* the oldest rows, where memory does not hold them as they are; NULL: it does */
    bool refused;              /* memory for a change of shared pages was refused: the next append says so */
} fv_rows;

/* FV_E_DTYPE, FV_E_SHAPE (a dim that blocks do not divide), FV_E_MEMORY.  Without shared memory from the system rows
 * are made all the same, and lend copies. */
fv_status fv_rows_new(fv_rows *rows, const fv_rows_options *options);
void fv_rows_free(fv_rows *rows);  /* also of a zeroed one */
void fv_rows_clear(fv_rows *rows); /* no rows; pages go back */

static inline int64_t fv_rows_count(const fv_rows *rows, int64_t head)
{
    return rows->head[head].count;
}

/* Positions of a head's rows, ascending. */
static inline const int32_t *fv_rows_positions(const fv_rows *rows, int64_t head)
{
    return rows->position + head * rows->options.capacity + rows->head[head].first;
}

/* Rows of a head that there are, cold ones too, and their positions. */
int64_t fv_rows_all(const fv_rows *rows, int64_t head);
static inline const int32_t *fv_rows_all_positions(const fv_rows *rows, int64_t head)
{
    return fv_rows_positions(rows, head) - (fv_rows_all(rows, head) - fv_rows_count(rows, head));
}

/* Whether all heads hold rows of the same positions at the same places, so that one tensor shows them all. */
bool fv_rows_alike(const fv_rows *rows);
/* Whether heads hold exactly the positions 0 .. count-1. */
bool fv_rows_complete(const fv_rows *rows, int64_t head);

/* The place of a head's first row whose position is not below `position`. */
int64_t fv_rows_below(const fv_rows *rows, int64_t head, int64_t position);

/* Keys [1,heads,count,D] and values [1,heads,count,Dv] of `heads` heads that are alike, from `head` on: of the rows in
 * memory. */
void fv_rows_view(const fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values);

/* The same of all rows, cold ones too: where there are any, copies in scratch memory.  FV_E_IO, FV_E_MEMORY. */
fv_status fv_rows_view_all(fv_ctx *ctx, fv_rows *rows, int64_t head, int64_t heads, fv_tensor *keys, fv_tensor *values);

/* Rows of positions position .. position+N-1 for every head: k [1,heads,N,D], v [1,heads,N,Dv] f32.  FV_E_MEMORY. */
fv_status fv_rows_append(fv_ctx *ctx, fv_rows *rows, const fv_tensor *k, const fv_tensor *v, int64_t position);

/* Drops rows of a head by place: `count` from `from` on; or all but keep[0..count), ascending.  The rows stay dense,
 * whole free pages go back.  FV_E_MEMORY: pages that others read would have to be copied and the system refused;
 * nothing has changed, and if nobody looks, the next append fails. */
fv_status fv_rows_erase(fv_rows *rows, int64_t head, int64_t from, int64_t count);
fv_status fv_rows_keep(fv_rows *rows, int64_t head, const int32_t *keep, int64_t count);

/* Drops all rows of positions >= `length`, as if no more than `length` tokens had been fed.  `window` (0: none): a
 * fresh layer of that length would hold the last `window` positions, otherwise `held` says what it would hold (NULL:
 * all).  Rows in a file are held.  FV_E_ARGUMENT, and nothing changes, if a row that it would hold is gone, or would
 * not be where it is (cold.h). */
typedef bool fv_rows_held_fn(void *user, int64_t head, int64_t position);
fv_status fv_rows_truncate(fv_rows *rows, int64_t length, int64_t window, fv_rows_held_fn *held, void *user);

/* Replaces rows place[0..count) of a head by one, at the place and position of the last: the weighted sums of keys and
 * of values (weights NULL: the mean). */
fv_status fv_rows_merge(fv_ctx *ctx, fv_rows *rows, int64_t head, const int32_t *place, const float *weight,
                        int64_t count);

/* Stores all rows again in other types, those in a file too.  FV_E_DTYPE, FV_E_SHAPE, FV_E_MEMORY, FV_E_IO,
 * FV_E_ARGUMENT (some are cold): nothing changes. */
fv_status fv_rows_convert(fv_ctx *ctx, fv_rows *rows, fv_dtype key_type, fv_dtype value_type);

/* ---- sharing (rows_share.c) ------------------------------------------------------------------------------------- */

/* `to`, which is empty and was made with the options of `from`, receives its rows of positions 0 .. length-1: of whole
 * pages not a byte is copied.  FV_E_ARGUMENT if `from` does not hold all of them in memory, FV_E_MEMORY; `to` is empty
 * then.  `from` stays as it is to its readers.  Where pages cannot be shared (fv_rows_shares) rows are copied. */
fv_status fv_rows_share(fv_rows *to, fv_rows *from, int64_t length);
/* The same for a layer with a window of its own (0: none): the rows max(0, length - window) .. length-1. */
fv_status fv_rows_share_window(fv_rows *to, fv_rows *from, int64_t length, int64_t window);
/* All rows, whatever they are, of every head.  FV_E_ARGUMENT if rows lie in a file, or are cold. */
fv_status fv_rows_fork(fv_rows *to, fv_rows *from);
static inline bool fv_rows_shares(const fv_rows *rows) /* whether pages can be shared */
{
    return rows->map != NULL;
}

/* ---- rows in a file (rows_offload.c) ---------------------------------------------------------------------------- */

/* Moves rows of a head, `count` by place from `from` on, to a file: they are no longer held in memory.  `file` serves
 * all layers of a stream, and outlives the rows; it is given with the first call and later ones may give NULL.
 * FV_E_IO (the disk is full, and the like), FV_E_MEMORY: nothing has changed. */
fv_status fv_rows_offload(fv_rows *rows, fv_offload *file, int64_t head, int64_t from, int64_t count);
/* The same of rows by place, ascending. */
fv_status fv_rows_offload_some(fv_rows *rows, fv_offload *file, int64_t head, const int32_t *place, int64_t count);
/* Brings rows of a head back, by position, ascending, each to its place in the order.  FV_E_ARGUMENT: one of them is
 * not in the file; FV_E_IO: the file was cut or changed; FV_E_MEMORY.  Nothing has changed then. */
fv_status fv_rows_fetch(fv_rows *rows, int64_t head, const int32_t *position, int64_t count);
/* Begins to read rows that will be fetched next, while the caller computes: a fetch of some of them takes them from
 * memory.  A hint: what goes wrong shows in the fetch. */
void fv_rows_prefetch(fv_rows *rows, int64_t head, const int32_t *position, int64_t count);
/* Positions of a head's rows in the file, ascending; valid until the rows change. */
const int32_t *fv_rows_offloaded(const fv_rows *rows, int64_t head, int64_t *count);

/* ---- memory figures --------------------------------------------------------------------------------------------- */

typedef struct fv_rows_bytes {
    size_t used;      /* of rows held in memory, cold ones too */
    size_t committed; /* of pages behind them, whole pages */
    size_t shared;    /* of committed: in pages that other streams hold too */
    size_t reserved;  /* of address space */
    size_t host;      /* of rows in a file */
} fv_rows_bytes;
/* Of one stream, as if there were no other.  Tensors that layers share (options.beside) count with the first layer. */
void fv_rows_measure(const fv_rows *rows, fv_rows_bytes *bytes);
size_t fv_rows_used(const fv_rows *rows); /* bytes.used alone, at once */
/* Of `count` together: a row or page that several hold counts once, and `shared` is what that saves of the sum of
 * committed.  FV_E_MEMORY. */
fv_status fv_rows_measure_all(const fv_rows *const *rows, int64_t count, fv_rows_bytes *bytes);

/* Gives back the pages that hold no row. */
void fv_rows_release(fv_rows *rows);

#endif
