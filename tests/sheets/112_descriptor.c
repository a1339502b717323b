/* Descriptors of frames: k and v on the grid resized, normed, turned, and read by every token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

enum { BILINEAR, MEAN, NEAREST };

struct grid {
    int64_t S, H, W, special, tokens, ratio, h, w;
};

/* The weight of index n of an axis in cell u of `out`. */
static double weight(const sheet_call *call, const struct grid *g, int64_t u, int64_t n, int64_t length, int64_t out)
{
    int64_t compress = sheet_integer(call, "compress", 0, BILINEAR);
    double at = ((double)u + 0.5) * (double)length / (double)out - 0.5, low;

    if (g->ratio == 1) return n == u;
    if (compress == MEAN) return n / g->ratio == u ? 1 / (double)g->ratio : 0;
    if (compress == NEAREST) return n == u * length / out;
    if (at < 0) at = 0;
    low = floor(at);
    if (low >= (double)(length - 1)) return n == length - 1;
    return (double)n == low ? 1 - (at - low) : (double)n == low + 1 ? at - low : 0;
}

/* LayerNorm if there is a weight, then rotation: the first half of x by row, the second by column. */
static void finish(const sheet_call *call, const char *name, const char *bias_name, double row, double column,
                   double *x)
{
    const sheet_param *w = sheet_tensor(call, name), *bias = sheet_tensor(call, bias_name);
    double base = sheet_number(call, "rope_base", 0, 0), mean = 0, variance = 0;
    int64_t D = call->D, half = D / 2;

    for (int64_t d = 0; d < D && w; d++)
        mean += x[d] / (double)D;
    for (int64_t d = 0; d < D && w; d++)
        variance += (x[d] - mean) * (x[d] - mean) / (double)D;
    for (int64_t d = 0; d < D && w; d++)
        x[d] = (x[d] - mean) / sqrt(variance + 1e-5) * w->data[d] + (bias ? bias->data[d] : 0);
    for (int64_t part = 0; part < 2 && base > 0; part++)
        for (int64_t c = 0; c < half / 2; c++) {
            double angle = (part ? column : row) * pow(base, -2 * (double)c / (double)half);
            double *y = x + part * half + c, first = y[0], second = y[half / 2];

            y[0] = first * cos(angle) - second * sin(angle);
            y[half / 2] = second * cos(angle) + first * sin(angle);
        }
}

/* One key and its value, of a (batch, key head of h), and the frame that has it. */
struct keys {
    int64_t count;
    int64_t *frame;
    double *k, *v;
};

/* A token as it is (u = -1), or cell (u, t) of the resized grid of a frame. */
static void add(const sheet_call *call, const struct grid *g, int64_t b, int64_t h, int64_t frame, int64_t token,
                int64_t u, int64_t t, double row, double column, struct keys *keys)
{
    double *k = keys->k + keys->count * call->D, *v = keys->v + keys->count * call->Dv;

    memset(k, 0, (size_t)call->D * sizeof *k);
    memset(v, 0, (size_t)call->Dv * sizeof *v);
    for (int64_t n = 0; n < g->tokens; n++) {
        int64_t y = (n - g->special) / g->W, x = (n - g->special) % g->W;
        double share = n == token;

        if (u >= 0) share = n < g->special ? 0 : weight(call, g, u, y, g->H, g->h) * weight(call, g, t, x, g->W, g->w);
        for (int64_t d = 0; d < call->D; d++)
            k[d] += share * sheet_k(call, b, h, frame * g->tokens + n)[d];
        for (int64_t e = 0; e < call->Dv; e++)
            v[e] += share * sheet_v(call, b, h, frame * g->tokens + n)[e];
    }
    finish(call, "k_norm_weight", "k_norm_bias", row, column, k);
    keys->frame[keys->count++] = frame;
}

static void collect(const sheet_call *call, const struct grid *g, int64_t b, int64_t h, struct keys *keys)
{
    int64_t chunk = sheet_integer(call, "chunk", 0, 0), drop = sheet_integer(call, "memory_drop", 0, 1);
    int listed = sheet_count(call, "keyframes") ? sheet_count(call, "keyframes") : 1;

    keys->count = 0;
    for (int n = 0; n < listed && g->ratio > 1; n++) {
        int64_t frame = sheet_integer(call, "keyframes", n, 0);
        bool again = false;

        for (int m = 0; m < n && sheet_integer(call, "dedup", 0, 0); m++)
            again |= sheet_integer(call, "keyframes", m, 0) == frame;
        for (int64_t p = 0; p < g->H * g->W && frame >= 0 && !again; p++)
            add(call, g, b, h, frame, g->special + p, -1, -1, (double)(p / g->W + 1), (double)(p % g->W + 1), keys);
    }
    for (int64_t frame = 0; frame < g->S; frame++) {
        if (chunk > 0 && frame % chunk % drop != 0) continue;
        for (int64_t n = 0; n < g->special; n++)
            add(call, g, b, h, frame, n, -1, -1, 0, 0, keys);
        for (int64_t u = 0; u < g->h; u++)
            for (int64_t t = 0; t < g->w; t++)
                add(call, g, b, h, frame, 0, u, t, (double)(u * g->H / g->h + 1), (double)(t * g->W / g->w + 1), keys);
    }
}

static void read(const sheet_call *call, const struct grid *g, int64_t b, int64_t h, int64_t i, const struct keys *keys,
                 double *logit)
{
    int64_t chunk = sheet_integer(call, "chunk", 0, 0), frame = i / g->tokens, p = i % g->tokens - g->special;
    double *q = sheet_zeros(call->D), *o = sheet_o(call, b, h, i), lse;

    memcpy(q, sheet_q(call, b, h, i), (size_t)call->D * sizeof *q);
    finish(call, "q_norm_weight", "q_norm_bias", p < 0 ? 0 : (double)(p / g->W + 1), p < 0 ? 0 : (double)(p % g->W + 1),
           q);
    for (int64_t n = 0; n < keys->count; n++) {
        logit[n] = sheet_scale(call) * sheet_dot(q, keys->k + n * call->D, call->D);
        if (chunk > 0 && keys->frame[n] / chunk > frame / chunk) logit[n] = -INFINITY;
    }
    lse = sheet_softmax(logit, keys->count, -INFINITY);
    if (call->lse) call->lse[(b * call->H + h) * call->N + i] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t n = 0; n < keys->count; n++)
            o[e] += logit[n] * keys->v[n * call->Dv + e];
    }
    free(q);
}

static bool accepts(const sheet_call *call, const struct grid *g)
{
    if (call->causal || call->map || call->N != call->M || call->N != g->S * g->tokens) return false;
    for (int n = 0; n < sheet_count(call, "keyframes"); n++)
        if (sheet_integer(call, "keyframes", n, 0) >= g->S) return false;
    return sheet_number(call, "rope_base", 0, 0) == 0 || call->D % 4 == 0;
}

static bool forward(sheet_call *call)
{
    struct grid g = {.S = sheet_integer(call, "grid", 0, 0),
                     .H = sheet_integer(call, "grid", 1, 0),
                     .W = sheet_integer(call, "grid", 2, 0),
                     .special = sheet_integer(call, "special", 0, 5)};
    int64_t listed = sheet_count(call, "keyframes") + 1, room;
    struct keys keys = {0};
    double *logit;

    g.tokens = g.special + g.H * g.W;
    g.ratio = sheet_integer(call, "ratio", 0, 4);
    g.h = g.H / g.ratio;
    g.w = g.W / g.ratio;
    if (!accepts(call, &g)) return false;
    room = (g.S + listed) * g.tokens;
    keys.k = sheet_zeros(room * call->D);
    keys.v = sheet_zeros(room * call->Dv);
    keys.frame = calloc((size_t)room, sizeof *keys.frame);
    logit = sheet_zeros(room);
    if (!keys.frame) abort();
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++) {
            collect(call, &g, b, h, &keys);
            for (int64_t i = 0; i < call->N; i++)
                read(call, &g, b, h, i, &keys, logit);
        }
    free(keys.k);
    free(keys.v);
    free(keys.frame);
    free(logit);
    return true;
}

const sheet sheet_descriptor = {"descriptor", forward};
