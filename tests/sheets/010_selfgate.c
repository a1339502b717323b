/* Pooling without pairs: the logit of a key is its own token's q.k. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

static double logit(const sheet_call *call, int64_t b, int64_t h, int64_t j)
{
    bool silu = sheet_integer(call, "silu", 0, 1) == 1;
    double sum = 0;

    for (int64_t d = 0; d < call->D; d++) {
        double q = sheet_q(call, b, h, j)[d];

        if (silu) q = q / (1 + exp(-q));
        sum += q * sheet_k(call, b, h, j)[d];
    }
    return sheet_scale(call) * sum;
}

static bool forward(sheet_call *call)
{
    double *weights = sheet_zeros(call->M);

    if (call->N != call->M) {
        free(weights);
        return false;
    }
    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        int64_t i = row % call->N, h = row / call->N % call->H, b = row / call->N / call->H;
        double *o = sheet_o(call, b, h, i), lse;

        for (int64_t j = 0; j < call->M; j++) {
            bool seen = !call->causal || j <= i;

            weights[j] = seen ? logit(call, b, h, j) : -INFINITY;
            if (call->map) call->map[row * call->M + j] = seen;
        }
        lse = sheet_softmax(weights, call->M, -INFINITY);
        if (call->lse) call->lse[row] = lse;
        for (int64_t e = 0; e < call->Dv; e++) {
            o[e] = 0;
            for (int64_t j = 0; j < call->M; j++)
                o[e] += weights[j] * sheet_v(call, b, h, j)[e];
        }
    }
    free(weights);
    return true;
}

const sheet sheet_selfgate = {"selfgate", forward};
