/* Frames that read themselves and reference frames, exactly or in whole tiles. */
#include "sheets.h"

struct frames {
    int64_t F, S, spacing;
};

static bool pair(const struct frames *v, int64_t i, int64_t j)
{
    int64_t f = i / v->S, g = j / v->S;

    return f >= v->F || g >= v->F || f == g || f % v->spacing == 0 || g % v->spacing == 0;
}

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct frames *v = plan;
    int64_t block = sheet_integer(call, "block", 0, 0);

    (void)b, (void)h;
    if (block == 0) return pair(v, p, j);
    for (int64_t x = p / block * block; x < (p / block + 1) * block && x < call->N; x++)
        for (int64_t y = j / block * block; y < (j / block + 1) * block && y < call->M; y++)
            if (pair(v, x, y)) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct frames v = {.F = sheet_integer(call, "frames", 0, 1)};
    int64_t video = call->N - sheet_integer(call, "text", 0, 0), refs = sheet_integer(call, "refs", 0, 1);

    if (call->causal || call->N != call->M || refs > v.F || video < v.F || video % v.F != 0) return false;
    v.S = video / v.F;
    v.spacing = (v.F + refs - 1) / refs;
    return sheet_attend(call, sees, &v);
}

const sheet sheet_frame_tile = {"frame_tile", forward};
