/* Hooks: points of a model's run at which whoever listens is told what is there. */
#ifndef FV_HOOKS_H
#define FV_HOOKS_H

#include "attention/mechanism.h"

typedef enum fv_point {
    FV_POINT_HIDDEN = 1 << 0,   /* the residual stream as it goes into a layer, and behind the last one */
    FV_POINT_ATTEND = 1 << 1,   /* an attention call, once it is done */
    FV_POINT_BACKWARD = 1 << 2, /* attention of a layer on the way back (models/gradient.h) */
} fv_point;

/* What is told.  At FV_POINT_ATTEND it is a call of a session: queries of `call` over its keys.  q and k are rotated, k
 * and v are the rows that are read, o is what the heads give, before it is projected; weights and logits are made of
 * them where somebody wants to see them (hooks/picked.h).  With `plan` it is dense attention over the rows held, the
 * plan says who sees whom and where keys stand; without, the pairs are the mechanism's. */
typedef struct fv_look {
    fv_point point;
    int64_t layer;    /* HIDDEN: their number is behind the last one */
    int64_t position; /* of the first row here, among the rows of its session */
    bool prompt;      /* of a prompt; otherwise of a step */
    fv_tensor hidden; /* HIDDEN: [rows,width] f32 */

    int64_t head; /* the first query head of the call */
    const fv_attention *attention;
    const fv_call *call; /* call->lse: with a plan, unless a policy reads in its own way */
    const fv_plan *plan;
    const fv_logits *extra; /* the layer's own soft-cap; with a plan the scale, too */
    const int32_t *text;    /* where what stands at 0, 1, ... here stands in the text; NULL: there */
    fv_tensor d_o;          /* BACKWARD: d loss / d o [1,H,N,Dv] f32 */
} fv_look;

enum { FV_IN_PROMPT = 1 << 0, FV_IN_STEP = 1 << 1 };

/* What of a run somebody listens to; what is 0, NULL or a list that begins below 0 is everything.  Rows and keys are
 * told by their positions, _from .. _to - 1. */
typedef struct fv_selector {
    unsigned phases;
    const fv_list *layers, *heads; /* query heads */
    int64_t row_from, row_to, key_from, key_to;
} fv_selector;

static inline bool fv_selects(const fv_list *list, int64_t item)
{
    if (!list || list->count == 0 || list->items[0] < 0) return true;
    for (int i = 0; i < list->count; i++)
        if (list->items[i] == item) return true;
    return false;
}

/* Who listens: lives as long as the run it listens to. */
typedef struct fv_listener {
    unsigned points;
    fv_selector select; /* calls of which it has nothing are not told; of the others all is (fv_pick takes a part) */
    fv_status (*hear)(void *user, const fv_look *look); /* what it returns, the run returns */
    void *user;
    struct fv_listener *next;
} fv_listener;

/* Joins the list, behind the others. */
void fv_listen(fv_listener **list, fv_listener *listener);

/* Whether anybody listens at a point: all that hooks cost where nobody does. */
static inline bool fv_heard(const fv_listener *list, fv_point point)
{
    for (; list; list = list->next)
        if (list->points & point) return true;
    return false;
}

/* Tells those it concerns; their time is no part of attention's. */
fv_status fv_tell(fv_ctx *ctx, const fv_listener *list, const fv_look *look);

/* Of `count` rows from `position` on: how many a selector has, and the first of them, counted from there. */
int64_t fv_selected_rows(const fv_selector *select, int64_t position, int64_t count, int64_t *first);

#endif
