/* HyLRA from its definition: layers that choose read the chunks of sinks and recent rows and the best of the others by
 * one of three scores; layers that reuse read what their source chose; full ones read everything. */
#include <math.h>
#include <stdlib.h>

#include "policies/policies.h"

void hylra_write_plan(const tiny_model *m, FILE *file);

enum { CHUNK = 4, SINK = 3, RECENT = 9, BITS = 128 };
enum { MEAN, EXACT, HASH };
enum { OWN, REUSE, FULL };

struct hylra {
    policy_selection selection;
    int64_t keep, recent, activate_at;
    int estimator;
};

/* Of layers without a window: the first chooses, the second reads what the first chose, the third reads everything. */
static int role(const tiny_model *m, int64_t l)
{
    int64_t place = 0;

    for (int64_t n = 0; n < l; n++)
        place += tiny_sees_all(m, n);
    return place == 1 ? REUSE : place == 2 ? FULL : OWN;
}

static int64_t first_acted(const tiny_model *m)
{
    int64_t l = 0;

    while (!tiny_sees_all(m, l))
        l++;
    return l;
}

void hylra_write_plan(const tiny_model *m, FILE *file)
{
    fprintf(file, "{\"model\":\"a key of no meaning\",\"plan\":[");
    for (int64_t l = 0; l < m->layers; l++)
        fprintf(file, "%s%d", l > 0 ? "," : "", tiny_sees_all(m, l) && role(m, l) == REUSE ? (int)first_acted(m) : -1);
    fprintf(file, "],\"full\":[");
    for (int64_t l = 0, n = 0; l < m->layers; l++)
        if (tiny_sees_all(m, l) && role(m, l) == FULL) fprintf(file, "%s%d", n++ > 0 ? "," : "", (int)l);
    fprintf(file, "]}\n");
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

static double dot(const tiny_cache *c, int64_t h, int64_t j)
{
    const tiny_model *m = c->m;
    int64_t g = h / (m->heads / m->key_heads);
    double sum = 0;

    for (int64_t d = 0; d < m->key_dim; d++)
        sum += c->q[(c->p * m->heads + h) * m->key_dim + d] * c->k[(j * m->key_heads + g) * m->key_dim + d];
    return sum;
}

/* q . mean key of the chunk. */
static double by_mean(const tiny_cache *c, int64_t h, int64_t from, int64_t to)
{
    double sum = 0;

    for (int64_t j = from; j < to; j++)
        sum += dot(c, h, j);
    return sum / (double)(to - from);
}

/* Softmax over all rows, summed over the chunk. */
static double by_weight(const tiny_cache *c, int64_t h, int64_t from, int64_t to)
{
    double all = 0, sum = 0;

    for (int64_t j = 0; j <= c->p; j++) {
        double s = dot(c, h, j) / sqrt((double)c->m->key_dim);
        if (strcmp(c->m->architecture, "gemma2") == 0) s = 50 * tanh(s / 50);
        all += exp(s);
        if (j >= from && j < to) sum += exp(s);
    }
    return sum / all;
}

/* splitmix64 of a direction's and channel's number, whose last bit is the sign. */
static double direction(int64_t bit, int64_t d)
{
    uint64_t x = (uint64_t)(d * BITS + bit) + 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) & 1 ? 1 : -1;
}

/* Signs of the projections of x; `doubtful` where rounding may decide: next to 0 beside the length of x. */
static void signs(const double *x, int64_t D, bool *sign, bool *doubtful)
{
    double square = 0;

    for (int64_t d = 0; d < D; d++)
        square += x[d] * x[d];
    for (int64_t b = 0; b < BITS; b++) {
        double sum = 0;
        for (int64_t d = 0; d < D; d++)
            sum += direction(b, d) * x[d];
        sign[b] = sum > 0;
        doubtful[b] = fabs(sum) < 2e-5 * sqrt(square);
    }
}

/* The fewest signs in which the query and a row of the chunk differ, at least and at most. */
static void by_hash(const tiny_cache *c, int64_t h, int64_t from, int64_t to, double *least, double *most)
{
    const tiny_model *m = c->m;
    int64_t g = h / (m->heads / m->key_heads), D = m->key_dim;
    bool q[BITS], k[BITS], q_doubt[BITS], k_doubt[BITS];

    signs(c->q + (c->p * m->heads + h) * D, D, q, q_doubt);
    *least = *most = BITS;
    for (int64_t j = from; j < to; j++) {
        double low = 0, high = 0;
        signs(c->k + (j * m->key_heads + g) * D, D, k, k_doubt);
        for (int64_t b = 0; b < BITS; b++) {
            bool doubt = q_doubt[b] || k_doubt[b];
            low += !doubt && q[b] != k[b];
            high += doubt || q[b] != k[b];
        }
        *least = fmin(*least, low);
        *most = fmin(*most, high);
    }
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

/* Scores of chunks for a key-value head: the best over its group, at least and at most. */
static void score(const struct hylra *s, const tiny_cache *c, int64_t g, int64_t chunks, double *low, double *high)
{
    int64_t group = c->m->heads / c->m->key_heads;

    for (int64_t n = 0; n < chunks; n++) {
        int64_t from = n * CHUNK, to = from + CHUNK < c->p + 1 ? from + CHUNK : c->p + 1;
        low[n] = high[n] = -INFINITY;
        for (int64_t h = g * group; h < (g + 1) * group; h++) {
            double a, b;
            if (s->estimator == HASH) {
                by_hash(c, h, from, to, &b, &a);
                a = -a;
                b = -b;
            } else {
                a = b = s->estimator == MEAN ? by_mean(c, h, from, to) : by_weight(c, h, from, to);
            }
            low[n] = fmax(low[n], a);
            high[n] = fmax(high[n], b);
        }
    }
}

static void choose_head(struct hylra *s, const tiny_cache *c, int64_t g, int64_t chunks)
{
    double low[TOKENS_ALL] = {0}, high[TOKENS_ALL] = {0}, scale = 0, worst = INFINITY;
    bool forced[TOKENS_ALL] = {0}, rest[TOKENS_ALL] = {0}, picked[TOKENS_ALL];
    int64_t left = s->keep / CHUNK;

    score(s, c, g, chunks, low, high);
    for (int64_t n = 0; n < chunks; n++) {
        forced[n] = n * CHUNK < SINK || (n + 1) * CHUNK > c->p + 1 - s->recent;
        if (s->recent == 0) forced[n] = n * CHUNK < SINK;
        rest[n] = !forced[n];
        left -= forced[n];
        if (s->estimator == MEAN) scale = fmax(scale, fabs(high[n]));
    }
    policy_pick(high, rest, chunks, left > 0 ? left : 0, false, scale, picked);
    for (int64_t n = 0; n < chunks; n++)
        if (picked[n]) worst = fmin(worst, high[n]);
    for (int64_t n = 0; n < chunks; n++) /* a sign that may turn could decide */
        if (rest[n] && left > 0 && low[n] != high[n] && low[n] <= worst && worst <= high[n]) policy_choice(0);
    for (int64_t j = 0; j <= c->p; j++)
        s->selection.sees[c->l][g][j] = forced[j / CHUNK] || picked[j / CHUNK];
}

static void choose(void *user, const tiny_cache *c)
{
    struct hylra *s = user;
    int64_t n = c->p + 1, chunks = (n + CHUNK - 1) / CHUNK;
    bool dense = c->p < c->prompt || n < s->activate_at || chunks <= s->keep / CHUNK || role(c->m, c->l) == FULL;

    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j < n; j++)
            s->selection.sees[c->l][g][j] = dense || s->selection.sees[first_acted(c->m)][g][j];
    for (int64_t g = 0; g < c->m->key_heads && !dense && role(c->m, c->l) == OWN; g++)
        choose_head(s, c, g, chunks);
}

static void begin_with(const tiny_model *m, tiny_policy *twin, int64_t keep, int64_t recent, int64_t activate_at,
                       int estimator)
{
    struct hylra *s = calloc(1, sizeof *s);

    s->keep = keep;
    s->recent = recent;
    s->activate_at = activate_at;
    s->estimator = estimator;
    policy_selection_begin(m, twin, s, choose);
}

static void begin_mean(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 30, RECENT, 0, MEAN);
}

static void begin_exact(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 28, RECENT, 70, EXACT);
}

static void begin_hash(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 32, RECENT, 0, HASH);
}

/* Nothing recent is forced: the last, short chunk has to earn its place. */
static void begin_free(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, 20, 0, 0, MEAN);
}

/* More is forced than is to be kept. */
static void begin_forced(const tiny_model *m, tiny_policy *twin)
{
    begin_with(m, twin, CHUNK, RECENT, 0, EXACT);
}

#define HYLRA "hylra:plan=@,chunk=4,sink=3"
const policy_case policy_hylra = {HYLRA ",recent=9,keep=30,activate_at=0", HYLRA ",keep=92,activate_at=0", begin_mean,
                                  policy_selection_end, policy_selection_read};
const policy_case policy_hylra_exact = {HYLRA ",recent=9,keep=28,activate_at=70,estimator=exact",
                                        HYLRA ",keep=92,activate_at=0,estimator=exact", begin_exact,
                                        policy_selection_end, policy_selection_read};
const policy_case policy_hylra_hash = {HYLRA ",recent=9,keep=32,activate_at=0,estimator=hash",
                                       "hylra:plan=@,estimator=hash", begin_hash, policy_selection_end,
                                       policy_selection_read};
const policy_case policy_hylra_free = {HYLRA ",recent=0,keep=20,activate_at=0", NULL, begin_free, policy_selection_end,
                                       policy_selection_read};
const policy_case policy_hylra_forced = {HYLRA ",recent=9,keep=4,activate_at=0,estimator=exact", NULL, begin_forced,
                                         policy_selection_end, policy_selection_read};
