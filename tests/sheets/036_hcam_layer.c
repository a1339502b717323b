/* Hierarchical chunk attention as a layer (sheet 036, reading): the best `top` chunks by their summaries, attention
 * within each, their sum by the softmax of the logits of those chosen. */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

struct shape {
    int64_t B, Q, E, Mc, Cn, top, heads;
};

/* Logit of chunk c. */
static double logit(const layer_sheet_call *call, const struct shape *s, int64_t b, int64_t i, int64_t c)
{
    double *q = sheet_zeros(s->E), *k = sheet_zeros(s->E), sum;

    layer_linear(call, "summary_q_weight", NULL, layer_tensor(call, "x")->data + (b * s->Q + i) * s->E, q);
    layer_linear(call, "summary_k_weight", NULL, layer_tensor(call, "keys")->data + (b * s->Mc + c) * s->E, k);
    sum = sheet_dot(q, k, s->E) / sqrt((double)s->E);
    free(q);
    free(k);
    return sum;
}

/* The readable chunks of largest logit, ties to the lower: ascending, -1 behind the last. */
static void choose(const layer_sheet_call *call, const struct shape *s, int64_t b, int64_t i, int64_t *chosen)
{
    const sheet_param *mask = layer_tensor(call, "mask");
    double *logits = sheet_zeros(s->Mc);
    int64_t count = 0;

    for (int64_t c = 0; c < s->Mc; c++) {
        bool hidden = mask && mask->data[(b * s->Q + i) * s->Mc + c] == 0;
        logits[c] = hidden ? -INFINITY : logit(call, s, b, i, c);
    }
    for (int64_t t = 0; t < s->top; t++)
        chosen[t] = -1;
    for (int64_t c = 0; c < s->Mc; c++) {
        int64_t better = 0;

        for (int64_t other = 0; other < s->Mc; other++)
            better += logits[other] > logits[c] || (logits[other] == logits[c] && other < c);
        if (better < s->top && logits[c] > -INFINITY) chosen[count++] = c;
    }
    free(logits);
}

/* A vector of a chunk with its position: the last one is 0, and they count down to it. */
static void content(const layer_sheet_call *call, const struct shape *s, int64_t b, int64_t c, int64_t u, double *out)
{
    const double *from = layer_tensor(call, "contents")->data + ((b * s->Mc + c) * s->Cn + u) * s->E;
    bool position = layer_integer(call, "position", 0, 1) != 0;

    for (int64_t e = 0; e < s->E; e++) {
        int64_t n = e < s->E / 2 ? 2 * e : 2 * (e - s->E / 2);
        double angle = (double)(s->Cn - 1 - u) * pow(10000, -(double)n / (double)s->E);
        out[e] = from[e] + (!position ? 0 : e < s->E / 2 ? sin(angle) : cos(angle));
    }
}

/* out [E] = multi-head attention of x within chunk c. */
static void attend(const layer_sheet_call *call, const struct shape *s, int64_t b, const double *x, int64_t c,
                   double *out)
{
    int64_t E = s->E, D = E / s->heads;
    double *q = sheet_zeros(E), *k = sheet_zeros(s->Cn * E), *v = sheet_zeros(s->Cn * E), *row = sheet_zeros(E),
           *p = sheet_zeros(s->Cn), *o = sheet_zeros(E);

    layer_linear(call, "q_weight", "q_bias", x, q);
    for (int64_t u = 0; u < s->Cn; u++) {
        content(call, s, b, c, u, row);
        layer_linear(call, "k_weight", "k_bias", row, k + u * E);
        layer_linear(call, "v_weight", "v_bias", row, v + u * E);
    }
    for (int64_t h = 0; h < s->heads; h++) {
        for (int64_t u = 0; u < s->Cn; u++)
            p[u] = sheet_dot(q + h * D, k + u * E + h * D, D) / sqrt((double)D);
        sheet_softmax(p, s->Cn, -INFINITY);
        for (int64_t u = 0; u < s->Cn; u++)
            for (int64_t e = h * D; e < (h + 1) * D; e++)
                o[e] += p[u] * v[u * E + e];
    }
    layer_linear(call, "out_weight", "out_bias", o, out);
    free(q);
    free(k);
    free(v);
    free(row);
    free(p);
    free(o);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x"), *contents = layer_tensor(call, "contents");
    struct shape s = {.B = x->dims[0],
                      .Q = x->dims[1],
                      .E = x->dims[2],
                      .Mc = contents->dims[1],
                      .Cn = contents->dims[2],
                      .top = layer_integer(call, "top", 0, 8),
                      .heads = layer_integer(call, "heads", 0, 8)};
    double *y = layer_output(call, "y"), *part = sheet_zeros(s.E), *weights = sheet_zeros(s.top);

    for (int64_t row = 0; row < s.B * s.Q; row++) {
        int64_t *chosen = call->selection + row * s.top, b = row / s.Q, i = row % s.Q, count = 0;

        if (!call->frozen) choose(call, &s, b, i, chosen);
        for (; count < s.top && chosen[count] >= 0; count++)
            weights[count] = logit(call, &s, b, i, chosen[count]);
        sheet_softmax(weights, count, -INFINITY);
        for (int64_t e = 0; e < s.E; e++)
            y[row * s.E + e] = 0;
        for (int64_t t = 0; t < count; t++) {
            attend(call, &s, b, x->data + row * s.E, chosen[t], part);
            for (int64_t e = 0; e < s.E; e++)
                y[row * s.E + e] += weights[t] * part[e];
        }
    }
    free(part);
    free(weights);
}

const layer_sheet layer_sheet_hcam = {"hcam", forward};
