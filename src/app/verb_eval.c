/* fovea eval: perplexity of a text, and facts hidden in one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/flags.h"
#include "app/needle.h"
#include "app/prompt.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *attention, *cache;
    int64_t context, chunks, needles, dense_last;
    cli_ints lengths, depths;
    int precision;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag ppl_flags[] = {
    FLAG_MODEL(AT(model), NULL),
    FLAG_FILE(AT(file), true, "the text"),
    {.name = "ctx",
     .kind = CLI_INT,
     .offset = AT(context),
     .argument = "N",
     .initial = "2048",
     .min = 4,
     .max = 1 << 24,
     .help = "tokens in a chunk"},
    {.name = "chunks",
     .kind = CLI_INT,
     .offset = AT(chunks),
     .argument = "C",
     .initial = "0",
     .min = 0,
     .max = 1 << 24,
     .help = "most chunks; 0: all"},
    FLAG_ATTENTION(AT(attention), NULL),
    FLAG_CACHE(AT(cache)),
    FLAG_PRECISION(AT(precision)),
    CLI_END,
};

static const cli_flag needle_flags[] = {
    FLAG_MODEL(AT(model), NULL),
    FLAG_FILE(AT(file), false, "the text to hide facts in (otherwise the GPL version 3 as Debian carries it)"),
    {.name = "lengths",
     .kind = CLI_INTS,
     .offset = AT(lengths),
     .argument = "1024,4096",
     .required = true,
     .min = 64,
     .max = 1 << 24,
     .help = "tokens of each prompt"},
    FLAG_DEPTHS(AT(depths), "0,50,100", "where the first fact stands, in percent of the text"),
    {.name = "needles",
     .kind = CLI_INT,
     .offset = AT(needles),
     .argument = "K",
     .initial = "1",
     .min = 1,
     .max = 20,
     .help = "facts in a text; further ones spread from the first to the end"},
    FLAG_ATTENTION(AT(attention), NULL),
    FLAG_DENSE_LAST(AT(dense_last)),
    FLAG_CACHE(AT(cache)),
    FLAG_PRECISION(AT(precision)),
    CLI_END,
};

struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    fv_model_info info;
    fv_session *session;
};

static fv_status job_begin(struct job *job, int64_t context)
{
    const struct values *values = job->values;
    fv_session_options options = {
        .context = context,
        .attention = values->attention,
        .cache = values->cache,
        .precision = flag_precision(values->precision),
    };

    FV_TRY(fv_session_new(job->app->ctx, job->model, &options, &job->session));
    app_warn(job->app, job->session);
    return FV_OK;
}

/* ---- perplexity ------------------------------------------------------------------------------------------------ */

struct scores {
    const struct job *job;
    const int32_t *targets; /* of row 0, 1, ... */
    double sum, squares;
    int64_t count, chunk, chunks, rows;
};

static fv_status score_rows(void *user, int64_t first_row, int64_t rows, const float *logits)
{
    struct scores *scores = user;
    int64_t vocabulary = scores->job->info.vocabulary;

    for (int64_t r = 0; r < rows; r++, logits += vocabulary) {
        double top = -INFINITY, sum = 0;
        for (int64_t i = 0; i < vocabulary; i++)
            top = fmax(top, logits[i]);
        for (int64_t i = 0; i < vocabulary; i++)
            sum += exp(logits[i] - top);
        double nll = top + log(sum) - logits[scores->targets[first_row + r]];
        scores->sum += nll;
        scores->squares += nll * nll;
        scores->count++;
    }
    app_progress(scores->job->app, "perplexity",
                 ((double)scores->chunk + 0.5 + 0.5 * (double)(first_row + rows) / (double)scores->rows) /
                     (double)scores->chunks);
    return app_check();
}

/* Where a cache policy acts: what it kept of the first half is read by steps. */
static fv_status score_steps(struct job *job, const int32_t *ids, struct scores *scores)
{
    float *logits;
    fv_status status = FV_OK;

    FV_TRY(FV_ALLOC(logits, job->info.vocabulary));
    for (int64_t i = 0; i < scores->rows && status == FV_OK; i++) {
        status = fv_session_feed(job->session, ids + i, 1, logits, 1);
        if (status == FV_OK) status = score_rows(scores, i, 1, logits);
    }
    fv_free(logits);
    return status;
}

/* One chunk on its own: the second half is predicted, the last prediction left out. */
static fv_status score_chunk(struct job *job, int32_t *ids, struct scores *scores)
{
    int64_t context = job->values->context, half = context / 2;

    if (fv_model_adds_begin(job->model)) ids[0] = fv_model_begin_token(job->model);
    fv_session_clear(job->session);
    FV_TRY(fv_session_prompt(job->session, ids, half, NULL, 0));
    scores->targets = ids + half + 1;
    scores->rows = context - half - 1;
    if (fv_session_in_steps(job->session)) return score_steps(job, ids + half, scores);
    return fv_session_stream(job->session, ids + half, scores->rows, score_rows, scores);
}

static fv_status tell_ppl(struct job *job, const struct scores *scores)
{
    double count = (double)scores->count, mean = scores->sum / count, perplexity = exp(mean);
    double spread = scores->squares / count - mean * mean;
    double error = scores->count > 1 ? perplexity * sqrt(fmax(spread, 0) / (count - 1)) : 0;
    json_t *root;

    app_progress_end();
    if (!job->values->common.json) {
        printf("perplexity %.4f +- %.4f (%lld chunks of %lld, %lld tokens scored)\n", perplexity, error,
               (long long)scores->chunks, (long long)job->values->context, (long long)scores->count);
        return FV_OK;
    }
    root = json_object();
    app_put(root, "perplexity", app_number(perplexity));
    app_put(root, "stderr", app_number(error));
    app_put(root, "chunks", json_integer(scores->chunks));
    app_put(root, "tokens", json_integer(scores->count));
    return app_json_print(root);
}

static fv_status perplexity_of(struct job *job, int32_t *ids, int64_t count)
{
    const struct values *values = job->values;
    struct scores scores = {.job = job, .chunks = count / values->context};

    if (scores.chunks == 0)
        return fv_fail(FV_E_SHAPE, "%s: %lld tokens are less than one chunk of %lld: --ctx %lld or less fits",
                       values->file, (long long)count, (long long)values->context, (long long)count);
    if (values->chunks > 0) scores.chunks = fv_min(scores.chunks, values->chunks);
    FV_TRY(job_begin(job, values->context));
    for (; scores.chunk < scores.chunks; scores.chunk++)
        FV_TRY(score_chunk(job, ids + scores.chunk * values->context, &scores));
    return tell_ppl(job, &scores);
}

static fv_status perplexity(struct job *job)
{
    const struct values *values = job->values;
    char *text;
    size_t length;
    int32_t *ids = NULL;
    int64_t count;
    fv_status status;

    if (values->context > job->info.context)
        return fv_fail(FV_E_USAGE, "--ctx: expected at most %lld, the tokens this model was trained for, got %lld",
                       (long long)job->info.context, (long long)values->context);
    FV_TRY(app_text_read(values->file, &text, &length));
    if (text[length - 1] == '\n') length--; /* as the procedure's first program reads files */
    status = fv_model_tokenize(job->model, text, length, FV_TOKENIZE_MODEL, &ids, &count);
    if (status == FV_OK) status = perplexity_of(job, ids, count);
    fv_release(ids);
    fv_free(text);
    return status;
}

/* ---- needles --------------------------------------------------------------------------------------------------- */

struct rows {
    const struct job *job;
    json_t *array;
};

static void tell_needle(void *user, const needle_result *result)
{
    struct rows *rows = user;
    json_t *object = json_object();
    const char *text = result->answer->text ? result->answer->text : "";

    app_put(object, "length", json_integer(result->length));
    app_put(object, "depth", json_integer(result->depth));
    app_put(object, "prompt_tokens", json_integer(result->prompt_tokens));
    app_put(object, "score", app_number(result->score));
    app_put(object, "answer", app_text(text, result->answer->length));
    app_append(rows->array, object);
    if (!rows->job->values->common.json)
        printf("length %lld, depth %lld %%: %.2f  %.*s\n", (long long)result->length, (long long)result->depth,
               result->score, (int)strcspn(text, "\n"), text);
}

static fv_status needle(struct job *job)
{
    const struct values *values = job->values;
    struct rows found = {job, json_array()};
    json_t *root = json_object();
    double mean = 0;
    char *text = NULL;
    needle_task task = {.model = job->model,
                        .info = &job->info,
                        .attention = values->attention,
                        .cache = values->cache,
                        .dense_last = values->dense_last,
                        .precision = flag_precision(values->precision),
                        .needles = values->needles,
                        .seed = (uint64_t)values->common.seed,
                        .lengths = &values->lengths,
                        .depths = &values->depths,
                        .row = tell_needle,
                        .user = &found};
    fv_status status = app_text_read(values->file ? values->file : NEEDLE_TEXT, &text, &task.text_length);

    task.text = text;
    app_put(root, "rows", found.array);
    if (status == FV_OK) status = needle_score(job->app, &task, &mean);
    fv_free(text);
    app_put(root, "mean", app_number(mean));
    if (status == FV_OK && values->common.json) return app_json_print(root);
    if (status == FV_OK) printf("mean %.3f\n", mean);
    json_decref(root);
    return status;
}

/* ---- the verbs ------------------------------------------------------------------------------------------------- */

static fv_status run(struct app *app, const struct values *values, fv_status (*work)(struct job *))
{
    struct job job = {.app = app, .values = values};
    fv_status status;

    FV_TRY(app_begin(app, flag_precision(values->precision)));
    status = app_model_open(values->model, &job.model, &job.info);
    if (status == FV_OK) status = work(&job);
    fv_session_free(job.session);
    fv_model_close(job.model);
    return status;
}

static fv_status run_ppl(struct app *app, const void *values)
{
    return run(app, values, perplexity);
}

static fv_status run_needle(struct app *app, const void *values)
{
    return run(app, values, needle);
}

const cli_verb verb_eval_ppl = {
    .name = "eval ppl",
    .summary = "perplexity of a text",
    .about =
        "Cuts the text's tokens into consecutive chunks, gives each chunk to the model on its own (its first token "
        "replaced by the begin token, where the model has one), and scores the second half of each: the procedure "
        "of llama.cpp, so figures compare.",
    .example = "  fovea eval ppl -m model.gguf -f text.txt --ctx 2048 --attention sinkwin:window=512\n",
    .flags = ppl_flags,
    .size = sizeof(struct values),
    .run = run_ppl,
};

const cli_verb verb_eval_needle = {
    .name = "eval needle",
    .summary = "find facts hidden in a long text",
    .about = "Hides made-up facts in real text at given depths, asks for them, and gives the share that the answer "
             "names, for every length and depth.",
    .example = "  fovea eval needle -m model.gguf --lengths 1024,4096 --depths 0,50,100 --needles 2 --json\n",
    .flags = needle_flags,
    .size = sizeof(struct values),
    .run = run_needle,
};
