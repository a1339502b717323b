/* LongGen from its definition: n_full of the L layers without a window see everything; the others the first block and a
 * window of budget / block - 1 blocks, or a window of half the budget and, of each head's own, one block in so many
 * that the context's blocks fill the other half. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

enum { BLOCK = 4, BUDGET = 16 };
enum { MIDDLE, TOP, BOTTOM, INTERLEAVED };

struct longgen {
    int placement, block;
    int64_t budget;
    bool stride;
};

static bool is_full(const struct longgen *o, const tiny_cache *c)
{
    int64_t L = 0, at = 0;

    for (int64_t l = 0; l < c->m->layers; l++) {
        if (l == c->l) at = L;
        L += tiny_sees_all(c->m, l);
    }
    int64_t n = (int64_t)floor((double)(3 * L + 4) / 8);
    if (o->placement == TOP) return at >= L - n;
    if (o->placement == BOTTOM) return at < n;
    if (o->placement == MIDDLE) return at >= (L - n) / 2 && at < (L - n) / 2 + n;
    for (int64_t m = 0; m < n; m++) /* the layer in whose span the middle of the m-th of n parts falls */
        if ((int64_t)floor(((double)m + 0.5) * (double)L / (double)n) == at) return true;
    return false;
}

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    const struct longgen *o = user;
    int64_t P = c->p / o->block, J = j / o->block, local = o->budget / (2 * o->block), blocks = 0;

    if (is_full(o, c)) return true;
    if (!o->stride) return J < 1 || P - J < o->budget / o->block - 1;
    while (blocks * o->block < TOKENS_ALL) /* of the context */
        blocks++;
    int64_t stride = (int64_t)ceil((double)blocks / (double)local), step = stride / c->m->heads;
    return P - J < local || (J + g * (step > 1 ? step : 1)) % stride == 0;
}

static void after(void *user, tiny_cache *c)
{
    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j <= c->p; j++)
            if (!sees(user, c, g, j)) tiny_held(c, c->l, g)[j] = false;
}

static void begin(int placement, int block, int64_t budget, bool stride, tiny_policy *twin)
{
    struct longgen *own = malloc(sizeof *own);

    *own = (struct longgen){placement, block, budget, stride};
    *twin = (tiny_policy){.sees = sees, .after = after, .user = own};
}

static void end(tiny_policy *twin)
{
    free(twin->user);
}

static void middle(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(MIDDLE, BLOCK, BUDGET, false, twin);
}

static void top(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(TOP, 1, 9, false, twin);
}

static void bottom(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(BOTTOM, BLOCK, BUDGET, true, twin);
}

static void interleaved(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(INTERLEAVED, BLOCK, BUDGET + 3, true, twin);
}

const policy_case policy_layer_plan = {"layer_plan:block=4,budget=16", "layer_plan:block=4,budget=96", middle, end,
                                       NULL};
const policy_case policy_layer_plan_top = {"layer_plan:full=top,block=1,budget=9", "layer_plan:full=top", top, end,
                                           NULL};
const policy_case policy_layer_plan_bottom = {"layer_plan:full=bottom,pattern=stride,block=4,budget=16",
                                              "layer_plan:full=bottom,pattern=stride,block=4,budget=184", bottom, end,
                                              NULL};
const policy_case policy_layer_plan_interleaved = {"layer_plan:full=interleaved,pattern=stride,block=4,budget=19",
                                                   "layer_plan:full=interleaved,pattern=stride", interleaved, end,
                                                   NULL};
