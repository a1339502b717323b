/* Cache policies: which rows of keys and values a stream keeps, and which of them a step reads.
 *
 * A policy acts on some layers of a model, never on those with a window of their own.  Where it acts, the model's dense
 * attention runs over the rows that are held, and the policy is asked, in this order, for each chunk of queries:
 *   plan    who sees whom among the rows, the chunk's own included (left out: causal, everything held);
 *   after   what the chunk's attention says about rows, and, of policies that act every step, what to drop;
 * and once a prompt has been read, for each layer as soon as the whole prompt has passed it:
 *   act     what to keep of the prompt.
 * A descriptor fills in what it needs of these; the rest (options, storage types, memory figures, --kept) is the
 * framework's.  Policies hold no state but a stream's: two streams with different ones run side by side. */
#ifndef FV_POLICY_H
#define FV_POLICY_H

#include "base/options.h"
#include "base/text.h"
#include "cache/cold.h"
#include "cache/rows.h"
#include "ops/ops.h"

/* Promises; the conformance suite checks each for each policy that makes it. */
enum {
    FV_POLICY_POSITION = 1 << 0,    /* what is kept and read depends on positions only */
    FV_POLICY_SCORES = 1 << 1,      /* on scores that the model's own attention gives */
    FV_POLICY_PER_HEAD = 1 << 2,    /* key-value heads may hold different rows, and plan is asked for each */
    FV_POLICY_ONCE = 1 << 3,        /* acts at the end of a prompt, from full attention */
    FV_POLICY_SELECTS = 1 << 4,     /* keeps every row and reads some */
    FV_POLICY_BOUNDED = 1 << 5,     /* never holds more than its bound + FV_POLICY_CHUNK rows */
    FV_POLICY_CHUNKS = 1 << 6,      /* a prompt in any chunks, down to single steps, gives the same rows */
    FV_POLICY_LSE = 1 << 7,         /* `after` needs call->lse */
    FV_POLICY_FILTERS = 1 << 8,     /* chooses tokens of the prompt before it is read (filter_layer, filter) */
    FV_POLICY_INSERTS = 1 << 9,     /* puts a token of its own between those of the text (inserts) */
    FV_POLICY_PLAIN_KEYS = 1 << 10, /* keys are stored as they are before they are rotated; `read` rotates them */
};
enum { FV_POLICY_CHUNK = 512 };

/* What a policy may know of a model. */
typedef struct fv_cache_model {
    int64_t layers, query_heads, key_heads, key_dim, value_dim;
    int64_t context;       /* tokens a stream may hold */
    const int64_t *window; /* [layers] of its own, 0: none */
    int64_t vocabulary;
    const void *model; /* of find_token: the id of a piece, -1: there is none */
    int32_t (*find_token)(const void *model, const char *piece);
} fv_cache_model;

/* FV_POLICY_INSERTS: token `id` stands behind every `every` tokens of the text; and a prompt is read in pieces that end
 * at multiples of `chunk` tokens of the text. */
typedef struct fv_policy_insert {
    int32_t id;
    int64_t every, chunk; /* every 0: nothing is inserted */
} fv_policy_insert;

typedef struct fv_policy fv_policy;

/* Options that every policy has. */
typedef struct fv_policy_common {
    int k, v; /* into fv_policy_types */
    int64_t page;
} fv_policy_common;

/* A policy with its options, as a SPEC gives it, on the layers it acts on. */
typedef struct fv_policy_use {
    const fv_policy *policy;
    const void *options;
    fv_policy_common common;
    const fv_cache_model *model;
    const int64_t *layer; /* [layers] of the model it acts on, ascending */
    int64_t layers;
    void *plan;      /* what `open` made of options and plan files: the policy's own, the same for all streams */
    fv_text warning; /* what `open` found that its user should know, in a sentence; empty: nothing */
} fv_policy_use;

/* One layer of one stream. */
typedef struct fv_policy_layer {
    const fv_policy_use *use;
    int64_t layer, place; /* of the model; among use->layer */
    fv_rows *rows;
    void *state;                 /* policy->layer_bytes, zeroed at first */
    struct fv_policy_layer *all; /* [use->layers] of this stream */
    fv_project_fn *project;      /* computes rows of this layer again; with `model` */
    void *model;
} fv_policy_layer;

/* Queries at positions offset .. offset+queries-1, whose rows are the last ones held. */
typedef struct fv_policy_call {
    fv_tensor q;               /* [1,H,queries,D] f32, rotated */
    fv_tensor o;               /* [1,H,queries,Dv] f32 */
    fv_tensor lse;             /* [1,H,queries] f32, of what was seen; with FV_POLICY_LSE, in `after` */
    fv_tensor input, residual; /* [queries,width] f32: what q, k and v are products of, and what its norm read */
    bool few;                  /* as fv_project_fn has it: of those products */
    int64_t offset, queries;
    bool prompt;           /* of a prompt, or a step of decoding (one query) */
    int64_t prompt_tokens; /* of the stream when its prompt ends, or ended; 0: it had none */
    fv_logits logits;
    const fv_rope_args *rope; /* how q was rotated (x, out and position left open) */
} fv_policy_call;

struct fv_policy {
    const char *name, *title, *paper;
    int sheet; /* 0: none */
    unsigned traits;
    const char *keeps, *cost; /* plain text */
    /* The option that says how much is kept or read, for sweeps over it: "budget=ROWS"; also PERCENT, SHARE, BLOCKS (of
     * 16 rows) and FACTOR (1 / share).  NULL: there is none, or a plan file says it. */
    const char *sweep;
    const fv_option *options;
    size_t options_size;
    size_t layer_bytes;

    /* Refuses options that contradict one another (FV_E_USAGE); once, when the SPEC is read. */
    fv_status (*check)(const void *options);
    /* Makes use->plan: budgets of layers, a plan file checked against the model.  FV_E_USAGE, FV_E_IO, FV_E_FORMAT. */
    fv_status (*open)(fv_policy_use *use);
    void (*close)(fv_policy_use *use);

    /* FV_POLICY_PER_HEAD: whether all heads read alike at this layer, so that they can be taken together.  NULL: no. */
    bool (*alike)(const fv_policy_layer *layer);
    /* `plan` has causal, offset and key_position set; head: the key-value head it is asked for, -1 without
     * FV_POLICY_PER_HEAD or if they are alike (all see the same, or lists have the key-value heads).  Lists live until
     * the next call. */
    fv_status (*plan)(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, int64_t head, fv_plan *plan);
    /* Attends itself, where it takes more than fv_attend(args): args is filled in for the query heads of one key-value
     * head or of all.  Where `plan` gave lists and some rows are cold, its k and v are absent. */
    fv_status (*read)(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call, const fv_attend_args *args);
    fv_status (*after)(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call);
    fv_status (*act)(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt);
    /* Frees what state points to (not state itself). */
    void (*drop)(fv_policy_layer *layer);
    /* Bytes behind state, and positions the last step read of a head (NULL: all that are held). */
    size_t (*state_bytes)(const fv_policy_layer *layer);
    const int32_t *(*selected)(const fv_policy_layer *layer, int64_t head, int64_t *count);

    /* FV_POLICY_FILTERS: the layer at which a prompt of `tokens` is judged (-1: it is kept whole), and the places of
     * the tokens to keep, ascending: q [1,H,1,D] of the last token and k [1,Hkv,tokens,D] of that layer, f32, rotated;
     * logits as the layer's own attention has them.  keep holds `tokens`. */
    int64_t (*filter_layer)(const fv_policy_use *use, int64_t tokens);
    fv_status (*filter)(fv_ctx *ctx, const fv_policy_use *use, const fv_logits *logits, const fv_tensor *q,
                        const fv_tensor *k, int32_t *keep, int64_t *count);
    /* FV_POLICY_INSERTS: what is inserted. */
    void (*inserts)(const fv_policy_use *use, fv_policy_insert *insert);
    /* Rows lie in tensors of a page pool: its knobs, and whether all layers acted on share one.  NULL: they do not. */
    void (*pool)(const fv_policy_use *use, fv_pages_options *pool, bool *one);
    /* Rows a layer of the stream may hold: the capacity that is reserved for it.  NULL: the context. */
    int64_t (*bound)(const fv_policy_use *use, int64_t place);
};

/* Whether it changes which rows are held or read; otherwise it says at most where they lie. */
static inline bool fv_policy_acts(const fv_policy *policy)
{
    return policy->plan || policy->read || policy->after || policy->act;
}

/* Every policy, NULL-ended (registry.c). */
extern const fv_policy *const fv_policies[];
const fv_policy *fv_policy_find(const char *name); /* NULL: none */
/* The same; FV_E_USAGE offers the nearest name. */
fv_status fv_policy_named(const char *name, const fv_policy **policy);

extern const fv_option fv_policy_common_options[]; /* of fv_policy_common */
fv_dtype fv_policy_type(int choice);

/* ---- a model's set-up ------------------------------------------------------------------------------------------- */

/* What a --cache SPEC says for all layers of a model: how a layer's rows are stored, and which policy acts there. */
typedef struct fv_cache_plan {
    fv_cache_model model;
    int64_t *window;
    int uses;
    fv_policy_use *use;
    fv_layer_plan layers;
    int *part; /* [layers] which use stores its rows; -1: the default types */
} fv_cache_plan;

/* spec NULL: full.  FV_E_USAGE for names, options and layers; FV_E_IO, FV_E_FORMAT for plan files; FV_E_MEMORY. */
fv_status fv_cache_plan_new(const char *spec, const fv_cache_model *model, fv_cache_plan *plan);
void fv_cache_plan_free(fv_cache_plan *plan);
const fv_policy_common *fv_cache_plan_types(const fv_cache_plan *plan, int64_t layer);
unsigned fv_cache_plan_traits(const fv_cache_plan *plan);             /* of all policies together */
const fv_policy_use *fv_cache_plan_filter(const fv_cache_plan *plan); /* NULL: none */
fv_policy_insert fv_cache_plan_insert(const fv_cache_plan *plan);     /* of the policy that inserts, if there is one */

#endif
