#include "app/scores.h"

#include <math.h>

double app_log_sum_exp(const float *logits, int64_t count)
{
    double top = -INFINITY, sum = 0;

    for (int64_t i = 0; i < count; i++)
        top = fmax(top, logits[i]);
    for (int64_t i = 0; i < count; i++)
        sum += exp(logits[i] - top);
    return top + log(sum);
}

int64_t app_likeliest(const float *logits, int64_t count)
{
    int64_t best = 0;

    for (int64_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}
