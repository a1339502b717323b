#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ops/blocks.h"

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Where a block's half-precision scales stand, and how far below zero the second one (a minimum) moves values. */
static const struct {
    int first, second;
    double least;
} scales[FV_DTYPE_COUNT] = {
    [FV_Q4_0] = {0, -1, 0},   [FV_Q4_1] = {0, 2, -7.5},  [FV_Q5_0] = {0, -1, 0},   [FV_Q5_1] = {0, 2, -15.5},
    [FV_Q8_0] = {0, -1, 0},   [FV_Q2_K] = {80, 82, 1.5}, [FV_Q3_K] = {108, -1, 0}, [FV_Q4_K] = {0, 2, 7.5},
    [FV_Q5_K] = {0, 2, 15.5}, [FV_Q6_K] = {208, -1, 0},  [FV_IQ4_NL] = {0, -1, 0},
};

static void put_half(unsigned char *block, int at, double value)
{
    uint16_t bits = fv_f32_to_f16((float)value);

    if (at >= 0) memcpy(block + at, &bits, 2);
}

static void set_scale(fv_dtype dtype, unsigned char *block, double scale)
{
    float single = (float)scale;

    if (dtype == FV_Q8_K) {
        memcpy(block, &single, 4);
        return;
    }
    put_half(block, scales[dtype].first, scale);
    put_half(block, scales[dtype].second, scale * scales[dtype].least);
}

/* Random bytes of a block type, scaled to values of about `size`. */
static void random_blocks(fv_random *random, fv_dtype dtype, double size, int64_t blocks, unsigned char *out)
{
    size_t bytes = fv_dtype_block_bytes(dtype);

    for (int64_t b = 0; b < blocks; b++, out += bytes) {
        float values[256];
        double square = 0;
        for (size_t i = 0; i < bytes; i++)
            out[i] = (unsigned char)fv_random_u32(random);
        set_scale(dtype, out, 1);
        fv_blocks_load(dtype, out, 0, 1, values);
        for (int64_t i = 0; i < fv_dtype_block(dtype); i++)
            square += (double)values[i] * (double)values[i] / (double)fv_dtype_block(dtype);
        set_scale(dtype, out, size * (0.5 + fv_random_uniform(random)) / sqrt(square + 1e-9));
    }
}

static fv_dtype pick_dtype(const tiny_model *m, int64_t columns)
{
    static const fv_dtype all[] = {FV_F32,  FV_F16,  FV_BF16, FV_Q4_0, FV_Q4_1, FV_Q5_0, FV_Q5_1,  FV_Q8_0,
                                   FV_Q2_K, FV_Q3_K, FV_Q4_K, FV_Q5_K, FV_Q6_K, FV_Q8_K, FV_IQ4_NL};
    fv_dtype dtype = m->dtype;

    for (int i = m->count; dtype == FV_DTYPE_COUNT || columns % fv_dtype_block(dtype) != 0; i++)
        dtype = all[(size_t)i % (sizeof all / sizeof *all)];
    return dtype;
}

/* Draws a tensor of values mean + size * random, writes it and keeps what was stored. */
static void put(tiny_model *m, fv_random *random, const char *name, int64_t rows, int64_t columns, double mean,
                double size)
{
    int64_t count = fv_max(rows, 1) * columns;
    fv_dtype dtype = rows ? pick_dtype(m, columns) : FV_F32;
    tiny_weight *w = &m->weights[m->count++];
    unsigned char *data;
    float *row;
    size_t bytes;

    assert_true(m->count <= TINY_WEIGHTS);
    if (m->dtype == FV_DTYPE_COUNT && strstr(name, "bias")) dtype = FV_F16;
    snprintf(w->name, sizeof w->name, "%s", name);
    w->rows = fv_max(rows, 1);
    w->columns = columns;
    assert_ok(FV_ALLOC(w->values, count));
    assert_ok(fv_dtype_bytes(dtype, count, &bytes));
    assert_ok(FV_ZALLOC(data, (int64_t)bytes));
    assert_ok(FV_ALLOC(row, count));
    if (fv_dtype_block(dtype) > 1)
        random_blocks(random, dtype, size, count / fv_dtype_block(dtype), data);
    else
        for (int64_t i = 0; i < count; i++)
            fv_store(dtype, data, i, mean + size * fv_random_normal(random));
    fv_blocks_load(dtype, data, 0, count / fv_dtype_block(dtype), row);
    for (int64_t i = 0; i < count; i++)
        w->values[i] = (double)row[i];
    if (!m->without || strcmp(m->without, name) != 0) {
        int64_t shape[2] = {rows, columns}, wrong[2] = {columns, rows};
        bool turned = m->misshapen && strcmp(m->misshapen, name) == 0;
        gguf_put_tensor(&m->writer, name, dtype, rows ? 2 : 1, rows ? (turned ? wrong : shape) : &columns, data);
    }
    fv_free(row);
    fv_free(data);
}

static bool is(const tiny_model *m, const char *architecture)
{
    return strcmp(m->architecture, architecture) == 0;
}

static bool is_gemma(const tiny_model *m)
{
    return strncmp(m->architecture, "gemma", 5) == 0;
}

static void put_layer(tiny_model *m, fv_random *random, int64_t l)
{
    const int64_t q = m->heads * m->key_dim, k = m->key_heads * m->key_dim, v = m->key_heads * m->value_dim;
    const double in = 1 / sqrt((double)m->width);
    char name[64];

#define PUT(part, ...) (snprintf(name, sizeof name, "blk.%d." part, (int)l), put(m, random, name, __VA_ARGS__))
    PUT("attn_norm.weight", 0, m->width, 1, 0.2);
    PUT("attn_q.weight", q, m->width, 0, 2 * in);
    PUT("attn_k.weight", k, m->width, 0, 2 * in);
    PUT("attn_v.weight", v, m->width, 0, in);
    PUT("attn_output.weight", m->width, m->heads * m->value_dim, 0, 1 / sqrt((double)(m->heads * m->value_dim)));
    if (is(m, "qwen2") || m->biases) {
        PUT("attn_q.bias", 0, q, 0, 0.3);
        PUT("attn_k.bias", 0, k, 0, 0.3);
        PUT("attn_v.bias", 0, v, 0, 0.3);
    }
    if (m->biases) {
        PUT("attn_output.bias", 0, m->width, 0, 0.3);
        PUT("ffn_gate.bias", 0, m->hidden, 0, 0.3);
        PUT("ffn_up.bias", 0, m->hidden, 0, 0.3);
        PUT("ffn_down.bias", 0, m->width, 0, 0.3);
    }
    if (is(m, "qwen3") || is(m, "gemma3")) {
        PUT("attn_q_norm.weight", 0, m->key_dim, 1, 0.2);
        PUT("attn_k_norm.weight", 0, m->key_dim, 1, 0.2);
    }
    if (is_gemma(m)) {
        PUT("post_attention_norm.weight", 0, m->width, 1, 0.2);
        PUT("post_ffw_norm.weight", 0, m->width, 1, 0.2);
    }
    PUT("ffn_norm.weight", 0, m->width, 1, 0.2);
    PUT("ffn_gate.weight", m->hidden, m->width, 0, in);
    PUT("ffn_up.weight", m->hidden, m->width, 0, in);
    PUT("ffn_down.weight", m->width, m->hidden, 0, 1 / sqrt((double)m->hidden));
#undef PUT
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void key_u32(tiny_model *m, const char *name, int64_t value)
{
    char key[96];

    snprintf(key, sizeof key, "%s.%s", m->architecture, name);
    gguf_put_u32(&m->writer, key, (uint32_t)value);
}

static void key_f32(tiny_model *m, const char *name, double value)
{
    char key[96];

    snprintf(key, sizeof key, "%s.%s", m->architecture, name);
    gguf_put_f32(&m->writer, key, (float)value);
}

static void put_keys(tiny_model *m)
{
    char key[96];

    gguf_put_string(&m->writer, "general.architecture", m->architecture);
    gguf_put_string(&m->writer, "general.name", "tiny");
    key_u32(m, "block_count", m->layers);
    key_u32(m, "context_length", m->context);
    key_u32(m, "embedding_length", m->width);
    key_u32(m, "feed_forward_length", m->hidden);
    key_u32(m, "attention.head_count", m->heads);
    key_u32(m, "attention.head_count_kv", m->key_heads);
    key_f32(m, "attention.layer_norm_rms_epsilon", 1e-5);
    if (!m->no_dims) {
        key_u32(m, "attention.key_length", m->key_dim);
        key_u32(m, "attention.value_length", m->value_dim);
        key_u32(m, "rope.dimension_count", m->rotary);
    }
    key_f32(m, "rope.freq_base", 5000);
    if (is_gemma(m)) key_u32(m, "attention.sliding_window", m->window);
    if (m->scaling) {
        snprintf(key, sizeof key, "%s.rope.scaling.type", m->architecture);
        gguf_put_string(&m->writer, key, m->scaling);
        key_f32(m, "rope.scaling.factor", m->scaling_factor);
        key_u32(m, "rope.scaling.original_context_length", 64);
    }
}

static void default_to(int64_t *value, int64_t standard)
{
    if (*value == 0) *value = standard;
}

void tiny_make(tiny_model *m)
{
    static uint64_t stream = 1000;
    fv_random random = fv_random_new(test_seed(), ++stream);

    default_to(&m->layers, is(m, "gemma3") ? 7 : 3);
    default_to(&m->width, 64);
    default_to(&m->hidden, 96);
    default_to(&m->heads, 6);
    default_to(&m->key_heads, 2);
    default_to(&m->key_dim, 32);
    default_to(&m->value_dim, m->key_dim);
    default_to(&m->rotary, m->key_dim);
    default_to(&m->vocabulary, 50);
    default_to(&m->context, 256);
    default_to(&m->window, 9);
    put_keys(m);
    put(m, &random, "token_embd.weight", m->vocabulary, m->width, 0, is_gemma(m) ? 0.15 : 1);
    for (int64_t l = 0; l < m->layers; l++)
        put_layer(m, &random, l);
    put(m, &random, "output_norm.weight", 0, m->width, 1, 0.2);
    if (m->untied) put(m, &random, "output.weight", m->vocabulary, m->width, 0, 0.3);
    if (m->rope_factors) put(m, &random, "rope_freqs.weight", 0, m->rotary / 2, 4, 0.5);
}

const char *tiny_save(const tiny_model *m)
{
    static char path[64];

    snprintf(path, sizeof path, "/tmp/fovea-tiny-XXXXXX");
    close(mkstemp(path));
    gguf_save(&m->writer, path);
    return path;
}

void tiny_free(tiny_model *m)
{
    for (int w = 0; w < m->count; w++)
        fv_free(m->weights[w].values);
    m->count = 0;
    gguf_writer_free(&m->writer);
}
