/* Sparse window attention from its definition, with the whole map of weights: behind n rows the k newest are read and
 * the k older ones on which the last k rows of the map (or all, or the last one) have put most. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

enum { LOCAL, GLOBAL, LAST };

struct alisa {
    policy_selection selection;
    double r;
    int score;
    bool by_head;
    int64_t refresh;
    double map[8][8][TOKENS_ALL][TOKENS_ALL]; /* [layer, set, query, position] */
};

static void choose(void *user, const tiny_cache *c)
{
    struct alisa *s = user;
    int64_t n = c->p, k = (int64_t)floor((double)n * s->r / 2 + 0.5), steps = c->p - c->prompt + 1;
    bool dense;

    if (k < 1) k = 1;
    dense = c->p < c->prompt || 2 * k >= n || (s->refresh > 0 && steps % s->refresh == 0);
    for (int64_t g = 0; g < c->m->key_heads; g++) {
        double sum[TOKENS_ALL] = {0};
        bool older[TOKENS_ALL], picked[TOKENS_ALL];
        int64_t from = s->score == LOCAL ? n - k : s->score == LAST ? n - 1 : 0;
        for (int64_t j = 0; j < n; j++) {
            older[j] = j < n - k;
            for (int64_t t = from; t < n; t++)
                sum[j] += s->map[c->l][s->by_head ? g : 0][t][j];
        }
        if (!dense) policy_pick(sum, older, n, k, true, 0, picked);
        for (int64_t j = 0; j <= n; j++)
            s->selection.sees[c->l][g][j] = dense || j >= n - k || picked[j];
    }
}

static void after(void *user, tiny_cache *c)
{
    struct alisa *s = user;
    int64_t group = c->m->heads / c->m->key_heads;

    for (int64_t h = 0; h < c->m->heads; h++)
        for (int64_t j = 0; j <= c->p; j++)
            s->map[c->l][s->by_head ? h / group : 0][c->p][j] += c->weight[h * c->count + j];
}

static void begin_with(const tiny_model *m, tiny_policy *twin, double r, int score, bool by_head, int64_t refresh)
{
    struct alisa *s = calloc(1, sizeof *s);

    s->r = r;
    s->score = score;
    s->by_head = by_head;
    s->refresh = refresh;
    policy_selection_begin(m, twin, s, choose);
    twin->after = after;
}

static void begin(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.2, LOCAL, false, 0);
}

static void begin_wide(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.7, LOCAL, true, 7);
}

static void begin_global(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.3, GLOBAL, false, 0);
}

static void begin_global_heads(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.3, GLOBAL, true, 5);
}

static void begin_last(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.25, LAST, false, 0);
}

static void begin_least(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 0.001, LAST, true, 0);
}

const policy_case policy_alisa = {"alisa", "alisa:r=1", begin, policy_selection_end, policy_selection_read};
const policy_case policy_alisa_wide = {"alisa:r=0.7,sets=kv,refresh=7", "alisa:r=1,sets=kv", begin_wide,
                                       policy_selection_end, policy_selection_read};
const policy_case policy_alisa_global = {"alisa:r=0.3,score=global", "alisa:r=1,score=global", begin_global,
                                         policy_selection_end, policy_selection_read};
const policy_case policy_alisa_global_heads = {"alisa:r=0.3,score=global,sets=kv,refresh=5", "alisa:refresh=1",
                                               begin_global_heads, policy_selection_end, policy_selection_read};
const policy_case policy_alisa_last = {"alisa:r=0.25,score=last", "alisa:r=1,score=last", begin_last,
                                       policy_selection_end, policy_selection_read};
const policy_case policy_alisa_least = {"alisa:r=0.001,score=last,sets=kv,bits=16,resident=0,recompute=0", NULL,
                                        begin_least, policy_selection_end, policy_selection_read};
