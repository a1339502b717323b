/* Block top-k, every row as a decoding step of n = p + 1 keys (sheet 068, C): sinks, the `top` blocks that the mean
 * query of the group likes best among the nd whole ones behind the sinks, and everything behind those. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t block, top, local, sink;
    const int64_t *chosen; /* [B,Hkv,N,top] */
};

/* Score of block c by mean key: the mean over the heads of the group, or the largest. */
static double score(const sheet_call *call, const struct plan *plan, int64_t b, int64_t g, int64_t i, int64_t c)
{
    int64_t group = call->H / call->Hkv, max = sheet_integer(call, "agg", 0, 0);
    double best = -INFINITY, sum = 0;

    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        double own = 0;

        for (int64_t j = plan->sink + c * plan->block; j < plan->sink + (c + 1) * plan->block; j++)
            own += sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D) / (double)plan->block;
        best = fmax(best, own);
        sum += own / (double)group;
    }
    return max ? best : sum;
}

/* Blocks that are read entirely or not at all; everything behind them is read. */
static int64_t between(const struct plan *plan, int64_t p)
{
    int64_t rest = p + 1 - plan->local - plan->sink;

    return rest > 0 ? rest / plan->block : 0;
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t g, int64_t i, int64_t *chosen)
{
    int64_t p = i + call->M - call->N, blocks = between(plan, p), count = 0;
    double *scores = sheet_zeros(blocks + 1);

    for (int64_t t = 0; t < plan->top; t++)
        chosen[t] = -1;
    for (int64_t c = 0; c < blocks; c++)
        scores[c] = score(call, plan, b, g, i, c);
    for (int64_t c = 0; c < blocks; c++) {
        int64_t better = 0;

        for (int64_t other = 0; other < blocks; other++)
            better += scores[other] > scores[c] || (scores[other] == scores[c] && other < c);
        if (better < plan->top) chosen[count++] = c;
    }
    free(scores);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    int64_t g = h / (call->H / call->Hkv), i = p - (call->M - call->N);
    const int64_t *chosen = plan->chosen + ((b * call->Hkv + g) * call->N + i) * plan->top;

    if (j > p) return false;
    if (j < plan->sink || j >= plan->sink + between(plan, p) * plan->block) return true;
    for (int64_t t = 0; t < plan->top; t++)
        if (chosen[t] == (j - plan->sink) / plan->block) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.block = sheet_integer(call, "block", 0, 16),
                        .top = sheet_integer(call, "top", 0, 64),
                        .local = sheet_integer(call, "local", 0, 64),
                        .sink = sheet_integer(call, "sink", 0, 4)};
    int64_t rows = call->B * call->Hkv * call->N;
    int64_t *own = (int64_t *)sheet_zeros(rows * plan.top), *chosen = call->selection ? call->selection : own;
    bool done;

    plan.chosen = chosen;
    for (int64_t row = 0; !(call->selection && call->frozen) && row < rows; row++)
        choose(call, &plan, row / call->N / call->Hkv, row / call->N % call->Hkv, row % call->N,
               chosen + row * plan.top);
    done = sheet_attend(call, sees, &plan);
    free(own);
    return done;
}

const sheet sheet_blocktopk = {"blocktopk", forward};
