/* The forward of each architecture from its paper, whole sequence, doubles, one loop per symbol. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/tiny_model.h"

static bool is(const tiny_model *m, const char *architecture)
{
    return strcmp(m->architecture, architecture) == 0;
}

static bool is_gemma(const tiny_model *m)
{
    return strncmp(m->architecture, "gemma", 5) == 0;
}

static const double *weight(const tiny_model *m, int64_t l, const char *name)
{
    char full[64];

    if (l < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s", (int)l, name);
    for (int w = 0; w < m->count; w++)
        if (strcmp(m->weights[w].name, full) == 0) return m->weights[w].values;
    return NULL;
}

static double *numbers(int64_t count)
{
    return calloc((size_t)count, sizeof(double));
}

/* out[i] = sum_j w[i][j] x[j] + b[i] */
static void times(const double *w, const double *b, const double *x, int64_t rows, int64_t columns, double *out)
{
    for (int64_t i = 0; i < rows; i++) {
        out[i] = b ? b[i] : 0;
        for (int64_t j = 0; j < columns; j++)
            out[i] += w[i * columns + j] * x[j];
    }
}

static void norm(const double *w, const double *x, int64_t count, double *out)
{
    double square = 0;

    for (int64_t i = 0; i < count; i++)
        square += x[i] * x[i] / (double)count;
    for (int64_t i = 0; i < count; i++)
        out[i] = x[i] / sqrt(square + (double)1e-5f) * w[i];
}

static bool sees_all(const tiny_model *m, int64_t l)
{
    if (is(m, "gemma2")) return l % 2 == 1;
    if (is(m, "gemma3")) return l % 6 == 5;
    return true;
}

/* Angle of channel pair c at position p, and the factor on both channels. */
static double angle(const tiny_model *m, int64_t l, int64_t c, int64_t p, double *magnitude)
{
    bool local = is(m, "gemma3") && !sees_all(m, l);
    double base = local ? 10000 : 5000, frequency = pow(base, -2.0 * (double)c / (double)m->rotary);
    const double *factors = weight(m, -1, "rope_freqs.weight");

    *magnitude = 1;
    if (local) return (double)p * frequency;
    if (factors) frequency /= factors[c];
    if (m->scaling && strcmp(m->scaling, "linear") == 0) frequency /= m->scaling_factor;
    if (m->scaling && strcmp(m->scaling, "yarn") == 0) {
        /* YaRN: pairs that turn more than 32 times over the original 64 positions stay, those that turn less than once
         * are stretched, a ramp between; counted in pairs, rounded outwards */
        double from = floor((double)m->rotary * log(64 / (32 * 2 * M_PI)) / (2 * log(base)));
        double to = ceil((double)m->rotary * log(64 / (1 * 2 * M_PI)) / (2 * log(base)));
        if (from < 0) from = 0;
        if (to > (double)m->rotary - 1) to = (double)m->rotary - 1;
        double ramp = ((double)c - from) / (to - from > 0.001 ? to - from : 0.001);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        frequency = frequency * (1 - ramp) + frequency / m->scaling_factor * ramp;
        *magnitude = 1 + 0.1 * log(m->scaling_factor);
    }
    return (double)p * frequency;
}

static void rope(const tiny_model *m, int64_t l, int64_t p, double *head)
{
    for (int64_t c = 0; c < m->rotary / 2; c++) {
        int64_t a = is(m, "llama") ? 2 * c : c, b = is(m, "llama") ? 2 * c + 1 : c + m->rotary / 2;
        double magnitude, t = angle(m, l, c, p, &magnitude), x = head[a], y = head[b];
        head[a] = (x * cos(t) - y * sin(t)) * magnitude;
        head[b] = (x * sin(t) + y * cos(t)) * magnitude;
    }
}

/* To the nearest half-precision number (normal range, ties to even). */
static double half(double x)
{
    int exponent;

    if (x == 0) return 0;
    frexp(x, &exponent);
    double unit = ldexp(1, fmax(exponent - 11, -24));
    return nearbyint(x / unit) * unit;
}

struct rows {
    double *q, *k, *v; /* [count, heads * dim] */
};

static void project(const tiny_model *m, int64_t l, int64_t p, const double *x, struct rows *r)
{
    int64_t H = m->heads, K = m->key_heads, D = m->key_dim, E = m->value_dim;
    double *h = numbers(m->width), *q = r->q + p * H * D, *k = r->k + p * K * D, *v = r->v + p * K * E;
    const double *q_norm = weight(m, l, "attn_q_norm.weight"), *k_norm = weight(m, l, "attn_k_norm.weight");

    norm(weight(m, l, "attn_norm.weight"), x, m->width, h);
    times(weight(m, l, "attn_q.weight"), weight(m, l, "attn_q.bias"), h, H * D, m->width, q);
    times(weight(m, l, "attn_k.weight"), weight(m, l, "attn_k.bias"), h, K * D, m->width, k);
    times(weight(m, l, "attn_v.weight"), weight(m, l, "attn_v.bias"), h, K * E, m->width, v);
    for (int64_t i = 0; i < H; i++) {
        if (q_norm) norm(q_norm, q + i * D, D, q + i * D);
        rope(m, l, p, q + i * D);
    }
    for (int64_t i = 0; i < K; i++) {
        if (k_norm) norm(k_norm, k + i * D, D, k + i * D);
        rope(m, l, p, k + i * D);
    }
    for (int64_t i = 0; m->f16_cache && i < K * D; i++)
        k[i] = half(k[i]);
    for (int64_t i = 0; m->f16_cache && i < K * E; i++)
        v[i] = half(v[i]);
    free(h);
}

static void attend(const tiny_model *m, int64_t l, int64_t p, const struct rows *r, double *o)
{
    int64_t D = m->key_dim, E = m->value_dim, group = m->heads / m->key_heads;
    double *s = numbers(p + 1);

    for (int64_t i = 0; i < m->heads; i++) {
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= p; j++) {
            double dot = 0;
            for (int64_t d = 0; d < D; d++)
                dot += r->q[(p * m->heads + i) * D + d] * r->k[(j * m->key_heads + i / group) * D + d];
            s[j] = dot / sqrt((double)D);
            if (is(m, "gemma2")) s[j] = 50 * tanh(s[j] / 50);
            if (!sees_all(m, l) && p - j >= m->window) s[j] = -INFINITY;
            if (s[j] > most) most = s[j];
        }
        for (int64_t e = 0; e < E; e++)
            o[i * E + e] = 0;
        for (int64_t j = 0; j <= p; j++)
            sum += exp(s[j] - most);
        for (int64_t j = 0; j <= p; j++)
            for (int64_t e = 0; e < E; e++)
                o[i * E + e] += exp(s[j] - most) / sum * r->v[(j * m->key_heads + i / group) * E + e];
    }
    free(s);
}

static double activate(const tiny_model *m, double x)
{
    if (is_gemma(m)) return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    return x / (1 + exp(-x));
}

/* x += what attention and then the MLP make of it, for the token at position p. */
static void finish(const tiny_model *m, int64_t l, const double *o, double *x)
{
    double *h = numbers(m->width), *gate = numbers(m->hidden), *up = numbers(m->hidden);

    times(weight(m, l, "attn_output.weight"), weight(m, l, "attn_output.bias"), o, m->width, m->heads * m->value_dim,
          h);
    if (is_gemma(m)) norm(weight(m, l, "post_attention_norm.weight"), h, m->width, h);
    for (int64_t i = 0; i < m->width; i++)
        x[i] += h[i];
    norm(weight(m, l, "ffn_norm.weight"), x, m->width, h);
    times(weight(m, l, "ffn_gate.weight"), weight(m, l, "ffn_gate.bias"), h, m->hidden, m->width, gate);
    times(weight(m, l, "ffn_up.weight"), weight(m, l, "ffn_up.bias"), h, m->hidden, m->width, up);
    for (int64_t i = 0; i < m->hidden; i++)
        gate[i] = activate(m, gate[i]) * up[i];
    times(weight(m, l, "ffn_down.weight"), weight(m, l, "ffn_down.bias"), gate, m->width, m->hidden, h);
    if (is_gemma(m)) norm(weight(m, l, "post_ffw_norm.weight"), h, m->width, h);
    for (int64_t i = 0; i < m->width; i++)
        x[i] += h[i];
    free(h);
    free(gate);
    free(up);
}

void tiny_twin(const tiny_model *m, const int32_t *ids, int64_t count, double *logits)
{
    const double *embedding = weight(m, -1, "token_embd.weight"), *output = weight(m, -1, "output.weight");
    double *x = numbers(count * m->width), *o = numbers(m->heads * m->value_dim), *h = numbers(m->width);
    struct rows r = {numbers(count * m->heads * m->key_dim), numbers(count * m->key_heads * m->key_dim),
                     numbers(count * m->key_heads * m->value_dim)};

    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < m->width; i++)
            x[p * m->width + i] = embedding[ids[p] * m->width + i] * (is_gemma(m) ? sqrt((double)m->width) : 1);
    for (int64_t l = 0; l < m->layers; l++) {
        for (int64_t p = 0; p < count; p++)
            project(m, l, p, x + p * m->width, &r);
        for (int64_t p = 0; p < count; p++) {
            attend(m, l, p, &r, o);
            finish(m, l, o, x + p * m->width);
        }
    }
    for (int64_t p = 0; p < count; p++) {
        norm(weight(m, -1, "output_norm.weight"), x + p * m->width, m->width, h);
        times(output ? output : embedding, NULL, h, m->vocabulary, m->width, logits + p * m->vocabulary);
        for (int64_t i = 0; is(m, "gemma2") && i < m->vocabulary; i++)
            logits[p * m->vocabulary + i] = 30 * tanh(logits[p * m->vocabulary + i] / 30);
    }
    free(x);
    free(o);
    free(h);
    free(r.q);
    free(r.k);
    free(r.v);
}
