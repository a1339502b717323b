/* The runs of a comparison: dense first, then each set-up against its logits. */
#include "app/compare.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/scores.h"
#include "base/memory.h"
#include "models/session.h"

enum { LOOKS = 8 }; /* decode steps whose attention is looked at for the report */

struct job {
    struct app *app;
    const compare_task *task;
    comparison *result;
    FILE *dense;               /* logits of the scored steps under dense, f32, in a file without a name: exact, and
                                  not in memory, where 256 rows of 262,144 would take 256 MiB */
    float *logits, *reference; /* [vocabulary] */
    int64_t prefill, context;
    fv_session *session;
    compare_run *current;
    bool looking; /* at the attention calls of this step, */
    bool drawing; /* or at those of one layer */
    fv_listener listener;
};

/* The document's tokens, and how many of them are scored. */
static fv_status divide(struct job *job)
{
    const compare_task *task = job->task;
    const app_prompt *prompt = task->prompt;
    comparison *c = job->result;

    FV_TRY(app_prompt_fit(prompt, &c->info, task->context, task->tokens, &job->context));
    while (c->document_tokens < prompt->count && prompt->ends[c->document_tokens] <= (int64_t)prompt->document_end)
        c->document_tokens++;
    c->prompt_tokens = prompt->count;
    c->scored_tokens = fv_min(task->score, c->document_tokens - 1);
    if (c->scored_tokens < 1)
        return fv_fail(FV_E_SHAPE, "the document is %lld tokens, expected at least 2 to read some and score the rest",
                       (long long)c->document_tokens);
    if (c->scored_tokens < task->score)
        app_say(job->app, "the document has %lld tokens: the last %lld are scored", (long long)c->document_tokens,
                (long long)c->scored_tokens);
    job->prefill = c->document_tokens - c->scored_tokens;
    return FV_OK;
}

static fv_status open_session(struct job *job, const compare_run *run)
{
    fv_session_options options = {
        .context = job->context,
        .attention = run->attention,
        .cache = run->cache,
        .dense_last = job->task->dense_last,
        .precision = job->task->precision,
    };

    return fv_session_new(job->app->ctx, job->task->model, &options, &job->session);
}

static void close_session(struct job *job)
{
    fv_session_free(job->session);
    job->session = NULL;
}

/* ---- one run --------------------------------------------------------------------------------------------------- */

/* The next row of dense's logits: written in its own run, read in the others, which are scored against it. */
static fv_status score_step(struct job *job, compare_run *run)
{
    int64_t vocabulary = job->result->info.vocabulary;
    size_t count = (size_t)vocabulary;
    double own, reference;

    if (run == job->result->run) {
        run->top1 += 1;
        if (fwrite(job->logits, sizeof *job->logits, count, job->dense) == count) return FV_OK;
        return fv_fail(FV_E_IO, "temporary file: %s (TMPDIR says where it lies)", strerror(errno));
    }
    if (fread(job->reference, sizeof *job->reference, count, job->dense) != count)
        return fv_fail(FV_E_IO, "temporary file: cannot be read: %s", strerror(errno));
    own = app_log_sum_exp(job->logits, vocabulary);
    reference = app_log_sum_exp(job->reference, vocabulary);
    for (int64_t i = 0; i < vocabulary; i++) {
        double p = job->reference[i] - reference;
        if (p > -80) run->kl += exp(p) * (p - (job->logits[i] - own));
    }
    run->top1 += app_likeliest(job->logits, vocabulary) == app_likeliest(job->reference, vocabulary);
    return FV_OK;
}

/* Whether a layer has a mechanism with pairs. */
static bool can_draw(const fv_session *session, int64_t layer)
{
    const fv_session_layer *own = &session->layers[layer];

    return !own->dense && !(fv_attention_mechanism(own->attention)->traits & (FV_NO_MAP | FV_RECURRENT));
}

/* The middle one of those layers. */
static int64_t layer_to_draw(const fv_session *session)
{
    int64_t count = 0, at = 0;

    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        count += can_draw(session, l);
    for (int64_t l = 0; l < session->model->sizes.layers; l++)
        if (can_draw(session, l) && at++ == count / 2) return l;
    return -1;
}

/* A chunk of the document in that layer: its pairs are chosen once more. */
static fv_status draw(struct job *job, const fv_look *look)
{
    compare_run *run = job->current;
    fv_ctx *ctx = job->app->ctx;
    fv_mark mark = fv_scratch_mark(ctx);
    double start = app_seconds();
    fv_pairs pairs;
    fv_status status = fv_call_pairs(ctx, fv_attention_mechanism(look->attention), look->call, &pairs);

    if (status == FV_OK)
        status = app_picture_look(&run->picture, ctx, look->call, look->extra,
                                  job->session->model->layers[look->layer].window, &pairs);
    fv_scratch_release(ctx, mark);
    run->picture.seconds += app_seconds() - start;
    return status;
}

static fv_status hear(void *user, const fv_look *look)
{
    struct job *job = user;

    if (job->looking) return app_reads_look(&job->current->reads, job->app->ctx, look);
    return job->drawing && look->layer == job->current->drawn ? draw(job, look) : FV_OK;
}

/* The scored tokens, one at a time; the row before each gives its own probability. */
static fv_status score(struct job *job, compare_run *run, double *seconds)
{
    int64_t scored = job->result->scored_tokens, vocabulary = job->result->info.vocabulary;
    double nll = 0;
    char what[64];

    snprintf(what, sizeof what, "scoring %.40s", run->spec);
    for (int64_t s = 0; s < scored; s++) {
        const int32_t *id = &job->task->prompt->ids[job->prefill + s];
        nll += app_log_sum_exp(job->logits, vocabulary) - job->logits[*id];
        job->looking = run->reads.weight && s % fv_max(scored / LOOKS, 1) == scored % fv_max(scored / LOOKS, 1);
        double looked = run->reads.seconds, start = app_seconds();
        FV_TRY(fv_session_feed(job->session, id, 1, job->logits, 1));
        *seconds += app_seconds() - start - (run->reads.seconds - looked);
        FV_TRY(score_step(job, run));
        FV_TRY(app_check());
        app_progress(job->app, what, (double)(s + 1) / (double)scored);
    }
    job->looking = false;
    run->kl /= (double)scored;
    run->top1 /= (double)scored;
    run->perplexity = exp(nll / (double)scored);
    return FV_OK;
}

static fv_status answer(struct job *job, compare_run *run)
{
    int64_t done = job->prefill + job->result->scored_tokens;
    fv_generate_options options = {.limit = job->task->tokens};
    fv_sampler_options greedy = {0};
    fv_status status;

    if (done < job->task->prompt->count) /* policies have judged the prompt: they do not once more */
        FV_TRY((run->cache ? fv_session_feed : fv_session_prompt)(job->session, job->task->prompt->ids + done,
                                                                  job->task->prompt->count - done, job->logits, 1));
    FV_TRY(fv_sampler_new(&greedy, job->result->info.vocabulary, &options.sampler));
    status = fv_generate(job->session, job->logits, &options, &run->answer);
    fv_sampler_free(options.sampler);
    return status;
}

/* The seconds of attention so far, and the layers that are not as the model has them. */
static fv_status note_attention(const struct job *job, compare_run *run)
{
    int64_t layers = job->result->info.layers;

    FV_TRY(FV_ALLOC(run->spent, layers));
    FV_TRY(FV_ALLOC(run->replaced, layers));
    for (int64_t l = 0; l < layers; l++) {
        memcpy(run->spent[l], job->session->layers[l].spent, sizeof run->spent[l]);
        run->replaced[l] = fv_session_replaces(job->session, l);
    }
    return FV_OK;
}

static fv_status begin_looking(struct job *job, compare_run *run)
{
    const fv_model_info *info = &job->result->info;

    FV_TRY(app_reads_new(&run->reads, info->layers, info->query_heads, job->result->document_tokens));
    job->listener = (fv_listener){.points = FV_POINT_ATTEND, .hear = hear, .user = job};
    fv_listen(&job->session->listeners, &job->listener);
    run->drawn = layer_to_draw(job->session);
    if (run->drawn < 0) return FV_OK;
    run->picture =
        (app_picture){.size = job->prefill, .heads = info->query_heads, .causal = true, .weighed = true, .thin = true};
    return app_picture_new(&run->picture, false);
}

static fv_status measure(struct job *job, compare_run *run)
{
    double start = app_seconds(), prefill, decode = 0;
    fv_session_stats stats;

    job->current = run;
    if (job->task->reads) FV_TRY(begin_looking(job, run));
    rewind(job->dense);
    job->drawing = run->picture.size > 0;
    FV_TRY(fv_session_prompt(job->session, job->task->prompt->ids, job->prefill, job->logits, 1));
    job->drawing = false;
    prefill = app_seconds() - start - run->picture.seconds;
    FV_TRY(note_attention(job, run));
    FV_TRY(score(job, run, &decode));
    FV_TRY(answer(job, run));
    fv_session_measure(job->session, &stats);
    run->prefill_rate = (double)job->prefill / fmax(prefill, 1e-9);
    run->decode_rate = app_decode_rate(&run->answer, job->result->scored_tokens, decode);
    run->kv_bytes = (double)stats.cache_bytes;
    run->peak_bytes = (double)stats.peak_cache_bytes;
    run->committed_bytes = (double)stats.committed_bytes;
    run->density = stats.dense_pairs > 0 ? stats.pairs / stats.dense_pairs : 0;
    app_progress_end();
    app_say(job->app, "%s: reads %.0f tokens/s, writes %.1f, KL %.4f, top-1 %.3f", run->spec, run->prefill_rate,
            run->decode_rate, run->kl, run->top1);
    return FV_OK;
}

static fv_status check_run(struct job *job, compare_run *run)
{
    fv_status status = open_session(job, run);

    if (status == FV_OK && !job->task->wanted) app_warn(job->app, job->session);
    close_session(job);
    return status;
}

static fv_status measure_run(struct job *job, compare_run *run)
{
    fv_status status = open_session(job, run);

    if (status == FV_OK && job->task->wanted) app_warn(job->app, job->session); /* of those that are measured only */
    if (status == FV_OK) status = measure(job, run);
    close_session(job);
    return status;
}

static void forget(compare_run *run)
{
    fv_generation_free(&run->answer);
    app_reads_free(&run->reads);
    app_picture_free(&run->picture);
    fv_free(run->spent);
    fv_free(run->replaced);
    *run = (compare_run){0};
}

/* Whether a run that failed so can be left out. */
static bool forgives(const struct job *job, const compare_run *run, fv_status status)
{
    if (!job->task->lenient || status == FV_E_INTERRUPTED || status == FV_E_IO) return false;
    app_say(job->app, "%s is left out: %s", run->spec, fv_error());
    return true;
}

/* Runs but dense, one after the other; those that stay move up. */
static fv_status run_others(struct job *job, fv_status (*work)(struct job *, compare_run *))
{
    const compare_task *task = job->task;
    comparison *c = job->result;
    int done = 1;

    for (int r = 1; r < c->runs; r++) {
        compare_run *run = &c->run[r];
        bool wanted = work == check_run || !task->wanted || task->wanted(task->user, run, done);
        fv_status status = wanted ? work(job, run) : FV_OK;
        if (status != FV_OK && !forgives(job, run, status)) return status;
        if (status != FV_OK || !wanted) {
            forget(run);
        } else if (done++ != r) {
            c->run[done - 1] = *run;
            *run = (compare_run){0};
        }
    }
    c->runs = done;
    return FV_OK;
}

/* Every set-up is checked before the first long run. */
static fv_status run_all(struct job *job)
{
    FV_TRY(run_others(job, check_run));
    FV_TRY(measure_run(job, &job->result->run[0]));
    return run_others(job, measure_run);
}

/* ---- attention by itself ----------------------------------------------------------------------------------------- */

/* Whether attention of a layer is what a run changes.  Dense, and a run that replaces no layer, are held to those that
 * any run replaces; where there are none, to all. */
static bool in_question(const comparison *c, const compare_run *run, int64_t layer)
{
    bool own = false, any = false, here = false;

    for (int64_t l = 0; l < c->info.layers; l++)
        for (int r = 0; r < c->runs; r++) {
            bool replaced = c->run[r].replaced[l];
            any |= replaced;
            own |= replaced && &c->run[r] == run;
            here |= replaced && l == layer;
        }
    return own ? run->replaced[layer] : here || !any;
}

static void sum_attention(comparison *c)
{
    for (int r = 0; r < c->runs; r++) {
        compare_run *run = &c->run[r];
        double dense = 0;
        for (int64_t l = 0; l < c->info.layers; l++) {
            if (!in_question(c, run, l)) continue;
            for (int phase = 0; phase < FV_PHASES; phase++) {
                run->attending += run->spent[l][phase];
                dense += c->run[0].spent[l][phase];
            }
            run->scoring += run->spent[l][FV_PHASE_SCORE];
            run->selecting += run->spent[l][FV_PHASE_SELECT];
        }
        run->speedup = dense / fmax(run->attending, 1e-9);
    }
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static fv_status compare(struct job *job)
{
    comparison *c = job->result;
    double start = app_seconds();

    FV_TRY(divide(job));
    FV_TRY(app_file_unnamed(&job->dense));
    FV_TRY(FV_ALLOC(job->logits, c->info.vocabulary));
    FV_TRY(FV_ALLOC(job->reference, c->info.vocabulary));
    FV_TRY(run_all(job));
    sum_attention(c);
    c->backend = fv_ctx_backend(job->app->ctx);
    c->threads = fv_ctx_threads(job->app->ctx);
    c->seconds = app_seconds() - start;
    return FV_OK;
}

fv_status compare_all(struct app *app, const compare_task *task, comparison *result)
{
    struct job job = {.app = app, .task = task, .result = result};
    fv_status status = compare(&job);

    fv_free(job.logits);
    fv_free(job.reference);
    if (job.dense) fclose(job.dense);
    return status;
}

void comparison_free(comparison *c)
{
    for (int r = 0; c->run && r < c->runs; r++)
        forget(&c->run[r]);
    fv_free(c->run);
    *c = (comparison){0};
}
