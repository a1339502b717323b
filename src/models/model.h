/* A model in memory: what its file says, checked, and views of its weights. */
#ifndef FV_MODEL_INTERNAL_H
#define FV_MODEL_INTERNAL_H

#include "fovea/model.h"
#include "models/architecture.h"
#include "models/gguf.h"

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

/* Matrices are [outputs, inputs] as stored; vectors are f32.  Parts an architecture lacks are absent. */
typedef struct fv_layer {
    fv_tensor attention_norm, post_attention_norm, mlp_norm, post_mlp_norm; /* [width] */
    fv_tensor q, k, v, o; /* [H D, width], [Hkv D, width], [Hkv Dv, width], [width, H Dv] */
    fv_tensor q_bias, k_bias, v_bias, o_bias;
    fv_tensor q_norm, k_norm; /* [D] */
    fv_tensor gate, up, down; /* [hidden, width] twice, [width, hidden] */
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
    fv_tensor embedding, output, output_norm; /* [vocabulary, width] twice (the same if tied), [width] */
    fv_layer *layers;
    int64_t parameters;
    size_t weight_bytes;
    char *name;
    struct fv_tokenizer *tokenizer; /* NULL: the file has none */
};

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
