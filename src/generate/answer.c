#define _GNU_SOURCE
#include "generate/answer.h"

#include <string.h>

#include "base/memory.h"

fv_status fv_answer_begin(fv_answer *answer, const fv_model *model, int stops, const char *const *stop)
{
    *answer = (fv_answer){.model = model, .stops = stops, .stop = stop};
    fv_status status = FV_GROW(answer->text.data, answer->text.capacity, 1); /* so that an empty answer has a text */
    if (status == FV_OK) answer->text.data[0] = 0;
    if (status == FV_OK) status = FV_GROW(answer->ids, answer->capacity, 1);
    if (status != FV_OK) fv_answer_free(answer);
    return status;
}

void fv_answer_free(fv_answer *answer)
{
    fv_text_free(&answer->raw);
    fv_text_free(&answer->text);
    fv_free(answer->ids);
    *answer = (fv_answer){0};
}

/* Where the first stop text begins at or after `from`; -1: nowhere. */
static int64_t find_stop(const fv_answer *a, int64_t from)
{
    int64_t first = -1;

    for (int i = 0; i < a->stops; i++) {
        size_t length = strlen(a->stop[i]);
        const char *text = fv_text_get(&a->text) + from, *at;
        if (length == 0) continue;
        at = memmem(text, (size_t)(a->text.length - from), a->stop[i], length);
        if (at && (first < 0 || from + (at - text) < first)) first = from + (at - text);
    }
    return first;
}

/* Bytes at the end that may be the beginning of a stop text. */
static int64_t undecided(const fv_answer *a)
{
    int64_t most = 0;

    for (int i = 0; i < a->stops; i++) {
        const char *stop = a->stop[i];
        for (int64_t n = fv_min((int64_t)strlen(stop) - 1, a->text.length - a->shown); n > most; n--)
            if (memcmp(fv_text_get(&a->text) + a->text.length - n, stop, (size_t)n) == 0) most = n;
    }
    return most;
}

/* Whether the bytes are the start of a character that the next ones may complete. */
static bool unfinished(const unsigned char *bytes, int64_t count)
{
    int64_t length = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;

    if (bytes[0] < 0xc2 || bytes[0] > 0xf4 || count >= length) return false;
    for (int64_t i = 1; i < count; i++)
        if ((bytes[i] & 0xc0) != 0x80) return false;
    return true;
}

/* Turns bytes of tokens into text as far as they are decided; those of a character that is never finished are left
 * out. */
static void read_characters(fv_answer *a)
{
    while (a->read < a->raw.length) {
        const char *bytes = a->raw.data + a->read;
        int64_t left = a->raw.length - a->read, length = fv_utf8_length(bytes, (size_t)left);
        if (length == 0 && unfinished((const unsigned char *)bytes, left)) return;
        if (length > 0)
            fv_text_add(&a->text, bytes, length);
        else
            fv_text_add(&a->text, "\xef\xbf\xbd", 3);
        a->read += length > 0 ? length : 1;
    }
}

fv_status fv_answer_take(fv_answer *a, int32_t id, bool *over)
{
    int64_t before = a->text.length, longest = 0, at;
    const char *bytes;
    size_t length;

    *over = false;
    FV_TRY(FV_GROW(a->ids, a->capacity, a->count + 1));
    a->ids[a->count++] = id;
    if (a->model->tokenizer && !fv_model_is_special(a->model, id)) {
        FV_TRY(fv_model_piece(a->model, id, &bytes, &length));
        fv_text_add(&a->raw, bytes, (int64_t)length);
        FV_TRY(fv_text_status(&a->raw));
        read_characters(a);
        FV_TRY(fv_text_status(&a->text));
    }
    for (int i = 0; i < a->stops; i++)
        longest = fv_max(longest, (int64_t)strlen(a->stop[i]));
    at = find_stop(a, fv_max(a->shown, before - longest));
    *over = at >= 0;
    if (at < 0) return FV_OK;
    a->text.length = at;
    a->text.data[at] = 0;
    return FV_OK;
}

const char *fv_answer_show(fv_answer *a, bool all, int64_t *length)
{
    int64_t from = a->shown;

    a->shown = fv_max(a->text.length - (all ? 0 : undecided(a)), from);
    *length = a->shown - from;
    return fv_text_get(&a->text) + from;
}
