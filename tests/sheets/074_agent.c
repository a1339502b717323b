/* Agent attention: agents attend to the keys, queries attend to the agents.  No log-sum-exp over tokens exists, and no
 * set of pairs. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

/* Adaptive average pooling of q's grid to side x side cells, which may overlap: agents [B,H,side*side,D]. */
static void pool(const sheet_call *call, int64_t height, int64_t width, int64_t side, double *agents)
{
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t cell = 0; cell < side * side; cell++) {
                int64_t r = cell / side, c = cell % side;
                int64_t top = r * height / side, bottom = ((r + 1) * height + side - 1) / side;
                int64_t left = c * width / side, right = ((c + 1) * width + side - 1) / side;

                for (int64_t y = top; y < bottom; y++)
                    for (int64_t x = left; x < right; x++)
                        for (int64_t d = 0; d < call->D; d++)
                            agents[((b * call->H + h) * side * side + cell) * call->D + d] +=
                                sheet_q(call, b, h, y * width + x)[d] / (double)((bottom - top) * (right - left));
            }
}

/* V_A = softmax(s a k^T + B1) v of one head, [p, Dv]. */
static void aggregate(const sheet_call *call, const double *agents, int64_t p, int64_t b, int64_t h, double *va)
{
    const sheet_param *bias = sheet_tensor(call, "bias1");
    double *weights = sheet_zeros(call->M);

    for (int64_t a = 0; a < p; a++) {
        for (int64_t j = 0; j < call->M; j++) {
            weights[j] = sheet_scale(call) *
                         sheet_dot(agents + ((b * call->H + h) * p + a) * call->D, sheet_k(call, b, h, j), call->D);
            if (bias) weights[j] += bias->data[(h * p + a) * call->M + j];
        }
        sheet_softmax(weights, call->M, -INFINITY);
        for (int64_t e = 0; e < call->Dv; e++) {
            va[a * call->Dv + e] = 0;
            for (int64_t j = 0; j < call->M; j++)
                va[a * call->Dv + e] += weights[j] * sheet_v(call, b, h, j)[e];
        }
    }
    free(weights);
}

/* O = softmax(s q a^T + B2) V_A of one head. */
static void broadcast(const sheet_call *call, const double *agents, int64_t p, int64_t b, int64_t h, const double *va)
{
    const sheet_param *bias = sheet_tensor(call, "bias2");
    double *weights = sheet_zeros(p);

    for (int64_t i = 0; i < call->N; i++) {
        for (int64_t a = 0; a < p; a++) {
            weights[a] = sheet_scale(call) *
                         sheet_dot(sheet_q(call, b, h, i), agents + ((b * call->H + h) * p + a) * call->D, call->D);
            if (bias) weights[a] += bias->data[(h * call->N + i) * p + a];
        }
        sheet_softmax(weights, p, -INFINITY);
        for (int64_t e = 0; e < call->Dv; e++) {
            sheet_o(call, b, h, i)[e] = 0;
            for (int64_t a = 0; a < p; a++)
                sheet_o(call, b, h, i)[e] += weights[a] * va[a * call->Dv + e];
        }
    }
    free(weights);
}

static bool forward(sheet_call *call)
{
    const sheet_param *given = sheet_tensor(call, "agents"), *dwc = sheet_tensor(call, "dwc_weight");
    const sheet_param *dwc_bias = sheet_tensor(call, "dwc_bias");
    int64_t height = sheet_integer(call, "grid", 0, 0), width = sheet_integer(call, "grid", 1, 0), side = 1;
    int64_t p = given ? given->dims[2] : sheet_integer(call, "agents", 0, 49);
    double *pooled, *va;

    while (side * side < p)
        side++;
    if (call->causal || call->lse || call->map) return false;
    if (sheet_count(call, "grid") == 0 ? !given || dwc || dwc_bias : height * width != call->N) return false;
    if ((dwc || dwc_bias) && call->N != call->M) return false;
    if (!given && side * side != p) return false;
    pooled = sheet_zeros(call->B * call->H * p * call->D);
    va = sheet_zeros(p * call->Dv);
    if (!given) pool(call, height, width, side, pooled);
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++) {
            aggregate(call, given ? given->data : pooled, p, b, h, va);
            broadcast(call, given ? given->data : pooled, p, b, h, va);
        }
    sheet_depthwise(call, height, width, 3, dwc, dwc_bias);
    free(pooled);
    free(va);
    return true;
}

const sheet sheet_agent = {"agent", forward};
