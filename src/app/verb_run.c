/* fovea run: a model continues a text, or chats. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/flags.h"
#include "app/prompt.h"
#include "app/record.h"
#include "app/verbs.h"
#include "base/memory.h"
#include "base/npy.h"

struct values {
    cli_common common;
    const char *model, *file, *text, *attention, *cache, *logits, *kept, *step_logits;
    cli_texts steers, stops;
    int64_t tokens, context, top_k, dense_last;
    double temperature, top_p, min_p, repeat_penalty;
    int precision;
    bool raw;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), false, "a document to read"),
    {.name = "prompt",
     .letter = 'p',
     .kind = CLI_TEXT,
     .offset = AT(text),
     .argument = "TEXT",
     .help = "what to ask or continue; without -p and -f, on a terminal, a chat"},
    FLAG_RAW(AT(raw)),
    FLAG_CONTEXT(AT(context)),
    FLAG_ATTENTION(AT(attention), "How"),
    FLAG_DENSE_LAST(AT(dense_last)),
    FLAG_CACHE(AT(cache)),
    {.name = "steer",
     .kind = CLI_TEXTS,
     .offset = AT(steers),
     .argument = "SPEC",
     .help = "steer (none is registered in this version)"},
    FLAG_PRECISION(AT(precision)),
    {.name = "tokens",
     .letter = 'n',
     .kind = CLI_INT,
     .offset = AT(tokens),
     .argument = "N",
     .initial = "256",
     .min = 0,
     .max = 1 << 24,
     .group = "Sampling",
     .help = "most tokens to write"},
    {.name = "temp",
     .kind = CLI_NUMBER,
     .offset = AT(temperature),
     .argument = "T",
     .initial = "0",
     .min = 0,
     .max = 100,
     .help = "temperature; 0 takes the likeliest token"},
    {.name = "top-k",
     .kind = CLI_INT,
     .offset = AT(top_k),
     .argument = "K",
     .initial = "0",
     .min = 0,
     .max = 1 << 24,
     .help = "only the K likeliest tokens; 0: all"},
    {.name = "top-p",
     .kind = CLI_NUMBER,
     .offset = AT(top_p),
     .argument = "P",
     .initial = "0",
     .min = 0,
     .max = 1,
     .help = "only the likeliest tokens that hold P of the probability; 0: all"},
    {.name = "min-p",
     .kind = CLI_NUMBER,
     .offset = AT(min_p),
     .argument = "P",
     .initial = "0",
     .min = 0,
     .max = 1,
     .help = "only tokens with P of the likeliest one's probability; 0: all"},
    {.name = "repeat-penalty",
     .kind = CLI_NUMBER,
     .offset = AT(repeat_penalty),
     .argument = "R",
     .initial = "1",
     .min = 0.01,
     .max = 100,
     .help = "divides the score of the last 64 tokens; 1: off"},
    {.name = "stop",
     .kind = CLI_TEXTS,
     .offset = AT(stops),
     .argument = "TEXT",
     .help = "text that ends the answer and is not part of it"},
    {.name = "logits",
     .kind = CLI_FILE,
     .offset = AT(logits),
     .argument = "FILE",
     .group = "Output",
     .help = ".npy, f32 [T, vocabulary]: the scores behind every token of the prompt"},
    {.name = "step-logits",
     .kind = CLI_FILE,
     .offset = AT(step_logits),
     .argument = "FILE",
     .help = ".npy, f32 [tokens written, vocabulary]: the scores each was chosen from"},
    {.name = "kept",
     .kind = CLI_FILE,
     .offset = AT(kept),
     .argument = "FILE",
     .help = "JSON: the positions that each layer and head holds, after the prompt and at the end"},
    CLI_END,
};

/* One model, loaded and ready. */
struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    fv_model_info info;
    fv_session *session;
    fv_sampler *sampler;
    float *logits; /* [vocabulary], of the last token fed */
    double prefill_seconds;
    app_record record;
};

static void job_end(struct job *job)
{
    app_record_end(&job->record);
    fv_free(job->logits);
    fv_sampler_free(job->sampler);
    fv_session_free(job->session);
    fv_model_close(job->model);
}

static fv_status job_begin(struct job *job, int64_t context)
{
    const struct values *values = job->values;
    fv_sampler_options sampling = {
        .temperature = (float)values->temperature,
        .top_k = (int)values->top_k,
        .top_p = (float)values->top_p,
        .min_p = (float)values->min_p,
        .repeat_penalty = (float)values->repeat_penalty,
        .seed = (uint64_t)values->common.seed,
    };
    fv_session_options options = {
        .context = context,
        .attention = values->attention,
        .cache = values->cache,
        .dense_last = values->dense_last,
        .precision = flag_precision(values->precision),
    };

    FV_TRY(fv_session_new(job->app->ctx, job->model, &options, &job->session));
    app_warn(job->app, job->session);
    FV_TRY(fv_sampler_new(&sampling, job->info.vocabulary, &job->sampler));
    FV_TRY(app_record_begin(&job->record, job->info.vocabulary));
    return FV_ALLOC(job->logits, job->info.vocabulary);
}

/* ---- the prompt ------------------------------------------------------------------------------------------------ */

struct logits_sink {
    struct job *job;
    FILE *stream;
    int64_t count;
};

static fv_status write_logits(void *user, int64_t first_row, int64_t rows, const float *logits)
{
    struct logits_sink *sink = user;
    int64_t vocabulary = sink->job->info.vocabulary;

    if (fwrite(logits, sizeof *logits, (size_t)(rows * vocabulary), sink->stream) != (size_t)(rows * vocabulary))
        return fv_fail(FV_E_IO, "%s: cannot be written", sink->job->values->logits);
    if (first_row + rows == sink->count)
        memcpy(sink->job->logits, logits + (rows - 1) * vocabulary, (size_t)vocabulary * sizeof *logits);
    app_progress(sink->job->app, "reading", (double)(first_row + rows) / (double)sink->count);
    return FV_OK;
}

static fv_status feed_with_logits(struct job *job, const int32_t *ids, int64_t count)
{
    struct logits_sink sink = {.job = job, .count = count};
    fv_file_out out;
    fv_status status;

    FV_TRY(fv_npy_begin(job->values->logits, FV_F32, FV_DIMS(count, job->info.vocabulary), &out));
    sink.stream = out.stream;
    status = fv_session_stream(job->session, ids, count, write_logits, &sink);
    if (status == FV_OK) return fv_file_commit(&out);
    fv_file_discard(&out);
    return status;
}

static fv_status feed(struct job *job, const int32_t *ids, int64_t count)
{
    double start = app_seconds();

    if (job->values->logits)
        FV_TRY(feed_with_logits(job, ids, count));
    else
        FV_TRY(fv_session_prompt(job->session, ids, count, job->logits, 1));
    job->prefill_seconds = app_seconds() - start;
    app_progress_end();
    for (int64_t i = count > 64 ? count - 64 : 0; i < count; i++)
        fv_sampler_accept(job->sampler, ids[i]);
    return FV_OK;
}

/* ---- the answer ------------------------------------------------------------------------------------------------ */

/* Text as it comes; stops when nobody reads any more. */
static bool stream_text(void *user, const char *text, size_t length)
{
    (void)user;
    fwrite(text, 1, length, stdout);
    return app_flush();
}

static fv_status answer(struct job *job, fv_generation *generation)
{
    const struct values *values = job->values;
    fv_generate_options options = {
        .limit = values->tokens,
        .sampler = job->sampler,
        .stops = values->stops.count,
        .stop = values->stops.items,
        .text = values->common.json ? NULL : stream_text,
        .row = app_record_row,
        .user = &job->record,
    };

    return fv_generate(job->session, job->logits, &options, generation);
}

static fv_status tell(const struct job *job, const app_prompt *prompt, const fv_generation *generation)
{
    double prefill = (double)prompt->count / fmax(job->prefill_seconds, 1e-9);
    double decode = app_decode_rate(generation, 0, 0);
    fv_session_stats stats;
    json_t *root;

    fv_session_measure(job->session, &stats);
    if (!job->values->common.json) {
        if (isatty(STDOUT_FILENO)) putchar('\n');
        app_say(job->app, "[%lld tokens read, %.0f a second; %lld written, %.1f a second; %s of keys and values]",
                (long long)prompt->count, prefill, (long long)generation->count, decode,
                app_bytes_text((double)stats.cache_bytes));
        return FV_OK;
    }
    root = json_object();
    app_put(root, "model", json_string(job->values->model));
    app_put(root, "architecture", json_string(job->info.architecture));
    app_put(root, "attention", json_string(job->values->attention ? job->values->attention : "dense"));
    app_put(root, "cache", json_string(job->values->cache ? job->values->cache : "full"));
    app_put(root, "prompt_tokens", json_integer(prompt->count));
    app_put(root, "tokens", app_ids(generation->ids, generation->count));
    app_put(root, "text", app_text(generation->text ? generation->text : "", generation->length));
    app_put(root, "stop", json_string(fv_stop_name(generation->stop)));
    app_put(root, "prefill_seconds", app_number(job->prefill_seconds));
    app_put(root, "prefill_tokens_per_second", app_number(prefill));
    app_put(root, "decode_tokens_per_second", app_number(decode));
    app_put(root, "kv_bytes", json_integer((json_int_t)stats.cache_bytes));
    app_put(root, "peak_kv_bytes", json_integer((json_int_t)stats.peak_cache_bytes));
    app_put(root, "kv_committed_bytes", json_integer((json_int_t)stats.committed_bytes));
    app_put(root, "kv_host_bytes", json_integer((json_int_t)stats.host_bytes));
    app_put(root, "policy_bytes", json_integer((json_int_t)stats.policy_bytes));
    return app_json_print(root);
}

/* Tokens of the answer that were fed: the last of one that ended at its limit was not. */
static int64_t fed_tokens(const struct job *job, const app_prompt *prompt, const fv_generation *generation)
{
    return fv_min(generation->count, fv_session_tokens(job->session) - prompt->count);
}

static fv_status run_once(struct job *job)
{
    const struct values *values = job->values;
    fv_generation generation = {0};
    app_prompt prompt;
    int64_t context;
    fv_status status;

    FV_TRY(app_prompt_make(job->model, values->file, values->text, values->raw, &prompt));
    app_prompt_note(job->app, &prompt, values->raw);
    FV_TRY_DONE(app_prompt_fit(&prompt, &job->info, values->context, 0, &context));
    FV_TRY_DONE(job_begin(job, context));
    FV_TRY_DONE(feed(job, prompt.ids, prompt.count));
    FV_TRY_DONE(app_record_prompt(&job->record, job->session, &job->info));
    FV_TRY_DONE(answer(job, &generation));
    FV_TRY_DONE(app_record_write(&job->record, job->session, &job->info, values->model, values->cache, prompt.ids,
                                 prompt.count, generation.ids, fed_tokens(job, &prompt, &generation)));
    status = tell(job, &prompt, &generation);
done:
    fv_generation_free(&generation);
    app_prompt_free(&prompt);
    return status;
}

/* ---- chat ------------------------------------------------------------------------------------------------------ */

/* One message: its text, tokens, answer.  A first Ctrl-C ends the answer, not the chat. */
static fv_status turn(struct job *job, const char *message, bool first)
{
    fv_generation generation = {0};
    char *text = NULL;
    int32_t *ids = NULL;
    int64_t count;
    size_t length, user_at;
    fv_status status;

    if (first)
        FV_TRY(fv_model_chat(job->model, NULL, message, &text, &length, &user_at));
    else
        FV_TRY(fv_model_chat_next(job->model, message, &text, &length));
    FV_TRY_DONE(fv_model_tokenize(job->model, text, length,
                                  first ? FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL : FV_TOKENIZE_SPECIAL, &ids, &count));
    FV_TRY_DONE(feed(job, ids, count));
    FV_TRY_DONE(answer(job, &generation));
    putchar('\n');
    if (generation.stop == FV_STOP_LIMIT && generation.count > 0) /* the last token has not been fed yet */
        status = fv_session_feed(job->session, &generation.ids[generation.count - 1], 1, NULL, 0);
    if (status == FV_OK && generation.stop == FV_STOP_CONTEXT)
        app_say(job->app, "[the context of %lld tokens is full; /clear starts anew]", (long long)job->info.context);
done:
    fv_generation_free(&generation);
    fv_release(ids);
    fv_release(text);
    return status;
}

static fv_status chat(struct job *job)
{
    bool first = true;
    char *line = NULL;
    size_t room = 0;
    fv_status status = FV_OK;

    FV_TRY(job_begin(job, job->values->context == CLI_UNSET ? job->info.context : job->values->context));
    app_say(job->app, "%s; /clear forgets, /exit or Ctrl-D ends.", job->values->model);
    while (status == FV_OK) {
        fputs("> ", stderr);
        ssize_t length = getline(&line, &room, stdin);
        if (length < 0) break;
        if (length > 0 && line[length - 1] == '\n') line[--length] = 0;
        if (strcmp(line, "/exit") == 0) break;
        if (strcmp(line, "/clear") == 0) {
            fv_session_clear(job->session);
            first = true;
        } else if (length > 0) {
            status = turn(job, line, first);
            first = false;
            if (status == FV_E_INTERRUPTED || status == FV_E_SHAPE || status == FV_E_FORMAT) {
                app_say(job->app, "[%s]", fv_error());
                app_forget_interrupt(job->app);
                first = fv_session_length(job->session) == 0;
                status = FV_OK;
            }
        }
    }
    free(line);
    fputc('\n', stderr);
    return status == FV_OK ? app_check() : status;
}

/* ---- the verb -------------------------------------------------------------------------------------------------- */

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    bool conversation = !values->text && !values->file;
    struct job job = {
        .app = app, .values = values, .record = {.kept_path = values->kept, .logits_path = values->step_logits}};
    fv_status status;

    FV_TRY(app_refuse_steer(values->steers.count ? values->steers.items[0] : NULL));
    if (conversation && !isatty(STDIN_FILENO))
        return cli_missing("-p TEXT or -f FILE", "there is nothing to read (on a terminal this would be a chat)");
    if (conversation && (values->raw || values->common.json || values->logits || values->kept || values->step_logits))
        return cli_missing("-p TEXT or -f FILE", "--raw, --json, --logits, --step-logits and --kept need it");
    FV_TRY(app_begin(app, flag_precision(values->precision)));
    status = app_model_open(values->model, &job.model, &job.info);
    if (status == FV_OK) status = conversation ? chat(&job) : run_once(&job);
    job_end(&job);
    return status;
}

const cli_verb verb_run = {
    .name = "run",
    .summary = "a model reads a text and answers, under the attention you choose",
    .about =
        "Runs a language model from a GGUF file. With a chat template in the file, FILE, a blank line and TEXT are "
        "one message; with --raw, or without a template, the model continues FILE and TEXT as they are. The answer "
        "comes on standard output as it is made. Without -p and -f, on a terminal, it is a chat.",
    .example = "  fovea run -m model.gguf -f report.txt -p 'What was decided?'\n"
               "  fovea run -m model.gguf -f report.txt -p 'What was decided?' --attention 'sinkwin:window=1024'\n"
               "  fovea run -m model.gguf -f report.txt -p Who --attention '0-3,29/dense;rest/moba:block=256'\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
