/* PyramidKV from its definition: SnapKV's scores; budgets fall in equal steps from the first layer to the last. */
#include <math.h>
#include <stdlib.h>

#include "policies/window_twin.h"

struct twin {
    window_twin window;
    int64_t budget, beta;
    bool layer;
};

static void after(void *user, tiny_cache *c)
{
    struct twin *t = user;

    window_twin_add(&t->window, c);
}

/* Chosen rows of the layer; only layers that see everything count. */
static int64_t chosen(const struct twin *t, const tiny_cache *c)
{
    int64_t layers = 0, place = 0, m = t->budget - t->window.window, columns = c->prompt - t->window.window;

    for (int64_t l = 0; l < c->m->layers; l++) {
        if (l == c->l) place = layers;
        layers += tiny_sees_all(c->m, l);
    }
    if (c->prompt < 2 * m || 2 * place + 1 == layers) return m;

    double low = floor((double)m / (double)t->beta), high = 2 * (double)m - low;
    if (high >= (double)columns) {
        high = (double)columns;
        low = 2 * (double)m - high;
    }
    bool upper = 2 * place + 1 > layers;
    int64_t l = upper ? layers - 1 - place : place;
    int64_t rows = (int64_t)floor(high - (high - low) * (double)l / (double)(layers - 1) + 0.5);
    return upper ? 2 * m - rows : rows;
}

static void act(void *user, tiny_cache *c)
{
    const struct twin *t = user;

    window_twin_keep(&t->window, c, t->layer, chosen(t, c));
}

static void begin(const tiny_model *m, tiny_policy *twin, int64_t budget, int64_t window, int64_t beta, bool layer)
{
    struct twin *t = calloc(1, sizeof *t);

    window_twin_begin(&t->window, m, window, layer ? 3 : 5, layer);
    t->budget = budget;
    t->beta = beta;
    t->layer = layer;
    *twin = (tiny_policy){.after = after, .act = act, .user = t};
}

static void end(tiny_policy *twin)
{
    struct twin *t = twin->user;

    window_twin_end(&t->window);
    free(t);
}

static void begin_plain(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 20, 4, 4, false);
}

/* The first layer would choose more rows than there are. */
static void begin_clipped(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 40, 10, 20, true);
}

/* Too short a text for a pyramid. */
static void begin_short(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 45, 8, 20, false);
}

const policy_case policy_pyramidkv = {"pyramidkv:budget=20,window=4,beta=4", "pyramidkv:budget=90", begin_plain, end,
                                      NULL};
const policy_case policy_pyramidkv_clipped = {"pyramidkv:budget=40,window=10,kernel=3,pool=max,per=layer",
                                              "pyramidkv:budget=90,window=60", begin_clipped, end, NULL};
const policy_case policy_pyramidkv_short = {"pyramidkv:budget=45,window=8", "pyramidkv", begin_short, end, NULL};
