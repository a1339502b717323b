/* The series of exp to the second order as a weight; with one denominator, or one for each order. */
#include <math.h>

#include "sheets.h"

static bool forward(sheet_call *call)
{
    bool split = sheet_integer(call, "denominator", 0, 0) == 1;

    if (call->map) return false;
    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        int64_t i = row % call->N, h = row / call->N % call->H, b = row / call->N / call->H, seen = call->M;
        double *o = sheet_o(call, b, h, i), sum[3] = {0};

        if (call->causal) seen = i + call->M - call->N + 1;
        for (int pass = 0; pass < 2; pass++) { /* denominators first */
            for (int64_t e = 0; e < call->Dv; e++)
                o[e] = 0;
            for (int64_t j = 0; j < seen; j++) {
                double x = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
                double term[] = {1, x, x * x / 2};

                for (int r = 0; r < 3; r++) {
                    double whole = split ? sum[r] : sum[0] + sum[1] + sum[2];

                    if (pass == 0) continue;
                    for (int64_t e = 0; e < call->Dv; e++)
                        o[e] += term[r] / whole * sheet_v(call, b, h, j)[e];
                }
                for (int r = 0; r < 3 && pass == 0; r++)
                    sum[r] += term[r];
            }
        }
        if (call->lse) call->lse[row] = seen > 0 ? log(sum[0] + sum[1] + sum[2]) : -INFINITY;
    }
    return true;
}

const sheet sheet_taylor2 = {"taylor2", forward};
