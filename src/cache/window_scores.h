/* What the last queries of a prompt make of the rows that are held: the scores of one-shot policies (SnapKV and its
 * kin).  A prompt's last `window` queries are kept while it is read, layer by layer, and forgotten once the layer has
 * been acted on.  Scores are column sums of the window's attention, so nothing of queries x rows is ever made.
 *
 * A later prompt of the same stream is judged in the same way: its own last `window` queries (all of them, if there are
 * fewer) over the rows that are held then; the last `window` rows are kept. */
#ifndef FV_WINDOW_SCORES_H
#define FV_WINDOW_SCORES_H

#include "cache/policy.h"

/* The first of a policy's layer state. */
typedef struct fv_window_queries {
    float *q;                  /* [room, H * D]: of position p in row p % room */
    int64_t room, count, next; /* rows there are, filled, and the position behind the last */
    float scale, softcap;      /* of their logits */
} fv_window_queries;

/* In `after`: remembers the last `window` queries of a prompt; steps are not remembered.  FV_E_MEMORY. */
fv_status fv_window_note(fv_window_queries *window, const fv_policy_layer *layer, const fv_policy_call *call,
                         int64_t count);
/* A policy's `drop` and `state_bytes`, if it has no other state. */
void fv_window_drop(fv_policy_layer *layer);
size_t fv_window_state_bytes(const fv_policy_layer *layer);

typedef enum fv_smoothing { FV_SMOOTH_AVERAGE = 0, FV_SMOOTH_MAX } fv_smoothing;
extern const char *const fv_smoothings[], *const fv_window_lists[]; /* "avg", "max"; "kv", "layer" */

/* out[j] = mean of x over j - kernel/2 .. j + kernel/2, with zeros beyond the ends; or the largest of those there are.
 */
void fv_smooth(fv_smoothing how, int64_t kernel, const float *x, int64_t count, float *out);

/* Who is asked, and how: query heads voter[0..voters), ascending (NULL: all), over the rows of key-value heads. */
typedef struct fv_window_vote {
    int64_t window, kernel;
    fv_smoothing smoothing;
    int layer; /* into fv_window_lists: one list for all key-value heads, whose rows are alike; always with `voter` */
    const int32_t *voter;
    int64_t voters;
} fv_window_vote;

/* Smoothed column sums of query heads over the first `columns` rows of key-value heads key_head ..
 * key_head+key_heads-1, which are alike: rows [voters, columns], or, without `voter`, [key_heads * H/Hkv, columns].
 * Scratch memory. */
fv_status fv_window_scores(fv_ctx *ctx, const fv_policy_layer *layer, const fv_window_queries *window,
                           const fv_window_vote *vote, int64_t key_head, int64_t key_heads, int64_t columns,
                           float **rows);

/* mean[j] = mean of `count` rows [count, columns]. */
void fv_window_mean(const float *rows, int64_t count, int64_t columns, float *mean);

/* place[0..count): the largest of scores[0..columns), ascending by place; of equals the lower.  FV_E_MEMORY. */
fv_status fv_window_top(fv_ctx *ctx, const float *scores, int64_t columns, int64_t count, int32_t *place);

/* Calls `act` for key-value heads that hold the same rows, together; each call with scratch memory of its own. */
typedef fv_status fv_window_act_fn(fv_ctx *ctx, fv_policy_layer *layer, int64_t key_head, int64_t key_heads,
                                   const void *user);
fv_status fv_window_each(fv_ctx *ctx, fv_policy_layer *layer, fv_window_act_fn *act, const void *user);

/* Keeps of each key-value head with more than `budget` rows the `budget - window` that score best, and the last
 * `window`. */
fv_status fv_window_act(fv_ctx *ctx, fv_policy_layer *layer, const fv_window_queries *window,
                        const fv_window_vote *vote, int64_t budget);

/* Refuses an even kernel, and a window that leaves nothing to choose.  FV_E_USAGE. */
fv_status fv_window_check(const char *policy, int64_t budget, int64_t window, int64_t kernel);

#endif
