/* Attention influence of sheet 078: entries E of causal attention, their magnitudes summed over blocks, mean over
 * batches, the largest of a group's query heads. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

/* E of row i of a query head. */
static void row(const layer_sheet_call *call, int64_t bh, int64_t i, double *e)
{
    const sheet_param *q = layer_tensor(call, "q"), *k = layer_tensor(call, "k"), *v = layer_tensor(call, "v"),
                      *d_o = layer_tensor(call, "do");
    int64_t N = q->dims[2], D = q->dims[3], Dv = v->dims[3], kv = bh / (q->dims[1] / k->dims[1]);
    double *a = sheet_zeros(N), *g = sheet_zeros(N), mean = 0;

    for (int64_t j = 0; j < N; j++) {
        double dot = sheet_dot(q->data + (bh * N + i) * D, k->data + (kv * N + j) * D, D);
        a[j] = j <= i ? dot / sqrt((double)D) : -INFINITY;
        g[j] = sheet_dot(d_o->data + (bh * N + i) * Dv, v->data + (kv * N + j) * Dv, Dv);
    }
    sheet_softmax(a, N, -INFINITY);
    for (int64_t j = 0; j <= i; j++)
        mean += a[j] * g[j];
    for (int64_t j = 0; j <= i; j++)
        e[j] = i == 0 ? -a[0] * g[0] : -a[j] * (g[j] - mean) / (1 - a[j] + FLT_EPSILON);
    free(a);
    free(g);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *q = layer_tensor(call, "q");
    int64_t B = q->dims[0], H = q->dims[1], N = q->dims[2], groups = layer_tensor(call, "k")->dims[1];
    int64_t block = layer_integer(call, "block", 0, 64), blocks = (N + block - 1) / block, cells = blocks * blocks;
    bool absolute = layer_integer(call, "absolute", 0, 1) != 0;
    double *out = layer_output(call, "e"), *sum = sheet_zeros(H * cells), *e = sheet_zeros(N);

    for (int64_t bh = 0; bh < B * H; bh++)
        for (int64_t i = 0; i < N; i++) {
            row(call, bh, i, e);
            for (int64_t j = 0; j <= i; j++)
                sum[bh % H * cells + i / block * blocks + j / block] += (absolute ? fabs(e[j]) : e[j]) / (double)B;
        }
    for (int64_t n = 0; n < groups * cells; n++) {
        out[n] = -INFINITY;
        for (int64_t h = n / cells * (H / groups); h < (n / cells + 1) * (H / groups); h++)
            out[n] = fmax(out[n], sum[h * cells + n % cells]);
    }
    free(sum);
    free(e);
}

const layer_sheet layer_sheet_attn_influence = {"attn_influence", forward};
