/* MoA's plan (arXiv 2406.14909): a span for each key-value head, from the influence of what it would not see. */
#ifndef APP_SPANS_H
#define APP_SPANS_H

#include "app/needle.h"
#include "cache/span_plan.h"

enum { SPANS_LENGTHS = 4, SPANS_RULES = 128 }; /* at most: plans are many, and each is looked for among all rules */

typedef struct spans_task {
    needle_task needle;      /* text, lengths (whole blocks), depths, precision; facts are asked for unless: */
    int64_t answer;          /* the loss is that of the last so many tokens of the text itself; 0: of the facts */
    int64_t longest;         /* tokens of a request that densities hold for too; 0: twice the longest profiled */
    int64_t judge;           /* tokens of texts by which one of the best plans is chosen; 0: none */
    int64_t step, per_layer; /* between alphas; different spans in a layer */
    double density;
} spans_task;

typedef struct spans {
    int64_t layers, heads, acted; /* of the model; key-value heads; layers without a window of their own */
    int64_t *layer;               /* [acted] */
    int64_t rules, plans;         /* to choose from; on the frontier */
    fv_span_rule *rule;           /* [rules] */
    int32_t *chosen;              /* [acted, heads] */
    int lengths, profiled;        /* profiled ones first */
    int64_t length[FV_SPAN_LENGTHS];
    double loss[FV_SPAN_LENGTHS], density[FV_SPAN_LENGTHS];
    double judged; /* the plan's loss at task->judge */
} spans;

/* FV_E_USAGE: the step between alphas leaves no span to choose from, or more than SPANS_RULES. */
fv_status spans_measure(struct app *app, const spans_task *task, spans *result);
void spans_free(spans *result);
/* {"alphas":[[..]],"betas":[[..]]}: a row of key-value heads for every layer of the model. */
json_t *spans_json(const spans *result, bool betas);
fv_status spans_write(const spans *result, const char *path);

#endif
