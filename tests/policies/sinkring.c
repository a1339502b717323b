/* StreamingLLM from its definition: token p sees j < sink and p - j < window; what it saw remains. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

enum { SINK = 3, WINDOW = 9 };

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    (void)user;
    (void)g;
    return j < SINK || c->p - j < WINDOW;
}

static void after(void *user, tiny_cache *c)
{
    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j <= c->p; j++)
            tiny_held(c, c->l, g)[j] = sees(user, c, g, j);
}

static void drop(void *user, tiny_cache *c)
{
    after(user, c);
}

static void begin(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){.sees = sees, .after = after};
}

/* Everything is seen until the prompt ends. */
static bool sees_prompt(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    return c->p < c->prompt || sees(user, c, g, j);
}

static void after_prompt(void *user, tiny_cache *c)
{
    if (c->p >= c->prompt) after(user, c);
}

static void begin_dense(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){.sees = sees_prompt, .after = after_prompt, .act = drop};
}

/* Once the cache is full, sinks stand right before the window: at distance sink + window - 1 - j. */
static double logit(void *user, const tiny_cache *c, int64_t h, int64_t j)
{
    const tiny_model *m = c->m;
    int64_t D = m->key_dim, g = h / (m->heads / m->key_heads), last = SINK + WINDOW - 1;
    double q[1024], dot = 0;

    (void)user;
    for (int64_t d = 0; d < D; d++)
        q[d] = c->q[(c->p * m->heads + h) * D + d];
    if (j < SINK && c->p > last) tiny_rope(m, c->l, last - c->p, q);
    for (int64_t d = 0; d < D; d++)
        dot += q[d] * c->k[(j * m->key_heads + g) * D + d];
    return dot / sqrt((double)D);
}

static void begin_cache(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){.sees = sees, .after = after, .logit = logit};
}

const policy_case policy_sinkring = {"sinkring:sink=3,window=9", "sinkring:sink=3,window=90", begin, NULL, NULL};
const policy_case policy_sinkring_budget = {"sinkring:sink=3,budget=12", "sinkring:budget=90", begin, NULL, NULL};
const policy_case policy_sinkring_dense = {"sinkring:sink=3,window=9,prefill=dense",
                                           "sinkring:window=100,prefill=dense", begin_dense, NULL, NULL};
const policy_case policy_sinkring_cache = {"sinkring:sink=3,window=9,rope=cache", "sinkring:window=100,rope=cache",
                                           begin_cache, NULL, NULL};
