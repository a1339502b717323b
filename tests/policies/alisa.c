/* Sparse window attention from its definition, with the whole map of weights: behind n rows the k newest are read and
 * the k older ones on which the last k rows of the map (or all, or the last one) have put most.
 *
 * With 8 bits, blocks of 64 rows (a prompt's last one is shorter) are what their codes say once all of a block is older
 * than the k newest; and the map of a prompt is made again when it ends, from keys as their codes will have them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policies/policies.h"

enum { LOCAL, GLOBAL, LAST };

struct alisa {
    policy_selection selection;
    double r;
    int score;
    bool by_head;
    int64_t refresh;
    bool codes;
    int64_t coded[8];                         /* [layer] rows before this one are codes */
    double map[8][8][TOKENS_ALL][TOKENS_ALL]; /* [layer, set, query, position] */
};

static int64_t half_of(const struct alisa *s, int64_t n)
{
    int64_t k = (int64_t)floor((double)n * s->r / 2 + 0.5);

    return k < 1 ? 1 : k;
}

/* ---- 8 bits ------------------------------------------------------------------------------------------------------ */

/* Rounding that f32 may do the other way is no clear choice. */
static double rounded(double x)
{
    policy_choice(fabs(x - floor(x) - 0.5) / 5);
    return round(x);
}

/* One channel of `count` rows that lie `stride` apart, in place. */
static void code_channel(double *x, int64_t count, int64_t stride)
{
    double low = x[0], high = x[0];

    for (int64_t i = 0; i < count; i++) {
        low = fmin(low, x[i * stride]);
        high = fmax(high, x[i * stride]);
    }
    if (low == high) return;
    double lambda = (high - low) / 255, z = rounded(-low / lambda);
    for (int64_t i = 0; i < count; i++) {
        double q = rounded(x[i * stride] / lambda) + z;
        x[i * stride] = lambda * ((q < 0 ? 0 : q > 255 ? 255 : q) - z);
    }
}

static void code(double *rows, int64_t from, int64_t to, int64_t channels)
{
    for (int64_t c = 0; c < channels; c++)
        code_channel(rows + from * channels + c, to - from, channels);
}

static int64_t end_of_block(const tiny_cache *c, int64_t from)
{
    return from < c->prompt && from + 64 > c->prompt ? c->prompt : from + 64;
}

/* Blocks that n rows leave behind. */
static void code_old(struct alisa *s, const tiny_cache *c, int64_t n)
{
    const tiny_model *m = c->m;

    for (int64_t from = s->coded[c->l], to; (to = end_of_block(c, from)) <= n - half_of(s, n); from = to) {
        code((double *)(uintptr_t)c->k, from, to, m->key_heads * m->key_dim);
        code((double *)(uintptr_t)c->v, from, to, m->key_heads * m->value_dim);
        s->coded[c->l] = to;
    }
}

/* What query t of head h puts on rows 0 .. t of these keys, added to a row of the map. */
static void add_weights(const tiny_cache *c, const double *k, int64_t h, int64_t t, double *map)
{
    const tiny_model *m = c->m;
    double weight[TOKENS_ALL], most = -INFINITY, sum = 0;

    for (int64_t j = 0; j <= t; j++) {
        weight[j] = 0;
        for (int64_t d = 0; d < m->key_dim; d++)
            weight[j] += c->q[(t * m->heads + h) * m->key_dim + d] *
                         k[(j * m->key_heads + h * m->key_heads / m->heads) * m->key_dim + d];
        weight[j] /= sqrt((double)m->key_dim);
        if (strcmp(m->architecture, "gemma2") == 0) weight[j] = 50 * tanh(weight[j] / 50);
        most = fmax(most, weight[j]);
    }
    for (int64_t j = 0; j <= t; j++)
        sum += weight[j] = exp(weight[j] - most);
    for (int64_t j = 0; j <= t; j++)
        map[j] += weight[j] / sum;
}

static void act(void *user, tiny_cache *c)
{
    struct alisa *s = user;
    const tiny_model *m = c->m;
    int64_t channels = m->key_heads * m->key_dim;
    double *k = calloc((size_t)(c->prompt * channels), sizeof *k);

    memcpy(k, c->k, (size_t)(c->prompt * channels) * sizeof *k);
    for (int64_t from = 0; from < c->prompt; from = end_of_block(c, from))
        code(k, from, end_of_block(c, from), channels);
    for (int64_t t = 0; t < c->prompt && s->score != GLOBAL; t++) {
        memset(s->map[c->l][0][t], 0, sizeof s->map[c->l][0][t]);
        for (int64_t g = 1; g < m->key_heads; g++)
            memset(s->map[c->l][g][t], 0, sizeof s->map[c->l][g][t]);
        for (int64_t h = 0; h < m->heads; h++)
            add_weights(c, k, h, t, s->map[c->l][s->by_head ? h * m->key_heads / m->heads : 0][t]);
    }
    free(k);
    code_old(s, c, c->prompt);
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

static void choose(void *user, const tiny_cache *c)
{
    struct alisa *s = user;
    int64_t n = c->p, k = half_of(s, n), steps = c->p - c->prompt + 1;
    bool dense;

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
    if (s->codes && c->p >= c->prompt) code_old(s, c, c->p + 1);
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

/* ---- 8 bits ------------------------------------------------------------------------------------------------------ */

static void begin_codes(const tiny_model *m, tiny_policy *twin, double r, int score, bool by_head, int64_t refresh)
{
    begin_with(m, twin, r, score, by_head, refresh);
    ((struct alisa *)twin->user)->codes = true;
    twin->act = act;
}

static void codes(const tiny_model *m, tiny_policy *twin)
{
    begin_codes(m, twin, 0.2, LOCAL, false, 0);
}

static void codes_heads(const tiny_model *m, tiny_policy *twin)
{
    begin_codes(m, twin, 0.4, LOCAL, true, 3);
}

static void codes_global(const tiny_model *m, tiny_policy *twin)
{
    begin_codes(m, twin, 0.3, GLOBAL, false, 0);
}

static void codes_last(const tiny_model *m, tiny_policy *twin)
{
    begin_codes(m, twin, 0.05, LAST, true, 0);
}

static const policy_case eight[] = {
    {"alisa:bits=8", NULL, codes, policy_selection_end, policy_selection_read},
    {"alisa:r=0.4,sets=kv,refresh=3,bits=8,resident=1", NULL, codes_heads, policy_selection_end, policy_selection_read},
    {"alisa:r=0.3,score=global,bits=8", NULL, codes_global, policy_selection_end, policy_selection_read},
    {"alisa:r=0.05,score=last,sets=kv,bits=8,resident=70", NULL, codes_last, policy_selection_end,
     policy_selection_read},
};

const policy_case *const policy_code_cases[] = {&eight[0], &eight[1], &eight[2], &eight[3], NULL};
