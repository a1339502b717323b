/* Generation: pick, show, feed, until something ends it. */
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "generate/answer.h"
#include "models/session.h"

struct run {
    fv_session *session;
    const fv_generate_options *options;
    fv_answer answer;
};

const char *fv_stop_name(fv_stop stop)
{
    static const char *const names[] = {"end", "limit", "text", "context", "caller"};

    return stop >= FV_STOP_END && stop <= FV_STOP_CALLER ? names[stop] : "?";
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Gives decided text to the caller; false: the caller wants no more. */
static bool show(struct run *run, bool all)
{
    int64_t length;
    const char *text = fv_answer_show(&run->answer, all, &length);

    return length == 0 || !run->options->text || run->options->text(run->options->user, text, (size_t)length);
}

/* Takes a token in; sets *stop and returns true when the answer is over. */
static fv_status take(struct run *run, int32_t id, bool *over, fv_stop *stop)
{
    FV_TRY(fv_answer_take(&run->answer, id, over));
    *stop = FV_STOP_TEXT;
    if (*over) return FV_OK; /* the rest is shown at the end */
    *over = !show(run, false);
    if (*over) *stop = FV_STOP_CALLER;
    return FV_OK;
}

static fv_status loop(struct run *run, float *logits, fv_stop *stop)
{
    const fv_model *model = run->session->model;
    bool over = false;

    for (;;) {
        *stop = FV_STOP_LIMIT;
        if (run->answer.count >= run->options->limit) return FV_OK;
        FV_TRY(fv_ctx_check(run->session->ctx));
        int32_t id = fv_sampler_pick(run->options->sampler, logits);
        *stop = FV_STOP_END;
        if (fv_model_is_end(model, id)) return FV_OK;
        if (run->options->row) FV_TRY(run->options->row(run->options->user, run->answer.count, 1, logits));
        FV_TRY(take(run, id, &over, stop));
        if (over) return FV_OK;
        *stop = FV_STOP_CONTEXT;
        if (fv_session_held(run->session) >= run->session->context) return FV_OK;
        *stop = FV_STOP_LIMIT;
        if (run->answer.count >= run->options->limit) return FV_OK; /* its logits are of no use */
        FV_TRY(fv_session_feed(run->session, &id, 1, logits, 1));
    }
}

fv_status fv_generate(fv_session *session, const float *logits, const fv_generate_options *options,
                      fv_generation *generation)
{
    struct run run = {.session = session, .options = options};
    int64_t vocabulary = session->model->sizes.vocabulary;
    double start = now();
    float *row = NULL;
    fv_status status;

    *generation = (fv_generation){0};
    if (!options->sampler) return fv_fail(FV_E_ARGUMENT, "generate: a sampler is missing");
    FV_TRY(fv_answer_begin(&run.answer, session->model, options->stops, options->stop));
    FV_TRY_DONE(FV_ALLOC(row, vocabulary));
    memcpy(row, logits, (size_t)vocabulary * sizeof *row);
    FV_TRY_DONE(loop(&run, row, &generation->stop));
    if (!show(&run, true) && generation->stop != FV_STOP_END) generation->stop = FV_STOP_CALLER;
    generation->ids = run.answer.ids;
    generation->count = run.answer.count;
    generation->text = run.answer.text.data;
    generation->length = (size_t)run.answer.text.length;
    generation->seconds = now() - start;
    run.answer.ids = NULL;
    run.answer.text = (fv_text){0};
done:
    fv_answer_free(&run.answer);
    fv_free(row);
    return status;
}

void fv_generation_free(fv_generation *generation)
{
    fv_free(generation->ids);
    fv_free(generation->text);
    *generation = (fv_generation){0};
}
