/* Facts hidden in real text, and asked for. */
#include "app/needle.h"

#include <ctype.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"

const needle_fact needle_told[NEEDLE_TOLD] = {
    {"The best thing to do in Lisbon is to eat a warm custard tart by the river and watch the ferries.",
     "What is the best thing to do in Lisbon?", "The best thing to do in Lisbon is"},
    {"The captain hid the silver compass under the third plank of the old green boat house.",
     "Where did the captain hide the silver compass?", "The captain hid the silver compass"},
    {"To open the north gate of the garden one has to turn the lion's paw twice and say a rhyme.",
     "What does one have to do to open the north gate of the garden?",
     "To open the north gate of the garden one has to"},
};

/* ---- a prompt --------------------------------------------------------------------------------------------------- */

enum { NEEDLES = 20, NUMBER = 24 };
static const char *const cities[NEEDLES] = {"Lisbon", "Oslo",    "Nairobi", "Kyoto", "Quito",  "Dublin", "Hanoi",
                                            "Tunis",  "Bergen",  "Cusco",   "Riga",  "Dakar",  "Perth",  "Malaga",
                                            "Odessa", "Tampere", "Lagos",   "Turin", "Jaipur", "Boston"};

/* The next place at or behind `at` where a sentence or line has ended. */
static size_t sentence_end(const char *text, size_t length, size_t at)
{
    for (; at > 0 && at < length; at++)
        if (isspace((unsigned char)text[at]) && (text[at - 1] == '.' || text[at - 1] == '\n')) return at;
    return at;
}

static void hide(fv_text *out, const char *text, size_t length, const needle_facts *facts, int64_t depth)
{
    size_t from = 0;

    for (int i = 0; i < facts->count; i++) {
        double share = ((double)depth + (100.0 - (double)depth) * i / facts->count) / 100;
        size_t at = sentence_end(text, length, (size_t)(share * (double)length));
        at = at < from ? from : at;
        fv_text_add(out, text + from, (int64_t)(at - from));
        fv_text_printf(out, " %s ", facts->sentence[i]);
        from = at;
    }
    fv_text_add(out, text + from, (int64_t)(length - from));
}

static void ask(fv_text *out, const needle_facts *facts, bool chat)
{
    fv_text_printf(out, "%s%s It is written in the text above.", chat ? "" : "\n\n", facts->question);
    if (!chat) fv_text_printf(out, "\nAnswer: %s", facts->lead);
}

fv_status needle_prompt(const needle_task *task, int64_t length, int64_t depth, const needle_facts *facts,
                        app_prompt *prompt)
{
    double bytes = (double)length * 3;
    fv_status status = FV_OK;

    *prompt = (app_prompt){0};
    for (int attempt = 0; attempt < 8 && status == FV_OK; attempt++) {
        fv_text hay = {0}, document = {0}, question = {0};
        while (hay.length < (int64_t)bytes && fv_text_status(&hay) == FV_OK)
            fv_text_add(&hay, task->text, fv_min((int64_t)task->text_length, (int64_t)bytes - hay.length));
        while (hay.length > 0 && !isspace((unsigned char)hay.data[hay.length - 1]))
            hay.length--; /* a whole word, and so whole characters */
        hide(&document, fv_text_get(&hay), (size_t)hay.length, facts, depth);
        ask(&question, facts, task->info->has_chat_template);
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

/* ---- numbers of cities ------------------------------------------------------------------------------------------ */

struct needles {
    char number[NEEDLES][NUMBER], sentence[NEEDLES][96];
    const char *sentences[NEEDLES];
    char question[1024], lead[96];
    needle_facts facts;
};

static void draw_needles(struct needles *needles, int count, uint64_t seed, uint64_t row)
{
    fv_random random = fv_random_new(seed, row);
    size_t used = 0, room = sizeof needles->question;

    used += (size_t)snprintf(needles->question, room, "%s",
                             count > 1 ? "What are the secret numbers of" : "What is the secret number of");
    for (int i = 0; i < count; i++) {
        snprintf(needles->number[i], NUMBER, "%lld", (long long)(10000 + fv_random_below(&random, 90000)));
        snprintf(needles->sentence[i], sizeof needles->sentence[i], "The secret number of %s is %s.", cities[i],
                 needles->number[i]);
        needles->sentences[i] = needles->sentence[i];
        used += (size_t)snprintf(needles->question + used, room - used, "%s %s",
                                 i == 0           ? ""
                                 : i + 1 == count ? " and"
                                                  : ",",
                                 cities[i]);
    }
    snprintf(needles->question + used, room - used, "?");
    snprintf(needles->lead, sizeof needles->lead, "The secret number of %s is", cities[0]);
    needles->facts = (needle_facts){count, needles->sentences, needles->question, needles->lead};
}

/* Tokens that the answer may take. */
static int64_t answer_room(int64_t needles)
{
    return 24 + 12 * needles;
}

static fv_status answer(const needle_task *task, fv_session *session, const app_prompt *prompt, int64_t facts,
                        fv_generation *generation)
{
    fv_generate_options options = {.limit = answer_room(facts)};
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
    FV_TRY(needle_prompt(task, fv_min(result->length, most), result->depth, &needles.facts, &prompt));
    status = answer(task, session, &prompt, task->needles, &generation);
    for (int i = 0; status == FV_OK && i < task->needles; i++)
        found += strstr(generation.text ? generation.text : "", needles.number[i]) != NULL;
    result->score = (double)found / (double)task->needles;
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
    fv_session_options options = {.attention = task->attention,
                                  .dense_last = task->dense_last,
                                  .cache = task->cache,
                                  .precision = task->precision};
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
