/* What a context holds. */
#ifndef FV_CONTEXT_H
#define FV_CONTEXT_H

#include <stdatomic.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"

struct fv_backend; /* ops/backend.h */
struct fv_tape;    /* ops/tape.h */

/* Kernels for few rows and for many round differently, and a call takes what is faster for its number of rows.  Where a
 * row's result must not depend on the rows beside it, the caller says what all rows are. */
typedef enum fv_batching {
    FV_BATCH_FREE = 0,
    FV_BATCH_STEPS,  /* rows of decoding, however many */
    FV_BATCH_PROMPT, /* rows of a prompt, however few; attention takes keys in fixed blocks */
} fv_batching;

/* What the time of attention goes to. */
typedef enum fv_phase {
    FV_PHASE_NONE = 0, /* something else */
    FV_PHASE_ATTEND,   /* softmax, merging, and all that is not choosing */
    FV_PHASE_SCORE,    /* pooling and products by which keys are chosen */
    FV_PHASE_SELECT,   /* the choice itself, and its lists */
    FV_PHASES,
} fv_phase;

struct fv_ctx {
    const struct fv_backend *backend;
    fv_cpu cpu;
    fv_isa isa;
    fv_pool *pool;
    fv_arena *arena;
    fv_precision precision;
    fv_batching batching;
    uint64_t seed;
    struct fv_tape *tape;    /* NULL: none */
    bool recording;          /* calls are recorded on the tape, and scratch memory is kept */
    fv_phase phase;          /* now, */
    double since;            /* since this second, */
    double spent[FV_PHASES]; /* and seconds before; those of calls side by side (fv_run_apart) are not in it */
    atomic_bool interrupted;
    fv_progress_fn *progress;
    void *progress_user;
    struct fv_ctx **child; /* [threads] of fv_run_apart; NULL: not made yet */
    void *kept;            /* by a floor above, with what frees it */
    void (*free_kept)(void *kept);
};

/* fv_ctx_new without the choice of a backend, which is made a floor above (ops/backend.c). */
fv_status fv_ctx_begin(const fv_ctx_options *options, fv_ctx **ctx);
void fv_ctx_end(fv_ctx *ctx);

/* Enters a phase of attention; returns the one before, to be entered again behind it. */
fv_phase fv_phase_enter(fv_ctx *ctx, fv_phase phase);

/* FV_E_INTERRUPTED once somebody asked for it; long loops ask between pieces of work. */
fv_status fv_ctx_check(fv_ctx *ctx);
void fv_ctx_report(fv_ctx *ctx, const char *what, double fraction);

/* Scratch memory: taken from the arena, given back with the mark.  While a tape records nothing is given back. */
#define FV_SCRATCH(ctx, pointer, count) fv_arena_alloc((ctx)->arena, (void **)&(pointer), (count), sizeof *(pointer))
fv_mark fv_scratch_mark(fv_ctx *ctx);
void fv_scratch_release(fv_ctx *ctx, fv_mark mark);

/* As FV_TRY: in a phase of attention; and with the scratch memory that it takes given back behind it. */
#define FV_TRY_PHASE(ctx, phase, expression)                                                                           \
    do {                                                                                                               \
        fv_phase fv_before_ = fv_phase_enter(ctx, phase);                                                              \
        fv_status fv_status_ = (expression);                                                                           \
        fv_phase_enter(ctx, fv_before_);                                                                               \
        if (fv_status_ != FV_OK) return fv_status_;                                                                    \
    } while (0)
#define FV_TRY_SCRATCH(ctx, expression)                                                                                \
    do {                                                                                                               \
        fv_mark fv_mark_ = fv_scratch_mark(ctx);                                                                       \
        fv_status fv_status_ = (expression);                                                                           \
        fv_scratch_release(ctx, fv_mark_);                                                                             \
        if (fv_status_ != FV_OK) return fv_status_;                                                                    \
    } while (0)

static inline void fv_run(fv_ctx *ctx, int64_t count, fv_item_fn *item, void *user)
{
    fv_pool_run(ctx->pool, count, item, user);
}

/* Whole calls side by side: item i runs on a context of one thread, with scratch memory of its own, so that it may call
 * any primitive.  Returns the first failing item's status, with its sentence.  No tape records. */
typedef fv_status fv_apart_fn(fv_ctx *ctx, void *user, int64_t index);
fv_status fv_run_apart(fv_ctx *ctx, int64_t count, fv_apart_fn *item, void *user);

#endif
