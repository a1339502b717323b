/* Tiny random models as GGUF files, and their naive twin: the same forward in double precision with plain loops. */
#ifndef FV_TINY_MODEL_H
#define FV_TINY_MODEL_H

#include "support/gguf_writer.h"
#include "support/support.h"

enum { TINY_WEIGHTS = 128 };

typedef struct tiny_weight {
    char name[64];
    int64_t rows, columns; /* vectors have one row */
    double *values;        /* as stored in the file */
} tiny_weight;

typedef struct tiny_model {
    const char *architecture; /* all else may be 0: then something small */
    int64_t layers, width, hidden, heads, key_heads, key_dim, value_dim, rotary, vocabulary, context;
    int64_t window;
    bool untied, biases, rope_factors, no_dims; /* no_dims: the file leaves key and value length out */
    const char *scaling;                        /* NULL, "linear", "yarn" */
    double scaling_factor;
    fv_dtype dtype;        /* of matrices; FV_DTYPE_COUNT: a different one for each */
    bool f16_cache;        /* the twin rounds keys and values */
    const char *without;   /* a tensor to leave out */
    const char *misshapen; /* a tensor to give a wrong shape */

    gguf_writer writer;
    int count;
    tiny_weight weights[TINY_WEIGHTS];
} tiny_model;

/* Fills in what is 0, draws weights, and writes metadata and tensors into m->writer. */
void tiny_make(tiny_model *m);
void tiny_free(tiny_model *m);
/* Saves m->writer under a fresh name in /tmp; unlink it. */
const char *tiny_save(const tiny_model *m);

/* Logits [count, vocabulary] of a whole sequence, written from the definition of each architecture. */
void tiny_twin(const tiny_model *m, const int32_t *ids, int64_t count, double *logits);

/* What the twin of a cache policy sees at token p in layer l, and moves. */
typedef struct tiny_cache {
    const tiny_model *m;
    int64_t prompt, count; /* tokens of the prompt, and in all */
    int64_t l, p;
    bool *held;              /* [layers, key_heads, count]: rows that are there; tokens enter as they come */
    const double *input;     /* [count, width]: what q, k and v of this layer are products of */
    const double *residual;  /* [count, width]: what its norm read */
    const double *q, *k, *v; /* [count, heads * dim] of this layer, rotated */
    double *weight;          /* [heads, count]: of row p; 0 where it does not see */
} tiny_cache;

static inline bool *tiny_held(const tiny_cache *c, int64_t l, int64_t g)
{
    return c->held + (l * c->m->key_heads + g) * c->count;
}

/* A policy's definition: whether row p of key-value head g sees row j <= p (NULL: if it is held); what happens after
 * row p of layer l, and once the last token of the prompt has passed it.  Layers with a window of their own are not
 * asked. */
typedef struct tiny_policy {
    bool (*sees)(void *user, const tiny_cache *c, int64_t g, int64_t j);
    double (*logit)(void *user, const tiny_cache *c, int64_t h,
                    int64_t j); /* before any soft-cap; NULL: q.k / sqrt(D) */
    void (*after)(void *user, tiny_cache *c);
    void (*act)(void *user, tiny_cache *c);
    void *user;
} tiny_policy;

/* Logits [count, vocabulary] of a prompt and the tokens behind it under a policy.  held [layers, key_heads, count] or
 * NULL receives what is held at the end. */
void tiny_twin_cached(const tiny_model *m, const int32_t *ids, int64_t prompt, int64_t count, const tiny_policy *policy,
                      double *logits, bool *held);
bool tiny_sees_all(const tiny_model *m, int64_t l); /* the layer has no window of its own */
/* Turns one head as layer l does at position p. */
void tiny_rope(const tiny_model *m, int64_t l, int64_t p, double *head);

#endif
