#include "app/influence.h"

#include <string.h>

#include "attention/influence.h"
#include "base/memory.h"
#include "models/gradient.h"

fv_status influence_begin(struct app *app, const fv_model *model, int64_t length, int64_t block, bool absolute,
                          fv_precision precision, influence_task *task, attention_influence *result)
{
    const fv_sizes *s = &model->sizes;
    int64_t blocks = fv_ceil_div(length, block);
    fv_status status;

    *task = (influence_task){.model = model, .length = length, .block = block, .absolute = absolute};
    *result = (attention_influence){.layers = s->layers, .heads = s->key_heads, .blocks = blocks};
    status = fv_session_new(app->ctx, model, &(fv_session_options){.precision = precision, .context = length},
                            &task->session);
    if (status == FV_OK) status = FV_ZALLOC(task->by_head, s->layers * s->query_heads * blocks * blocks);
    if (status != FV_OK) influence_drop(task);
    return status;
}

/* ---- one text --------------------------------------------------------------------------------------------------- */

struct adding {
    struct app *app;
    influence_task *task;
    int64_t blocks; /* of all texts: those of this one may be fewer */
};

static fv_status look_at(void *user, const fv_look *look)
{
    struct adding *a = user;
    int64_t heads = look->call->query_heads, own = fv_ceil_div(look->call->queries, a->task->block), cells = own * own;
    double *out = a->task->by_head + look->layer * heads * a->blocks * a->blocks, *sum;
    fv_mark mark = fv_scratch_mark(a->app->ctx);

    if (look->plan->window.window > 0) return FV_OK;
    FV_TRY(FV_SCRATCH(a->app->ctx, sum, heads * cells));
    memset(sum, 0, (size_t)(heads * cells) * sizeof *sum);
    FV_TRY(fv_influence(a->app->ctx, &(fv_influence_args){.q = look->call->q,
                                                          .k = look->call->k,
                                                          .v = look->call->v,
                                                          .d_o = look->d_o,
                                                          .logits = *look->extra,
                                                          .block = a->task->block,
                                                          .absolute = a->task->absolute,
                                                          .out = sum}));
    for (int64_t h = 0; h < heads; h++)
        for (int64_t r = 0; r < own; r++)
            for (int64_t c = 0; c <= r; c++)
                out[(h * a->blocks + r) * a->blocks + c] += sum[h * cells + r * own + c];
    fv_scratch_release(a->app->ctx, mark);
    return FV_OK;
}

fv_status influence_add(struct app *app, influence_task *task, attention_influence *result, const int32_t *ids,
                        int64_t count, int64_t answer)
{
    struct adding adding = {app, task, result->blocks};
    fv_listener listener = {.points = FV_POINT_BACKWARD, .hear = look_at, .user = &adding};
    double loss;

    task->session->listeners = &listener;
    fv_status status = fv_gradient(task->session, ids, count, answer, &loss);
    task->session->listeners = NULL;
    FV_TRY(status);
    result->loss += loss;
    task->texts++;
    return FV_OK;
}

/* ---- all -------------------------------------------------------------------------------------------------------- */

/* The largest of a group's query heads, by block. */
static void reduce(const influence_task *task, attention_influence *result)
{
    int64_t group = task->model->sizes.query_heads / result->heads, cells = result->blocks * result->blocks;

    for (int64_t g = 0; g < result->layers * result->heads; g++)
        for (int64_t c = 0; c < cells; c++) {
            double most = 0;
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                double mean = task->by_head[h * cells + c] / task->texts;
                if (h == g * group || mean > most) most = mean;
            }
            result->sum[g * cells + c] = most;
        }
}

fv_status influence_end(influence_task *task, attention_influence *result)
{
    fv_status status = FV_ALLOC(result->sum, result->layers * result->heads * result->blocks * result->blocks);

    if (status == FV_OK) {
        reduce(task, result);
        result->loss /= task->texts;
    }
    influence_drop(task);
    return status;
}

void influence_drop(influence_task *task)
{
    fv_session_free(task->session);
    fv_free(task->by_head);
    task->session = NULL;
    task->by_head = NULL;
}

void influence_free(attention_influence *result)
{
    fv_free(result->sum);
    result->sum = NULL;
}
