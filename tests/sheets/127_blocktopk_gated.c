/* Gated block top-k (sheet 127): the blocks complete at p have weights, softmax(q.mean k) of each head, own block 1,
 * summed over the group; the first `init`, the last `local` and the heaviest others, `top` in all, are read, and the
 * output passes sigmoid(gate). */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t block, top, init, local;
    const int64_t *chosen; /* [B,Hkv,N,top] */
};

/* Adds head h's softmax over the blocks complete at p to the weights. */
static void add_weights(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i,
                        double *weights)
{
    int64_t complete = (i + call->M - call->N + 1) / plan->block;
    double *logits = sheet_zeros(complete);

    for (int64_t c = 0; c < complete; c++)
        for (int64_t j = c * plan->block; j < (c + 1) * plan->block; j++)
            logits[c] += sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D) /
                         (double)plan->block;
    sheet_softmax(logits, complete, -INFINITY);
    for (int64_t c = 0; c < complete; c++)
        weights[c] += logits[c];
    free(logits);
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t g, int64_t i, int64_t *chosen)
{
    int64_t group = call->H / call->Hkv, p = i + call->M - call->N, own = p / plan->block, count = 0;
    double *weights = sheet_zeros(own + 1);

    for (int64_t t = 0; t < plan->top; t++)
        chosen[t] = -1;
    for (int64_t h = g * group; p >= 0 && h < (g + 1) * group; h++)
        add_weights(call, plan, b, h, i, weights);
    for (int64_t c = 0; c <= own; c++)
        if (c < plan->init || c > own - plan->local) weights[c] = INFINITY;
    for (int64_t c = 0; p >= 0 && c <= own; c++) {
        int64_t better = 0;

        for (int64_t other = 0; other <= own; other++)
            better += weights[other] > weights[c] || (weights[other] == weights[c] && other < c);
        if (better < plan->top) chosen[count++] = c;
    }
    free(weights);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    int64_t g = h / (call->H / call->Hkv), i = p - (call->M - call->N);
    const int64_t *chosen = plan->chosen + ((b * call->Hkv + g) * call->N + i) * plan->top;

    for (int64_t t = 0; t < plan->top; t++)
        if (j <= p && chosen[t] == j / plan->block) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.block = sheet_integer(call, "block", 0, 16),
                        .top = sheet_integer(call, "top", 0, 16),
                        .init = sheet_integer(call, "init", 0, 0),
                        .local = sheet_integer(call, "local", 0, 1)};
    const sheet_param *gate = sheet_tensor(call, "gate");
    int64_t rows = call->B * call->Hkv * call->N;
    int64_t *own, *chosen;

    if (plan.top < plan.init + plan.local) return false;
    own = (int64_t *)sheet_zeros(rows * plan.top);
    plan.chosen = chosen = call->selection ? call->selection : own;
    for (int64_t row = 0; !(call->selection && call->frozen) && row < rows; row++)
        choose(call, &plan, row / call->N / call->Hkv, row / call->N % call->Hkv, row % call->N,
               chosen + row * plan.top);
    sheet_attend(call, sees, &plan);
    for (int64_t n = 0; gate && n < call->B * call->H * call->N * call->Dv; n++)
        call->o[n] /= 1 + exp(-gate->data[n / call->Dv]);
    free(own);
    return true;
}

const sheet sheet_blocktopk_gated = {"blocktopk_gated", forward};
