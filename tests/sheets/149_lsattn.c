/* Long-short attention: a window for all query heads but the last ones. */
#include <stdlib.h>

#include "sheets.h"

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int64_t window = sheet_integer(call, "window", 0, 100), global = sheet_integer(call, "global", 0, 1);
    bool causal = sheet_integer(call, "causal", 0, 1) == 1;

    (void)plan, (void)b;
    if (causal && j > p) return false;
    if (h >= call->H - global) return true;
    return causal ? p - j < window : llabs((long long)(p - j)) <= (window - 1) / 2;
}

static bool forward(sheet_call *call)
{
    if (call->causal && sheet_integer(call, "causal", 0, 1) == 0) return false;
    return sheet_integer(call, "global", 0, 1) <= call->H && sheet_attend(call, sees, NULL);
}

const sheet sheet_lsattn = {"lsattn", forward};
