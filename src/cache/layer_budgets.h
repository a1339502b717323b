/* How many rows each of the layers that a policy acts on keeps, if a layer keeps `budget` rows in the mean. */
#ifndef FV_LAYER_BUDGETS_H
#define FV_LAYER_BUDGETS_H

#include "base/status.h"

/* PyramidKV: rows of the place-th of `layers` layers, for a text of `tokens`; the last `window` are among them.  Falls
 * in equal steps from the first layer to the last; the mean is exactly `budget`. */
int64_t fv_pyramid_budget(int64_t budget, int64_t window, int64_t beta, int64_t tokens, int64_t place, int64_t layers);

/* CompressKV: in proportion to importance[0..layers), whose sum is 1, with at least 32 rows and at most 3 * budget for
 * each; rounded half to even.  The mean is exactly `budget` unless these bounds forbid it. */
enum { FV_LEAST_LAYER_BUDGET = 32 };
void fv_error_budgets(int64_t budget, const double *importance, int64_t layers, int64_t *rows);

#endif
