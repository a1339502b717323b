/* GUI-KV from sheet 021: steps 1 to 3 for each query head, in doubles. */
#include <math.h>
#include <stdlib.h>

#include "policies/window_twin.h"

enum { FRAMES = 4, MOST_DIM = 64 };

struct setting {
    double percent, alpha, tau;
    int64_t window, rank;
    int frames;
    int64_t frame[FRAMES][2]; /* start, end */
    bool residual, svd, query;
};

struct twin {
    struct setting set;
    window_twin window;
};

static int64_t cap_of(const struct setting *s)
{
    int64_t cap = (int64_t)floor(TOKENS_PROMPT * s->percent / 100);

    return cap < 3 ? 3 : cap;
}

static void after(void *user, tiny_cache *c)
{
    struct twin *t = user;

    window_twin_add(&t->window, c);
}

/* ---- step 2 ------------------------------------------------------------------------------------------------------ */

static void add_saliency(const struct setting *s, const tiny_cache *c, int64_t from, int64_t to, double *score)
{
    double norm[TOKENS_PROMPT], mean = 0, square = 0, sum = 0, deviation;

    for (int64_t j = from; j < to; j++) {
        norm[j] = 0;
        for (int64_t i = 0; i < c->m->width; i++)
            norm[j] += pow((s->residual ? c->residual : c->input)[j * c->m->width + i], 2);
        norm[j] = sqrt(norm[j]);
        mean += norm[j] / (double)(to - from);
    }
    for (int64_t j = from; j < to; j++)
        square += pow(norm[j] - mean, 2);
    deviation = sqrt(square / (double)(to - from - 1));
    for (int64_t j = from; j < to; j++)
        sum += exp((norm[j] - mean) / (deviation + 1e-8) / s->tau);
    for (int64_t j = from; j < to; j++)
        score[j] += s->alpha * exp((norm[j] - mean) / (deviation + 1e-8) / s->tau) / sum;
}

/* ---- step 3 ------------------------------------------------------------------------------------------------------ */

static double dot(const double *x, const double *y, int64_t count)
{
    double sum = 0;

    for (int64_t d = 0; d < count; d++)
        sum += x[d] * y[d];
    return sum;
}

/* Orthogonalises rows pair by pair until they are all at right angles (Hestenes): they become singular vectors, each
 * as long as its singular value.  Returns how far the rank-th is above the next. */
static double sort_directions(double rows[][MOST_DIM], int64_t count, int64_t dim, int64_t rank)
{
    for (int sweep = 0; sweep < 60; sweep++)
        for (int64_t a = 0; a < count; a++)
            for (int64_t b = a + 1; b < count; b++) {
                double x = dot(rows[a], rows[a], dim), y = dot(rows[b], rows[b], dim), z = dot(rows[a], rows[b], dim);
                double angle = 0.5 * atan2(2 * z, x - y), p = cos(angle), q = sin(angle);
                for (int64_t d = 0; d < dim; d++) {
                    double u = rows[a][d], v = rows[b][d];
                    rows[a][d] = p * u + q * v;
                    rows[b][d] = p * v - q * u;
                }
            }
    for (int64_t a = 0; a < count; a++)
        for (int64_t b = a + 1; b < count; b++)
            if (dot(rows[a], rows[a], dim) < dot(rows[b], rows[b], dim)) {
                double swapped[MOST_DIM];
                memcpy(swapped, rows[a], sizeof swapped);
                memcpy(rows[a], rows[b], sizeof swapped);
                memcpy(rows[b], swapped, sizeof swapped);
            }
    return rank < count ? 1 - dot(rows[rank], rows[rank], dim) / dot(rows[rank - 1], rows[rank - 1], dim) : 1;
}

/* What is left of x beside the span of `count` rows, which are orthogonal but for `first`: there they are any. */
static void leave_span(double rows[][MOST_DIM], int64_t count, int64_t dim, double *x)
{
    for (int64_t pass = 0; pass < 3; pass++)
        for (int64_t r = 0; r < count; r++) {
            double along = dot(rows[r], x, dim) / dot(rows[r], rows[r], dim);
            for (int64_t d = 0; d < dim; d++)
                x[d] -= along * rows[r][d];
        }
}

static void drop_redundant(const struct setting *s, const tiny_cache *c, int64_t g, int64_t columns, double *score)
{
    int64_t D = c->m->key_dim, from = s->frame[s->frames - 1][0], to = s->frame[s->frames - 1][1], count, zeros;
    double rows[TOKENS_PROMPT][MOST_DIM], residual[TOKENS_PROMPT] = {0}, clear = 1;
    int64_t older[TOKENS_PROMPT], olders = 0, rank;
    bool spent[TOKENS_PROMPT] = {0};

    to = to < columns ? to : columns;
    count = to - from;
    rank = s->rank < count ? s->rank : count;
    rank = rank < D ? rank : D;
    for (int64_t j = 0; j < count; j++)
        memcpy(rows[j], c->k + ((from + j) * c->m->key_heads + g) * D, (size_t)D * sizeof(double));
    if (s->svd) clear = sort_directions(rows, count, D, rank);
    for (int64_t r = 0; r < rank && !s->svd; r++)
        leave_span(rows, r, D, rows[r]);
    for (int f = 0; f < s->frames - 1; f++)
        for (int64_t j = s->frame[f][0]; j < s->frame[f][1]; j++) {
            double x[MOST_DIM];
            memcpy(x, c->k + (j * c->m->key_heads + g) * D, (size_t)D * sizeof(double));
            leave_span(rows, rank, D, x);
            residual[olders] = -sqrt(dot(x, x, D));
            older[olders++] = j;
        }
    zeros = (int64_t)((1 - (double)cap_of(s) / (double)c->prompt) * (double)olders);
    /* directions that are nearly as strong as those beyond the rank make residuals less certain */
    policy_choice(clear * window_twin_best(residual, olders, zeros, spent));
    for (int64_t t = 0; t < olders; t++)
        if (spent[t]) score[older[t]] = 0;
}

/* ---- step 4 ------------------------------------------------------------------------------------------------------ */

static void score_head(const struct twin *t, const tiny_cache *c, int64_t h, int64_t columns, double *score)
{
    const struct setting *s = &t->set;
    int64_t group = c->m->heads / c->m->key_heads;

    window_twin_score(&t->window, c, h, 1, columns, score);
    if (s->frames > 0) {
        int64_t end = s->frame[s->frames - 1][1];
        add_saliency(s, c, s->frame[s->frames - 1][0], end < columns ? end : columns, score);
    }
    if (s->frames > 1) drop_redundant(s, c, h / group, columns, score);
}

static void act(void *user, tiny_cache *c)
{
    struct twin *t = user;
    int64_t group = c->m->heads / c->m->key_heads, window = t->window.window, columns = c->prompt - window;

    for (int64_t g = 0; g < c->m->key_heads; g++) {
        bool held[TOKENS_PROMPT] = {0};
        double mean[TOKENS_PROMPT] = {0};
        for (int64_t h = g * group; h < (g + 1) * group; h++) {
            double score[TOKENS_PROMPT] = {0};
            bool kept[TOKENS_PROMPT] = {0};
            score_head(t, c, h, columns, score);
            for (int64_t j = 0; j < columns; j++)
                mean[j] += score[j] / (double)group;
            if (!t->set.query) continue;
            policy_choice(window_twin_best(score, columns, cap_of(&t->set) - window, kept));
            for (int64_t j = 0; j < columns; j++)
                held[j] = held[j] || kept[j];
        }
        if (!t->set.query) policy_choice(window_twin_best(mean, columns, cap_of(&t->set) - window, held));
        for (int64_t j = 0; j < columns; j++)
            tiny_held(c, c->l, g)[j] = held[j];
    }
}

static void begin(const tiny_model *m, tiny_policy *twin, const struct setting *set)
{
    struct twin *t = calloc(1, sizeof *t);
    int64_t window = set->window;

    if (window > cap_of(set) - 2) window = cap_of(set) - 2;
    window_twin_begin(&t->window, m, window < 1 ? 1 : window, 5, false);
    t->set = *set;
    *twin = (tiny_policy){.after = after, .act = act, .user = t};
}

static void end(tiny_policy *twin)
{
    struct twin *t = twin->user;

    window_twin_end(&t->window);
    free(t);
}

static void begin_bare(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){.percent = 30, .window = 5});
}

static void begin_small(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){.percent = 3, .window = 8});
}

static void begin_frames(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){20, 2, 3.5, 8, 6, 3, {{3, 15}, {15, 27}, {30, 45}}, false, false, false});
}

/* The newest frame reaches into the window. */
static void begin_svd(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){25, 0.5, 1, 6, 8, 2, {{2, 20}, {21, 58}}, true, true, false});
}

static void begin_query(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){20, 0, 3.5, 3, 32, 2, {{0, 20}, {25, 40}}, false, false, true});
}

static void begin_one(const tiny_model *m, tiny_policy *twin)
{
    begin(m, twin, &(struct setting){40, 1, 2, 64, 32, 1, {{7, 19}}, true, false, true});
}

const policy_case policy_guikv = {"guikv:budget_pct=30,window=5", "guikv:budget_pct=100", begin_bare, end, NULL};
const policy_case policy_guikv_small = {"guikv:budget_pct=3", "guikv:budget_pct=100,window=1", begin_small, end, NULL};
const policy_case policy_guikv_frames = {"guikv:rank=6,frames=3-15+15-27+30-45",
                                         "guikv:budget_pct=100,frames=3-15+15-27+30-45", begin_frames, end, NULL};
const policy_case policy_guikv_svd = {
    "guikv:budget_pct=25,alpha=0.5,tau=1,window=6,rank=8,norm=residual,subspace=svd,frames=2-20+21-58",
    "guikv:budget_pct=100,subspace=svd,frames=2-20+21-58", begin_svd, end, NULL};
const policy_case policy_guikv_query = {"guikv:alpha=0,window=3,per=query,frames=0-20+25-40",
                                        "guikv:budget_pct=100,per=query", begin_query, end, NULL};
const policy_case policy_guikv_one = {"guikv:budget_pct=40,alpha=1,tau=2,window=64,norm=residual,per=query,frames=7-19",
                                      "guikv:budget_pct=100,norm=residual", begin_one, end, NULL};
