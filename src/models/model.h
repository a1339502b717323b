/* A model in memory: what its file says, checked, and views of its weights. */
#ifndef FV_MODEL_INTERNAL_H
#define FV_MODEL_INTERNAL_H

#include <pthread.h>

#include "fovea/model.h"
#include "models/architecture.h"
#include "models/gguf.h"
#include "ops/packed.h"

struct fv_tokenizer;

typedef struct fv_sizes {
    int64_t layers, width, hidden, query_heads, key_heads, key_dim, value_dim, vocabulary, context, rotary;
    int64_t window;        /* of the layers that have one */
    int64_t window_period; /* see fv_architecture */
    double epsilon;        /* of the norms */
    double scale;          /* of q.k */
    double attention_cap, final_cap, embedding_scale;
} fv_sizes;

typedef struct fv_rope_table {
    fv_tensor frequency; /* [rotary / 2] f32 */
    float magnitude;
} fv_rope_table;

/* A matrix as the file has it, and packed for the processor (fv_model_pack); the tensor comes first. */
typedef struct fv_weight {
    fv_tensor tensor;
    fv_packed packed;
} fv_weight;

/* Matrices are [outputs, inputs] as stored; vectors are f32.  Parts an architecture lacks are absent. */
typedef struct fv_layer {
    fv_tensor attention_norm, post_attention_norm, mlp_norm, post_mlp_norm; /* [width] */
    fv_weight q, k, v, o; /* [H D, width], [Hkv D, width], [Hkv Dv, width], [width, H Dv] */
    fv_tensor q_bias, k_bias, v_bias, o_bias;
    fv_tensor q_norm, k_norm; /* [D] */
    fv_weight gate, up, down; /* [hidden, width] twice, [width, hidden] */
    fv_tensor gate_bias, up_bias, down_bias;
    int64_t window; /* 0: sees everything */
    const fv_rope_table *rope;
} fv_layer;

struct fv_model {
    fv_gguf *file;
    fv_arena *memory; /* vectors and tables */
    const fv_architecture *architecture;
    fv_sizes sizes;
    fv_rope_table rope, window_rope;
    fv_tensor embedding, output_norm; /* [vocabulary, width], [width] */
    fv_weight output;                 /* [vocabulary, width]; the embedding's tensor if tied */
    fv_layer *layers;
    int64_t parameters;
    size_t weight_bytes;
    char *name;
    struct fv_tokenizer *tokenizer; /* NULL: the file has none */
    struct fv_model_packs *packs;   /* NULL: not packed */
    pthread_mutex_t mutex;          /* of packing */
};

/* Lays the quantised matrices out for the processor's kernels, once; the file's pages of them are given back.  Without
 * memory for it, or where the backend has no use for it, products take the file's own form. */
void fv_model_pack(fv_ctx *ctx, const fv_model *model);
void fv_model_unpack(fv_model *model);
/* Rows of the embedding are read from the file: many of them bring many pages, which are given back here. */
void fv_model_give_back_embedding(const fv_model *model);

/* Reads sizes from the file's keys. */
fv_status fv_model_read_sizes(fv_model *model);
/* Frequencies of rotary position embedding, with the file's scaling. */
fv_status fv_model_read_ropes(fv_model *model, const fv_gguf_tensor *factors);
/* Finds every tensor, and checks its shape; refuses tensors this architecture does not have. */
fv_status fv_model_read_weights(fv_model *model);

/* "llama.block_count" into a buffer. */
enum { FV_KEY_TEXT = 128 };
const char *fv_model_key(const fv_model *model, const char *name, char buffer[FV_KEY_TEXT]);

#endif
