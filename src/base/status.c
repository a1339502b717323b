#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifndef FOVEA_VERSION
#define FOVEA_VERSION "0.0.0"
#endif

static _Thread_local char sentence[1024];

const char *fv_error(void)
{
    return sentence;
}

const char *fv_version(void)
{
    return FOVEA_VERSION;
}

/* Names from files and callers may hold anything; a sentence is one line, and steers no terminal. */
static void keep(const char *text)
{
    size_t i = 0;

    for (; text[i]; i++)
        sentence[i] = (unsigned char)text[i] < 32 || text[i] == 127 ? '?' : text[i];
    sentence[i] = 0;
}

fv_status fv_fail(fv_status status, const char *format, ...)
{
    char text[sizeof sentence]; /* arguments may point into the old sentence */
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    keep(text);
    return status;
}

fv_status fv_fail_in(fv_status status, const char *format, ...)
{
    char where[256], text[sizeof sentence];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(where, sizeof where, format, arguments);
    va_end(arguments);
    if (snprintf(text, sizeof text, "%s: %s", where, sentence) < 0) return status;
    keep(text);
    return status;
}

const char *fv_status_name(fv_status status)
{
    static const char *const names[] = {
        "FV_OK",       "FV_E_ARGUMENT", "FV_E_USAGE",  "FV_E_SHAPE",       "FV_E_DTYPE",
        "FV_E_MEMORY", "FV_E_IO",       "FV_E_FORMAT", "FV_E_UNSUPPORTED", "FV_E_INTERRUPTED"};

    return status >= FV_OK && status <= FV_E_INTERRUPTED ? names[status] : "FV_E_?";
}
