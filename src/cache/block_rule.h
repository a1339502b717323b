/* Who sees whom by blocks of positions: query p, in block P = p div b, sees key j <= p of block J iff
 *   P - J < local  or  (J + residue) mod stride == 0.
 * Going on, a query never sees a block again that one before it did not, so what is out of sight can go.  Blocks come
 * and go whole: the rows a head holds are whole blocks, but for the last. */
#ifndef FV_BLOCK_RULE_H
#define FV_BLOCK_RULE_H

#include "base/text.h"
#include "cache/policy.h"

typedef struct fv_block_rule {
    int64_t block, local, stride, residue;
} fv_block_rule;

/* Sharing blocks out among heads (arXiv 2407.17678): key-value head g owns those of residue g * step + offset, where
 * step = max(1, stride / H) counts query heads H; with `homo` all heads own those of head 0. */
typedef struct fv_shards {
    int64_t block, local, stride, offset;
    bool homo;
} fv_shards;
fv_block_rule fv_shards_rule(const fv_shards *shards, const fv_cache_model *model, int64_t head);
/* Says so, if the heads together do not own every block; `owners` of them have shards. */
void fv_shards_warn(const fv_shards *shards, const fv_cache_model *model, const char *name, int64_t owners,
                    fv_text *warning);

/* The pairs of a call over a head's rows; nothing but causality where every row held is seen.  Scratch memory. */
fv_status fv_block_rule_plan(fv_ctx *ctx, const fv_block_rule *rule, const fv_rows *rows, int64_t head,
                             const fv_policy_call *call, fv_plan *plan);
/* Drops the rows that the last query of a call did not see. */
fv_status fv_block_rule_trim(const fv_block_rule *rule, fv_rows *rows, int64_t head, const fv_policy_call *call);
/* Most rows that remain of `context` tokens. */
int64_t fv_block_rule_bound(const fv_block_rule *rule, int64_t context);

/* Drops a head's rows of positions from .. to-1.  FV_E_MEMORY, as fv_rows_erase. */
fv_status fv_rows_forget(fv_rows *rows, int64_t head, int64_t from, int64_t to);

#endif
