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

#endif
