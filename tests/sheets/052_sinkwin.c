/* Sinks and a sliding window, per key head if given as lists, in tokens or in blocks (sheets 052 and 078). */
#include "sheets.h"

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int head = (int)(h / (call->H / call->Hkv));
    int64_t sink = sheet_integer(call, "sink", head, 4), window = sheet_integer(call, "window", head, 1024);
    int64_t block = sheet_integer(call, "block", 0, 1);

    (void)plan, (void)b;
    return j <= p && (j / block < sink || p / block - j / block < window);
}

static bool list_fits(const sheet_call *call, const char *name)
{
    return sheet_count(call, name) <= 1 || sheet_count(call, name) == call->Hkv;
}

static bool forward(sheet_call *call)
{
    return list_fits(call, "sink") && list_fits(call, "window") && sheet_attend(call, sees, NULL);
}

const sheet sheet_sinkwin = {"sinkwin", forward};
