#include "app/prompt.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "cache/policy.h"

fv_status app_model_open(const char *path, fv_model **model, fv_model_info *info)
{
    FV_TRY(fv_model_open(path, model));
    fv_model_describe(*model, info);
    return FV_OK;
}

static fv_status check_text(const char *where, const char *text, size_t length)
{
    size_t valid = fv_utf8_valid(text, length);

    return valid == length ? FV_OK : fv_fail(FV_E_FORMAT, "%s: is not UTF-8 text at byte offset %zu", where, valid);
}

fv_status app_text_read(const char *path, char **text, size_t *length)
{
    fv_status status;

    FV_TRY(fv_file_read(path, text, length));
    status = *length ? check_text(path, *text, *length) : fv_fail(FV_E_FORMAT, "%s: is empty, expected text", path);
    if (status == FV_OK) return FV_OK;
    fv_free(*text);
    *text = NULL;
    return status;
}

void app_prompt_free(app_prompt *prompt)
{
    fv_release(prompt->text);
    fv_release(prompt->ids);
    fv_release(prompt->ends);
    *prompt = (app_prompt){0};
}

/* Where the document's bytes are in the rendered message: templates may trim spaces at either end. */
static void place_document(app_prompt *prompt, size_t user_at, const char *user, size_t length)
{
    size_t lead = 0, shown = 0;

    while (lead < length && user_at < prompt->length && user[lead] != prompt->text[user_at])
        lead++;
    while (lead + shown < length && user_at + shown < prompt->length &&
           user[lead + shown] == prompt->text[user_at + shown])
        shown++;
    prompt->document_at = user_at;
    prompt->document_end = user_at + shown;
}

static fv_status render(const fv_model *model, const fv_text *user, size_t document, app_prompt *prompt)
{
    size_t user_at = 0;
    const char *zero = memchr(fv_text_get(user), 0, (size_t)user->length);

    if (zero)
        return fv_fail(FV_E_FORMAT, "the text has a zero byte at offset %zu, which a message cannot hold (--raw can)",
                       (size_t)(zero - fv_text_get(user)));
    FV_TRY(fv_model_chat(model, NULL, fv_text_get(user), &prompt->text, &prompt->length, &user_at));
    place_document(prompt, user_at, fv_text_get(user), document);
    return FV_OK;
}

fv_status app_prompt_from(const fv_model *model, const char *document, size_t length, const char *text, bool raw,
                          app_prompt *prompt)
{
    fv_model_info info;
    fv_text joined = {0};
    fv_status status;
    size_t document_length = document ? length : strlen(text);

    *prompt = (app_prompt){0};
    fv_model_describe(model, &info);
    prompt->chat = info.has_chat_template && !raw;
    if (document) fv_text_add(&joined, document, (int64_t)length);
    if (document && text && prompt->chat) fv_text_add(&joined, "\n\n", 2);
    if (text) fv_text_add(&joined, text, (int64_t)strlen(text));
    FV_TRY_DONE(fv_text_status(&joined));
    if (joined.length == 0) {
        status = fv_fail(FV_E_FORMAT, "the prompt is empty, expected text (-p TEXT, -f FILE)");
        goto done;
    }
    if (prompt->chat) {
        FV_TRY_DONE(render(model, &joined, document_length, prompt));
    } else {
        prompt->text = joined.data;
        prompt->length = (size_t)joined.length;
        prompt->document_end = document_length;
        joined = (fv_text){0};
    }
    status = fv_model_tokenize_spans(model, prompt->text, prompt->length, FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL,
                                     &prompt->ids, &prompt->ends, &prompt->count);
done:
    fv_text_free(&joined);
    if (status != FV_OK) app_prompt_free(prompt);
    return status;
}

fv_status app_prompt_make(const fv_model *model, const char *file, const char *text, bool raw, app_prompt *prompt)
{
    char *document = NULL;
    size_t length = 0;
    fv_status status;

    *prompt = (app_prompt){0};
    if (text) FV_TRY(check_text("-p", text, strlen(text)));
    if (file) FV_TRY(app_text_read(file, &document, &length));
    status = app_prompt_from(model, document, length, text, raw, prompt);
    fv_free(document);
    return status;
}

void app_prompt_note(const struct app *app, const app_prompt *prompt, bool raw)
{
    if (!raw && !prompt->chat) app_say(app, "the model has no chat template: it continues the text as it is (--raw)");
}

/* Bytes of the document that the first `tokens` tokens of the prompt hold. */
static size_t document_bytes(const app_prompt *prompt, int64_t tokens)
{
    int64_t behind = 0; /* tokens that are not the document's */
    size_t end = 0;

    for (int64_t i = 0; i < prompt->count; i++)
        behind += prompt->ends[i] <= (int64_t)prompt->document_at || prompt->ends[i] > (int64_t)prompt->document_end;
    for (int64_t i = 0; i < prompt->count && i < tokens - behind; i++)
        if (prompt->ends[i] > (int64_t)prompt->document_at && prompt->ends[i] <= (int64_t)prompt->document_end)
            end = (size_t)prompt->ends[i];
    return end > prompt->document_at ? end - prompt->document_at : 0;
}

fv_status app_prompt_fit(const app_prompt *prompt, const fv_model_info *info, int64_t asked, int64_t room,
                         int64_t *context)
{
    *context = asked == CLI_UNSET ? info->context : asked;
    if (prompt->count <= *context - room) return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "the prompt is %lld tokens and %lld more are wanted, but the context is %lld%s: about the first %zu "
                   "bytes of the text fit",
                   (long long)prompt->count, (long long)room, (long long)*context,
                   asked != CLI_UNSET && asked < info->context ? " (--ctx; the model allows more)" : "",
                   document_bytes(prompt, *context - room));
}

double app_decode_rate(const fv_generation *answer, int64_t more, double seconds)
{
    int64_t fed = more + answer->count - (answer->stop == FV_STOP_LIMIT && answer->count > 0);

    seconds += answer->seconds;
    return fed > 0 && seconds > 0 ? (double)fed / seconds : 0;
}

bool app_names_cache(const char *spec)
{
    size_t first = strcspn(spec, ":/");
    const char *name = spec[first] == '/' ? spec + first + 1 : spec; /* of a layer plan, the first part decides */
    char word[64];

    snprintf(word, sizeof word, "%.*s", (int)strcspn(name, ":"), name);
    return fv_policy_find(word) && !fv_mechanism_find(word);
}

fv_status app_refuse_steer(const char *spec)
{
    return spec ? fv_fail(FV_E_USAGE, "unknown steer '%s': none is registered in this version", spec) : FV_OK;
}
