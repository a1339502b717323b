/* What a mechanism is.  A descriptor fills exactly one of plan, scan and forward; the framework (attention.c) derives
 * forward, backward, chunked prefill, decode, --plan, density, cost and bench from it. */
#ifndef FV_MECHANISM_H
#define FV_MECHANISM_H

#include "attention/lists.h"
#include "base/options.h"
#include "base/param.h"
#include "fovea/attention.h"
#include "ops/ops.h"

/* Promises; the conformance suite checks each for each mechanism that makes it. */
enum {
    FV_CAUSAL = 1 << 0,       /* causal by nature; otherwise --causal decides, unless: */
    FV_NEVER_CAUSAL = 1 << 1, /* refuses --causal */
    FV_STATIC_PLAN = 1 << 2,  /* the plan depends on shape and options only */
    FV_BLOCK_CAUSAL = 1 << 3, /* its selection sees the future inside a block (see `ahead`); in a model one token alone
                                 reads every key, and decoding is refused elsewhere, unless FV_OWN_DECODE */
    FV_ROWS_SUM_TO_ONE = 1 << 4, /* V constant -> O constant, without tensors of its own */
    FV_LINEAR_IN_V = 1 << 5,     /* without tensors of its own */
    FV_DECODE_EXACT = 1 << 6,    /* chunked prefill == one prefill == decode */
    FV_DIFFERENTIABLE = 1 << 7,
    FV_SELF_ONLY = 1 << 8,   /* N = M (of the whole sequence; chunks of it are fine) */
    FV_NO_SCALE = 1 << 9,    /* refuses --scale */
    FV_NO_LSE = 1 << 10,     /* has no log-sum-exp */
    FV_NO_MAP = 1 << 11,     /* has no set of pairs: refuses --plan */
    FV_RECURRENT = 1 << 12,  /* when causal, a state takes the place of keys and values */
    FV_OWN_DECODE = 1 << 13, /* with FV_BLOCK_CAUSAL: decodes by a rule of its own, unlike a prefill */
    FV_NEEDS_KEPT =
        1 << 14,            /* its kept rows are made of queries too: a chunk cannot make those of earlier ones again */
    FV_SHARED_QK = 1 << 15, /* queries and keys are one stream for every batch, which may be longer than the values: q
                               [1,H,L,D], k [1,H or Hkv,L,D], v [B,Hkv,N,Dv], N <= L; of a chunk, as long */
};

typedef enum fv_family {
    FV_DENSE = 0,
    FV_STATIC_SPARSE,  /* local, strided, grids */
    FV_CONTENT_SPARSE, /* selects by content */
    FV_LINEAR,
    FV_LATENT, /* through few intermediate tokens */
    FV_MIXED,
} fv_family;
const char *fv_family_name(fv_family family);

/* Tensors of a mechanism's own (base/param.h).  Their shapes may name B H Hkv N M D Dv and the names of the mechanism's
 * size function; dims N and M follow the queries and keys of a chunk. */
enum { FV_PARAMS = 16 };

/* Rows that a mechanism makes of the keys and values so far and that stay as they are: means of blocks, compressed
 * keys. They are kept between the chunks of a sequence, so that a step of decoding makes only the new ones. */
typedef struct fv_kept_rows {
    fv_tensor rows; /* [B,Hkv,capacity,width] of fv_kept_type */
    int64_t count;  /* made so far */
} fv_kept_rows;
enum { FV_KEPT = 2 }; /* kinds of them */

/* What was chosen at one step of decoding, for the steps that follow. */
typedef struct fv_kept_choice {
    fv_tensor index; /* [B,H,width] i32, the mechanism's own; absent: none can be kept */
    int64_t end;     /* positions there were when it was made, those of its own step included; 0: there is none */
} fv_kept_choice;

/* A call as mechanisms see it: checked, with sizes spelled out.  Query i stands at position offset + i; k and v hold
 * positions 0..keys-1, so offset = keys - queries; of a recurrent mechanism's chunk, its own positions only. */
typedef struct fv_call {
    const struct fv_mechanism *mechanism; /* whose call it is */
    const void *options;
    fv_tensor q, k, v, o, lse;
    int64_t batch, query_heads, key_heads, queries, keys, head_dim, value_dim, offset;
    bool causal;
    bool decoding;              /* the keys are a prefix of a longer sequence still to come */
    bool whole;                 /* every key is read, whatever the mechanism */
    float scale;                /* resolved */
    float softcap, gain;        /* a model's own terms of the logits, 0: none */
    fv_tensor param[FV_PARAMS]; /* in the order of the descriptor's table; absent ones have no data */
    fv_tensor param_out[FV_PARAMS];
    fv_kept_rows *kept;     /* [FV_KEPT], of the sequence this is a chunk of; NULL: nothing is kept (see fv_keep) */
    fv_kept_choice *choice; /* in a step of decoding, of the sequence: read, or made anew; NULL: none is kept */
    double *pairs;          /* the query-key pairs a chunk computes are added to it; NULL: nobody counts */
} fv_call;

/* A set of pairs: a plan over rows i and columns j that stand for query query_order[i] and key key_order[j] (NULL: for
 * themselves).  With `columns` there are so many, and column j stands for column_keys[j] keys from column_key[j] on,
 * numbered before key_order is asked, and is column_mark[j] in the map. */
typedef struct fv_pairs {
    fv_plan plan;
    const int32_t *query_order, *key_order;
    int64_t batch_stride, head_stride; /* from the orders of a batch, or a head, to the next one's; 0: shared */
    int64_t columns;                   /* 0: the keys */
    const int32_t *column_key, *column_keys;
    const uint8_t *column_mark;
} fv_pairs;

/* How many kept rows of a kind the first `keys` positions complete, and their width; 0 for a kind that is not there. Of
 * the call only options, query_heads, key_heads, head_dim and value_dim are set. */
typedef int64_t fv_kept_fn(const fv_call *call, int kind, int64_t keys, int64_t *width);

/* Width of what is kept of a choice in a sequence of at most `keys`; 0: nothing.  Of the call only options are set. */
typedef int64_t fv_choice_width_fn(const fv_call *call, int64_t keys);

enum { FV_FEATURE_GROUPS = 3 };

typedef struct fv_mechanism {
    const char *name, *title, *paper; /* paper: "arXiv 2503.03588" */
    int sheet;
    fv_family family;
    unsigned traits;
    const char *formula, *cost; /* plain text */
    const fv_option *options;
    size_t options_size;
    const fv_param *params; /* ends with a NULL name */

    /* Refuses options that contradict one another (FV_E_USAGE); once, when the SPEC is read. */
    fv_status (*check)(const void *options);
    /* Sizes of names in param shapes beyond B H Hkv N M D Dv; -1 for an unknown name. */
    int64_t (*size)(const void *options, const fv_call *call, const char *name);
    /* Refuses shapes (FV_E_SHAPE) and unserviceable calls (FV_E_USAGE); may set call->causal where options imply it. */
    fv_status (*accept)(fv_call *call);

    /* With FV_BLOCK_CAUSAL: a change at key j moves no row before the last multiple of this at or below j; 0: the whole
     * sequence; 1: it is causal by token after all. */
    int64_t (*ahead)(const void *options);

    /* Fills in who sees whom (plan->causal and plan->offset are set); lists come from scratch memory. Content-based
     * ones read call->q and call->k.  `attend` receives what else the softmax needs (bias, sinks, soft-cap): may be
     * left alone. */
    fv_status (*plan)(fv_ctx *ctx, const fv_call *call, fv_plan *plan, fv_attend_args *attend);
    /* Fills the arguments of a recurrence (q, k, v, o are set; features may replace q and k).  Without causality the
     * framework sums over all keys instead. */
    fv_status (*scan)(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan);
    /* Width of the state for call->head_dim and params (nothing else of the call is set); NULL: the head dim itself. */
    int64_t (*state_width)(const fv_call *call);
    /* Features start[g] .. start[g+1]-1 are normalised among themselves, and the results of such groups are added;
     * fills in start and returns how many there are.  NULL: all together. */
    int (*feature_groups)(const fv_call *call, int64_t start[FV_FEATURE_GROUPS + 1]);
    fv_kept_fn *kept; /* with plan or forward; NULL: it keeps no rows */
    bool kept_half;   /* these are attended to: bf16 where keys and values are stored in 16 bits or less, unless f32 is
                         asked for throughout */
    fv_choice_width_fn *choice_width; /* NULL: it keeps no choice */
    /* Composes primitives; writes call->o (and lse if present). */
    fv_status (*forward)(fv_ctx *ctx, const fv_call *call);
    bool counts; /* forward adds the pairs it computes to call->pairs (fv_count_pairs), so that nothing is chosen twice
                  */
    bool apart;  /* with counts: these are not just the pairs of its map (keys read as one, read twice, or masked) */
    /* With forward: the pairs behind --plan, unless FV_NO_MAP (plan->causal and offset are set), and flops and pairs
     * where they are not just those, and it does not count them itself. */
    fv_status (*map)(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs);
    fv_status (*work)(fv_ctx *ctx, const fv_call *call, fv_work *work);
} fv_mechanism;

/* Every mechanism, NULL-ended (registry.c). */
extern const fv_mechanism *const fv_mechanisms[];
const fv_mechanism *fv_mechanism_find(const char *name); /* NULL: none */
/* The same; FV_E_USAGE offers the nearest name. */
fv_status fv_mechanism_named(const char *name, const fv_mechanism **mechanism);

/* ---- what mechanisms share --------------------------------------------------------------------------------------- */

/* The part of a causal call that computes queries from .. from+count-1, as a chunk of the sequence: keys end with the
 * last of them (of a recurrent mechanism they are the chunk's own). */
void fv_call_cut(const fv_call *call, int64_t from, int64_t count, fv_call *part);
/* The same queries with all keys; tensors of the mechanism's own stay whole. */
fv_call fv_call_rows(const fv_call *call, int64_t from, int64_t count);
/* Query heads head .. head+heads-1 of `batches` batches from b on, with what they read: k and v may have a head for
 * each key-value head or each query head.  Tensors of the mechanism's own stay whole. */
fv_call fv_call_heads(const fv_call *call, int64_t b, int64_t batches, int64_t head, int64_t heads);
/* One query head of one batch.  No lse. */
fv_call fv_call_head(const fv_call *call, int64_t b, int64_t h);
/* Runs a call in parts of `step` queries over all of its keys, the last ones first: they take most memory, and the
 * others do with that, which is given back after each.  A part begins with query part->offset - call->offset. */
typedef fv_status fv_stretch_fn(fv_ctx *ctx, const fv_call *part, void *user);
fv_status fv_run_stretches(fv_ctx *ctx, const fv_call *call, int64_t step, fv_stretch_fn *run, void *user);

/* Cells of a grid; INT64_MAX: too many.  FV_E_SHAPE unless there are as many as tokens. */
int64_t fv_cells_of(const fv_tuple *grid);
fv_status fv_check_cells(const fv_call *call, const fv_tuple *grid, int64_t tokens);

/* The logits of a call: its scale, soft-cap and gain. */
fv_logits fv_call_logits(const fv_call *call);

/* Attention of a call's q over what the plan shows of its k and v, to its o and lse. */
fv_attend_args fv_call_attend(const fv_call *call, const fv_plan *plan);
/* fv_attend, whose pairs are added to what the call counts. */
fv_status fv_attend_counted(fv_ctx *ctx, const fv_call *call, const fv_attend_args *attend);

/* Room for partial results of a call, which fv_merge then combines in its o and lse; the call that fills one of them.
 */
fv_status fv_call_merge(fv_ctx *ctx, const fv_call *call, int parts, fv_merge_args *merge);
fv_call fv_merge_part(const fv_call *call, const fv_merge_args *merge, int part);
/* One softmax of a call over all that its parts see, each with keys and a plan of its own; their o and lse are left
 * out. */
fv_status fv_attend_joined(fv_ctx *ctx, const fv_call *call, int parts, fv_attend_args *part);

/* Lists for every batch of a call and so many heads; groups of queries are cut by position. */
fv_list_shape fv_call_lists(const fv_call *call, int64_t heads, int64_t query_block, int64_t key_block);

/* Adds the pairs that a plan shows over `keys` keys to what the call counts, if anybody counts. */
fv_status fv_count_pairs(fv_ctx *ctx, const fv_call *call, const fv_plan *plan, int64_t keys);

/* What kept rows are stored as, f32 or bf16, beside keys and values of these types. */
fv_dtype fv_kept_type(const fv_mechanism *mechanism, fv_precision precision, fv_dtype keys, fv_dtype values);

/* Rows 0..count-1 of a kind, [B,Hkv,count,width] in *out: what is kept, and new ones from make, which writes rows
 * from.. (as many as `out` has, f32) and reads no key or value behind the last of their own.  Kept rows that lie beyond
 * the positions before this call are made again: a chunk that failed leaves nothing behind. */
typedef fv_status fv_make_rows_fn(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out);
fv_status fv_keep(fv_ctx *ctx, const fv_call *call, fv_kept_fn *kept, int kind, int64_t count, fv_make_rows_fn *make,
                  fv_tensor *out);
/* Queries of positions from .. from+count-1, for kept rows that are made of them; FV_E_UNSUPPORTED if they came with an
 * earlier chunk. */
fv_status fv_kept_queries(const fv_call *call, int64_t from, int64_t count, fv_tensor *q);

/* An elementwise function whose result, of x's shape, is new in scratch memory. */
fv_status fv_mapped(fv_ctx *ctx, const fv_map_args *args, fv_tensor *out);
/* A number as a tensor, which repeats to any shape. */
fv_status fv_number(fv_ctx *ctx, float value, fv_tensor *out);
/* x [B,Hx,..] with each head repeated heads / Hx times, contiguous in scratch memory; x itself if there is nothing to
 * repeat.  Rank 4, anything rows are stored as in, f32 out. */
fv_status fv_repeat_heads(fv_ctx *ctx, const fv_tensor *x, int64_t heads, fv_tensor *out);
/* x [B,H,N,D] as [B,groups,H/groups,N,D]. */
fv_tensor fv_grouped(const fv_tensor *x, int64_t groups);
/* x [B,H,N,D] as rows of all heads joined, [B,N,H*D]. */
fv_status fv_join_heads(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out);
/* x itself if it is f32 and contiguous, otherwise a copy that is, in scratch memory.  x may be of blocks, in rows that
 * are whole ones; then the tape does not see where the copy comes from. */
fv_status fv_plain(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out);
/* x itself if it is f32, whatever its strides. */
fv_status fv_as_f32(fv_ctx *ctx, const fv_tensor *x, fv_tensor *out);
/* most [B,H,N]: the largest magnitude of the logits that each query of args (q, k, plan, logits whose scale is said,
 * without a cap) sees; and lse, unless it is absent. */
fv_status fv_largest_logits(fv_ctx *ctx, const fv_attend_args *args, const fv_tensor *most);

/* Images that rows make: the cell at y, x of image n is row n * image + y * row + x * column. */
typedef struct fv_images {
    int64_t count, height, width, image, row, column;
} fv_images;
/* `count` of them, row-major, one behind the other. */
static inline fv_images fv_images_of(int64_t count, int64_t height, int64_t width)
{
    return (fv_images){count, height, width, height * width, width, 1};
}

/* out[b,h] = depthwise convolution (zero padding) of each image of v[b,key_head[h]] (NULL: h / (H/Hx)).  out
 * [B,H,N,Dv], v [B,Hx,N,Dv] f32, weight [H*Dv,kernel,kernel], bias [H*Dv]; an absent one counts as zeros. */
fv_status fv_convolve_heads(fv_ctx *ctx, const fv_images *images, const fv_tensor *v, const int32_t *key_head,
                            const fv_tensor *weight, const fv_tensor *bias, const fv_tensor *out);
/* o = part + that of the call's v. */
fv_status fv_add_local(fv_ctx *ctx, const fv_call *call, const fv_tensor *part, const fv_tensor *weight,
                       const fv_tensor *bias, fv_images images);

/* Around a choice by content: the tape does not record it (what is chosen is constant to gradients), and its time
 * counts as selection.  FV_TRY_CHOOSING is FV_TRY between the two. */
typedef struct fv_choosing {
    bool recording;
    fv_phase phase;
} fv_choosing;
fv_choosing fv_choosing_begin(fv_ctx *ctx);
void fv_choosing_end(fv_ctx *ctx, fv_choosing before);
#define FV_TRY_CHOOSING(ctx, expression)                                                                               \
    do {                                                                                                               \
        fv_choosing fv_before_ = fv_choosing_begin(ctx);                                                               \
        fv_status fv_status_ = (expression);                                                                           \
        fv_choosing_end(ctx, fv_before_);                                                                              \
        if (fv_status_ != FV_OK) return fv_status_;                                                                    \
    } while (0)

/* ---- for models: the same mechanisms over a cache ---------------------------------------------------------------- */

const fv_mechanism *fv_attention_mechanism(const fv_attention *attention);
/* fv_attention_new from a SPEC that was parsed (one of a layer plan). */
fv_status fv_attention_from(const fv_spec *spec, fv_attention **attention);

/* A tensor that it writes (params_out), of the shape it has in a call, without data.  FV_E_USAGE if there is none of
 * that name. */
fv_status fv_attention_param_out(const fv_attention *attention, const fv_attention_args *args, const char *name,
                                 fv_tensor *shape);

/* Fills a call from public arguments and checks it against the descriptor.  k and v may be f32, f16 or bf16, of a chunk
 * also q8_0 or q4_0. */
fv_status fv_call_make(const fv_attention *attention, const fv_attention_args *args, fv_call *call);
/* The same for a chunk of a longer sequence (N = M is not asked for, call->decoding is set). */
fv_status fv_call_chunk(const fv_attention *attention, const fv_attention_args *args, fv_call *call);

/* Queries of such a call, or chunk: those of q, or as many as there are values (FV_SHARED_QK). */
int64_t fv_attention_rows(const fv_mechanism *mechanism, const fv_attention_args *args, bool chunk);

/* fv_attention_forward, and its work (NULL: not asked for): where pairs are counted in computing, nothing is chosen a
 * second time for it, and flops are those of the pairs. */
fv_status fv_attention_measured(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                fv_work *work);

/* What a sequence leaves in a mechanism.  All zero: nothing is kept, and rows are made anew in each call. */
typedef struct fv_attention_state {
    fv_tensor s, z; /* of a recurrent one: [B,H,F,Dv] and [B,H,F], zeroed before the first chunk */
    fv_kept_rows kept[FV_KEPT];
    fv_kept_choice choice;
} fv_attention_state;

/* Runs a call made by fv_call_chunk: queries at positions offset.., k and v of positions 0..keys-1 (any dtype attend
 * takes; mechanisms that compute on keys convert), of a causal recurrent mechanism those of the chunk only.  `state` is
 * read and written; a recurrent mechanism needs it, for others NULL is one without rows.  With `extra` the caller adds
 * its own terms (logits.softcap, logits.gain, sinks), NULL for none; a mechanism that cannot take them refuses
 * (FV_E_UNSUPPORTED). */
fv_status fv_attention_chunk(fv_ctx *ctx, const fv_attention *attention, const fv_call *call, fv_attention_state *state,
                             const fv_attend_args *extra);
/* Rows that a mechanism keeps of a kind, for a sequence of `keys`, and their width; 0: none.  Of `sizes` the heads and
 * dims are read. */
int64_t fv_attention_kept(const fv_attention *attention, const fv_call *sizes, int kind, int64_t keys, int64_t *width);
/* Width of a choice that it keeps between the steps of a sequence of `keys`; 0: none. */
int64_t fv_attention_choice(const fv_attention *attention, int64_t keys);
/* Feature width F of the state of a recurrent mechanism for head dim D; 0: not recurrent. */
int64_t fv_attention_state_width(const fv_attention *attention, int64_t head_dim);

#endif
