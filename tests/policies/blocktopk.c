/* Block top-k from its definition: sinks, the blocks between that the mean query of the group likes best by their mean
 * key, and everything behind the blocks. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

struct blocktopk {
    policy_selection selection;
    int64_t block, top, sink, local, dense_layers;
};

/* Acted layers below l. */
static int64_t place(const tiny_cache *c)
{
    int64_t n = 0;

    for (int64_t l = 0; l < c->l; l++)
        n += tiny_sees_all(c->m, l);
    return n;
}

static double score(const struct blocktopk *s, const tiny_cache *c, int64_t g, int64_t b)
{
    int64_t D = c->m->key_dim, group = c->m->heads / c->m->key_heads;
    double sum = 0;

    for (int64_t h = g * group; h < (g + 1) * group; h++)
        for (int64_t j = s->sink + b * s->block; j < s->sink + (b + 1) * s->block; j++)
            for (int64_t d = 0; d < D; d++)
                sum += c->q[(c->p * c->m->heads + h) * D + d] * c->k[(j * c->m->key_heads + g) * D + d];
    return sum / (double)(group * s->block);
}

static void choose(void *user, const tiny_cache *c)
{
    struct blocktopk *s = user;
    int64_t n = c->p + 1, blocks = (n - s->local - s->sink) / s->block;
    bool dense = c->p < c->prompt || place(c) < s->dense_layers || n <= s->sink + s->local + s->block * s->top;

    for (int64_t g = 0; g < c->m->key_heads; g++) {
        double scores[TOKENS_ALL], scale = 0;
        bool all[TOKENS_ALL], picked[TOKENS_ALL];
        for (int64_t b = 0; b < blocks && !dense; b++) {
            scores[b] = score(s, c, g, b);
            all[b] = true;
            scale = fmax(scale, fabs(scores[b]));
        }
        if (!dense) policy_pick(scores, all, blocks, s->top, false, scale, picked);
        for (int64_t j = 0; j < n; j++)
            s->selection.sees[c->l][g][j] =
                dense || j < s->sink || j >= s->sink + blocks * s->block || picked[(j - s->sink) / s->block];
    }
}

static void begin_with(const tiny_model *m, tiny_policy *twin, struct blocktopk options)
{
    struct blocktopk *s = malloc(sizeof *s);

    *s = options;
    policy_selection_begin(m, twin, s, choose);
}

static void begin(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, (struct blocktopk){.block = 5, .top = 3, .sink = 2, .local = 7});
}

static void begin_second(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, (struct blocktopk){.block = 1, .top = 20, .sink = 0, .local = 0, .dense_layers = 1});
}

/* Everything is read at first: 4 + 6 + 8 * 8 = 74 rows. */
static void begin_late(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, (struct blocktopk){.block = 8, .top = 8, .sink = 4, .local = 6});
}

const policy_case policy_blocktopk = {"blocktopk:block=5,top=3,sink=2,local=7,dense_layers=0", "blocktopk", begin,
                                      policy_selection_end, policy_selection_read};
const policy_case policy_blocktopk_rows = {"blocktopk:block=1,top=20,sink=0,local=0", "blocktopk:block=1,top=90,sink=0",
                                           begin_second, policy_selection_end, policy_selection_read};
const policy_case policy_blocktopk_late = {"blocktopk:block=8,top=8,local=6,dense_layers=0",
                                           "blocktopk:block=3,top=1,sink=0,local=1,dense_layers=99", begin_late,
                                           policy_selection_end, policy_selection_read};
