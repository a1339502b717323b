/* One map for every batch: q [1,H,N,D] and k [1,H,N,D] are the stream's first rows, v [B,Hkv,N,Dv]. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

static bool forward(sheet_call *call)
{
    double *weights = sheet_zeros(call->M);

    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        int64_t i = row % call->N, h = row / call->N % call->H, b = row / call->N / call->H;
        double *o = sheet_o(call, b, h, i), lse;

        for (int64_t j = 0; j < call->M; j++) {
            bool seen = !call->causal || j <= i;

            weights[j] = sheet_scale(call) * sheet_dot(call->q + (h * call->N + i) * call->D,
                                                       call->k + (h * call->M + j) * call->D, call->D);
            if (!seen) weights[j] = -INFINITY;
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

const sheet sheet_fixedmap = {"fixedmap", forward};
