#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

void fv_text_add(fv_text *text, const char *bytes, int64_t count)
{
    if (text->status != FV_OK) return;
    text->status = FV_GROW(text->data, text->capacity, text->length + count + 1);
    if (text->status != FV_OK) return;
    if (count > 0) memcpy(text->data + text->length, bytes, (size_t)count);
    text->length += count;
    text->data[text->length] = 0;
}

void fv_text_printf(fv_text *text, const char *format, ...)
{
    va_list arguments, again;
    int count;

    if (text->status != FV_OK) return;
    va_start(arguments, format);
    va_copy(again, arguments);
    count = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (count >= 0) {
        text->status = FV_GROW(text->data, text->capacity, text->length + count + 1);
        if (text->status == FV_OK) {
            vsnprintf(text->data + text->length, (size_t)count + 1, format, again);
            text->length += count;
        }
    }
    va_end(again);
}

fv_status fv_text_status(const fv_text *text)
{
    return text->status;
}

const char *fv_text_get(const fv_text *text)
{
    return text->data ? text->data : "";
}

void fv_text_free(fv_text *text)
{
    fv_free(text->data);
    *text = (fv_text){0};
}

int fv_utf8_length(const char *bytes, size_t count)
{
    const unsigned char *b = (const unsigned char *)bytes;

    if (count == 0) return 0;
    if (b[0] < 0x80) return 1;
    int length = b[0] >= 0xC2 && b[0] < 0xE0   ? 2
                 : b[0] >= 0xE0 && b[0] < 0xF0 ? 3
                 : b[0] >= 0xF0 && b[0] < 0xF5 ? 4
                                               : 0;
    if (length == 0 || (size_t)length > count) return 0;
    for (int i = 1; i < length; i++)
        if ((b[i] & 0xC0) != 0x80) return 0;
    /* The second byte decides: overlong forms, surrogates, numbers past the end. */
    if ((b[0] == 0xE0 && b[1] < 0xA0) || (b[0] == 0xED && b[1] > 0x9F)) return 0;
    if ((b[0] == 0xF0 && b[1] < 0x90) || (b[0] == 0xF4 && b[1] > 0x8F)) return 0;
    return length;
}

size_t fv_utf8_valid(const char *bytes, size_t count)
{
    size_t at = 0;

    for (int length; at < count && (length = fv_utf8_length(bytes + at, count - at)) > 0;)
        at += (size_t)length;
    return at;
}

const char *fv_shown(const char *bytes, int64_t length)
{
    enum { LONGEST = 80 };
    static _Thread_local char ring[4][LONGEST + 4];
    static _Thread_local unsigned next;
    char *out = ring[next++ % 4];
    int64_t at = 0, used = 0;

    while (at < length) {
        int one = fv_utf8_length(bytes + at, (size_t)(length - at));
        if (used + (one ? one : 1) > LONGEST) break;
        bool printed = one > 1 || (one == 1 && (unsigned char)bytes[at] >= 32 && bytes[at] != 127);
        memcpy(out + used, printed ? bytes + at : "?", (size_t)(printed ? one : 1));
        used += printed ? one : 1;
        at += one ? one : 1;
    }
    memcpy(out + used, at < length ? "..." : "", at < length ? 4 : 1);
    return out;
}

int fv_edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 63 };
    int row[LONGEST + 1];
    int la = (int)strnlen(a, LONGEST), lb = (int)strnlen(b, LONGEST);

    for (int j = 0; j <= lb; j++)
        row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            row[j] = best < change ? best : change;
        }
    }
    return row[lb];
}
