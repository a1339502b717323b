/* Which head gets which span of attention (arXiv 2406.14909): heads choose among rules S = alpha + beta N, so that what
 * they do not see costs least while all together read no more than a share of the keys. */
#ifndef FV_SPAN_PLAN_H
#define FV_SPAN_PLAN_H

#include "base/context.h"

enum { FV_SPAN_BLOCK = 64, FV_SPAN_LENGTHS = 8 };

typedef struct fv_span_rule {
    double alpha, beta; /* tokens, and per token of the request */
} fv_span_rule;

/* The rules that make sense: alpha = -shortest, -shortest + step, ..., longest profiled; beta = 0, 1/8, ..., 1; with
 * alpha + beta N <= N for N = `profiled` and `longest`, and > 0 for N = `shortest`; by falling alpha + beta longest.
 * rules: NULL to count them. */
int64_t fv_span_rules(int64_t shortest, int64_t profiled, int64_t longest, int64_t step, fv_span_rule *rules);

/* Blocks of keys that a block of queries sees at most, of the blocks of a text: the band of (alpha + beta N) / 64
 * blocks, at least its own, or the first. */
double fv_span_density(const fv_span_rule *rule, int64_t length);

/* The influence [nb,nb], nb = ceil(length / 64), that a rule leaves out. */
double fv_span_loss(const fv_span_rule *rule, int64_t length, const double *influence);

typedef struct fv_span_task {
    int64_t layers, heads; /* that choose: key-value heads */
    int64_t per_layer;     /* different rules in a layer at most */
    double density;        /* the heads' mean density at every length: at most this, at least 0.9 of it */
    int profiled, lengths; /* the first `profiled` lengths have losses, the others only densities */
    int64_t length[FV_SPAN_LENGTHS];
    int64_t rules;
    const fv_span_rule *rule;
    const double *loss; /* [profiled, layers, heads, rules] */
} fv_span_task;

/* A rule for each head, and what that gives. */
typedef struct fv_span_plan {
    int32_t *rule;                   /* [layers, heads] */
    double loss[FV_SPAN_LENGTHS];    /* [profiled] */
    double density[FV_SPAN_LENGTHS]; /* [lengths] */
} fv_span_plan;

/* The plan of least loss at length number `objective` whose losses at the others are at most cap[] (NULL: any).  Exact
 * where there are few plans; otherwise by Lagrange multipliers for densities and caps, the best rules of each layer
 * under them, and the best exchanges from there and from the plan `start` (NULL: none is known).  plan->rule is the
 * caller's.  *found false: none was found. */
fv_status fv_span_solve(const fv_span_task *task, int objective, const double *cap, const int32_t *start,
                        fv_span_plan *plan, bool *found);

/* The plans of which none is better at every profiled length, each objective's range being cut in four:
 * *plans [*count], which fv_span_free frees.  Reports progress to the context, and can be stopped through it.
 * FV_E_ARGUMENT if no plan has such densities. */
fv_status fv_span_frontier(fv_ctx *ctx, const fv_span_task *task, fv_span_plan **plans, int64_t *count);
void fv_span_free(fv_span_plan *plans, int64_t count);

#endif
