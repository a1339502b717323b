/* Neighbourhood attention, slot by slot: each query has w neighbours on each axis of its dilation group, the window
 * pushed inwards at both ends, or on a causal axis the last w up to itself; a bias by their distance; extra keys. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

enum { AXES = 3 };

struct axis {
    int64_t size, window, dilation;
    bool causal;
};

struct grid {
    int axes;
    struct axis axis[AXES];
    int64_t slots; /* of a window */
};

/* The coordinate of slot t of a query at x, and its distance in steps of the dilation; -1: there is none. */
static int64_t neighbour(const struct axis *a, int64_t x, int64_t t, int64_t *distance)
{
    int64_t residue = x % a->dilation, i = x / a->dilation, n = a->size / a->dilation, j;

    if (residue < a->size % a->dilation) n++;
    if (a->causal) {
        j = i - a->window + 1 + t;
        if (j < 0) return -1;
    } else {
        int64_t left = a->window / 2, right = a->window - 1 - left, start = i - left;

        if (start < 0) start = 0;
        if (i + right >= n) start = n - a->window;
        j = start + t;
    }
    *distance = j - i;
    return j * a->dilation + residue;
}

/* The key in a slot of query i, -1: none; and the index of its bias. */
static int64_t key_in(const struct grid *grid, int64_t i, int64_t slot, int64_t *index)
{
    int64_t key = 0, at[AXES], t[AXES];

    for (int a = grid->axes - 1; a >= 0; a--) {
        at[a] = i % grid->axis[a].size;
        t[a] = slot % grid->axis[a].window;
        i /= grid->axis[a].size;
        slot /= grid->axis[a].window;
    }
    *index = 0;
    for (int a = 0; a < grid->axes; a++) {
        int64_t distance, y = neighbour(&grid->axis[a], at[a], t[a], &distance);

        if (y < 0) return -1;
        key = key * grid->axis[a].size + y;
        *index = *index * (2 * grid->axis[a].window - 1) + distance + grid->axis[a].window - 1;
    }
    return key;
}

static void query(const sheet_call *call, const struct grid *grid, int64_t b, int64_t h, int64_t i)
{
    const sheet_param *rpb = sheet_tensor(call, "rpb"), *extra_k = sheet_tensor(call, "extra_k");
    const sheet_param *extra_v = sheet_tensor(call, "extra_v");
    int64_t extras = extra_k ? extra_k->dims[2] : 0, row = (b * call->H + h) * call->N + i, offsets = 1, index = 0;
    int64_t extra = (b * call->Hkv + h / (call->H / call->Hkv)) * extras;
    const double *q = sheet_q(call, b, h, i);
    double *weights = sheet_zeros(grid->slots + extras), lse;

    for (int d = 1; rpb && d < rpb->rank; d++)
        offsets *= rpb->dims[d];
    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[row * call->M + j] = 0;
    for (int64_t slot = 0; slot < grid->slots; slot++) {
        int64_t key = key_in(grid, i, slot, &index);

        weights[slot] = -INFINITY;
        if (key < 0) continue;
        weights[slot] = sheet_scale(call) * sheet_dot(q, sheet_k(call, b, h, key), call->D);
        if (rpb) weights[slot] += rpb->data[h * offsets + index];
        if (call->map) call->map[row * call->M + key] = 1;
    }
    for (int64_t x = 0; x < extras; x++)
        weights[grid->slots + x] = sheet_scale(call) * sheet_dot(q, extra_k->data + (extra + x) * call->D, call->D);
    lse = sheet_softmax(weights, grid->slots + extras, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        double sum = 0;

        for (int64_t slot = 0; slot < grid->slots; slot++) {
            int64_t key = key_in(grid, i, slot, &index);
            if (key >= 0) sum += weights[slot] * sheet_v(call, b, h, key)[e];
        }
        for (int64_t x = 0; x < extras; x++)
            sum += weights[grid->slots + x] * extra_v->data[(extra + x) * call->Dv + e];
        sheet_o(call, b, h, i)[e] = sum;
    }
    free(weights);
}

static bool per_axis(const sheet_call *call, const char *name, int axes)
{
    return sheet_count(call, name) <= 1 || sheet_count(call, name) == axes;
}

static bool forward(sheet_call *call)
{
    const sheet_param *rpb = sheet_tensor(call, "rpb");
    struct grid grid = {.axes = sheet_count(call, "grid"), .slots = 1};
    int64_t tokens = 1;

    if (grid.axes < 1 || grid.axes > AXES || sheet_count(call, "window") < 1) return false;
    if (!per_axis(call, "window", grid.axes) || !per_axis(call, "dilation", grid.axes) ||
        !per_axis(call, "causal", grid.axes))
        return false;
    for (int n = 0; n < grid.axes; n++) {
        struct axis *a = &grid.axis[n];

        a->size = sheet_integer(call, "grid", n, 0);
        a->window = sheet_integer(call, "window", n, 0);
        if (a->window == 0) a->window = a->size;
        a->dilation = sheet_integer(call, "dilation", n, 1);
        a->causal = call->causal || sheet_integer(call, "causal", n, 0) == 1;
        if (a->window * a->dilation > a->size) return false;
        if (rpb && (a->window % 2 == 0 || a->causal)) return false;
        if (rpb && (rpb->rank != grid.axes + 1 || rpb->dims[n + 1] != 2 * a->window - 1)) return false;
        tokens *= a->size;
        grid.slots *= a->window;
    }
    if (tokens != call->N || tokens != call->M) return false;
    if (!sheet_tensor(call, "extra_k") != !sheet_tensor(call, "extra_v")) return false;
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++)
                query(call, &grid, b, h, i);
    return true;
}

const sheet sheet_na = {"na", forward};
