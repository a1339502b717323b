/* Language models from GGUF files: text to ids and back, sessions with a cache, sampling. */
#ifndef FOVEA_MODEL_H
#define FOVEA_MODEL_H

#include "fovea/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- models ---------------------------------------------------------------------------------------------------- */

typedef struct fv_model fv_model;

/* Maps a GGUF file (v2, v3) and checks all of it before use; weights stay in the file's pages.  FV_E_IO, FV_E_FORMAT
 * (what, where, expected, got), FV_E_UNSUPPORTED (an unknown architecture lists the known ones), FV_E_MEMORY. */
FV_API fv_status fv_model_open(const char *path, fv_model **model);
FV_API void fv_model_close(fv_model *model);

typedef struct fv_model_info {
    const char *architecture, *name; /* "llama", the file's general.name or "" */
    int64_t layers, query_heads, key_heads, head_dim, width, vocabulary,
        context; /* context: tokens it was trained for */
    int64_t parameters;
    size_t weight_bytes;
    bool has_chat_template;
} fv_model_info;
FV_API void fv_model_describe(const fv_model *model, fv_model_info *info);

/* ---- text ------------------------------------------------------------------------------------------------------ */

enum {
    FV_TOKENIZE_SPECIAL = 1, /* special-token text becomes that token; otherwise it is plain text */
    FV_TOKENIZE_BEGIN = 2,   /* a begin token first, where the model has one */
    FV_TOKENIZE_MODEL = 4,   /* begin (and end) tokens as the file's metadata asks */
};

/* UTF-8 to ids; *ids is released with fv_release.  Bytes that are not UTF-8: FV_E_FORMAT naming the offset. */
FV_API fv_status fv_model_tokenize(const fv_model *model, const char *text, size_t length, unsigned flags,
                                   int32_t **ids, int64_t *count);
/* As fv_model_tokenize, also giving for each id the byte offset in text where its text ends (begin tokens: 0). */
FV_API fv_status fv_model_tokenize_spans(const fv_model *model, const char *text, size_t length, unsigned flags,
                                         int32_t **ids, int64_t **ends, int64_t *count);

/* The bytes an id stands for, exactly (may be part of a character; special tokens: their text).  *bytes is owned by the
 * model.  FV_E_ARGUMENT for an id outside the vocabulary. */
FV_API fv_status fv_model_piece(const fv_model *model, int32_t id, const char **bytes, size_t *length);
/* Ids to text, byte for byte, as the tokenizer joins them; *text is 0-ended and released with fv_release. */
FV_API fv_status fv_model_detokenize(const fv_model *model, const int32_t *ids, int64_t count, char **text,
                                     size_t *length);
FV_API bool fv_model_is_special(const fv_model *model, int32_t id); /* control tokens: not part of an answer's text */
FV_API bool fv_model_is_end(const fv_model *model, int32_t id);     /* end of text or of turn */
FV_API int32_t fv_model_begin_token(const fv_model *model);         /* -1: none */
FV_API bool fv_model_adds_begin(const fv_model *model);

/* Renders one user message (and an optional system message, NULL: the template's own default) with the file's chat
 * template, ready for FV_TOKENIZE_SPECIAL, up to where the answer starts.  `user_at` receives the byte offset of the
 * user's text in *text.  FV_E_UNSUPPORTED: the file has no template, or none we recognise (the sentence says so). */
FV_API fv_status fv_model_chat(const fv_model *model, const char *system, const char *user, char **text, size_t *length,
                               size_t *user_at);

typedef enum fv_chat_role { FV_CHAT_SYSTEM = 0, FV_CHAT_USER, FV_CHAT_ASSISTANT, FV_CHAT_TOOL } fv_chat_role;
typedef struct fv_chat_message {
    fv_chat_role role;
    const char *content;
} fv_chat_message;

/* Renders a whole conversation, up to where the next answer starts; ready for FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL.
 * A template without a system's turn has its text at the head of the next user's; one without a tool's has it as a
 * user's.  *text is released with fv_release.  FV_E_UNSUPPORTED as above. */
FV_API fv_status fv_model_chat_messages(const fv_model *model, const fv_chat_message *messages, int64_t count,
                                        char **text, size_t *length);

/* A further user message in a session that holds the answer so far, without its end: ends the answer, and goes up to
 * where the next one starts.  For FV_TOKENIZE_SPECIAL alone.  *text is released with fv_release. */
FV_API fv_status fv_model_chat_next(const fv_model *model, const char *user, char **text, size_t *length);

/* ---- sessions -------------------------------------------------------------------------------------------------- */

typedef struct fv_session fv_session;

typedef struct fv_session_options {
    int64_t context;        /* most tokens it will hold; 0: the model's own */
    const char *attention;  /* SPEC or layer plan; NULL: as the model is.  A bare SPEC replaces the layers that see
                               everything; a layer with a window of its own keeps it unless a layer plan names it */
    fv_precision precision; /* AUTO or F32 */
    int64_t chunk;          /* tokens in a prefill step; 0: chosen */
    const char *cache;      /* SPEC or layer plan of cache policies; NULL: full, rows of f16 */
    int64_t dense_last;     /* tokens at the end of each prompt that read everything in layers whose attention is a
                               mechanism: what is asked stands there; decoding is not concerned.  FV_E_USAGE for one
                               that has a state, or keeps rows made of queries */
    bool keep_windows;      /* layers with a window of their own keep the rows that leave it, so that rows of any
                               beginning of the tokens can be lent to other sessions */
    bool lends;             /* other sessions may read its rows: they lie where pages can be shared */
} fv_session_options;

/* FV_E_USAGE for a bad SPEC or one a causal language model cannot use; FV_E_MEMORY. */
FV_API fv_status fv_session_new(fv_ctx *ctx, const fv_model *model, const fv_session_options *options,
                                fv_session **session);
FV_API void fv_session_free(fv_session *session);

/* What its cache policies have to say about their options, a sentence each; NULL behind the last. */
FV_API const char *fv_session_warning(const fv_session *session, int index);

/* Appends tokens, as steps.  With logits: f32 rows of the vocabulary, of the last `rows` tokens, written to
 * logits[rows][vocab].  Any pieces, down to single tokens, give the same numbers.  FV_E_ARGUMENT for an id outside the
 * vocabulary, FV_E_SHAPE past the context (says how many fit), FV_E_INTERRUPTED (the session keeps whole chunks only).
 */
FV_API fv_status fv_session_feed(fv_session *session, const int32_t *ids, int64_t count, float *logits, int64_t rows);

/* As fv_session_feed, for a whole prompt: cache policies that judge one act at its end, and its logits come before.
 * A policy that leaves tokens of a prompt out judges all that was fed, and its only logits are those of the last token
 * that was kept: FV_E_USAGE where more are wanted, and for fv_session_stream. */
FV_API fv_status fv_session_prompt(fv_session *session, const int32_t *ids, int64_t count, float *logits, int64_t rows);

/* As fv_session_prompt, giving every row's logits to `sink` piece by piece, in bounded memory. */
typedef fv_status fv_logits_fn(void *user, int64_t first_row, int64_t rows, const float *logits);
FV_API fv_status fv_session_stream(fv_session *session, const int32_t *ids, int64_t count, fv_logits_fn *sink,
                                   void *user);

/* Whether what follows a prompt must be fed one token at a time for a cache policy to act as it does when text is
 * written. */
FV_API bool fv_session_in_steps(const fv_session *session);

FV_API int64_t fv_session_length(const fv_session *session);
FV_API int64_t fv_session_tokens(const fv_session *session); /* fed, also those a policy left out of the prompt */
FV_API void fv_session_clear(fv_session *session);           /* forgets all tokens */

typedef struct fv_session_stats {
    size_t cache_bytes, peak_cache_bytes;   /* of keys, values and states now held, and at most so far */
    size_t committed_bytes, reserved_bytes; /* of pages behind them, and of their address space */
    size_t host_bytes;                      /* of rows that lie in a file for now */
    size_t policy_bytes;                    /* what a cache policy remembers */
    double pairs, dense_pairs;              /* query-key pairs attended so far, and those dense would have */
} fv_session_stats;
FV_API void fv_session_measure(const fv_session *session, fv_session_stats *stats);

/* Positions of the rows that a layer's key-value head holds, ascending; valid until the session changes. */
FV_API const int32_t *fv_session_positions(const fv_session *session, int64_t layer, int64_t head, int64_t *count);
/* Whether positions are counted among the tokens a policy kept of the prompt, not those of the prompt itself; those of
 * fv_session_positions are the prompt's all the same. */
FV_API bool fv_session_renumbers(const fv_session *session);
/* Whether a policy reads some of the rows held, and the positions the last step read of a head (NULL: all of them). */
FV_API bool fv_session_selects(const fv_session *session);
FV_API const int32_t *fv_session_selected(const fv_session *session, int64_t layer, int64_t head, int64_t *count);

/* ---- sampling -------------------------------------------------------------------------------------------------- */

typedef struct fv_sampler_options {
    float temperature;    /* 0: greedy, ties to the lower id */
    int top_k;            /* 0: off */
    float top_p, min_p;   /* 0: off */
    float repeat_penalty; /* 0 or 1: off; over the last 64 tokens */
    uint64_t seed;
} fv_sampler_options;

typedef struct fv_sampler fv_sampler;
FV_API fv_status fv_sampler_new(const fv_sampler_options *options, int64_t vocabulary, fv_sampler **sampler);
FV_API void fv_sampler_free(fv_sampler *sampler);
FV_API int32_t fv_sampler_pick(fv_sampler *sampler, const float *logits); /* and remembers it */
FV_API void fv_sampler_accept(fv_sampler *sampler, int32_t id);           /* remembers a token of the prompt */

/* ---- generation ------------------------------------------------------------------------------------------------ */

/* Called with whole characters only (UTF-8 is never cut); return false to stop. */
typedef bool fv_text_fn(void *user, const char *text, size_t length);

typedef struct fv_generate_options {
    int64_t limit; /* most tokens */
    fv_sampler *sampler;
    int stops;
    const char *const *stop; /* texts that end the answer; they are not part of it */
    fv_text_fn *text;
    fv_logits_fn *row; /* receives the logits that each token of the answer was chosen from, or NULL */
    void *user;
} fv_generate_options;

typedef enum fv_stop { FV_STOP_END = 0, FV_STOP_LIMIT, FV_STOP_TEXT, FV_STOP_CONTEXT, FV_STOP_CALLER } fv_stop;
FV_API const char *fv_stop_name(fv_stop stop); /* "end", "limit", "text", "context", "caller" */

typedef struct fv_generation {
    int32_t *ids; /* without the end token */
    int64_t count;
    char *text;
    size_t length;
    fv_stop stop;
    double seconds; /* of decoding */
} fv_generation;

/* Continues from `logits`, the last row of the prompt.  Release with fv_generation_free. */
FV_API fv_status fv_generate(fv_session *session, const float *logits, const fv_generate_options *options,
                             fv_generation *generation);
FV_API void fv_generation_free(fv_generation *generation);

#ifdef __cplusplus
}
#endif
#endif
