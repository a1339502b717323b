/* Gathered rows against a panel of columns: the columns go by in vectors, and of each row an element at a time is
 * multiplied with all of them, so that rows are read where they lie. */
#include "ops/cpu/leaf.h"

static void match_rows(int64_t panels, int64_t length, const float *x, const float *const *row, float *out)
{
    vf best[FV_MATCH_ROWS];

    UNROLL
    for (int n = 0; n < FV_MATCH_ROWS; n++)
        best[n] = splat(-INFINITY);
    for (; panels > 0; panels--, x += length * W) {
        vf s[FV_MATCH_ROWS];
        UNROLL
        for (int n = 0; n < FV_MATCH_ROWS; n++)
            s[n] = splat(0);
        for (int64_t c = 0; c < length; c++) {
            vf column = load(x + c * W);
            UNROLL
            for (int n = 0; n < FV_MATCH_ROWS; n++)
                s[n] += column * splat(row[n][c]);
        }
        UNROLL
        for (int n = 0; n < FV_MATCH_ROWS; n++)
            best[n] = vmax(s[n], best[n]); /* the second where the first is NaN */
    }
    UNROLL
    for (int n = 0; n < FV_MATCH_ROWS; n++)
        out[n] = largest(best[n]);
}

void LEAF(fill_match)(struct fv_kernels *kernels)
{
    kernels->match = match_rows;
}
