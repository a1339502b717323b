/* H2O from its definition: a row's score is all the weight that queries so far gave it, summed over the heads of its
 * group; what remains is the newest rows and the best of the others, after the prompt and after each step. */
#include <stdlib.h>

#include "policies/policies.h"

struct h2o {
    int64_t budget, recent;
    double score[8][8][TOKENS_ALL]; /* [layer, key-value head, position] */
};

static void count_weights(struct h2o *s, const tiny_cache *c)
{
    int64_t group = c->m->heads / c->m->key_heads;

    for (int64_t h = 0; h < c->m->heads; h++)
        for (int64_t j = 0; j <= c->p; j++)
            s->score[c->l][h / group][j] += c->weight[h * c->count + j];
}

static void evict(void *user, tiny_cache *c)
{
    struct h2o *s = user;

    for (int64_t g = 0; g < c->m->key_heads; g++) {
        bool *held = tiny_held(c, c->l, g), older[TOKENS_ALL], picked[TOKENS_ALL];
        int64_t rows = 0, behind = 0;
        for (int64_t j = 0; j <= c->p; j++)
            rows += held[j];
        if (rows <= s->budget) continue;
        for (int64_t j = c->p; j >= 0; j--) {
            older[j] = held[j] && behind >= s->recent;
            behind += held[j];
        }
        policy_pick(s->score[c->l][g], older, c->p + 1, s->budget - s->recent, false, 0, picked);
        for (int64_t j = 0; j <= c->p; j++)
            held[j] = held[j] && (!older[j] || picked[j]);
    }
}

static void after(void *user, tiny_cache *c)
{
    count_weights(user, c);
    if (c->p >= c->prompt) evict(user, c);
}

static void begin_with(tiny_policy *twin, int64_t budget, int64_t recent)
{
    struct h2o *s = calloc(1, sizeof *s);

    s->budget = budget;
    s->recent = recent;
    *twin = (tiny_policy){.after = after, .act = evict, .user = s};
}

static void end(tiny_policy *twin)
{
    free(twin->user);
}

static void begin(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin_with(twin, 13, 6);
}

static void begin_recent(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin_with(twin, 13, 3);
}

static void begin_none(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin_with(twin, 9, 0);
}

/* The prompt fits, the text does not. */
static void begin_late(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin_with(twin, 70, 35);
}

const policy_case policy_h2o = {"h2o:budget=13", "h2o:budget=90", begin, end, NULL};
const policy_case policy_h2o_recent = {"h2o:budget=13,recent=3", "h2o:budget=1000,recent=0", begin_recent, end, NULL};
const policy_case policy_h2o_none = {"h2o:budget=9,recent=0", NULL, begin_none, end, NULL};
const policy_case policy_h2o_late = {"h2o:budget=70", "h2o", begin_late, end, NULL};
