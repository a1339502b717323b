/* Hierarchical chunk attention (sheet 036, the mechanism alone): summaries of whole chunks pick `top` of them for each
 * query, one softmax within each, and their sum by the softmax of the summaries' logits. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t chunk, top, chunks;
    int64_t *chosen; /* [B,N,top] */
};

/* Channel e of the summary of chunk c: given, or the mean of the keys, which passes no gradient. */
static double summary(const sheet_call *call, const struct plan *plan, int64_t b, int64_t c, int64_t e)
{
    const sheet_param *given = sheet_tensor(call, "summary_k");
    sheet_call still = *call;
    double mean = 0;

    if (given) return given->data[(b * plan->chunks + c) * call->H * call->D + e];
    if (call->frozen && call->still_k) still.k = call->still_k;
    for (int64_t j = c * plan->chunk; j < (c + 1) * plan->chunk; j++)
        mean += sheet_k(&still, b, e / call->D, j)[e % call->D] / (double)plan->chunk;
    return mean;
}

static double logit(const sheet_call *call, const struct plan *plan, int64_t b, int64_t i, int64_t c)
{
    const sheet_param *given = sheet_tensor(call, "summary_q");
    int64_t E = call->H * call->D;
    double sum = 0;

    for (int64_t e = 0; e < E; e++) {
        double q = given ? given->data[(b * call->N + i) * E + e] : sheet_q(call, b, e / call->D, i)[e % call->D];
        sum += q * summary(call, plan, b, c, e);
    }
    return sum / sqrt((double)E);
}

static bool is_readable(const sheet_call *call, const struct plan *plan, int64_t b, int64_t i, int64_t c)
{
    const sheet_param *mask = sheet_tensor(call, "chunk_mask");

    if (call->causal && (c + 1) * plan->chunk > i + call->M - call->N) return false;
    return !mask || mask->data[(b * call->N + i) * plan->chunks + c] != 0;
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t i, int64_t *chosen)
{
    double *logits = sheet_zeros(plan->chunks);
    int64_t count = 0;

    for (int64_t t = 0; t < plan->top; t++)
        chosen[t] = -1;
    for (int64_t c = 0; c < plan->chunks; c++)
        logits[c] = is_readable(call, plan, b, i, c) ? logit(call, plan, b, i, c) : -INFINITY;
    for (int64_t c = 0; c < plan->chunks; c++) {
        int64_t better = 0;

        for (int64_t other = 0; other < plan->chunks; other++)
            better += logits[other] > logits[c] || (logits[other] == logits[c] && other < c);
        if (better < plan->top && logits[c] > -INFINITY) chosen[count++] = c;
    }
    free(logits);
}

/* Adds weight times the attention of one head within chunk c. */
static void add_chunk(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i, int64_t c,
                      double weight)
{
    double *p = sheet_zeros(plan->chunk), *o = sheet_o(call, b, h, i);

    for (int64_t u = 0; u < plan->chunk; u++)
        p[u] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, c * plan->chunk + u), call->D);
    sheet_softmax(p, plan->chunk, -INFINITY);
    for (int64_t u = 0; u < plan->chunk; u++) {
        int64_t j = c * plan->chunk + u;

        for (int64_t e = 0; e < call->Dv; e++)
            o[e] += weight * p[u] * sheet_v(call, b, h, j)[e];
        if (call->map) call->map[((b * call->H + h) * call->N + i) * call->M + j] = 1;
    }
    free(p);
}

static void attend(const sheet_call *call, const struct plan *plan, int64_t b, int64_t i, const int64_t *chosen)
{
    double *weights = sheet_zeros(plan->top);
    int64_t count = 0;

    for (; count < plan->top && chosen[count] >= 0; count++)
        weights[count] = logit(call, plan, b, i, chosen[count]);
    sheet_softmax(weights, count, -INFINITY);
    for (int64_t h = 0; h < call->H; h++)
        for (int64_t t = 0; t < count; t++)
            add_chunk(call, plan, b, h, i, chosen[t], weights[t]);
    free(weights);
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.chunk = sheet_integer(call, "chunk", 0, 32), .top = sheet_integer(call, "top", 0, 8)};
    int64_t *own, rows = call->B * call->H * call->N;

    if (call->lse) return false;
    own = (int64_t *)sheet_zeros(call->B * call->N * plan.top);
    plan.chunks = call->M / plan.chunk;
    plan.chosen = call->selection ? call->selection : own;
    for (int64_t n = 0; n < rows * call->Dv; n++)
        call->o[n] = 0;
    for (int64_t n = 0; call->map && n < rows * call->M; n++)
        call->map[n] = 0;
    for (int64_t row = 0; row < call->B * call->N; row++) {
        int64_t *chosen = plan.chosen + row * plan.top;

        if (!(call->selection && call->frozen)) choose(call, &plan, row / call->N, row % call->N, chosen);
        attend(call, &plan, row / call->N, row % call->N, chosen);
    }
    free(own);
    return true;
}

const sheet sheet_hcam = {"hcam", forward};
