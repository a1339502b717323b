/* PowerAttention: sink blocks, a local window of blocks, and blocks at distances that are powers of the base. */
#include "sheets.h"

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int64_t block = sheet_integer(call, "block", 0, 256), window = sheet_integer(call, "window_blocks", 0, 5);
    int64_t sink = sheet_integer(call, "sink_blocks", 0, 1), base = sheet_integer(call, "base", 0, 2);
    int64_t distance = p / block - j / block;

    (void)plan, (void)b, (void)h;
    if (j > p) return false;
    if (distance == 0 || distance < window || j / block < sink) return true;
    for (int64_t power = 1; power <= distance; power *= base)
        if (power == distance) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    return sheet_attend(call, sees, NULL);
}

const sheet sheet_power = {"power", forward};
