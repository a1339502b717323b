/* What mechanisms that choose by content share: pool -> score -> select (+ forced) -> lists -> attend -> merge.  Parts,
 * pools, scores and blocks of queries stand in core.c, the rest in choice.c, cut.c, keys.c, spans.c and lifetimes.c. */
#ifndef FV_SPARSE_CORE_H
#define FV_SPARSE_CORE_H

#include "attention/mechanism.h"
#include "ops/plan.h"

/* ---- parts of a call -------------------------------------------------------------------------------------------- */

/* Runs a causal call in parts of about `queries` queries (at least one block), cut at multiples of `block` positions,
 * each over the keys up to its last query; scratch memory is given back after each. */
typedef fv_status fv_part_fn(fv_ctx *ctx, const fv_call *part);
fv_status fv_run_parts(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t queries, fv_part_fn *run);

/* ---- pool ------------------------------------------------------------------------------------------------------- */

/* Means of blocks of rows of x [B,Hx,M,D] (rows of any type): block `from` on, as many as out [B,Hx,blocks,D] f32 has.
 * The last block of x may be short; its mean is that of the rows it has. */
fv_status fv_block_means(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out);

/* A pyramid: the means of 2, 4 and 8 neighbours of each block of rows, block by block, a block's by level; the last
 * mean of a level may be of fewer.  How many rows it has for a block; and those of the blocks of x [B,Hx,M,D] (rows of
 * any type) from row `from` of the pyramid on, as many as out [B,Hx,rows,D] f32 has, whole blocks; with
 * what is left of x behind those as the last one. */
int64_t fv_pyramid_rows(int64_t block);
fv_status fv_pyramid_pool(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out);

/* Those of the whole blocks behind key `first`, [B,Hkv,count,D], as rows that are kept, of kind 0; and how many there
 * are of them, for the descriptor of a mechanism. */
fv_status fv_keep_means(fv_ctx *ctx, const fv_call *call, int64_t first, int64_t block, int64_t count,
                        fv_tensor *means);
int64_t fv_kept_means(const fv_call *call, int kind, int64_t first, int64_t block, int64_t keys, int64_t *width);

/* x [B,H,N,C] pooled over the heads of each group: [B,heads,N,C]; x itself where groups are single heads. */
fv_status fv_pool_heads(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *x, int64_t heads, fv_tensor *out);

/* ---- score ------------------------------------------------------------------------------------------------------ */

/* Calls use(from, scores) for stretches of rows short enough to stay in cache: scores [B,H,n,C] f32 = scale q k^T of
 * rows from .. from+n-1 of q [B,H,N,D] with k [B,Hx,C,D], both f32, query head h with key head h / (H/Hx).  `use` may
 * write to them and take scratch memory, which is given back after it. */
typedef fv_status fv_use_scores_fn(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores);
fv_status fv_score_rows(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                        void *user);

/* The same where k [B,Hx,C,D] stands for blocks of keys from key `first` on: of a causal call a stretch is scored with
 * the blocks only that are complete at its last row (with one at least), so that C differs. */
fv_status fv_score_blocks(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k, int64_t first,
                          int64_t block, float scale, fv_use_scores_fn *use, void *user);

/* The K best rows of k, by product, for each of q: index [B,H,N,K] i32, as fv_select writes it. */
fv_status fv_best_rows(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, const fv_tensor *index);

/* logits [B,H,N,C] f32 of q [B,H,N,D] with k [B,Hx,C,D], both f32, as those of a call are scaled and capped. */
fv_status fv_call_products(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k, fv_tensor *logits);

/* What softmax(scale q k^T) of q [N,D] and k [M,D] holds in blocks of `block` rows and columns: sums and largest
 * weights [blocks of rows, blocks of columns] f32, contiguous. */
fv_status fv_block_weights(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, int64_t block,
                           const fv_tensor *sum, const fv_tensor *largest);

/* ---- select, lists, attend, merge -------------------------------------------------------------------------------- */

/* The blocks of keys that each query reads: of a causal call the first `init` ones, the tail, from the block of the
 * `tail`-th newest key on (1: its own), and those it chose of the ones between; otherwise only those it chose.  Blocks
 * behind the first ones begin at key `first`. */
typedef struct fv_choice {
    int64_t block, init, first, tail;
    int64_t heads;    /* that choose: H, Hkv where a group chooses together, or 1 */
    fv_tensor index;  /* [B,heads,N,K] i32, block - init, -1 behind the last */
    fv_tensor mask;   /* in its place where their number varies: [B,heads,N,ceil(blocks/8)] u8, bit block - init */
    fv_tensor weight; /* [B,1|H,N,K] f32: each block chosen has a softmax of its own, and these are summed by weight (no
                         others are read then); absent: one softmax over all of them */
    fv_tensor gate;   /* the same, but they are summed by softmax of this: it stands for the log-sum-exp of a block */
    const int64_t *key_start; /* [key_blocks + 1] where blocks are not all of one length; NULL */
    int64_t key_blocks;
} fv_choice;

/* Room for K choices of each query of a call. */
fv_status fv_choice_new(fv_ctx *ctx, const fv_call *call, int64_t chosen, fv_choice *choice);

/* The same where `top` blocks are read in all, the first `init` and the `local` newest ones among them, and those
 * between are chosen by the key-value heads. */
fv_status fv_choice_between(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t top, int64_t init, int64_t local,
                            fv_choice *choice);

/* A call and its choice, for what takes scores and chooses. */
typedef struct fv_chooser {
    const fv_call *call;
    fv_choice *choice;
} fv_chooser;

/* Chooses the best for queries from .. from+n-1, of a causal call among the blocks between the first ones and the tail,
 * otherwise among all: scores [B,heads,n,blocks] f32 of blocks from `init` on (all that lie before the tail of the
 * last); ties go to the lower block. */
fv_status fv_choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice, int64_t from, const fv_tensor *scores);

/* The same by products of queries q [B,heads,N,D] with what stands for those blocks, keys [B,Hx,blocks,D]. */
fv_status fv_choose_by_product(fv_ctx *ctx, const fv_call *call, fv_choice *choice, const fv_tensor *q,
                               const fv_tensor *keys);

/* Blocks of keys that come and go.  A query at p reads block c of those before its own iff p < gone[c], and its own one
 * (up to p) iff own[p]. */
typedef struct fv_lifetimes {
    int64_t block, heads; /* heads: that they are told for, 1 or Hkv */
    const int32_t *gone;  /* [B,heads,blocks] */
    const uint8_t *own;   /* [B,heads,keys] */
    bool dead;            /* blocks that no query reads any more stay in its list, hidden */
} fv_lifetimes;

/* Lists of a causal call, in scratch memory. */
fv_status fv_lifetimes_plan(fv_ctx *ctx, const fv_call *call, const fv_lifetimes *lifetimes, fv_plan *plan);

/* Choice by a cut through scores that are sorted together, a scope: those of a query and head, of a head, of a block
 * (over heads), or of a batch row.  With `own` query i reads block i / block whatever its score.
 *   top > 0: so many blocks for each query of a scope on average, own ones included; not of scopes that are blocks.
 *   top 0: scores become g = (s - min) / (max - min), or s - min if they are within 1e-6; besides own blocks others are
 *   taken by falling score, at least one, until those and own ones have `share` of 1e-6 + the sum of all g. */
typedef enum fv_scope { FV_SCOPE_QUERY, FV_SCOPE_HEAD, FV_SCOPE_BLOCK, FV_SCOPE_ALL } fv_scope;
typedef struct fv_cut {
    fv_scope scope;
    bool own;
    int64_t top;
    double share;
} fv_cut;
/* Cuts the scores q.k of a call that is not causal: q [B,H,N,D], keys [B,Hx,blocks,D].  Ties go to the lower block,
 * then the lower head and query.  Fills choice->mask. */
fv_status fv_choose_by_cut(fv_ctx *ctx, const fv_call *call, fv_choice *choice, const fv_cut *cut, const fv_tensor *q,
                           const fv_tensor *keys);

/* Lists of every query, in scratch memory. */
fv_status fv_choice_plan(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan);

/* Attention of a call over the chosen blocks (with weights it has no lse).  by_block: the loops are turned round.  Each
 * key block is read once for all queries that chose it, each (query, block) has a partial result of its own, and these
 * are merged (arXiv 2508.18224); so it always is with weights and gates.  The result is the same. */
fv_status fv_choice_attend(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, bool by_block);

/* The whole of a mechanism that chooses blocks, by `choose`, which is not recorded. */
typedef fv_status fv_choose_fn(fv_ctx *ctx, const fv_call *call, fv_choice *choice);
fv_status fv_choice_forward(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose);
fv_status fv_choice_map(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose, fv_pairs *pairs);

/* ---- blocks of queries ------------------------------------------------------------------------------------------ */

/* Rows where blocks of queries begin, cut at multiples of `block` positions: [*count + 1]; block 0 holds the first row
 * and is number call->offset / block of the sequence. */
fv_status fv_cut_queries(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t *count, int64_t **start);

/* ---- lists of single keys --------------------------------------------------------------------------------------- */

/* What groups of queries, cut at multiples of `block` positions, choose of the keys.  Lists are filled one by one or
 * side by side: list (b * heads + h) * groups + g has up to `room` ascending keys from entry + list * room on, and says
 * how many in count[list]. */
typedef struct fv_key_lists {
    int64_t block, groups, heads, room;
    int64_t first;        /* position / block of the first group */
    int64_t lists;        /* B * heads * groups */
    int64_t *query_start; /* [groups + 1] */
    int64_t *count;       /* 0 at first */
    int32_t *entry;
} fv_key_lists;
fv_status fv_key_lists_new(fv_ctx *ctx, const fv_call *call, int64_t heads, int64_t block, int64_t room,
                           fv_key_lists *lists);

/* The same as a plan, which takes their memory: they are moved together. */
fv_status fv_key_lists_plan(fv_ctx *ctx, const fv_call *call, const fv_key_lists *lists, fv_plan *plan);

/* ---- spans ------------------------------------------------------------------------------------------------------ */

/* Spans of keys that each query reads, from..to-1, [B,H,N,R] i32, contiguous; to <= from: none. */
typedef struct fv_spans {
    fv_tensor from, to;
} fv_spans;

/* The same as rows of queries that are gathered, a slot for each span. */
typedef struct fv_span_slots {
    fv_plan plan;
    int64_t slots; /* of the (batch, head) that has most */
    int32_t *slot; /* [B,H,N,R] of each span; -1: there is none */
} fv_span_slots;

/* In scratch memory. */
fv_status fv_spans_lay_out(fv_ctx *ctx, const fv_call *call, const fv_spans *spans, fv_span_slots *slots);

/* o[r] [B,H,N,Dv], r < spans: attention of each query over its r-th span and what the plan `besides` (NULL: nothing)
 * shows it, which is computed once and must not overlap spans; 0 where there is neither. */
fv_status fv_spans_attend(fv_ctx *ctx, const fv_call *call, const fv_span_slots *slots, const fv_plan *besides,
                          int64_t spans, const fv_tensor *o);

/* ---- single keys ------------------------------------------------------------------------------------------------- */

/* The keys that each query of a call reads, where every query and head has its own: bit j of a row's word of a block is
 * key block * FV_TILE + j. */
typedef struct fv_key_bits {
    int64_t batch, heads, queries, keys;
    int64_t groups, blocks; /* of FV_TILE queries and keys */
    uint64_t *word;         /* [batch, heads, groups, blocks, FV_TILE] */
} fv_key_bits;

/* None, for every query head of a call, in scratch memory. */
fv_status fv_key_bits_new(fv_ctx *ctx, const fv_call *call, fv_key_bits *bits);
/* Adds the keys index [B,H,n,K] i32, ascending, -1 behind the last, of queries from .. from+n-1. */
void fv_key_bits_add(fv_ctx *ctx, const fv_key_bits *bits, int64_t from, const fv_tensor *index);
/* All keys for a query, or none. */
void fv_key_bits_set(const fv_key_bits *bits, int64_t b, int64_t h, int64_t i, bool all);
/* Lists of the blocks that queries read something of. */
fv_status fv_key_bits_plan(fv_ctx *ctx, const fv_key_bits *bits, fv_plan *plan);

#endif
