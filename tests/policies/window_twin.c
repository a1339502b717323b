#include "policies/window_twin.h"

#include <math.h>
#include <stdlib.h>

void window_twin_begin(window_twin *w, const tiny_model *m, int64_t window, int64_t kernel, bool max)
{
    *w = (window_twin){window, kernel, max, calloc((size_t)(m->heads * TOKENS_ALL), sizeof(double))};
}

void window_twin_end(window_twin *w)
{
    free(w->sum);
}

void window_twin_add(window_twin *w, const tiny_cache *c)
{
    for (int64_t n = 0; n < c->m->heads * c->count; n++) {
        if (c->p == 0) w->sum[n] = 0;
        if (c->p < c->prompt && c->p >= c->prompt - w->window) w->sum[n] += c->weight[n];
    }
}

void window_twin_score(const window_twin *w, const tiny_cache *c, int64_t h, double among, int64_t columns,
                       double *score)
{
    const double *sum = w->sum + h * c->count;

    for (int64_t j = 0; j < columns; j++) {
        double total = 0, most = -INFINITY;
        for (int64_t i = j - w->kernel / 2; i <= j + w->kernel / 2; i++) {
            total += i >= 0 && i < columns ? sum[i] : 0;
            if (i >= 0 && i < columns && sum[i] > most) most = sum[i];
        }
        score[j] += (w->max ? most : total / (double)w->kernel) / among;
    }
}

double window_twin_best(const double *score, int64_t columns, int64_t count, bool *kept)
{
    double taken = INFINITY, left = -INFINITY;

    for (int64_t n = 0; n < count; n++) {
        int64_t best = -1;
        for (int64_t j = 0; j < columns; j++)
            if (!kept[j] && (best < 0 || score[j] > score[best])) best = j;
        kept[best] = true;
    }
    if (count <= 0 || count >= columns) return INFINITY;
    for (int64_t j = 0; j < columns; j++) {
        if (kept[j]) taken = fmin(taken, score[j]);
        if (!kept[j]) left = fmax(left, score[j]);
    }
    return taken == left ? INFINITY : (taken - left) / fmax(fabs(taken), fabs(left));
}

void window_twin_keep(const window_twin *w, tiny_cache *c, bool layer, int64_t chosen)
{
    int64_t group = c->m->heads / c->m->key_heads, columns = c->prompt - w->window;

    for (int64_t g = 0; g < c->m->key_heads; g++) {
        double score[TOKENS_PROMPT] = {0};
        bool kept[TOKENS_PROMPT] = {0};
        for (int64_t h = 0; h < c->m->heads; h++)
            if (layer || h / group == g)
                window_twin_score(w, c, h, (double)(layer ? c->m->heads : group), columns, score);
        policy_choice(window_twin_best(score, columns, chosen, kept));
        for (int64_t j = 0; j < columns; j++)
            tiny_held(c, c->l, g)[j] = kept[j];
    }
}
