/* SnapKV from its definition: the mean over the query heads that share a key-value head (or over all) of the smoothed
 * sums of the window's weights; the best of these and the window stay. */
#include <stdlib.h>

#include "policies/window_twin.h"

struct twin {
    window_twin window;
    int64_t budget;
    bool layer;
};

static void after(void *user, tiny_cache *c)
{
    struct twin *t = user;

    window_twin_add(&t->window, c);
}

static void act(void *user, tiny_cache *c)
{
    const struct twin *t = user;

    window_twin_keep(&t->window, c, t->layer, t->budget - t->window.window);
}

static void begin(const tiny_model *m, tiny_policy *twin, int64_t budget, int64_t window, int64_t kernel, bool max,
                  bool layer)
{
    struct twin *t = calloc(1, sizeof *t);

    window_twin_begin(&t->window, m, window, kernel, max);
    t->budget = budget;
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
    begin(m, twin, 20, 6, 5, false, false);
}

static void begin_max(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 33, 32, 3, true, false);
}

static void begin_layer(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 24, 1, 7, false, true);
}

static void begin_layer_max(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 15, 9, 1, true, true);
}

const policy_case policy_snapkv = {"snapkv:budget=20,window=6", "snapkv:budget=90,pool=max", begin_plain, end, NULL};
const policy_case policy_snapkv_max = {"snapkv:budget=33,kernel=3,pool=max", "snapkv:budget=90,window=1", begin_max,
                                       end, NULL};
const policy_case policy_snapkv_layer = {"snapkv:budget=24,window=1,kernel=7,per=layer", "snapkv", begin_layer, end,
                                         NULL};
const policy_case policy_snapkv_layer_max = {"snapkv:budget=15,window=9,kernel=1,pool=max,per=layer",
                                             "snapkv:budget=90,per=layer", begin_layer_max, end, NULL};
