#include "cache/layer_budgets.h"

#include <math.h>

#include "base/size.h"

int64_t fv_pyramid_budget(int64_t budget, int64_t window, int64_t beta, int64_t tokens, int64_t place, int64_t layers)
{
    int64_t m = budget - window, low = m / beta, high = 2 * m - low, mirror = layers - 1 - place, steps = layers - 1;
    int64_t lower = fv_min(place, mirror), rows;

    if (tokens < 2 * m || place == mirror) return budget;
    if (high >= tokens - window) {
        high = tokens - window;
        low = 2 * m - high;
    }
    rows = (2 * (high * steps - (high - low) * lower) + steps) / (2 * steps); /* rounded half up */
    return window + (place < mirror ? rows : 2 * m - rows);
}

/* The layer behind `layer` (-1: the first) by falling importance, or rising; equal ones by their number.  -1: none. */
static int64_t next_of(const double *importance, int64_t layers, int64_t layer, bool rising)
{
    int64_t found = -1;

    for (int64_t l = 0; l < layers; l++) {
        double own = importance[l], last = layer < 0 ? 0 : importance[layer];
        bool behind = layer < 0 || (own == last ? l > layer : rising == (own > last));
        if (behind && (found < 0 || (own != importance[found] && rising == (own < importance[found])))) found = l;
    }
    return found;
}

/* A row more for each layer that is not full, the most important ones first, until `left` are placed. */
static void hand_out(int64_t left, int64_t most, const double *importance, int64_t layers, int64_t *rows)
{
    for (;;) {
        int64_t open = 0, room = INT64_MAX;
        for (int64_t l = 0; l < layers; l++) {
            if (rows[l] >= most) continue;
            open++;
            room = fv_min(room, most - rows[l]);
        }
        if (open == 0 || left == 0) return;
        int64_t rounds = fv_min(left / open, room);
        if (rounds == 0) break;
        for (int64_t l = 0; l < layers; l++)
            if (rows[l] < most) rows[l] += rounds;
        left -= rounds * open;
    }
    for (int64_t l = next_of(importance, layers, -1, false); left > 0; l = next_of(importance, layers, l, false)) {
        left -= rows[l] < most;
        rows[l] += rows[l] < most;
    }
}

/* A row less for each layer that has more than the least, the least important ones first, until `over` are gone. */
static void take_back(int64_t over, const double *importance, int64_t layers, int64_t *rows)
{
    for (int64_t before = 0; over > 0 && over != before;) {
        before = over;
        for (int64_t l = next_of(importance, layers, -1, true); l >= 0 && over > 0;
             l = next_of(importance, layers, l, true)) {
            over -= rows[l] > FV_LEAST_LAYER_BUDGET;
            rows[l] -= rows[l] > FV_LEAST_LAYER_BUDGET;
        }
    }
}

void fv_error_budgets(int64_t budget, const double *importance, int64_t layers, int64_t *rows)
{
    int64_t total = budget * layers, spare = total - FV_LEAST_LAYER_BUDGET * layers, sum = 0;

    for (int64_t l = 0; l < layers; l++) {
        int64_t share = (int64_t)nearbyint(importance[l] * (double)spare);
        rows[l] = fv_clamp(FV_LEAST_LAYER_BUDGET + share, FV_LEAST_LAYER_BUDGET, 3 * budget);
        sum += rows[l];
    }
    if (sum < total) hand_out(total - sum, 3 * budget, importance, layers, rows);
    if (sum > total) take_back(sum - total, importance, layers, rows);
}
