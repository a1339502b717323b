/* Facts hidden in real text, and asked for. */
#include "app/needle.h"

#include <ctype.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"

/* ---- a prompt --------------------------------------------------------------------------------------------------- */

enum { NEEDLES = 20, NUMBER = 24 };
static const char *const cities[NEEDLES] = {"Lisbon", "Oslo",    "Nairobi", "Kyoto", "Quito",  "Dublin", "Hanoi",
                                            "Tunis",  "Bergen",  "Cusco",   "Riga",  "Dakar",  "Perth",  "Malaga",
                                            "Odessa", "Tampere", "Lagos",   "Turin", "Jaipur", "Boston"};

struct needles {
    int count;
    char number[NEEDLES][NUMBER];
};

static void draw_needles(struct needles *needles, int count, uint64_t seed, uint64_t row)
{
    fv_random random = fv_random_new(seed, row);

    needles->count = count;
    for (int i = 0; i < count; i++)
        snprintf(needles->number[i], NUMBER, "%lld", (long long)(10000 + fv_random_below(&random, 90000)));
}

/* The next place at or behind `at` where a sentence or line has ended. */
static size_t sentence_end(const char *text, size_t length, size_t at)
{
    for (; at > 0 && at < length; at++)
        if (isspace((unsigned char)text[at]) && (text[at - 1] == '.' || text[at - 1] == '\n')) return at;
    return at;
}

static void hide(fv_text *out, const char *text, size_t length, const struct needles *needles, int64_t depth)
{
    size_t from = 0;

    for (int i = 0; i < needles->count; i++) {
        double share = ((double)depth + (100.0 - (double)depth) * i / needles->count) / 100;
        size_t at = sentence_end(text, length, (size_t)(share * (double)length));
        at = at < from ? from : at;
        fv_text_add(out, text + from, (int64_t)(at - from));
        fv_text_printf(out, " The secret number of %s is %s. ", cities[i], needles->number[i]);
        from = at;
    }
    fv_text_add(out, text + from, (int64_t)(length - from));
}

static void ask(fv_text *out, const struct needles *needles, bool chat)
{
    if (!chat) fv_text_printf(out, "\n\n");
    fv_text_printf(out, needles->count > 1 ? "What are the secret numbers of" : "What is the secret number of");
    for (int i = 0; i < needles->count; i++)
        fv_text_printf(out, "%s %s", i == 0 ? "" : i + 1 == needles->count ? " and" : ",", cities[i]);
    fv_text_printf(out, "? It is written in the text above.");
    if (!chat) fv_text_printf(out, "\nAnswer: The secret number of %s is", cities[0]);
}

/* A prompt of at most `length` tokens with the needles in as much of the text as fits (repeated if it is too short). */
static fv_status make_prompt(const needle_task *task, const char *text, size_t text_length, int64_t length,
                             int64_t depth, const struct needles *needles, app_prompt *prompt)
{
    double bytes = (double)length * 3;
    fv_status status = FV_OK;

    *prompt = (app_prompt){0};
    for (int attempt = 0; attempt < 8 && status == FV_OK; attempt++) {
        fv_text hay = {0}, document = {0}, question = {0};
        while (hay.length < (int64_t)bytes && fv_text_status(&hay) == FV_OK)
            fv_text_add(&hay, text, fv_min((int64_t)text_length, (int64_t)bytes - hay.length));
        while (hay.length > 0 && !isspace((unsigned char)hay.data[hay.length - 1]))
            hay.length--; /* a whole word, and so whole characters */
        hide(&document, fv_text_get(&hay), (size_t)hay.length, needles, depth);
        ask(&question, needles, task->info->has_chat_template);
        app_prompt_free(prompt);
        status = fv_text_status(&document);
        if (status == FV_OK)
            status = app_prompt_from(task->model, fv_text_get(&document), (size_t)document.length,
                                     fv_text_get(&question), false, prompt);
        fv_text_free(&hay);
        fv_text_free(&document);
        fv_text_free(&question);
        if (status != FV_OK || (prompt->count <= length && prompt->count + 16 >= length)) break;
        bytes *= attempt < 6 ? ((double)length - 8) / (double)prompt->count : 0.97;
        if (attempt == 6 && prompt->count <= length) break;
    }
    if (status == FV_OK && prompt->count > length)
        status =
            fv_fail(FV_E_SHAPE, "--lengths: %lld tokens are too few for the question and the facts", (long long)length);
    if (status != FV_OK) app_prompt_free(prompt);
    return status;
}

/* Tokens that the answer may take. */
static int64_t answer_room(int64_t needles)
{
    return 24 + 12 * needles;
}

static fv_status answer(const needle_task *task, fv_session *session, const app_prompt *prompt,
                        const struct needles *needles, fv_generation *generation)
{
    fv_generate_options options = {.limit = answer_room(needles->count)};
    float *logits = NULL;
    fv_status status;

    fv_session_clear(session);
    FV_TRY(FV_ALLOC(logits, task->info->vocabulary));
    FV_TRY_DONE(fv_session_prompt(session, prompt->ids, prompt->count, logits, 1));
    FV_TRY_DONE(fv_sampler_new(&(fv_sampler_options){0}, task->info->vocabulary, &options.sampler));
    status = fv_generate(session, logits, &options, generation);
done:
    fv_sampler_free(options.sampler);
    fv_free(logits);
    return status;
}

static fv_status needle_row(const needle_task *task, fv_session *session, needle_result *result, uint64_t row)
{
    int64_t most = task->info->context - answer_room(task->needles); /* the answer too is in the context */
    fv_generation generation = {0};
    struct needles needles;
    app_prompt prompt;
    int found = 0;
    fv_status status;

    draw_needles(&needles, (int)task->needles, task->seed, row);
    FV_TRY(make_prompt(task, task->text, task->text_length, fv_min(result->length, most), result->depth, &needles,
                       &prompt));
    status = answer(task, session, &prompt, &needles, &generation);
    for (int i = 0; status == FV_OK && i < needles.count; i++)
        found += strstr(generation.text ? generation.text : "", needles.number[i]) != NULL;
    result->score = (double)found / needles.count;
    result->prompt_tokens = prompt.count;
    result->answer = &generation;
    app_progress_end();
    if (status == FV_OK && task->row) task->row(task->user, result);
    fv_generation_free(&generation);
    app_prompt_free(&prompt);
    return status;
}

fv_status needle_score(struct app *app, const needle_task *task, double *mean)
{
    const cli_ints *lengths = task->lengths, *depths = task->depths;
    int64_t longest = 0, room = answer_room(task->needles);
    fv_session_options options = {.attention = task->attention, .cache = task->cache, .precision = task->precision};
    fv_session *session;
    fv_status status = FV_OK;
    int row = 0;

    *mean = 0;
    for (int l = 0; l < lengths->count; l++)
        longest = fv_max(longest, lengths->items[l]);
    if (longest > task->info->context)
        return fv_fail(FV_E_USAGE, "--lengths: expected at most %lld, the tokens this model was trained for, got %lld",
                       (long long)task->info->context, (long long)longest);
    options.context = fv_min(longest + room, task->info->context);
    FV_TRY(fv_session_new(app->ctx, task->model, &options, &session));
    for (int l = 0; l < lengths->count && status == FV_OK; l++)
        for (int d = 0; d < depths->count && status == FV_OK; d++, row++) {
            needle_result result = {.length = lengths->items[l], .depth = depths->items[d]};
            app_say(app, "length %lld, depth %lld %%", (long long)result.length, (long long)result.depth);
            status = needle_row(task, session, &result, (uint64_t)row);
            *mean += result.score;
        }
    *mean /= row;
    fv_session_free(session);
    return status;
}
