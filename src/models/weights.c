/* A model's tensors by name: one table of the parts a layer may have. */
#include <stddef.h>
#include <stdio.h>

#include "models/model.h"
#include "ops/blocks.h"

enum size { NONE, WIDTH, HIDDEN, QUERIES, KEYS, VALUES, OUTPUTS, KEY_DIM };

/* A matrix [rows, columns] or, with rows NONE, a vector.  With `part` it is there iff the architecture has that part;
 * if optional it may also be there otherwise. */
struct part {
    const char *name;
    size_t at;
    enum size rows, columns;
    unsigned part;
    bool optional;
};

#define PART(field, name, ...)                                                                                         \
    {                                                                                                                  \
        name, offsetof(fv_layer, field), __VA_ARGS__                                                                   \
    }

static const struct part parts[] = {
    PART(attention_norm, "attn_norm.weight", NONE, WIDTH, 0, false),
    PART(q, "attn_q.weight", QUERIES, WIDTH, 0, false),
    PART(k, "attn_k.weight", KEYS, WIDTH, 0, false),
    PART(v, "attn_v.weight", VALUES, WIDTH, 0, false),
    PART(o, "attn_output.weight", WIDTH, OUTPUTS, 0, false),
    PART(q_bias, "attn_q.bias", NONE, QUERIES, FV_QKV_BIAS, true),
    PART(k_bias, "attn_k.bias", NONE, KEYS, FV_QKV_BIAS, true),
    PART(v_bias, "attn_v.bias", NONE, VALUES, FV_QKV_BIAS, true),
    PART(o_bias, "attn_output.bias", NONE, WIDTH, 0, true),
    PART(q_norm, "attn_q_norm.weight", NONE, KEY_DIM, FV_HEAD_NORMS, false),
    PART(k_norm, "attn_k_norm.weight", NONE, KEY_DIM, FV_HEAD_NORMS, false),
    PART(post_attention_norm, "post_attention_norm.weight", NONE, WIDTH, FV_POST_NORMS, false),
    PART(mlp_norm, "ffn_norm.weight", NONE, WIDTH, 0, false),
    PART(gate, "ffn_gate.weight", HIDDEN, WIDTH, 0, false),
    PART(up, "ffn_up.weight", HIDDEN, WIDTH, 0, false),
    PART(down, "ffn_down.weight", WIDTH, HIDDEN, 0, false),
    PART(gate_bias, "ffn_gate.bias", NONE, HIDDEN, 0, true),
    PART(up_bias, "ffn_up.bias", NONE, HIDDEN, 0, true),
    PART(down_bias, "ffn_down.bias", NONE, WIDTH, 0, true),
    PART(post_mlp_norm, "post_ffw_norm.weight", NONE, WIDTH, FV_POST_NORMS, false),
};
enum { PARTS = sizeof parts / sizeof *parts, LEAST_PARTS = 9 };

static int64_t size_of(const fv_sizes *s, enum size size)
{
    switch (size) {
    case WIDTH: return s->width;
    case HIDDEN: return s->hidden;
    case QUERIES: return s->query_heads * s->key_dim;
    case KEYS: return s->key_heads * s->key_dim;
    case VALUES: return s->key_heads * s->value_dim;
    case OUTPUTS: return s->query_heads * s->value_dim;
    case KEY_DIM: return s->key_dim;
    default: return 0;
    }
}

/* Finds a tensor of shape [rows, columns], or [columns] with rows 0; absent if the file has none.  `used` counts. */
static fv_status find(fv_model *model, const char *name, int64_t rows, int64_t columns, bool *used,
                      const fv_gguf_tensor **found)
{
    const fv_gguf_tensor *t = fv_gguf_find(model->file, name);
    fv_tensor expected = {.data = used, .rank = rows ? 2 : 1, .dims = {rows ? rows : columns, columns}};

    *found = t;
    if (!t) return FV_OK;
    if (!fv_tensor_same_shape(&t->tensor, &expected))
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected shape %s, got %s", fv_gguf_name(model->file), name,
                       fv_shape_text(&expected), fv_shape_text(&t->tensor));
    if (!fv_blocks_supported(t->tensor.dtype))
        return fv_fail(FV_E_UNSUPPORTED, "%s: tensor '%s': expected floating-point weights, got %s",
                       fv_gguf_name(model->file), name, fv_dtype_name(t->tensor.dtype));
    used[t - fv_gguf_tensor_at(model->file, 0)] = true;
    return FV_OK;
}

static fv_status missing(const fv_model *model, const char *name)
{
    return fv_fail(FV_E_FORMAT, "%s: tensor '%s' is missing", fv_gguf_name(model->file), name);
}

/* Vectors are few: they become f32 in the model's own memory, whatever they are stored as. */
static fv_status copy_vector(fv_model *model, const fv_gguf_tensor *found, fv_tensor *vector)
{
    int64_t count = found->tensor.dims[0];
    void *data;

    FV_TRY(fv_arena_alloc(model->memory, &data, count, sizeof(float)));
    fv_blocks_load(found->tensor.dtype, found->tensor.data, 0, count / fv_dtype_block(found->tensor.dtype), data);
    return fv_tensor_wrap(vector, data, FV_F32, 1, &count);
}

static fv_status read_part(fv_model *model, int64_t l, const struct part *part, bool *used)
{
    const fv_sizes *s = &model->sizes;
    bool required = part->part ? (model->architecture->parts & part->part) != 0 : !part->optional;
    fv_tensor *place = (fv_tensor *)((char *)&model->layers[l] + part->at);
    const fv_gguf_tensor *found;
    char name[64];

    if (!required && !part->optional) return FV_OK;
    snprintf(name, sizeof name, "blk.%lld.%s", (long long)l, part->name);
    FV_TRY(find(model, name, size_of(s, part->rows), size_of(s, part->columns), used, &found));
    if (!found) return required ? missing(model, name) : FV_OK;
    if (part->rows == NONE) return copy_vector(model, found, place);
    *place = found->tensor;
    return FV_OK;
}

static fv_status read_ends(fv_model *model, bool *used)
{
    const fv_gguf_tensor *found = fv_gguf_find(model->file, "token_embd.weight");
    fv_sizes *s = &model->sizes;

    if (!found) return missing(model, "token_embd.weight");
    s->vocabulary = found->tensor.dims[0];
    if (s->vocabulary > INT32_MAX)
        return fv_fail(FV_E_FORMAT, "%s: tensor 'token_embd.weight': expected at most 2^31-1 rows, got %lld",
                       fv_gguf_name(model->file), (long long)s->vocabulary);
    FV_TRY(find(model, "token_embd.weight", s->vocabulary, s->width, used, &found));
    model->embedding = model->output.tensor = found->tensor;
    FV_TRY(find(model, "output.weight", s->vocabulary, s->width, used, &found));
    if (found) model->output.tensor = found->tensor;
    FV_TRY(find(model, "output_norm.weight", 0, s->width, used, &found));
    if (!found) return missing(model, "output_norm.weight");
    FV_TRY(copy_vector(model, found, &model->output_norm));
    FV_TRY(find(model, "rope_freqs.weight", 0, s->rotary / 2, used, &found));
    if (found && found->tensor.dtype != FV_F32)
        return fv_fail(FV_E_FORMAT, "%s: tensor 'rope_freqs.weight': expected f32, got %s", fv_gguf_name(model->file),
                       fv_dtype_name(found->tensor.dtype));
    return fv_model_read_ropes(model, found);
}

/* A tensor nobody asked for changes what the model computes: better to say so than to compute something else. */
static fv_status check_all_used(const fv_model *model, const bool *used)
{
    for (int64_t i = 0; i < fv_gguf_tensors(model->file); i++) {
        const fv_gguf_tensor *t = fv_gguf_tensor_at(model->file, i);
        if (!used[i])
            return fv_fail(FV_E_UNSUPPORTED, "%s: tensor '%.*s' has no place in architecture '%s' as it is known here",
                           fv_gguf_name(model->file), (int)fv_min(t->name.length, 80), t->name.data,
                           model->architecture->name);
    }
    return FV_OK;
}

static fv_status read_all(fv_model *model, bool *used)
{
    const fv_sizes *s = &model->sizes;

    FV_TRY(read_ends(model, used));
    FV_TRY(FV_ZALLOC(model->layers, s->layers));
    for (int64_t l = 0; l < s->layers; l++) {
        fv_layer *layer = &model->layers[l];
        bool windowed = s->window_period && (l + 1) % s->window_period != 0;
        for (int p = 0; p < PARTS; p++)
            FV_TRY(read_part(model, l, &parts[p], used));
        layer->window = windowed ? s->window : 0;
        layer->rope = windowed && fv_present(&model->window_rope.frequency) ? &model->window_rope : &model->rope;
    }
    return check_all_used(model, used);
}

fv_status fv_model_read_weights(fv_model *model)
{
    int64_t tensors = fv_gguf_tensors(model->file);
    bool *used;

    if (tensors / LEAST_PARTS < model->sizes.layers)
        return fv_fail(FV_E_FORMAT, "%s: %lld layers need at least %lld tensors, but the file has %lld",
                       fv_gguf_name(model->file), (long long)model->sizes.layers,
                       (long long)model->sizes.layers * LEAST_PARTS, (long long)tensors);
    FV_TRY(FV_ZALLOC(used, tensors));
    fv_status status = read_all(model, used);
    fv_free(used);
    for (int64_t i = 0; i < tensors; i++) {
        const fv_gguf_tensor *t = fv_gguf_tensor_at(model->file, i);
        model->parameters += fv_tensor_count(&t->tensor);
        model->weight_bytes += t->bytes;
    }
    return status;
}
