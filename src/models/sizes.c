/* The numbers of a model from its file's keys, each within bounds that keep later products safe. */
#include <math.h>
#include <stdio.h>

#include "models/model.h"

const char *fv_model_key(const fv_model *model, const char *name, char buffer[FV_KEY_TEXT])
{
    snprintf(buffer, FV_KEY_TEXT, "%s.%s", model->architecture->name, name);
    return buffer;
}

/* A key that must be there unless `value` already holds a default (not 0). */
static fv_status read_int(const fv_model *model, const char *name, int64_t max, int64_t *value)
{
    char key[FV_KEY_TEXT];

    fv_model_key(model, name, key);
    if (*value == 0) FV_TRY(fv_gguf_require(model->file, key));
    return fv_gguf_int(model->file, key, 1, max, value);
}

static fv_status read_float(const fv_model *model, const char *name, double min, double max, double *value)
{
    char key[FV_KEY_TEXT];

    FV_TRY(fv_gguf_float(model->file, fv_model_key(model, name, key), value));
    if (*value >= min && *value <= max) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: key '%s': expected %g to %g, got %g", fv_gguf_name(model->file), key, min, max,
                   *value);
}

static fv_status read_heads(fv_model *model, fv_sizes *s)
{
    const char *file = fv_gguf_name(model->file);

    FV_TRY(read_int(model, "attention.head_count", 65536, &s->query_heads));
    s->key_heads = s->query_heads;
    FV_TRY(read_int(model, "attention.head_count_kv", 65536, &s->key_heads));
    if (s->query_heads % s->key_heads != 0)
        return fv_fail(FV_E_FORMAT, "%s: %lld key-value heads do not divide %lld query heads", file,
                       (long long)s->key_heads, (long long)s->query_heads);
    s->key_dim = s->width / s->query_heads; /* 0 where there are more heads than channels: then it must be given */
    s->value_dim = s->key_dim;
    FV_TRY(read_int(model, "attention.key_length", 4096, &s->key_dim));
    FV_TRY(read_int(model, "attention.value_length", 4096, &s->value_dim));
    s->rotary = s->key_dim;
    FV_TRY(read_int(model, "rope.dimension_count", 4096, &s->rotary));
    if (s->rotary > s->key_dim || s->rotary % 2 != 0)
        return fv_fail(FV_E_FORMAT, "%s: rope turns %lld channels: expected an even number up to the head's %lld", file,
                       (long long)s->rotary, (long long)s->key_dim);
    return FV_OK;
}

static fv_status read_windows(fv_model *model, fv_sizes *s)
{
    const fv_architecture *a = model->architecture;
    char key[FV_KEY_TEXT];

    s->window_period = a->window_period;
    if (a->window_period == 0) {
        /* a file that has a window where the architecture has none means something else */
        if (!fv_gguf_has(model->file, fv_model_key(model, "attention.sliding_window", key))) return FV_OK;
        return fv_fail(FV_E_UNSUPPORTED, "%s: key '%s': sliding windows are not known for this architecture",
                       fv_gguf_name(model->file), key);
    }
    s->window = a->window_default;
    FV_TRY(read_int(model, "attention.sliding_window", INT32_MAX, &s->window));
    return read_int(model, "attention.sliding_window_pattern", 1024, &s->window_period);
}

fv_status fv_model_read_sizes(fv_model *model)
{
    const fv_architecture *a = model->architecture;
    fv_sizes *s = &model->sizes;
    char key[FV_KEY_TEXT];

    FV_TRY(read_int(model, "block_count", 65536, &s->layers));
    FV_TRY(read_int(model, "embedding_length", 1 << 20, &s->width));
    FV_TRY(read_int(model, "feed_forward_length", 1 << 22, &s->hidden));
    FV_TRY(read_int(model, "context_length", INT32_MAX, &s->context));
    FV_TRY(read_heads(model, s));
    FV_TRY(read_windows(model, s));

    FV_TRY(fv_gguf_require(model->file, fv_model_key(model, "attention.layer_norm_rms_epsilon", key)));
    FV_TRY(read_float(model, "attention.layer_norm_rms_epsilon", 0, 1, &s->epsilon));
    bool wide = a->wide_scale_layers && s->layers == a->wide_scale_layers;
    s->scale = 1 / sqrt(wide ? (double)s->width / (double)s->query_heads : (double)s->key_dim);
    FV_TRY(read_float(model, "attention.scale", 1e-6, 1e3, &s->scale));
    s->attention_cap = a->attention_cap;
    s->final_cap = a->final_cap;
    FV_TRY(read_float(model, "attn_logit_softcapping", 0, 1e6, &s->attention_cap));
    FV_TRY(read_float(model, "final_logit_softcapping", 0, 1e6, &s->final_cap));
    s->embedding_scale = a->parts & FV_SCALED_EMBEDDING ? sqrt((double)s->width) : 1;
    return FV_OK;
}

/* ---- rope ------------------------------------------------------------------------------------------------------- */

struct scaling {
    bool yarn;
    double factor, attention, beta_fast, beta_slow, original_context;
};

static fv_status read_scaling(const fv_model *model, struct scaling *s)
{
    fv_gguf_text type = {"linear", 6};
    char key[FV_KEY_TEXT];

    *s = (struct scaling){.factor = 1, .attention = 1, .beta_fast = 32, .beta_slow = 1};
    s->original_context = (double)model->sizes.context;
    FV_TRY(fv_gguf_string(model->file, fv_model_key(model, "rope.scaling.type", key), &type));
    if (fv_gguf_text_is(type, "none")) return FV_OK;
    s->yarn = fv_gguf_text_is(type, "yarn");
    if (!s->yarn && !fv_gguf_text_is(type, "linear"))
        return fv_fail(FV_E_UNSUPPORTED, "%s: key '%s': expected none, linear or yarn, got '%.*s'",
                       fv_gguf_name(model->file), key, (int)fv_min(type.length, 40), type.data);
    FV_TRY(read_float(model, "rope.scale_linear", 0, 1e6, &s->factor)); /* the key's old name */
    FV_TRY(read_float(model, "rope.scaling.factor", 0, 1e6, &s->factor));
    if (s->factor == 0) s->factor = 1;
    if (!s->yarn) return FV_OK;
    int64_t original = model->sizes.context;
    FV_TRY(read_int(model, "rope.scaling.original_context_length", INT32_MAX, &original));
    s->original_context = (double)original;
    FV_TRY(read_float(model, "rope.scaling.attn_factor", 0, 1e3, &s->attention));
    FV_TRY(read_float(model, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &s->beta_fast));
    return read_float(model, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &s->beta_slow);
}

/* The channel pair that turns `turns` times over the original context (YaRN, arXiv 2309.00071, section 3.2). */
static double pair_of(double turns, double rotary, double base, double context)
{
    return rotary * log(context / (turns * 2 * M_PI)) / (2 * log(base));
}

static fv_status make_table(fv_model *model, double base, const struct scaling *s, const fv_gguf_tensor *factors,
                            fv_rope_table *table)
{
    int64_t rotary = model->sizes.rotary, pairs = rotary / 2;
    double low = floor(pair_of(s->beta_fast, (double)rotary, base, s->original_context));
    double high = ceil(pair_of(s->beta_slow, (double)rotary, base, s->original_context));
    float *frequency;

    FV_TRY(fv_arena_alloc(model->memory, (void **)&frequency, pairs, sizeof *frequency));
    low = fmax(low, 0);
    high = fmin(high, (double)rotary - 1);
    for (int64_t c = 0; c < pairs; c++) {
        double own = pow(base, -2 * (double)c / (double)rotary);
        if (factors) own /= ((const float *)factors->tensor.data)[c];
        double stretched = own / s->factor, keep = 0;
        if (s->yarn) keep = 1 - fmin(fmax(((double)c - low) / fmax(high - low, 0.001), 0), 1);
        frequency[c] = (float)(stretched * (1 - keep) + own * keep);
        if (!isfinite(frequency[c]))
            return fv_fail(FV_E_FORMAT, "%s: rope frequency %lld is not finite", fv_gguf_name(model->file),
                           (long long)c);
    }
    table->magnitude = (float)(s->yarn ? s->attention * (1 + 0.1 * log(s->factor)) : 1);
    return fv_tensor_wrap(&table->frequency, frequency, FV_F32, 1, &pairs);
}

fv_status fv_model_read_ropes(fv_model *model, const fv_gguf_tensor *factors)
{
    static const struct scaling none = {
        .factor = 1, .attention = 1, .beta_fast = 32, .beta_slow = 1, .original_context = 1};
    double base = 10000, window_base = model->architecture->window_base;
    struct scaling scaling;

    FV_TRY(read_float(model, "rope.freq_base", 1.0001, 1e12, &base));
    FV_TRY(read_scaling(model, &scaling));
    FV_TRY(make_table(model, base, &scaling, factors, &model->rope));
    if (window_base == 0) return FV_OK;
    FV_TRY(read_float(model, "rope.freq_base_swa", 1.0001, 1e12, &window_base));
    return make_table(model, window_base, &none, NULL, &model->window_rope);
}
