/* AnchorAttention (sheet 055): the largest logit over the first tokens and the own group up to the row is its anchor; a
 * group of blocks reads those keys before it whose mean logit comes within theta of the mean anchor of some block. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t block, group, init, begin, hole;
    const int64_t *chosen; /* [B,H,groups,M] keys, -1 behind the last */
    int64_t groups;
};

/* Whether row i attends to key j in the anchor pass. */
static bool near(const struct plan *plan, int64_t i, int64_t j)
{
    return j <= i && (j < plan->init || j >= i / plan->group * plan->group);
}

static double logit(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t j)
{
    return sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
}

static double anchor(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i)
{
    double most = -INFINITY;

    for (int64_t j = 0; j <= i; j++)
        if (near(plan, i, j)) most = fmax(most, logit(call, b, h, i, j));
    return most;
}

/* Whether key j comes near the anchor of the block of queries from `first` on. */
static bool close_to_block(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t first,
                           const double *anchors, int64_t j)
{
    int64_t end = first + plan->block < call->N ? first + plan->block : call->N;
    double mean_anchor = 0, mean_logit = 0;

    for (int64_t i = first; i < end; i++) {
        mean_anchor += anchors[i] / (double)(end - first);
        mean_logit += logit(call, b, h, i, j) / (double)(end - first);
    }
    if (!sheet_integer(call, "use_anchor", 0, 1)) mean_anchor = 0;
    return mean_anchor - mean_logit <= sheet_number(call, "theta", 0, 12);
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t *chosen)
{
    double *anchors = sheet_zeros(call->N);

    for (int64_t i = 0; i < call->N; i++)
        anchors[i] = anchor(call, plan, b, h, i);
    for (int64_t g = 0; g < plan->groups; g++) {
        int64_t *list = chosen + g * call->M, count = 0;

        for (int64_t j = plan->begin; j < g * plan->group - plan->hole; j++) {
            bool taken = false;

            for (int64_t i = g * plan->group; i < (g + 1) * plan->group && i < call->N; i += plan->block)
                taken = taken || close_to_block(call, plan, b, h, i, anchors, j);
            if (taken) list[count++] = j;
        }
        while (count < call->M)
            list[count++] = -1;
    }
    free(anchors);
}

/* Softmax of a row in which a key may count twice. */
static void attend(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i)
{
    const int64_t *list = plan->chosen + ((b * call->H + h) * plan->groups + i / plan->group) * call->M;
    double *weights = sheet_zeros(2 * call->M), *o = sheet_o(call, b, h, i), lse;

    for (int64_t j = 0; j < call->M; j++) {
        weights[j] = near(plan, i, j) ? logit(call, b, h, i, j) : -INFINITY;
        weights[call->M + j] = -INFINITY;
    }
    for (int64_t n = 0; n < call->M && list[n] >= 0; n++)
        weights[call->M + list[n]] = logit(call, b, h, i, list[n]);
    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[((b * call->H + h) * call->N + i) * call->M + j] =
            weights[j] > -INFINITY || weights[call->M + j] > -INFINITY;
    lse = sheet_softmax(weights, 2 * call->M, -INFINITY);
    if (call->lse) call->lse[(b * call->H + h) * call->N + i] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t j = 0; j < call->M; j++)
            o[e] += (weights[j] + weights[call->M + j]) * sheet_v(call, b, h, j)[e];
    }
    free(weights);
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.block = sheet_integer(call, "block", 0, 128), .init = sheet_integer(call, "init", 0, 128)};
    int64_t bug = sheet_integer(call, "count_bug", 0, 0), *own, *chosen;

    plan.group = plan.block * sheet_integer(call, "step", 0, 16);
    plan.groups = (call->N + plan.group - 1) / plan.group;
    plan.begin = bug ? plan.block : plan.init;
    plan.hole = bug ? plan.block : 0;
    if (call->N != call->M || plan.init > plan.group) return false;
    own = (int64_t *)sheet_zeros(call->B * call->H * plan.groups * call->M);
    chosen = call->selection ? call->selection : own;
    plan.chosen = chosen;
    for (int64_t n = 0; n < call->B * call->H; n++) {
        if (!(call->selection && call->frozen))
            choose(call, &plan, n / call->H, n % call->H, chosen + n * plan.groups * call->M);
        for (int64_t i = 0; i < call->N; i++)
            attend(call, &plan, n / call->H, n % call->H, i);
    }
    free(own);
    return true;
}

const sheet sheet_anchor = {"anchor", forward};
