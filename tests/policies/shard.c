/* S2-Attention from its definition: P - J < local, or (J + g step + offset) mod stride == 0 with step = max(1, stride /
 * query heads); the last key-value heads may be dense. */
#include <stdlib.h>

#include "policies/policies.h"

struct shard {
    int64_t block, local, stride, offset, dense_heads;
    bool homo;
};

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    const struct shard *s = user;
    int64_t P = c->p / s->block, J = j / s->block, step = s->stride / c->m->heads;

    if (step < 1) step = 1;
    if (s->homo) step = 0;
    if (c->m->key_heads - g <= s->dense_heads) return true;
    return P - J < s->local || (J + g * step + s->offset) % s->stride == 0;
}

static void after(void *user, tiny_cache *c)
{
    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j <= c->p; j++)
            if (!sees(user, c, g, j)) tiny_held(c, c->l, g)[j] = false;
}

static void begin(const struct shard *s, tiny_policy *twin)
{
    struct shard *own = malloc(sizeof *own);

    *own = *s;
    *twin = (tiny_policy){.sees = sees, .after = after, .user = own};
}

static void end(tiny_policy *twin)
{
    free(twin->user);
}

static void plain(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(&(struct shard){.block = 4, .local = 3, .stride = 4}, twin);
}

static void wide(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(&(struct shard){.block = 4, .local = 2, .stride = 13, .offset = 3}, twin);
}

static void homo(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(&(struct shard){.block = 5, .local = 1, .stride = 3, .homo = true}, twin);
}

static void dense(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(&(struct shard){.block = 4, .local = 2, .stride = 4, .dense_heads = 1}, twin);
}

static void tokens(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    begin(&(struct shard){.block = 1, .local = 7, .stride = 3}, twin);
}

const policy_case policy_shard = {"shard:block=4,local=3,stride=4", "shard:block=4,local=23", plain, end, NULL};
const policy_case policy_shard_wide = {"shard:block=4,local=2,stride=13,offset=3", "shard", wide, end, NULL};
const policy_case policy_shard_homo = {"shard:block=5,local=1,stride=3,homo=1", "shard:block=5,local=1,stride=1,homo=1",
                                       homo, end, NULL};
const policy_case policy_shard_dense = {"shard:block=4,local=2,stride=4,dense_heads=1",
                                        "shard:block=4,local=2,stride=1,dense_heads=1", dense, end, NULL};
const policy_case policy_shard_tokens = {"shard:block=1,local=7,stride=3", "shard:block=1,local=90", tokens, end, NULL};
