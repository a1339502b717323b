/* A block of sheet 005: copy w attends within windows (step 1), copy f to all, both with the scale of step 2; the text
 * is read by f for both (step 3), or by each for itself. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "sheets/layers.h"

struct axis {
    int64_t size, reach;
    bool inward;
};

static bool sees(const struct axis *a, int64_t y, int64_t other)
{
    int64_t d = a->reach, low = y - d, high = y + d;

    if (2 * d + 1 > a->size) return true;
    if (a->inward && d + y - a->size + 1 > 0) low -= d + y - a->size + 1;
    if (a->inward && d - y > 0) high += d - y;
    return low <= other && other <= high;
}

struct shape {
    int64_t N, C, heads;
    struct axis rows, columns;
};

static double *project(const layer_sheet_call *call, const char *block, const char *part, int64_t count, int64_t C,
                       const double *x)
{
    double *out = sheet_zeros(count * C);
    char weight[32], bias[32];

    snprintf(weight, sizeof weight, "%s_%s", block, part);
    snprintf(bias, sizeof bias, "%s_%s_bias", block, part);
    for (int64_t i = 0; i < count; i++)
        layer_linear(call, weight, bias, x + i * C, out + i * C);
    return out;
}

/* What tokens x [N,C] read of `of` [M,C]; in windows: of the tokens they see there. */
static double *read(const layer_sheet_call *call, const struct shape *s, const char *block, const double *x, int64_t M,
                    const double *of, bool windows, double scale)
{
    int64_t N = s->N, C = s->C, D = C / s->heads, width = s->columns.size;
    double *q = project(call, block, "q", N, C, x), *k = project(call, block, "k", M, C, of),
           *v = project(call, block, "v", M, C, of), *o = sheet_zeros(N * C), *p = sheet_zeros(M), *out;

    for (int64_t i = 0; i < N; i++)
        for (int64_t h = 0; h < s->heads; h++) {
            for (int64_t j = 0; j < M; j++) {
                bool seen = !windows || (sees(&s->rows, i / width % s->rows.size, j / width % s->rows.size) &&
                                         sees(&s->columns, i % width, j % width));
                p[j] = seen ? scale * sheet_dot(q + i * C + h * D, k + j * C + h * D, D) : -INFINITY;
            }
            sheet_softmax(p, M, -INFINITY);
            for (int64_t j = 0; j < M; j++)
                for (int64_t c = h * D; c < (h + 1) * D; c++)
                    o[i * C + c] += p[j] * v[j * C + c];
        }
    out = project(call, block, "o", N, C, o);
    free(q);
    free(k);
    free(v);
    free(o);
    free(p);
    return out;
}

static void add(int64_t count, const double *x, const double *y, double *out)
{
    for (int64_t n = 0; n < count; n++)
        out[n] = x[n] + y[n];
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *text = layer_tensor(call, "c");
    bool inward = layer_integer(call, "inward", 0, 1) != 0;
    double native = (double)(layer_integer(call, "native", 0, 0) * layer_integer(call, "native", 1, 0)), plain, scale;
    struct shape s = {.N = layer_tensor(call, "w")->dims[1],
                      .C = text->dims[2],
                      .heads = layer_integer(call, "heads", 0, 0),
                      .rows = {layer_integer(call, "grid", 1, 0), layer_integer(call, "native", 0, 0) / 2, inward},
                      .columns = {layer_integer(call, "grid", 2, 0), layer_integer(call, "native", 1, 0) / 2, inward}};
    int64_t count = s.N * s.C, T = text->dims[1];

    plain = sqrt((double)s.heads / (double)s.C);
    scale = layer_integer(call, "temp_fix", 0, 1) ? plain * sqrt(log(2 * native) / log(native)) : plain;
    for (int64_t b = 0; b < text->dims[0]; b++) {
        const double *w = layer_tensor(call, "w")->data + b * count, *f = layer_tensor(call, "f")->data + b * count,
                     *c = text->data + b * T * s.C;
        double *of_w = read(call, &s, "self", w, s.N, w, true, scale),
               *of_f = read(call, &s, "self", f, s.N, f, false, scale), *said;

        add(count, w, of_w, of_w);
        add(count, f, of_f, of_f);
        said = read(call, &s, "cross", of_f, T, c, false, plain);
        add(count, of_f, said, layer_output(call, "f") + b * count);
        if (!layer_integer(call, "override", 0, 1)) {
            free(said);
            said = read(call, &s, "cross", of_w, T, c, false, plain);
        }
        add(count, of_w, said, layer_output(call, "w") + b * count);
        free(of_w);
        free(of_f);
        free(said);
    }
}

const layer_sheet layer_sheet_cross_override = {"cross_override", forward};
