/* Bi-level routing attention: regions of a grid route to the regions whose mean key fits their mean query best, over
 * all channels; grouped keys and values count as repeated. */
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t height, width, regions, top;
    const int64_t *chosen; /* [B, regions*regions, top] */
};

static int64_t ceil_divide(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t region_of(const struct plan *plan, int64_t token)
{
    int64_t y = token / plan->width, x = token % plan->width;

    return y / ceil_divide(plan->height, plan->regions) * plan->regions + x / ceil_divide(plan->width, plan->regions);
}

static int64_t cells(const struct plan *plan, int64_t region)
{
    int64_t count = 0;

    for (int64_t token = 0; token < plan->height * plan->width; token++)
        if (region_of(plan, token) == region) count++;
    return count;
}

/* The mean query and the mean key of every region, [regions*regions, H*D]. */
static void describe(const sheet_call *call, const struct plan *plan, int64_t b, double *q, double *k)
{
    int64_t C = call->H * call->D;

    for (int64_t token = 0; token < call->N; token++) {
        int64_t region = region_of(plan, token), count = cells(plan, region);

        for (int64_t c = 0; c < C; c++) {
            q[region * C + c] += sheet_q(call, b, c / call->D, token)[c % call->D] / (double)count;
            k[region * C + c] += sheet_k(call, b, c / call->D, token)[c % call->D] / (double)count;
        }
    }
}

/* The regions of each region, ascending, -1 behind them: a descriptor that nothing fills is never chosen. */
static void route(const sheet_call *call, const struct plan *plan, int64_t b, int64_t *chosen)
{
    int64_t R = plan->regions * plan->regions, C = call->H * call->D;
    double route_scale = sheet_number(call, "route_scale", 0, 1);
    double *q = sheet_zeros(R * C), *k = sheet_zeros(R * C), *scores = sheet_zeros(R);

    describe(call, plan, b, q, k);
    for (int64_t from = 0; from < R; from++) {
        bool *taken = (bool *)sheet_zeros(R);
        int64_t count = 0;

        for (int64_t to = 0; to < R; to++)
            scores[to] = sheet_dot(q + from * C, k + to * C, C) * route_scale;
        for (int64_t t = 0; t < plan->top; t++) {
            int64_t best = -1;

            for (int64_t to = 0; to < R; to++)
                if (!taken[to] && cells(plan, to) > 0 && (best < 0 || scores[to] > scores[best])) best = to;
            if (best >= 0) taken[best] = true;
        }
        for (int64_t t = 0; t < plan->top; t++)
            chosen[from * plan->top + t] = -1;
        for (int64_t to = 0; to < R; to++)
            if (taken[to]) chosen[from * plan->top + count++] = to;
        free(taken);
    }
    free(q);
    free(k);
    free(scores);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    int64_t R = plan->regions * plan->regions, to = region_of(plan, j);
    const int64_t *chosen = plan->chosen + (b * R + region_of(plan, p)) * plan->top;

    (void)call, (void)h;
    for (int64_t t = 0; t < plan->top; t++)
        if (chosen[t] == to) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.height = sheet_integer(call, "grid", 0, 0),
                        .width = sheet_integer(call, "grid", 1, 0),
                        .regions = sheet_integer(call, "regions", 0, 7),
                        .top = sheet_integer(call, "top", 0, 4)};
    int64_t R = plan.regions * plan.regions, *own;

    if (call->causal || sheet_count(call, "grid") != 2) return false;
    if (call->N != call->M || plan.height * plan.width != call->N) return false;
    own = (int64_t *)sheet_zeros(call->B * R * plan.top);
    plan.chosen = call->selection ? call->selection : own;
    for (int64_t b = 0; !(call->selection && call->frozen) && b < call->B; b++)
        route(call, &plan, b, (call->selection ? call->selection : own) + b * R * plan.top);
    sheet_attend(call, sees, &plan);
    sheet_depthwise(call, plan.height, plan.width, 5, sheet_tensor(call, "lepe_weight"),
                    sheet_tensor(call, "lepe_bias"));
    free(own);
    return true;
}

const sheet sheet_bra = {"bra", forward};
