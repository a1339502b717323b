/* CompressKV from sheet 151, part C: the mean of the voters' smoothed sums, one set a layer, layers by importance. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "policies/window_twin.h"

void compresskv_write_plan(const tiny_model *m, FILE *file);

struct twin {
    window_twin window;
    int64_t budget;
    bool some, by_error; /* heads of the plan vote; budgets by its importance */
};

/* The plan: two voters a layer, the higher head named first, and importance that grows and has equals. */
static bool votes(const tiny_model *m, int64_t l, int64_t h)
{
    return h == l % m->heads || h == (l + 2) % m->heads;
}

static double importance(const tiny_model *m, int64_t l)
{
    double sum = 0;

    for (int64_t i = 0; i < m->layers; i++)
        sum += (double)(i / 2 + 1);
    return (double)(l / 2 + 1) / sum;
}

void compresskv_write_plan(const tiny_model *m, FILE *file)
{
    fprintf(file, "{\"note\": \"unknown keys are ignored\", \"heads\": [");
    for (int64_t l = 0; l < m->layers; l++) {
        int count = 0;
        fprintf(file, "%s[", l ? ", " : "");
        for (int64_t h = m->heads - 1; h >= 0; h--)
            if (votes(m, l, h)) fprintf(file, "%s%d", count++ ? ", " : "", (int)h);
        fprintf(file, "]");
    }
    fprintf(file, "], \"importance\": [");
    for (int64_t l = 0; l < m->layers; l++)
        fprintf(file, "%s%.17g", l ? ", " : "", importance(m, l));
    fprintf(file, "]}\n");
}

static void after(void *user, tiny_cache *c)
{
    struct twin *t = user;

    window_twin_add(&t->window, c);
}

/* The sheet's layer budgets over the layers that see everything, for budgets that no bound of 3c cuts. */
static int64_t budget_of(const struct twin *t, const tiny_cache *c)
{
    const tiny_model *m = c->m;
    int64_t rows[16], layers = 0, total, sum = 0;
    double all = 0;

    for (int64_t l = 0; l < m->layers; l++) {
        layers += tiny_sees_all(m, l);
        all += tiny_sees_all(m, l) ? importance(m, l) : 0;
    }
    if (!t->by_error) return t->budget;
    if (layers == m->layers) all = 1;
    total = t->budget * layers;
    for (int64_t l = 0; l < m->layers; l++) {
        rows[l] = tiny_sees_all(m, l) ? 32 + (int64_t)rint(importance(m, l) / all * (double)(total - 32 * layers)) : 0;
        sum += rows[l];
    }
    for (int64_t l = m->layers - 1; sum < total;) { /* importance does not fall: the last are the most important */
        int64_t first = l;
        while (first > 0 && importance(m, first - 1) == importance(m, l))
            first--;
        for (int64_t i = first; i <= l && sum < total; i++)
            if (rows[i] > 0) rows[i]++, sum++;
        l = first > 0 ? first - 1 : m->layers - 1;
    }
    while (sum > total)
        for (int64_t l = 0; l < m->layers && sum > total; l++)
            if (rows[l] > 32) rows[l]--, sum--;
    return rows[c->l];
}

static void act(void *user, tiny_cache *c)
{
    struct twin *t = user;
    int64_t columns = c->prompt - t->window.window, voters = 0;
    double score[TOKENS_PROMPT] = {0};
    bool kept[TOKENS_PROMPT] = {0};

    for (int64_t h = 0; h < c->m->heads; h++)
        voters += !t->some || votes(c->m, c->l, h);
    for (int64_t h = 0; h < c->m->heads; h++)
        if (!t->some || votes(c->m, c->l, h)) window_twin_score(&t->window, c, h, (double)voters, columns, score);
    policy_choice(window_twin_best(score, columns, budget_of(t, c) - t->window.window, kept));
    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j < columns; j++)
            tiny_held(c, c->l, g)[j] = kept[j];
}

static void begin(const tiny_model *m, tiny_policy *twin, int64_t budget, int64_t kernel, bool some, bool by_error)
{
    struct twin *t = calloc(1, sizeof *t);

    window_twin_begin(&t->window, m, 8, kernel, kernel != 5);
    t->budget = budget;
    t->some = some;
    t->by_error = by_error;
    *twin = (tiny_policy){.after = after, .act = act, .user = t};
}

static void end(tiny_policy *twin)
{
    struct twin *t = twin->user;

    window_twin_end(&t->window);
    free(t);
}

static void begin_alone(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 18, 3, false, false);
}

static void begin_plan(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 39, 5, true, true);
}

static void begin_all(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 37, 5, false, true);
}

static void begin_uniform(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, 14, 5, true, false);
}

const policy_case policy_compresskv = {"compresskv:budget=18,kernel=3,pool=max", "compresskv:budget=90", begin_alone,
                                       end, NULL};
const policy_case policy_compresskv_plan = {"compresskv:budget=39,plan=@", "compresskv:budget=90,plan=@", begin_plan,
                                            end, NULL};
const policy_case policy_compresskv_all = {"compresskv:budget=37,plan=@,heads=all", "compresskv:plan=@,heads=all",
                                           begin_all, end, NULL};
const policy_case policy_compresskv_uniform = {"compresskv:budget=14,plan=@,layer_budget=uniform",
                                               "compresskv:plan=@,layer_budget=uniform", begin_uniform, end, NULL};
