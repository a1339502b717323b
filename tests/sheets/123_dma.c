/* Dynamic mask attention (sheet 123): delta of each key from the values, softplus and a; a query reads the `keep` keys
 * before it of largest delta (ties: the later ones) and adds delta to their logits. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    const double *delta;     /* [B,Hkv,M] */
    const int64_t *selected; /* [B,Hkv,N,M], -1 behind the last */
};

static int64_t own_key(const sheet_call *call, int64_t i)
{
    return i + call->M - call->N;
}

static double delta_of(const sheet_call *call, int64_t b, int64_t g, int64_t j)
{
    const sheet_param *given = sheet_tensor(call, "importance"), *weight = sheet_tensor(call, "dt_weight");
    const sheet_param *bias = sheet_tensor(call, "dt_bias"), *a = sheet_tensor(call, "a");
    int64_t group = call->H / call->Hkv;
    double dt = bias ? bias->data[g] : 0, delta;

    if (given) return given->data[(b * call->Hkv + g) * call->M + j];
    for (int64_t other = 0; weight && other < call->Hkv; other++)
        dt +=
            sheet_dot(weight->data + (g * call->Hkv + other) * call->Dv, sheet_v(call, b, other * group, j), call->Dv);
    delta = (a ? a->data[g] : 0) * log1p(exp(dt));
    return sheet_integer(call, "delta", 0, 0) ? exp(delta) : delta;
}

/* Whether query i keeps key j (of those before `end`) by itself. */
static bool keeps(const sheet_call *call, const double *delta, int64_t i, int64_t j, int64_t end)
{
    int64_t keep = sheet_integer(call, "keep", 0, 2048), own = call->causal ? own_key(call, i) : -1, better = 0;
    bool self = sheet_integer(call, "keep_self", 0, 0) && call->causal;

    if (self && j == own) return true;
    if (sheet_integer(call, "mask", 0, 0)) return delta[j] > 0;
    for (int64_t other = 0; other < end; other++)
        if (!(self && other == own)) better += delta[other] > delta[j] || (delta[other] == delta[j] && other > j);
    return better < keep - self;
}

static void choose(const sheet_call *call, const double *delta, int64_t i, int64_t *selected)
{
    int64_t block = sheet_integer(call, "block_smooth", 0, 0) > 1 ? sheet_integer(call, "block_smooth", 0, 0) : 1;
    int64_t end = call->causal ? own_key(call, i) + 1 : call->M, count = 0;

    for (int64_t from = 0; from < end; from += block) {
        int64_t to = from + block < end ? from + block : end, kept = 0;

        for (int64_t j = from; j < to; j++)
            kept += keeps(call, delta, i, j, end);
        for (int64_t j = from; 2 * kept > to - from && j < to; j++)
            selected[count++] = j;
    }
    while (count < call->M)
        selected[count++] = -1;
}

static bool reads(const sheet_call *call, const int64_t *selected, int64_t j)
{
    for (int64_t n = 0; n < call->M && selected[n] >= 0; n++)
        if (selected[n] == j) return true;
    return false;
}

static void attend(sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i)
{
    int64_t row = (b * call->H + h) * call->N + i, g = h / (call->H / call->Hkv);
    const double *delta = plan->delta + (b * call->Hkv + g) * call->M;
    bool biased = sheet_integer(call, "bias", 0, 1);
    double *s = sheet_zeros(call->M), lse;

    for (int64_t j = 0; j < call->M; j++) {
        bool seen = reads(call, plan->selected + ((b * call->Hkv + g) * call->N + i) * call->M, j);

        s[j] = !seen ? -INFINITY
                     : sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D) +
                           (biased ? delta[j] : 0);
        if (call->map) call->map[row * call->M + j] = seen;
    }
    lse = sheet_softmax(s, call->M, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t d = 0; d < call->Dv; d++) {
        double sum = 0;

        for (int64_t j = 0; j < call->M; j++)
            sum += s[j] * sheet_v(call, b, h, j)[d];
        sheet_o(call, b, h, i)[d] = sum;
    }
    free(s);
}

static bool forward(sheet_call *call)
{
    int64_t planes = call->B * call->Hkv;
    double *delta = sheet_zeros(planes * call->M);
    int64_t *own = (int64_t *)sheet_zeros(planes * call->N * call->M),
            *selected = call->selection ? call->selection : own;
    struct plan plan = {delta, selected};

    for (int64_t n = 0; n < planes * call->M; n++)
        delta[n] = delta_of(call, n / call->M / call->Hkv, n / call->M % call->Hkv, n % call->M);
    for (int64_t row = 0; !(call->selection && call->frozen) && row < planes * call->N; row++)
        choose(call, delta + row / call->N * call->M, row % call->N, selected + row * call->M);
    for (int64_t row = 0; row < call->B * call->H * call->N; row++)
        attend(call, &plan, row / call->N / call->H, row / call->N % call->H, row % call->N);
    free(delta);
    free(own);
    return true;
}

const sheet sheet_dma = {"dma", forward};
