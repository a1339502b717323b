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

bool tiny_sees_all(const tiny_model *m, int64_t l)
{
    if (is(m, "gemma2")) return l % 2 == 1;
    if (is(m, "gemma3")) return l % 6 == 5;
    return true;
}

/* Angle of channel pair c at position p, and the factor on both channels. */
static double angle(const tiny_model *m, int64_t l, int64_t c, int64_t p, double *magnitude)
{
    bool local = is(m, "gemma3") && !tiny_sees_all(m, l);
    double base = local ? 10000 : 5000, frequency = pow(base, -2.0 * (double)c / (double)m->rotary);
    const double *factors = m->rope_factors ? weight(m, -1, "rope_freqs.weight") : NULL;

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

void tiny_rope(const tiny_model *m, int64_t l, int64_t p, double *head)
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
    double *input;     /* [count, width] */
    double *q, *k, *v; /* [count, heads * dim] */
};

static void project(const tiny_model *m, int64_t l, int64_t p, const double *x, struct rows *r)
{
    int64_t H = m->heads, K = m->key_heads, D = m->key_dim, E = m->value_dim;
    double *h = r->input + p * m->width, *q = r->q + p * H * D, *k = r->k + p * K * D, *v = r->v + p * K * E;
    const double *q_norm = weight(m, l, "attn_q_norm.weight"), *k_norm = weight(m, l, "attn_k_norm.weight");

    norm(weight(m, l, "attn_norm.weight"), x, m->width, h);
    times(weight(m, l, "attn_q.weight"), weight(m, l, "attn_q.bias"), h, H * D, m->width, q);
    times(weight(m, l, "attn_k.weight"), weight(m, l, "attn_k.bias"), h, K * D, m->width, k);
    times(weight(m, l, "attn_v.weight"), weight(m, l, "attn_v.bias"), h, K * E, m->width, v);
    for (int64_t i = 0; i < H; i++) {
        if (q_norm) norm(q_norm, q + i * D, D, q + i * D);
        tiny_rope(m, l, p, q + i * D);
    }
    for (int64_t i = 0; i < K; i++) {
        if (k_norm) norm(k_norm, k + i * D, D, k + i * D);
        tiny_rope(m, l, p, k + i * D);
    }
    for (int64_t i = 0; m->f16_cache && i < K * D; i++)
        k[i] = half(k[i]);
    for (int64_t i = 0; m->f16_cache && i < K * E; i++)
        v[i] = half(v[i]);
}

static bool sees(const tiny_cache *c, const tiny_policy *policy, int64_t g, int64_t j)
{
    if (!tiny_sees_all(c->m, c->l)) return c->p - j < c->m->window;
    if (!policy || !policy->sees) return !policy || tiny_held(c, c->l, g)[j];
    return policy->sees(policy->user, c, g, j);
}

static double logit(const tiny_cache *c, const tiny_policy *policy, int64_t h, int64_t j)
{
    const tiny_model *m = c->m;
    int64_t D = m->key_dim, group = m->heads / m->key_heads;
    double dot = 0;

    for (int64_t d = 0; d < D; d++)
        dot += c->q[(c->p * m->heads + h) * D + d] * c->k[(j * m->key_heads + h / group) * D + d];
    dot /= sqrt((double)D);
    if (policy && policy->logit && tiny_sees_all(m, c->l)) dot = policy->logit(policy->user, c, h, j);
    return is(m, "gemma2") ? 50 * tanh(dot / 50) : dot;
}

static void attend(tiny_cache *c, const tiny_policy *policy, double *o)
{
    const tiny_model *m = c->m;
    int64_t E = m->value_dim, group = m->heads / m->key_heads;

    for (int64_t i = 0; i < m->heads; i++) {
        double most = -INFINITY, sum = 0, *s = c->weight + i * c->count;
        for (int64_t j = 0; j < c->count; j++)
            s[j] = j <= c->p && sees(c, policy, i / group, j) ? logit(c, policy, i, j) : -INFINITY;
        for (int64_t j = 0; j <= c->p; j++)
            most = fmax(most, s[j]);
        for (int64_t j = 0; j < c->count; j++)
            sum += s[j] = exp(s[j] - most);
        for (int64_t e = 0; e < E; e++)
            o[i * E + e] = 0;
        for (int64_t j = 0; j < c->count; j++) {
            s[j] /= sum;
            for (int64_t e = 0; e < E; e++)
                o[i * E + e] += s[j] * c->v[(j * m->key_heads + i / group) * E + e];
        }
    }
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

/* Rows of layer l for tokens from .. to-1: all are projected, then read one after the other. */
static void run_layer(tiny_cache *c, const tiny_policy *policy, struct rows *r, double *x, int64_t from, int64_t to)
{
    const tiny_model *m = c->m;
    double *o = numbers(m->heads * m->value_dim), *before = numbers(c->count * m->width);

    for (int64_t i = 0; i < c->count * m->width; i++)
        before[i] = x[i];
    c->residual = before;
    for (int64_t p = from; p < to; p++)
        project(m, c->l, p, x + p * m->width, r);
    for (c->p = from; c->p < to; c->p++) {
        for (int64_t g = 0; g < m->key_heads; g++)
            tiny_held(c, c->l, g)[c->p] = true;
        attend(c, policy, o);
        finish(m, c->l, o, x + c->p * m->width);
        if (policy && policy->after && tiny_sees_all(m, c->l)) policy->after(policy->user, c);
    }
    c->p = to - 1;
    if (policy && policy->act && to == c->prompt && tiny_sees_all(m, c->l)) policy->act(policy->user, c);
    free(o);
    free(before);
}

void tiny_twin_cached(const tiny_model *m, const int32_t *ids, int64_t prompt, int64_t count, const tiny_policy *policy,
                      double *logits, bool *held)
{
    const double *embedding = weight(m, -1, "token_embd.weight"), *output = weight(m, -1, "output.weight");
    double *x = numbers(count * m->width), *h = numbers(m->width), *weights = numbers(m->heads * count);
    struct rows *r = calloc((size_t)m->layers, sizeof *r);
    tiny_cache c = {.m = m, .prompt = prompt, .count = count, .weight = weights};

    c.held = calloc((size_t)(m->layers * m->key_heads * count), sizeof *c.held);
    for (int64_t l = 0; l < m->layers; l++)
        r[l] = (struct rows){numbers(count * m->width), numbers(count * m->heads * m->key_dim),
                             numbers(count * m->key_heads * m->key_dim), numbers(count * m->key_heads * m->value_dim)};
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < m->width; i++)
            x[p * m->width + i] = embedding[ids[p] * m->width + i] * (is_gemma(m) ? sqrt((double)m->width) : 1);
    for (int64_t from = 0, to = prompt; from < count; from = to, to++) /* the prompt, and then token by token */
        for (c.l = 0; c.l < m->layers; c.l++) {
            c.input = r[c.l].input;
            c.q = r[c.l].q;
            c.k = r[c.l].k;
            c.v = r[c.l].v;
            run_layer(&c, policy, &r[c.l], x, from, to);
        }
    for (int64_t p = 0; p < count; p++) {
        norm(weight(m, -1, "output_norm.weight"), x + p * m->width, m->width, h);
        times(output ? output : embedding, NULL, h, m->vocabulary, m->width, logits + p * m->vocabulary);
        for (int64_t i = 0; is(m, "gemma2") && i < m->vocabulary; i++)
            logits[p * m->vocabulary + i] = 30 * tanh(logits[p * m->vocabulary + i] / 30);
    }
    for (int64_t l = 0; l < m->layers; l++)
        for (int64_t n = 0; held && n < m->key_heads * count; n++) {
            bool out = !tiny_sees_all(m, l) && count - 1 - n % count >= m->window;
            held[l * m->key_heads * count + n] = c.held[l * m->key_heads * count + n] && !out;
        }
    for (int64_t l = 0; l < m->layers; l++) {
        free(r[l].input);
        free(r[l].q);
        free(r[l].k);
        free(r[l].v);
    }
    free(r);
    free(x);
    free(h);
    free(weights);
    free(c.held);
}

void tiny_twin(const tiny_model *m, const int32_t *ids, int64_t count, double *logits)
{
    tiny_twin_cached(m, ids, count, count, NULL, logits, NULL);
}
