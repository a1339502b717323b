/* MoBA: each query reads its own block and the past blocks whose mean key scores best (sheet 020, "base MoBA").
 * The gate is the unscaled product with the mean key; the own block counts among the `top`. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

static double gate(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t c, int64_t block)
{
    double sum = 0;

    for (int64_t d = 0; d < call->D; d++) {
        double mean = 0;

        for (int64_t j = c * block; j < (c + 1) * block; j++)
            mean += sheet_k(call, b, h, j)[d] / (double)block;
        sum += sheet_q(call, b, h, i)[d] * mean;
    }
    return sum;
}

/* The blocks of one query, ascending, -1 behind them.  Past blocks are whole, the own one need not be. */
static void select_blocks(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t block, int64_t top,
                          int64_t *chosen)
{
    int64_t p = i + call->M - call->N, own = p < 0 ? 0 : p / block, count = 0;
    double *gates = sheet_zeros(own + 1);
    bool *taken = (bool *)sheet_zeros(own + 1);

    for (int64_t t = 0; t < top; t++)
        chosen[t] = -1;
    for (int64_t c = 0; p >= 0 && c < own; c++)
        gates[c] = gate(call, b, h, i, c, block);
    gates[own] = INFINITY;
    for (int64_t t = 0; p >= 0 && t < top && t <= own; t++) {
        int64_t best = -1;

        for (int64_t c = 0; c <= own; c++)
            if (!taken[c] && (best < 0 || gates[c] > gates[best])) best = c;
        taken[best] = true;
    }
    for (int64_t c = 0; p >= 0 && c <= own; c++)
        if (taken[c]) chosen[count++] = c;
    free(gates);
    free(taken);
}

struct plan {
    int64_t block, top;
    const int64_t *chosen; /* [B,H,N,top] */
};

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    const int64_t *chosen = plan->chosen + ((b * call->H + h) * call->N + p - (call->M - call->N)) * plan->top;

    for (int64_t t = 0; t < plan->top; t++)
        if (j <= p && chosen[t] == j / plan->block) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    int64_t block = sheet_integer(call, "block", 0, 512), top = sheet_integer(call, "top", 0, 3);
    int64_t *own = (int64_t *)sheet_zeros(call->B * call->H * call->N * top);
    int64_t *chosen = call->selection ? call->selection : own;
    struct plan plan = {block, top, chosen};
    bool chosen_before = call->selection && call->frozen, done;

    for (int64_t row = 0; !chosen_before && row < call->B * call->H * call->N; row++)
        select_blocks(call, row / call->N / call->H, row / call->N % call->H, row % call->N, block, top,
                      chosen + row * top);
    done = sheet_attend(call, sees, &plan);
    free(own);
    return done;
}

const sheet sheet_moba = {"moba", forward};
