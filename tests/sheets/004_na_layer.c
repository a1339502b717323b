/* The unfused pair of sheet 004, slot by slot: slot t of a window is the t-th neighbour on each axis, row-major,
 * counted from where the window begins in the query's residue class; a causal window near the start has fewer than w.
 */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

enum { AXES = 3 };

struct grid {
    int axes;
    int64_t size[AXES], window[AXES], dilation[AXES], causal[AXES], tokens, slots;
};

static int count_of(const layer_sheet_call *call, const char *name)
{
    return sheet_count(&(sheet_call){.options = call->options, .option = call->option}, name);
}

static struct grid read_grid(const layer_sheet_call *call)
{
    struct grid g = {.axes = count_of(call, "grid"), .tokens = 1, .slots = 1};

    for (int a = 0; a < g.axes; a++) {
        g.size[a] = layer_integer(call, "grid", a, 0);
        g.window[a] = layer_integer(call, "window", a, 0);
        if (g.window[a] == 0) g.window[a] = g.size[a];
        g.dilation[a] = layer_integer(call, "dilation", a, 1);
        g.causal[a] = layer_integer(call, "causal", a, 0);
        g.tokens *= g.size[a];
        g.slots *= g.window[a];
    }
    return g;
}

/* The t-th neighbour of x on an axis, in steps of the dilation; -1: there is none. */
static int64_t neighbour(const struct grid *g, int a, int64_t x, int64_t t)
{
    int64_t i = x / g->dilation[a], w = g->window[a], n = 0, start;

    for (int64_t y = x % g->dilation[a]; y < g->size[a]; y += g->dilation[a])
        n++;
    if (g->causal[a]) {
        start = i - w + 1 > 0 ? i - w + 1 : 0;
        return start + t <= i ? start + t : -1;
    }
    start = i - w / 2 > 0 ? i - w / 2 : 0;
    if (start + w > n) start = n - w;
    return start + t;
}

/* The key in a slot of query x (-1: none), and the place of its offset in the bias. */
static int64_t key_in(const struct grid *g, int64_t x, int64_t slot, int64_t *place)
{
    int64_t key = 0, cells = g->tokens, slots = g->slots;

    *place = 0;
    for (int a = 0; a < g->axes; a++) {
        cells /= g->size[a];
        slots /= g->window[a];
        int64_t at = x / cells % g->size[a], j = neighbour(g, a, at, slot / slots % g->window[a]);
        if (j < 0) return -1;
        key += (j * g->dilation[a] + at % g->dilation[a]) * cells;
        *place = *place * (2 * g->window[a] - 1) + j - at / g->dilation[a] + g->window[a] - 1;
    }
    return key;
}

static void multiply(layer_sheet_call *call)
{
    const sheet_param *q = layer_tensor(call, "q"), *k = layer_tensor(call, "k"), *rpb = layer_tensor(call, "rpb");
    struct grid g = read_grid(call);
    int64_t H = q->dims[1], group = H / k->dims[1], D = q->dims[3], offsets = 1, place;
    double scale = layer_number(call, "scale", 0, 1), *a = layer_output(call, "a");

    for (int axis = 0; axis < g.axes; axis++)
        offsets *= 2 * g.window[axis] - 1;
    for (int64_t n = 0; n < q->dims[0] * H * g.tokens * g.slots; n++) {
        int64_t row = n / g.slots, bh = row / g.tokens, key = key_in(&g, row % g.tokens, n % g.slots, &place);

        a[n] = -INFINITY;
        if (key < 0) continue;
        a[n] = scale * sheet_dot(q->data + row * D, k->data + (bh / group * g.tokens + key) * D, D);
        if (rpb) a[n] += rpb->data[bh % H * offsets + place];
    }
}

static void sum(layer_sheet_call *call)
{
    const sheet_param *a = layer_tensor(call, "a"), *v = layer_tensor(call, "v");
    struct grid g = read_grid(call);
    int64_t group = a->dims[1] / v->dims[1], D = v->dims[3], place;
    double *o = layer_output(call, "o");

    for (int64_t row = 0; row < a->dims[0] * a->dims[1] * g.tokens; row++)
        for (int64_t e = 0; e < D; e++) {
            o[row * D + e] = 0;
            for (int64_t slot = 0; slot < g.slots; slot++) {
                double weight = a->data[row * g.slots + slot];
                int64_t key = key_in(&g, row % g.tokens, slot, &place);

                if (key >= 0 && !isinf(weight))
                    o[row * D + e] += weight * v->data[(row / g.tokens / group * g.tokens + key) * D + e];
            }
        }
}

const layer_sheet layer_sheet_na_qk = {"na_qk", multiply};
const layer_sheet layer_sheet_na_av = {"na_av", sum};
