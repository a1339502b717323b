/* How much each block of each head's attention matters to a loss (MoA, arXiv 2406.14909), and the spans made of it. */
#ifndef APP_INFLUENCE_H
#define APP_INFLUENCE_H

#include "app/needle.h"

/* Influence of a model's layers on texts of one length: |E|, or E, summed over blocks, mean over texts, the largest of
 * the query heads that share keys. */
typedef struct attention_influence {
    int64_t layers, heads, blocks; /* of the model; key-value heads; along the text */
    double *sum;                   /* [layers, heads, blocks, blocks]; 0 in layers with a window of their own */
    double loss;                   /* mean */
} attention_influence;

typedef struct influence_task {
    const fv_model *model;
    int64_t length, block; /* tokens of the longest text */
    bool absolute;
    fv_session *session;
    double *by_head; /* of one text, and of all: [layers, query heads, blocks, blocks] */
    int texts;
} influence_task;

/* Adds a text whose last `answer` tokens are the loss. */
fv_status influence_add(struct app *app, influence_task *task, attention_influence *result, const int32_t *ids,
                        int64_t count, int64_t answer);
fv_status influence_begin(struct app *app, const fv_model *model, int64_t length, int64_t block, bool absolute,
                          fv_precision precision, influence_task *task, attention_influence *result);
/* Fills in result->sum. */
fv_status influence_end(influence_task *task, attention_influence *result);
void influence_drop(influence_task *task);
void influence_free(attention_influence *result);

#endif
