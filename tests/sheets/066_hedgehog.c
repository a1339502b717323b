/* Hedgehog: linear attention over learned feature maps.  The sheet adds eps to the denominator and floors the features
 * of softmax only; the command's table makes eps the floor of every feature and of the denominator, and that holds. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

enum { SOFTMAX, EXP, RELU, ELU };

/* One half of the features: the activation of sign * y, [width]. */
static void activate(const sheet_call *call, const double *y, double sign, int64_t width, double *out)
{
    double eps = sheet_number(call, "eps", 0, 1e-12);
    int64_t map = sheet_integer(call, "map", 0, SOFTMAX);

    for (int64_t f = 0; f < width; f++) {
        double x = sign * y[f];

        out[f] = map == RELU ? (x > 0 ? x : 0) : map == ELU && x > 0 ? x + 1 : map == SOFTMAX ? x : exp(x);
    }
    if (map == SOFTMAX) sheet_softmax(out, width, -INFINITY);
    for (int64_t f = 0; f < width; f++)
        if (out[f] < eps) out[f] = eps;
}

static int64_t map_width(const sheet_call *call, const char *weight)
{
    return sheet_tensor(call, weight) ? sheet_tensor(call, weight)->dims[2] : call->D;
}

static bool halves(const sheet_call *call)
{
    int64_t map = sheet_integer(call, "map", 0, SOFTMAX);

    return (map == SOFTMAX || map == EXP) && sheet_integer(call, "half", 0, 0) == 0;
}

/* The features of one row x of query head h: y = x W + b, then its halves. */
static void features(const sheet_call *call, const double *x, int64_t h, const char *weight_name, const char *bias_name,
                     double *out)
{
    const sheet_param *weight = sheet_tensor(call, weight_name), *bias = sheet_tensor(call, bias_name);
    int64_t F = map_width(call, weight_name);
    double *y = sheet_zeros(F);

    for (int64_t f = 0; f < F; f++) {
        if (!weight) y[f] = x[f];
        for (int64_t d = 0; weight && d < call->D; d++)
            y[f] += x[d] * weight->data[(h * call->D + d) * F + f];
        if (bias) y[f] += bias->data[h * F + f];
    }
    activate(call, y, 1, F, out);
    if (halves(call)) activate(call, y, -1, F, out + F);
    free(y);
}

static bool forward(sheet_call *call)
{
    double eps = sheet_number(call, "eps", 0, 1e-12);
    int64_t F = map_width(call, "k_weight"), width = halves(call) ? 2 * F : F;
    double *fq = sheet_zeros(width), *fk = sheet_zeros(width);

    if (call->scale || call->lse || call->map || map_width(call, "q_weight") != F) {
        free(fq);
        free(fk);
        return false;
    }
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++) {
                double *o = sheet_o(call, b, h, i), sum = 0;

                features(call, sheet_q(call, b, h, i), h, "q_weight", "q_bias", fq);
                for (int64_t e = 0; e < call->Dv; e++)
                    o[e] = 0;
                for (int64_t j = 0; j < call->M; j++) {
                    double weight;

                    if (call->causal && j > i + call->M - call->N) continue;
                    features(call, sheet_k(call, b, h, j), h, "k_weight", "k_bias", fk);
                    weight = sheet_dot(fq, fk, width);
                    sum += weight;
                    for (int64_t e = 0; e < call->Dv; e++)
                        o[e] += weight * sheet_v(call, b, h, j)[e];
                }
                for (int64_t e = 0; e < call->Dv; e++)
                    o[e] /= sum > eps ? sum : eps;
            }
    free(fq);
    free(fk);
    return true;
}

const sheet sheet_hedgehog = {"hedgehog", forward};
