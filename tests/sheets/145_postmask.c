/* Weights of a softmax over all keys, times a soft mask. */
#include <stdlib.h>

#include "sheets.h"

static bool forward(sheet_call *call)
{
    const sheet_param *mask = sheet_tensor(call, "mask");
    double alpha = sheet_number(call, "alpha", 0, 0), *weight;
    int64_t N = call->N, H = call->H;

    if (call->causal || call->N != call->M) return false;
    weight = sheet_zeros(N);
    for (int64_t row = 0; row < call->B * H * N; row++) {
        int64_t b = row / N / H, h = row / N % H, i = row % N;
        double *o = sheet_o(call, b, h, i), lse;
        for (int64_t j = 0; j < N; j++)
            weight[j] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
        lse = sheet_softmax(weight, N, -1.0 / 0.0);
        if (call->lse) call->lse[row] = lse;
        for (int64_t c = 0; c < call->Dv; c++)
            o[c] = 0;
        for (int64_t j = 0; j < N; j++) {
            double factor = j <= i;
            if (mask)
                factor =
                    mask->data[(((mask->dims[0] > 1 ? b : 0) * mask->dims[1] + (mask->dims[1] > 1 ? h : 0)) * N + i) *
                                   N +
                               j];
            for (int64_t c = 0; c < call->Dv; c++)
                o[c] += weight[j] * (alpha + (1 - alpha) * factor) * sheet_v(call, b, h, j)[c];
            if (call->map) call->map[row * N + j] = 1;
        }
    }
    free(weight);
    return true;
}

const sheet sheet_postmask = {"postmask", forward};
