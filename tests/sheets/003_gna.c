/* Generalized neighborhood attention on a grid of 1 to 3 axes: dilation groups, leaders of stride groups, windows.
 * A window of 0 is the whole axis, and so, as window * dilation may not pass the axis, wants dilation 1.  On an axis
 * that is not causal clipping the leader changes nothing (the window is pushed inwards either way). */
#include "sheets.h"

struct axis {
    int64_t size, window, stride, dilation;
    bool causal, clipped;
};

struct grid {
    int axes;
    struct axis axis[3];
};

static bool axis_sees(const struct axis *a, int64_t x, int64_t y)
{
    int64_t g = x % a->dilation, i = x / a->dilation, j = y / a->dilation;
    int64_t n = a->size / a->dilation + (g < a->size % a->dilation ? 1 : 0);
    int64_t w = a->window, s = a->stride, leader, start, end;

    if (y % a->dilation != g) return false;
    leader = i / s * s + (a->causal ? s - 1 : s / 2);
    if (leader > n - 1 && (a->clipped || !a->causal)) leader = n - 1;
    if (a->causal) {
        start = leader - w + 1 > 0 ? leader - w + 1 : 0;
        end = i + 1;
    } else {
        int64_t left = w / 2, right = w / 2 + w % 2 - 1;

        start = leader - left > 0 ? leader - left : 0;
        if (leader + right >= n) start = n - w;
        end = start + w;
    }
    return start <= j && j < end;
}

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct grid *grid = plan;

    (void)call, (void)b, (void)h;
    for (int a = grid->axes - 1; a >= 0; a--) {
        const struct axis *axis = &grid->axis[a];

        if (!axis_sees(axis, p % axis->size, j % axis->size)) return false;
        p /= axis->size;
        j /= axis->size;
    }
    return true;
}

static bool per_axis(const sheet_call *call, const char *name, int axes)
{
    return sheet_count(call, name) <= 1 || sheet_count(call, name) == axes;
}

static bool forward(sheet_call *call)
{
    struct grid grid = {.axes = sheet_count(call, "grid")};
    int64_t tokens = 1;

    if (grid.axes < 1 || grid.axes > 3 || sheet_count(call, "window") < 1) return false;
    if (!per_axis(call, "window", grid.axes) || !per_axis(call, "stride", grid.axes) ||
        !per_axis(call, "dilation", grid.axes) || !per_axis(call, "causal", grid.axes))
        return false;
    for (int n = 0; n < grid.axes; n++) {
        struct axis *a = &grid.axis[n];

        a->size = sheet_integer(call, "grid", n, 0);
        a->window = sheet_integer(call, "window", n, 0);
        a->stride = sheet_integer(call, "stride", n, 1);
        a->dilation = sheet_integer(call, "dilation", n, 1);
        a->causal = call->causal || sheet_integer(call, "causal", n, 0) != 0;
        a->clipped = sheet_integer(call, "tail_leader", 0, 0) == 0;
        if (a->window == 0) a->window = a->size;
        if (a->window < 1 || a->stride < 1 || a->dilation < 1 || a->stride > a->window ||
            a->window * a->dilation > a->size)
            return false;
        tokens *= a->size;
    }
    if (tokens != call->N || tokens != call->M) return false;
    if (!sheet_tensor(call, "extra_k") != !sheet_tensor(call, "extra_v")) return false;
    return sheet_attend(call, sees, &grid);
}

const sheet sheet_gna = {"gna", forward};
