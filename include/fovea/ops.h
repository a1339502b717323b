/* The four primitives every mechanism is made of: attend, attend_stats, scan, merge; and the plan, which says who sees
 * whom.  In every argument struct zero means default and a tensor with data == NULL is absent. */
#ifndef FOVEA_OPS_H
#define FOVEA_OPS_H

#include "fovea/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- plans ----------------------------------------------------------------------------------------------------- */

/* Positions: query i of a call stands at p = i + plan->offset, key j at position j, or key_position[j] if that is
 * given (of a pooled key: of its last member).  A pair is visible iff every part that is filled in shows it. */

/* Sliding window with sinks: visible iff j < sink, or p - j < window (and j - p < window unless causal); counted in
 * blocks of `block` positions, p/block - j/block < window, if block > 1.  window 0: no limit.
 * With heads > 0 each key-value head h (query heads: h * heads / H) has its own sink[h] and window[h]. */
typedef struct fv_window {
    int64_t sink, window, block;
    int heads;
    const int64_t *head_sink, *head_window; /* [heads] */
} fv_window;

/* Generalised neighbourhood attention (arXiv 2504.16922): tokens on a row-major grid; a key is visible iff it lies in
 * the query's window on every axis.  window[a] == dims[a] is the whole axis.  Keys beyond the grid are always visible.
 * Queries are all cells.  Where query_count[a] > 0 they are only those at query_first + n query_step of the axis, n
 * below it (dilation 1), and groups that share a window begin at stride_first, at most query_first, instead of 0: if it
 * is negative the first group is short. */
typedef struct fv_grid {
    int rank; /* 1..3; 0: no grid */
    int64_t dims[3], window[3], stride[3], dilation[3];
    bool causal[3];
    bool truncated[3]; /* windows that are not causal end where the axis does, instead of being pushed inwards; they may
                          be wider */
    bool unclipped;    /* the leader of a causal stride group ignores the end of the axis, so decode == prefill */
    int64_t query_count[3], query_first[3], query_step[3], stride_first[3];
} fv_grid;

/* Lists: which key blocks each query group reads, per batch and head.  Group g holds the queries
 * [g * query_block, (g+1) * query_block), or query_start[g] .. query_start[g+1] if given; and a key block b the keys
 * [b * key_block, (b+1) * key_block), or key_start[b] .. key_start[b+1].
 * The entries of group g of batch b and head h are those from row_start[r] to row_start[r+1], where
 * r = b * batch_stride + h * head_stride + g; a stride of 0 shares lists.  Entries of a group ascend and do not repeat.
 * key_block == 1 makes lists of single keys.
 * With `query_index` the queries of row r are query_index[query_start[r] .. query_start[r+1]) instead of a range: q is
 * gathered, and row (slot) n of o and lse of a batch and head is the n-th of that batch and head's part of query_index.
 * Several slots may read the same query; they are merged later (fv_merge with slots).  With slot_from and slot_to the
 * slot that query_index[n] stands for sees only keys slot_from[n] .. slot_to[n] - 1 of those. */
typedef struct fv_lists {
    int64_t query_block, key_block, groups, key_blocks;
    const int64_t *query_start;         /* [groups + 1]; with query_index [rows + 1], over (b, h, g) */
    const int64_t *key_start;           /* [key_blocks + 1] */
    const int32_t *query_index;         /* [slots] */
    const int32_t *slot_from, *slot_to; /* [slots], together */
    int64_t batch_stride, head_stride;
    int64_t heads;            /* heads the lists are made for: 1 (shared), key-value heads or query heads */
    const int64_t *row_start; /* [rows + 1]; NULL: no lists */
    const int32_t *entry;     /* key blocks */
    const int32_t *tile;      /* per entry: 0 = all pairs, else 1 + index into tiles; NULL: all 0 */
    const uint64_t *tiles;    /* bit (i * key_block + j) of tile t at tiles + t * tile_words */
    int64_t tile_words;
    const float *entry_bias; /* per entry, added to its logits; NULL: none */
} fv_lists;

typedef struct fv_plan {
    bool causal; /* key position <= p */
    int64_t offset;
    const int32_t *key_position;                /* [M] */
    fv_window window;                           /* active if window.window > 0 */
    fv_grid grid;                               /* active if grid.rank > 0; needs offset 0..dims product */
    const int32_t *query_segment, *key_segment; /* [N], [M]: visible iff equal */
    const int32_t *key_from, *key_to;           /* [N]: visible iff key_from[i] <= j < key_to[i] */
    const int32_t *born, *gone;                 /* [M]: visible iff born[j] <= p < gone[j] */
    fv_lists lists;                             /* active if lists.row_start */
} fv_plan;

/* Whether query i of head h of batch b sees key j; the definition that every kernel must agree with.  `heads` is the
 * number of query heads.  With query_index, i is a row (slot) of group g. */
FV_API bool fv_plan_sees(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t j);

/* Number of visible pairs over all batches and query heads. */
FV_API fv_status fv_plan_pairs(fv_ctx *ctx, const fv_plan *plan, int64_t batch, int64_t heads, int64_t queries,
                               int64_t keys, int64_t *pairs);

/* ---- attend ---------------------------------------------------------------------------------------------------- */

/* Where queries [N] and keys [M] stand for a bias by relative offset: it is read at clamp(key[j] - query[i], 0, R-1),
 * R being its last dim.  On a grid that is a place in a table of all offsets.  Memory lasts as long as that of lists.
 */
typedef struct fv_places {
    const int32_t *query, *key; /* together, or neither */
} fv_places;

/* Logits of query i and key j of head h:  s = scale * temperature[i] * q.k;  s += gain * |s|;  s = softcap *
 * tanh(s / softcap);  s += bias(i, j).  Shared by attend and attend_stats. */
typedef struct fv_logits {
    float scale;           /* 0: D^-1/2 */
    bool zero_scale;       /* the scale is 0: bias only */
    float softcap, gain;   /* 0: off */
    fv_tensor temperature; /* [B|1, H|1, N] f32 */
    fv_tensor bias;        /* [B|1, H|1, N|1, M] f32: full, per key, per head and key; finite or -inf */
    fv_tensor offset_bias; /* [H|1, R] f32: by relative offset, index clamp(j - p + R/2, 0, R-1) or by offset_place */
    fv_tensor row_bias,
        column_bias; /* [B|1, H|1, N, Gr] and [.., N, Gc] f32, M = Gr Gc: adds row[j/Gc] + column[j%Gc]; or by places */
    fv_places offset_place, row_place, column_place; /* the last two together, and Gr, Gc are then what they may */
} fv_logits;

/* o = softmax(logits over the keys the plan shows) v, with lse = ln of the denominator; O(N + M) memory.
 *
 * q [B,H,N,D], k [B,Hkv,M,D], v [B,Hkv,M,Dv], o [B,H,N,Dv], lse [B,H,N] f32 (may be absent).  With plan lists that
 * gather queries, o and lse have a row per slot: [B,H,S,Dv] and [B,H,S].
 * Query head h reads head h / (H/Hkv), or key_head[h].  q, o f32; k, v f32, f16, bf16 (q8_0 along D: see backend).
 * A row that sees no key gives o = 0, lse = -inf.  plan NULL shows everything.
 * sinks [H] f32 join the denominator only.  lse_in [B,H,N] (or lse_in_key [B,H,M]) normalises by the given
 * log-sum-exp instead: o = sum exp(s - lse_in) v; lse is then not written.
 * With steps > 0 (at most 256; not with lse_in) what multiplies v is trunc(steps exp(s - m)) / steps, m the largest
 * logit of the row among the keys so far (in stretches of at least 64); the denominator, by-products and gradients are
 * those without. By-products, each optional: row_max [B,H,N] f32, arg_max [B,H,N] i32 (lowest key that reaches it, -1
 * if none), weights [B,H,R,K] f32: the probabilities of queries weight_rows[R] (NULL: 0..R-1) over keys weight_from +
 * 0..K-1. Bound: 2 pairs (D + Dv) flops.  FV_E_SHAPE, FV_E_DTYPE, FV_E_MEMORY. */
typedef struct fv_attend_args {
    fv_tensor q, k, v, o, lse;
    const fv_plan *plan;
    fv_logits logits;
    fv_tensor sinks;
    fv_tensor lse_in, lse_in_key;
    const int32_t *key_head; /* [H] */
    fv_tensor row_max, arg_max, weights;
    const int32_t *weight_rows;
    int64_t weight_from;
    int steps;
} fv_attend_args;
FV_API fv_status fv_attend(fv_ctx *ctx, const fv_attend_args *args);

/* Gradients for a given d_o (and optionally d_lse, the gradient of lse); args as in the forward call with its o and
 * lse filled in.  Each wanted gradient is f32 of its tensor's shape and is ADDED to; absent ones are not computed.
 * A broadcast (stride 0) gradient tensor sums. */
typedef struct fv_attend_grads {
    fv_tensor d_o, d_lse;
    fv_tensor d_q, d_k, d_v, d_bias, d_sinks, d_temperature;
    fv_tensor d_offset_bias, d_row_bias, d_column_bias;
} fv_attend_grads;
FV_API fv_status fv_attend_backward(fv_ctx *ctx, const fv_attend_args *args, const fv_attend_grads *grads);

/* Streams over the probabilities exp(s - lse) again in O(N + M) memory and reduces them; each output is optional.
 * q, k, plan, logits, key_head as in attend; lse [B,H,N] from it. */
typedef struct fv_stats_args {
    fv_tensor q, k, lse;
    const fv_plan *plan;
    fv_logits logits;
    const int32_t *key_head;
    fv_tensor column_sum;          /* [B,H,M] f32: sum over queries */
    fv_tensor entropy;             /* [B,H,N] f32, nats */
    fv_tensor distance;            /* [B,H,N] f32: mean of min(|p - j|, distance_clip) */
    int64_t distance_clip;         /* 0: none */
    const uint8_t *key_set;        /* [M], with mass */
    fv_tensor mass;                /* [B,H,N] f32: probability on the set */
    fv_tensor top_key, top_weight; /* [B,H,N,K] i32 and f32: the K largest, descending, ties to the lower key; -1, 0 */
} fv_stats_args;
FV_API fv_status fv_attend_stats(fv_ctx *ctx, const fv_stats_args *args);

/* ---- scan ------------------------------------------------------------------------------------------------------ */

typedef enum fv_decay {
    FV_DECAY_NONE = 0,
    FV_DECAY_PER_HEAD,  /* log_decay [H] */
    FV_DECAY_PER_TOKEN, /* log_decay [B,H,N] */
    FV_DECAY_PER_KEY,   /* log_decay [B,H,N,D] */
    FV_DECAY_PER_VALUE, /* log_decay [B,H,N,Dv] */
} fv_decay;

/* Linear recurrence, computed in chunks; the result does not depend on the chunk length beyond rounding.
 *   S_t = exp(log_decay_t) S_{t-1} + beta_t k_t (v_t - [delta] S_{t-1}'^T k_t)^T,   o_t = S_t^T q_t
 * (S' is the decayed state; beta defaults to 1, the delta term is there with `delta`).
 * q [B,H,N,D], k [B,Hkv,N,D], v [B,Hkv,N,Dv], o [B,H,N,Dv], f32; log_decay <= 0 f32; beta [B,H,N] f32.
 * state_in, state_out [B,H,D,Dv] f32, optional; they may be the same memory.
 * With `normalise`: o_t /= (q_t . z_t + epsilon), z_t the same recurrence over ones (no delta), z_in and z_out [B,H,D];
 * `floor` replaces a denominator below it.  `denominator` [B,H,N] f32, optional, receives the divisor.
 * Bound: 4 N D Dv flops a head for long N.  FV_E_SHAPE, FV_E_DTYPE, FV_E_MEMORY, FV_E_UNSUPPORTED (delta with
 * normalise). */
typedef struct fv_scan_args {
    fv_tensor q, k, v, o;
    fv_decay decay;
    fv_tensor log_decay, beta;
    bool delta;
    bool normalise;
    float epsilon, floor;
    fv_tensor denominator;
    fv_tensor state_in, state_out, z_in, z_out;
    int64_t chunk; /* 0: chosen */
} fv_scan_args;
FV_API fv_status fv_scan(fv_ctx *ctx, const fv_scan_args *args);

/* Gradients, added to.  d_state_out is the gradient of state_out (optional); d_state_in that of state_in. */
typedef struct fv_scan_grads {
    fv_tensor d_o, d_state_out, d_z_out;
    fv_tensor d_q, d_k, d_v, d_beta, d_log_decay, d_state_in, d_z_in;
} fv_scan_grads;
FV_API fv_status fv_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads);

/* ---- merge ----------------------------------------------------------------------------------------------------- */

enum { FV_MERGE_PARTS = 8 };

/* Combines partial results.  Parts p: o[p] [B,H,N,Dv] f32, lse[p] [B,H,N] f32.
 *   by lse (weights absent): o = sum_p exp(lse_p - lse) o_p, lse = ln sum_p exp(lse_p): exactly one softmax over the
 *   union of disjoint key sets; all -inf gives 0 and -inf.
 *   by weights: o = sum_p weight_p o_p, weight[p] [B|1,H|1,N] f32 (gates; lse is not used).
 * With slots: one part whose rows are slots [B,H,S,..]; output row n of (b, h) combines, by lse or by weight[0]
 * [B,H,S], the slots slot[slot_start[r] .. slot_start[r+1]), r = (b * H + h) * N + n. */
typedef struct fv_merge_args {
    int parts;
    fv_tensor o_part[FV_MERGE_PARTS], lse_part[FV_MERGE_PARTS], weight[FV_MERGE_PARTS];
    const int64_t *slot_start; /* [B*H*N + 1] */
    const int32_t *slot;
    fv_tensor o, lse; /* [B,H,N,Dv], [B,H,N] (optional) */
} fv_merge_args;
FV_API fv_status fv_merge(fv_ctx *ctx, const fv_merge_args *args);

typedef struct fv_merge_grads {
    fv_tensor d_o, d_lse;
    fv_tensor d_o_part[FV_MERGE_PARTS], d_lse_part[FV_MERGE_PARTS], d_weight[FV_MERGE_PARTS];
} fv_merge_grads;
FV_API fv_status fv_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads);

#ifdef __cplusplus
}
#endif
#endif
