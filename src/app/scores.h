/* What is read from a row of logits. */
#ifndef APP_SCORES_H
#define APP_SCORES_H

#include <stdint.h>

double app_log_sum_exp(const float *logits, int64_t count);
int64_t app_likeliest(const float *logits, int64_t count); /* the first of the largest */

#endif
