/* The token aggregation block (sheet 117, TAB after training): attention of sorted groups and to the centres, a 1x1
 * convolution, and a feed-forward network with a depthwise convolution; both are added to x. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets/layers.h"

struct shape {
    int64_t B, N, C, Cq, F, K, heads, group, height, width;
};

/* The centre of largest cosine, the lowest of equals. */
static int64_t nearest(const layer_sheet_call *call, const struct shape *s, const double *x)
{
    const double *centres = layer_tensor(call, "centres")->data;
    double most = -INFINITY;
    int64_t best = 0;

    for (int64_t m = 0; m < s->K; m++) {
        const double *centre = centres + m * s->C;
        double cosine =
            sheet_dot(x, centre, s->C) / sqrt(sheet_dot(x, x, s->C)) / sqrt(sheet_dot(centre, centre, s->C));

        if (cosine <= most) continue;
        most = cosine;
        best = m;
    }
    return best;
}

/* order [N] of the tokens y [N,C]: by centre, then as they stand. */
static void sort(const layer_sheet_call *call, const struct shape *s, const double *y, int64_t *order)
{
    int64_t count = 0;

    for (int64_t m = 0; m < s->K; m++)
        for (int64_t i = 0; i < s->N; i++)
            if (nearest(call, s, y + i * s->C) == m) order[count++] = i;
}

/* The token at a place of the sorted array, which goes on as its own mirror image. */
static int64_t token_at(const struct shape *s, const int64_t *order, int64_t place)
{
    int64_t at = place % (2 * s->N);

    return order[at < s->N ? at : 2 * s->N - 1 - at];
}

/* o [Dv] += softmax(q.k D^-1/2) v over `count` rows of head h. */
static void attend(const struct shape *s, int64_t h, const double *q, int64_t count, const double *const *k,
                   const double *const *v, double *o)
{
    int64_t D = s->Cq / s->heads, Dv = s->C / s->heads;
    double *p = sheet_zeros(count);

    for (int64_t j = 0; j < count; j++)
        p[j] = sheet_dot(q, k[j] + h * D, D) / sqrt((double)D);
    sheet_softmax(p, count, -INFINITY);
    for (int64_t j = 0; j < count; j++)
        for (int64_t e = 0; e < Dv; e++)
            o[e] += p[j] * v[j][h * Dv + e];
    free(p);
}

/* out [count, width of the weight] */
static double *project(const layer_sheet_call *call, const char *weight, const char *bias, int64_t count,
                       const double *x)
{
    const int64_t *dims = layer_tensor(call, weight)->dims;
    double *out = sheet_zeros(count * dims[0]);

    for (int64_t i = 0; i < count; i++)
        layer_linear(call, weight, bias, x + i * dims[1], out + i * dims[0]);
    return out;
}

/* o [N,C] of the normed tokens y of one image. */
static void both_attentions(const layer_sheet_call *call, const struct shape *s, const double *y, const int64_t *order,
                            double *o)
{
    const double *centres = layer_tensor(call, "centres")->data;
    double *q = project(call, "q_weight", NULL, s->N, y), *k = project(call, "k_weight", NULL, s->N, y),
           *v = project(call, "v_weight", NULL, s->N, y),
           *centre_k = project(call, "centre_k_weight", NULL, s->K, centres),
           *centre_v = project(call, "centre_v_weight", NULL, s->K, centres);
    int64_t group = s->group < s->N ? s->group : s->N, room = 2 * group + s->K;
    const double **keys = calloc((size_t)room, sizeof *keys), **values = calloc((size_t)room, sizeof *values);

    if (!keys || !values) abort();
    for (int64_t place = 0; place < s->N; place++)
        for (int64_t h = 0; h < s->heads; h++) {
            int64_t i = order[place], first = place / group * group;
            const double *query = q + i * s->Cq + h * (s->Cq / s->heads);
            double *to = o + i * s->C + h * (s->C / s->heads);

            for (int64_t t = 0; t < 2 * group; t++) {
                keys[t] = k + token_at(s, order, first + t) * s->Cq;
                values[t] = v + token_at(s, order, first + t) * s->C;
            }
            attend(s, h, query, 2 * group, keys, values, to);
            for (int64_t m = 0; m < s->K; m++) {
                keys[m] = centre_k + m * s->Cq;
                values[m] = centre_v + m * s->C;
            }
            attend(s, h, query, s->K, keys, values, to);
        }
    free(q);
    free(k);
    free(v);
    free(centre_k);
    free(centre_v);
    free(keys);
    free(values);
}

/* Channel f of the depthwise convolution of u [N,F] at a token. */
static double convolve(const layer_sheet_call *call, const struct shape *s, const double *u, int64_t i, int64_t f)
{
    const sheet_param *weight = layer_tensor(call, "ffn.dw_weight"), *bias = layer_tensor(call, "ffn.dw_bias");
    double sum = bias ? bias->data[f] : 0;

    for (int64_t dy = -2; dy <= 2; dy++)
        for (int64_t dx = -2; dx <= 2; dx++) {
            int64_t row = i / s->width + dy, column = i % s->width + dx;

            if (row < 0 || row >= s->height || column < 0 || column >= s->width) continue;
            sum += weight->data[(f * 5 + dy + 2) * 5 + dx + 2] * u[(row * s->width + column) * s->F + f];
        }
    return sum;
}

/* x [N,C] += the feed-forward network of its norm. */
static void add_network(const layer_sheet_call *call, const struct shape *s, double *x)
{
    double *y = sheet_zeros(s->N * s->C), *u, *sum = sheet_zeros(s->N * s->F), *part;

    for (int64_t i = 0; i < s->N; i++)
        layer_norm(call, "ffn.norm_weight", "ffn.norm_bias", 1e-6, s->C, x + i * s->C, y + i * s->C);
    u = project(call, "ffn.fc1_weight", "ffn.fc1_bias", s->N, y);
    for (int64_t n = 0; n < s->N * s->F; n++)
        u[n] = layer_gelu(u[n]);
    for (int64_t n = 0; n < s->N * s->F; n++)
        sum[n] = u[n] + layer_gelu(convolve(call, s, u, n / s->F, n % s->F));
    part = project(call, "ffn.fc2_weight", "ffn.fc2_bias", s->N, sum);
    for (int64_t n = 0; n < s->N * s->C; n++)
        x[n] += part[n];
    free(y);
    free(u);
    free(sum);
    free(part);
}

static void block(const layer_sheet_call *call, const struct shape *s, const double *x, int64_t *order, double *out)
{
    double *y = sheet_zeros(s->N * s->C), *o = sheet_zeros(s->N * s->C), *projected, *mixed;

    for (int64_t i = 0; i < s->N; i++)
        layer_norm(call, "norm_weight", "norm_bias", 1e-6, s->C, x + i * s->C, y + i * s->C);
    if (!call->frozen) sort(call, s, y, order);
    both_attentions(call, s, y, order, o);
    projected = project(call, "proj_weight", NULL, s->N, o);
    mixed = project(call, "conv_weight", NULL, s->N, projected);
    for (int64_t n = 0; n < s->N * s->C; n++)
        out[n] = x[n] + mixed[n];
    add_network(call, s, out);
    free(y);
    free(o);
    free(projected);
    free(mixed);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x");
    struct shape s = {.B = x->dims[0],
                      .N = x->dims[1],
                      .C = x->dims[2],
                      .Cq = layer_tensor(call, "q_weight")->dims[0],
                      .F = layer_tensor(call, "ffn.fc1_weight")->dims[0],
                      .K = layer_tensor(call, "centres")->dims[0],
                      .heads = layer_integer(call, "heads", 0, 4),
                      .group = layer_integer(call, "group", 0, 128),
                      .height = layer_integer(call, "size", 0, 0),
                      .width = layer_integer(call, "size", 1, 0)};
    double *y = layer_output(call, "y");

    for (int64_t b = 0; b < s.B; b++)
        block(call, &s, x->data + b * s.N * s.C, call->selection + b * s.N, y + b * s.N * s.C);
}

const layer_sheet layer_sheet_tab = {"tab", forward};
