/* A session: what one stream of tokens has left in the layers. */
#ifndef FV_SESSION_H
#define FV_SESSION_H

#include "attention/mechanism.h"
#include "cache/policy.h"
#include "hooks/hooks.h"
#include "models/history.h"
#include "models/model.h"

typedef struct fv_session_layer {
    fv_attention *attention;
    bool no_scale;           /* the mechanism has none */
    bool dense;              /* the model's own attention over the rows held; a policy may act */
    int64_t window;          /* of its own, 0: none */
    fv_rows rows;            /* unless the mechanism is recurrent */
    fv_policy_layer *policy; /* NULL: every row is kept and read */
    fv_attention_state state;
    void *memory, *kept[FV_KEPT], *choice; /* of the state: recurrent, or kept rows and a choice */
    size_t state_bytes;
    double spent[FV_PHASES]; /* seconds of attention so far; streams side by side (fv_run_apart) do not count them */
} fv_session_layer;

enum { FV_FAILURE_TEXT = 256 };

struct fv_session {
    fv_ctx *ctx;
    const fv_model *model;
    fv_precision precision;
    int64_t context, chunk, length;
    int64_t left_out;      /* tokens of prompts that a policy did not let in */
    int64_t prompt_tokens; /* length when the prompt that is being read ends, or the last one ended: whoever feeds parts
                              of a prompt by fv_forward says it before the first */
    int64_t dense_last;    /* tokens of a prompt that read everything */
    bool keep_windows;     /* rows that leave a layer's own window stay */
    bool recurrent;        /* some layer keeps a state */
    bool broken;           /* something was left half way */
    fv_status failure;     /* of its own in the last forward that it was a part of, and the sentence */
    char failure_text[FV_FAILURE_TEXT];
    double pairs, dense_pairs;
    size_t row_bytes, state_bytes, peak_bytes; /* of rows now held, of states; of both, at most so far */
    fv_cache_plan cache;
    const fv_policy_use *filter; /* of prompts; NULL: none */
    fv_policy_insert insert;     /* a token that stands between those of the text */
    int32_t *text, *shown;       /* [rows] with `insert`: where a row's token stands in the text; room for positions */
    fv_history history;          /* with a filter */
    fv_lender *lender;           /* of the file its rows lie in where they can be shared; NULL: they cannot */
    fv_policy_layer *policies;   /* [layers of all uses together] */
    void *policy_state;
    fv_session_layer *layers;
    fv_listener *listeners; /* of its run (hooks/hooks.h); NULL: nobody listens */
};

/* Rows of the text's tokens: all, but for those that were inserted. */
static inline int64_t fv_session_held(const fv_session *session)
{
    return session->length - (session->insert.every ? session->length / (session->insert.every + 1) : 0);
}
/* Whether its prompts are read by fv_session_prompt alone, as the rows of a chunk are not those of its tokens; and in
 * how many tokens at most at a time, which ends at a multiple of that (0: the whole prompt). */
bool fv_session_reads_alone(const fv_session *session, int64_t *tokens);
/* Behind a token that was fed by fv_forward: the token that stands behind it, if one does. */
fv_status fv_session_insert_due(fv_session *session);

/* FV_E_ARGUMENT for ids that the model does not have, FV_E_SHAPE if they do not fit behind what was fed. */
fv_status fv_session_check_ids(const fv_session *session, const int32_t *ids, int64_t count);
size_t fv_session_state_bytes(const fv_session *session);
/* Whether attention in a layer is not what the model has there: by a mechanism, or over rows that a policy acts on. */
bool fv_session_replaces(const fv_session *session, int64_t layer);
void fv_session_drop_rows(fv_session *session); /* of all layers, and what policies know of them */
void fv_session_clear_layer(fv_session *session, int64_t layer);

/* Rows of tokens that were begun and not finished are forgotten; where they have moved others, nothing can help: the
 * session is broken. */
void fv_session_undo(fv_session *session);
void fv_session_recount(fv_session *session); /* row_bytes, after rows came or went */

/* Tokens of one stream in a forward of several. */
typedef struct fv_forward_part {
    fv_session *session;
    const int32_t *ids;
    int64_t count;
    bool prompt; /* of a prompt; otherwise a step */
} fv_forward_part;

/* Runs the tokens of all parts, at positions length.. of each, through all layers; x [tokens,width] receives the hidden
 * rows (before the last norm), part after part.  Does not move lengths.  Sessions are of one model and precision.
 * Scratch memory. */
fv_status fv_forward(fv_ctx *ctx, const fv_forward_part *parts, int64_t count, fv_tensor *x);

/* The same for a whole prompt, layer by layer, so that policies act on one layer before the next begins. */
fv_status fv_forward_layers(fv_session *session, const int32_t *ids, int64_t count, fv_tensor *x);

/* Pairs that a layer with such a window (0: none) would have for tokens at position .. as the model is. */
double fv_dense_pairs(const fv_sizes *sizes, int64_t position, int64_t tokens, int64_t window);

/* Queries of the last token and keys of all tokens of a prompt at a layer, rotated, for an empty session whose layers
 * below have no policy: q [1,H,1,D], k [1,Hkv,count,D] f32.  Leaves the session empty.  Scratch memory. */
fv_status fv_forward_filter(fv_session *session, const int32_t *ids, int64_t count, int64_t layer, fv_tensor *q,
                            fv_tensor *k);

/* Rows of a layer once more (cache/cold.h); `session` is an fv_session. */
fv_status fv_forward_project(fv_ctx *ctx, void *session, int64_t layer, const fv_tensor *input, const int32_t *position,
                             bool few, fv_tensor *k, fv_tensor *v);

/* What policies do once a prompt has been read: for one layer. */
fv_status fv_session_act(fv_session *session, int64_t layer, int64_t prompt);

/* logits [rows, vocabulary] of hidden rows x [rows, width]. */
fv_status fv_forward_logits(fv_session *session, const fv_tensor *x, float *logits);

/* ---- for gradients: a tape sees all of these -------------------------------------------------------------------- */

/* A layer over the tokens of an empty session, as the model is: attention to the tokens themselves, in f32, no rows. */
typedef struct fv_open_layer {
    fv_tensor q, k, v, o; /* [1,H|Hkv,N,D|Dv], q and k rotated */
    fv_tensor x;          /* [N,width]: what the layer makes of it; without a tape, in place */
} fv_open_layer;
fv_status fv_forward_embed(fv_session *session, const int32_t *ids, const fv_tensor *x); /* of every row of x */
fv_status fv_forward_open(fv_session *session, int64_t layer, const fv_tensor *x, fv_open_layer *open);
fv_status fv_forward_open_logits(fv_session *session, const fv_tensor *x, fv_tensor *logits);

#endif
