/* Landmark attention (sheet 084): gate softmax over the query's own section and the landmarks before it, times a
 * softmax over the tokens of each section before. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

static bool is_landmark(const sheet_call *call, int64_t j)
{
    int64_t period = sheet_integer(call, "period", 0, 51);

    return period > 0 ? (j + 1) % period == 0 : sheet_tensor(call, "landmarks")->data[j] != 0;
}

/* The first key behind the last landmark before `end`. */
static int64_t section_of(const sheet_call *call, int64_t end)
{
    while (end > 0 && !is_landmark(call, end - 1))
        end--;
    return end;
}

/* Weights [M] of the query at p, in the place of its logits. */
static void weigh(const sheet_call *call, int64_t p, double *w)
{
    int64_t own = p < 0 ? 0 : section_of(call, p);
    double *gate = sheet_zeros(call->M);

    for (int64_t j = 0; j < call->M; j++) {
        bool token = j >= own && j <= p && !is_landmark(call, j);
        bool landmark = j < own && is_landmark(call, j) && j > 0 && !is_landmark(call, j - 1);

        gate[j] = token || landmark ? w[j] : -INFINITY;
    }
    sheet_softmax(gate, call->M, -INFINITY);
    for (int64_t j = 0; j < own; j++) {
        int64_t from = section_of(call, j);

        if (is_landmark(call, j)) {
            sheet_softmax(w + from, j - from, -INFINITY);
            for (int64_t n = from; n < j; n++)
                w[n] *= gate[j];
            w[j] = 0;
        }
    }
    for (int64_t j = own; j < call->M; j++)
        w[j] = gate[j];
    free(gate);
}

static bool forward(sheet_call *call)
{
    double *w = sheet_zeros(call->M);

    if (call->lse) return false;
    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        int64_t b = row / call->N / call->H, h = row / call->N % call->H, i = row % call->N, p = i + call->M - call->N;

        for (int64_t j = 0; j < call->M; j++)
            w[j] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
        weigh(call, p, w);
        for (int64_t d = 0; d < call->Dv; d++) {
            double sum = 0;

            for (int64_t j = 0; j < call->M; j++)
                sum += w[j] * sheet_v(call, b, h, j)[d];
            sheet_o(call, b, h, i)[d] = sum;
        }
        for (int64_t j = 0; call->map && j < call->M; j++)
            call->map[row * call->M + j] = j <= p && !is_landmark(call, j);
    }
    free(w);
    return true;
}

const sheet sheet_landmark = {"landmark", forward};
