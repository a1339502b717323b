/* What twins of policies share: choosing by scores, one after the other, and what selections read. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

/* Whether j comes before `best` (-1: nothing yet). */
static bool better(const double *score, int64_t j, int64_t best, bool higher)
{
    if (best < 0 || score[j] > score[best]) return true;
    return higher && score[j] == score[best];
}

static int64_t best_of(const double *score, const bool *candidate, const bool *picked, int64_t count, bool higher)
{
    int64_t best = -1;

    for (int64_t j = 0; j < count; j++)
        if (candidate[j] && !picked[j] && better(score, j, best, higher)) best = j;
    return best;
}

void policy_pick(const double *score, const bool *candidate, int64_t count, int64_t k, bool higher, double scale,
                 bool *picked)
{
    int64_t last = -1, next;

    for (int64_t j = 0; j < count; j++)
        picked[j] = false;
    for (int64_t n = 0; n < k; n++) {
        next = best_of(score, candidate, picked, count, higher);
        if (next < 0) return;
        picked[last = next] = true;
    }
    next = best_of(score, candidate, picked, count, higher);
    if (last < 0 || next < 0 || score[last] == score[next]) return;
    if (scale == 0) scale = fmax(fabs(score[last]), fabs(score[next]));
    policy_choice((score[last] - score[next]) / scale);
}

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    policy_selection *selection = user;

    if (selection->next[c->l] != c->p + 1) selection->choose(user, c);
    selection->next[c->l] = c->p + 1;
    return selection->sees[c->l][g][j];
}

void policy_selection_begin(const tiny_model *m, tiny_policy *twin, void *user,
                            void (*choose)(void *user, const tiny_cache *c))
{
    policy_selection *selection = user;

    selection->choose = choose;
    selection->layers = m->layers;
    selection->key_heads = m->key_heads;
    for (int64_t l = 0; l < m->layers; l++)
        for (int64_t g = 0; g < m->key_heads; g++)
            for (int64_t j = 0; j < TOKENS_ALL; j++) /* layers with a window read what they hold */
                selection->sees[l][g][j] = TOKENS_ALL - 1 - j < m->window || tiny_sees_all(m, l);
    *twin = (tiny_policy){.sees = sees, .user = user};
}

void policy_selection_end(tiny_policy *twin)
{
    free(twin->user);
}

const bool *policy_selection_read(const tiny_policy *twin)
{
    policy_selection *selection = twin->user;

    for (int64_t l = 0; l < selection->layers; l++)
        for (int64_t g = 0; g < selection->key_heads; g++)
            for (int64_t j = 0; j < TOKENS_ALL; j++)
                selection->selected[(l * selection->key_heads + g) * TOKENS_ALL + j] = selection->sees[l][g][j];
    return selection->selected;
}
