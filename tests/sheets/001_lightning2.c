/* Lightning Attention-2 in its token form: o_t = e^{-s(t+1)} q_t S_in + sum_{u<=t} e^{-s(t-u)} (q_t.k_u) v_u.
 * `block` is accepted and, as the sheet demands, changes nothing. */
#include <math.h>

#include "sheets.h"

/* The ALiBi slopes of P heads are 2^{-8(h+1)/P}; other counts go on with every second slope of twice as many. */
static double alibi(int64_t h, int64_t H)
{
    int64_t P = 1;

    while (2 * P <= H)
        P *= 2;
    return h < P ? pow(2, -8.0 * (double)(h + 1) / (double)P)
                 : pow(2, -8.0 * (double)(2 * (h - P) + 1) / (double)(2 * P));
}

static double rate(const sheet_call *call, int64_t h)
{
    const sheet_param *decay = sheet_tensor(call, "decay");

    if (decay) return decay->data[h];
    return sheet_integer(call, "decay", 0, 0) == 0 ? alibi(h, call->H) : 0;
}

static void output(const sheet_call *call, const double *start, int64_t b, int64_t h, int64_t t)
{
    double *o = sheet_o(call, b, h, t), s = rate(call, h);
    const double *q = sheet_q(call, b, h, t);

    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t d = 0; start && d < call->D; d++)
            o[e] += exp(-s * (double)(t + 1)) * q[d] * start[((b * call->H + h) * call->D + d) * call->Dv + e];
        for (int64_t u = 0; u <= t; u++)
            o[e] +=
                exp(-s * (double)(t - u)) * sheet_dot(q, sheet_k(call, b, h, u), call->D) * sheet_v(call, b, h, u)[e];
    }
}

static void last_state(const sheet_call *call, const double *start, int64_t b, int64_t h)
{
    double s = rate(call, h);

    for (int64_t d = 0; d < call->D; d++)
        for (int64_t e = 0; e < call->Dv; e++) {
            int64_t at = ((b * call->H + h) * call->D + d) * call->Dv + e;
            double sum = start ? exp(-s * (double)call->N) * start[at] : 0;

            for (int64_t u = 0; u < call->N; u++)
                sum += exp(-s * (double)(call->N - 1 - u)) * sheet_k(call, b, h, u)[d] * sheet_v(call, b, h, u)[e];
            call->state[at] = sum;
        }
}

static bool forward(sheet_call *call)
{
    const sheet_param *start = sheet_tensor(call, "state");

    if (call->scale || call->lse || call->map || call->N != call->M) return false;
    for (int64_t h = 0; h < call->H; h++)
        if (!(rate(call, h) >= 0)) return false;
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++) {
            for (int64_t t = 0; t < call->N; t++)
                output(call, start ? start->data : NULL, b, h, t);
            if (call->state) last_state(call, start ? start->data : NULL, b, h);
        }
    return true;
}

const sheet sheet_lightning2 = {"lightning2", forward};
