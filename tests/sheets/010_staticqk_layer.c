/* Sheet 010 (d, e, f) as layers: values of x, queries and keys of a source s, which is one stream for every batch
 * (fixedmap) or has a row for each token of x (staticqk). */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

/* Pairs (d, d + D/2) of each head turn by position * base^(-2d/D). */
static void rotate(double *x, int64_t C, int64_t D, double base, int64_t position)
{
    for (int64_t c = 0; c < C; c++) {
        int64_t d = c % D;
        double angle = (double)position * pow(base, -2 * (double)d / (double)D), first = x[c], second;

        if (d >= D / 2) continue;
        second = x[c + D / 2];
        x[c] = first * cos(angle) - second * sin(angle);
        x[c + D / 2] = first * sin(angle) + second * cos(angle);
    }
}

/* What token i reads in head h. */
static void read_head(int64_t N, int64_t C, int64_t D, int64_t h, const double *q, const double *k, const double *v,
                      bool causal, int64_t i, double *p, double *o)
{
    for (int64_t j = 0; j < N; j++)
        p[j] = causal && j > i ? -INFINITY : sheet_dot(q + i * C + h * D, k + j * C + h * D, D) / sqrt((double)D);
    sheet_softmax(p, N, -INFINITY);
    for (int64_t d = h * D; d < (h + 1) * D; d++) {
        o[d] = 0;
        for (int64_t j = 0; j < N; j++)
            o[d] += p[j] * v[j * C + d];
    }
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x"), *s = layer_tensor(call, "s");
    int64_t N = x->dims[1], C = x->dims[2], H = layer_integer(call, "heads", 0, 1), D = C / H;
    bool causal = layer_integer(call, "causal", 0, 1) != 0;
    double base = layer_number(call, "rope_base", 0, 0), *y = layer_output(call, "y");
    double *q = sheet_zeros(N * C), *k = sheet_zeros(N * C), *v = sheet_zeros(N * C), *p = sheet_zeros(N),
           *o = sheet_zeros(C);

    for (int64_t b = 0; b < x->dims[0]; b++) {
        for (int64_t i = 0; i < N; i++) {
            const double *source = s->data + (s->rank == 3 ? b * N + i : i) * C;

            layer_linear(call, "q_weight", NULL, source, q + i * C);
            layer_linear(call, "k_weight", NULL, source, k + i * C);
            layer_linear(call, "v_weight", NULL, x->data + (b * N + i) * C, v + i * C);
            if (base == 0) continue;
            rotate(q + i * C, C, D, base, i);
            rotate(k + i * C, C, D, base, i);
        }
        for (int64_t i = 0; i < N; i++) {
            for (int64_t h = 0; h < H; h++)
                read_head(N, C, D, h, q, k, v, causal, i, p, o);
            layer_linear(call, "o_weight", NULL, o, y + (b * N + i) * C);
        }
    }
    free(q);
    free(k);
    free(v);
    free(p);
    free(o);
}

const layer_sheet layer_sheet_fixedmap = {"fixedmap", forward};
const layer_sheet layer_sheet_staticqk = {"staticqk", forward};
