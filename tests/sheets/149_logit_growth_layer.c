/* The stability probe of sheet 149: the largest magnitude of a logit that is seen, and the mean entropy of rows. */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

static void forward(layer_sheet_call *call)
{
    const sheet_param *q = layer_tensor(call, "q"), *k = layer_tensor(call, "k");
    int64_t H = q->dims[1], N = q->dims[2], D = q->dims[3], group = H / k->dims[1];
    bool causal = layer_integer(call, "causal", 0, 1) != 0;
    double scale = layer_number(call, "scale", 0, 0), *p = sheet_zeros(N), *y = layer_output(call, "y");

    if (scale == 0) scale = 1 / sqrt((double)D);
    for (int64_t bh = 0; bh < q->dims[0] * H; bh++) {
        double most = 0, entropy = 0;

        for (int64_t i = 0; i < N; i++) {
            for (int64_t j = 0; j < N; j++) {
                const double *key = k->data + (bh / group * N + j) * D;
                bool seen = !causal || j <= i;

                p[j] = seen ? scale * sheet_dot(q->data + (bh * N + i) * D, key, D) : -INFINITY;
                if (seen) most = fmax(most, fabs(p[j]));
            }
            sheet_softmax(p, N, -INFINITY);
            for (int64_t j = 0; j < N; j++)
                if (p[j] > 0) entropy -= p[j] * log(p[j]);
        }
        y[bh * 2] = most;
        y[bh * 2 + 1] = entropy / (double)N;
    }
    free(p);
}

const layer_sheet layer_sheet_logit_growth = {"logit_growth", forward};
