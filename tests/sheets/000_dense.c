/* Dense softmax attention; optional sliding window, soft-cap, bias, sinks (the last two live in sheet_attend).
 * The cap acts on scaled scores before the bias; the lse counts the sink, being the log of the denominator. */
#include <stdlib.h>

#include "sheets.h"

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int64_t window = *(const int64_t *)plan;

    (void)b, (void)h;
    if (call->causal && j > p) return false;
    if (window == 0) return true;
    return call->causal ? p - j < window : llabs(p - j) < window;
}

static bool forward(sheet_call *call)
{
    int64_t window = sheet_integer(call, "window", 0, 0);

    return sheet_attend(call, sees, &window);
}

const sheet sheet_dense = {"dense", forward};
