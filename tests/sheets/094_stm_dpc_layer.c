/* The similar-token merger of sheet 094: density peaks of the normed tokens, clusters merged by e^score, attention of
 * what was merged to all tokens, and a feed-forward network.  Noise is left out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets/layers.h"

struct shape {
    int64_t n, C, tokens, k, heads;
};

static double distance(const struct shape *s, const double *y, int64_t i, int64_t j)
{
    double sum = 0;

    for (int64_t c = 0; c < s->C; c++)
        sum += pow(y[i * s->C + c] - y[j * s->C + c], 2);
    return sqrt(sum / (double)s->C);
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double density(const struct shape *s, const double *y, int64_t i)
{
    int64_t k = s->k < s->n ? s->k : s->n;
    double *all = sheet_zeros(s->n), mean = 0;

    for (int64_t j = 0; j < s->n; j++)
        all[j] = distance(s, y, i, j);
    qsort(all, (size_t)s->n, sizeof *all, rising);
    for (int64_t j = 0; j < k; j++)
        mean += all[j] * all[j] / (double)k;
    free(all);
    return exp(-mean);
}

/* Density times the distance to the nearest denser token, or to the farthest two of all if there is none. */
static void heights(const struct shape *s, const double *y, double *height)
{
    double *dense = sheet_zeros(s->n), farthest = 0;

    for (int64_t i = 0; i < s->n; i++)
        dense[i] = density(s, y, i);
    for (int64_t n = 0; n < s->n * s->n; n++)
        farthest = fmax(farthest, distance(s, y, n / s->n, n % s->n));
    for (int64_t i = 0; i < s->n; i++) {
        double nearest = INFINITY;

        for (int64_t j = 0; j < s->n; j++)
            if (dense[j] > dense[i]) nearest = fmin(nearest, distance(s, y, i, j));
        height[i] = dense[i] * (isinf(nearest) ? farthest : nearest);
    }
    free(dense);
}

/* The clusters of tokens [n], and behind them the centres [tokens]. */
static void choose(const struct shape *s, const double *y, int64_t *cluster)
{
    int64_t *centre = cluster + s->n;
    double *height = sheet_zeros(s->n);

    heights(s, y, height);
    for (int64_t m = 0; m < s->tokens; m++) {
        int64_t best = 0;

        for (int64_t i = 1; i < s->n; i++)
            if (height[i] > height[best]) best = i;
        centre[m] = best;
        height[best] = -1;
    }
    for (int64_t i = 0; i < s->n; i++) {
        cluster[i] = 0;
        for (int64_t m = 1; m < s->tokens; m++)
            if (distance(s, y, i, centre[m]) < distance(s, y, i, centre[cluster[i]])) cluster[i] = m;
    }
    for (int64_t m = 0; m < s->tokens; m++)
        cluster[centre[m]] = m;
    free(height);
}

/* z [C] = merged + the attention of it to all tokens. */
static void attend(const layer_sheet_call *call, const struct shape *s, const double *merged, const double *y,
                   const double *score, double *z)
{
    int64_t C = s->C, D = C / s->heads;
    double *q = sheet_zeros(C), *k = sheet_zeros(s->n * C), *v = sheet_zeros(s->n * C), *p = sheet_zeros(s->n),
           *o = sheet_zeros(C);

    layer_linear(call, "q_weight", "q_bias", merged, q);
    for (int64_t j = 0; j < s->n; j++) {
        layer_linear(call, "k_weight", "k_bias", y + j * C, k + j * C);
        layer_linear(call, "v_weight", "v_bias", y + j * C, v + j * C);
    }
    for (int64_t h = 0; h < s->heads; h++) {
        for (int64_t j = 0; j < s->n; j++)
            p[j] = sheet_dot(q + h * D, k + j * C + h * D, D) / sqrt((double)D) + score[j];
        sheet_softmax(p, s->n, -INFINITY);
        for (int64_t j = 0; j < s->n; j++)
            for (int64_t c = h * D; c < (h + 1) * D; c++)
                o[c] += p[j] * v[j * C + c];
    }
    layer_linear(call, "o_weight", "o_bias", o, z);
    for (int64_t c = 0; c < C; c++)
        z[c] += merged[c];
    free(q);
    free(k);
    free(v);
    free(p);
    free(o);
}

/* out [C] = z + the network of its norm. */
static void add_network(const layer_sheet_call *call, const struct shape *s, const double *z, double *out)
{
    double *normed = sheet_zeros(s->C), *wide = sheet_zeros(4 * s->C);

    layer_norm(call, "norm2_weight", "norm2_bias", 1e-5, s->C, z, normed);
    layer_linear(call, "mlp1_weight", "mlp1_bias", normed, wide);
    for (int64_t m = 0; m < 4 * s->C; m++)
        wide[m] = layer_gelu(wide[m]);
    layer_linear(call, "mlp2_weight", "mlp2_bias", wide, out);
    for (int64_t c = 0; c < s->C; c++)
        out[c] += z[c];
    free(normed);
    free(wide);
}

static void merge(const layer_sheet_call *call, const struct shape *s, const double *x, int64_t *cluster, double *out)
{
    double *y = sheet_zeros(s->n * s->C), *score = sheet_zeros(s->n), *merged = sheet_zeros(s->C),
           *z = sheet_zeros(s->C);

    for (int64_t i = 0; i < s->n; i++) {
        layer_norm(call, "norm1_weight", "norm1_bias", 1e-5, s->C, x + i * s->C, y + i * s->C);
        layer_linear(call, "score_weight", "score_bias", y + i * s->C, score + i);
    }
    if (!call->frozen) choose(s, y, cluster);
    for (int64_t m = 0; m < s->tokens; m++) {
        double weight = 0;

        memset(merged, 0, (size_t)s->C * sizeof *merged);
        for (int64_t i = 0; i < s->n; i++) {
            if (cluster[i] != m) continue;
            weight += exp(score[i]);
            for (int64_t c = 0; c < s->C; c++)
                merged[c] += exp(score[i]) * y[i * s->C + c];
        }
        for (int64_t c = 0; c < s->C; c++)
            merged[c] /= weight + 1e-6;
        attend(call, s, merged, y, score, z);
        add_network(call, s, z, out + m * s->C);
    }
    free(y);
    free(score);
    free(merged);
    free(z);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x");
    struct shape s = {.n = x->dims[1],
                      .C = x->dims[2],
                      .tokens = layer_integer(call, "tokens", 0, 196),
                      .k = layer_integer(call, "k", 0, 15),
                      .heads = layer_integer(call, "heads", 0, 12)};
    double *y = layer_output(call, "y"), *cluster = layer_output(call, "cluster");

    for (int64_t b = 0; b < x->dims[0]; b++) {
        int64_t *chosen = call->selection + b * (s.n + s.tokens);

        merge(call, &s, x->data + b * s.n * s.C, chosen, y + b * s.tokens * s.C);
        for (int64_t i = 0; i < s.n; i++)
            cluster[b * s.n + i] = (double)chosen[i];
    }
}

const layer_sheet layer_sheet_stm_dpc = {"stm_dpc", forward};
