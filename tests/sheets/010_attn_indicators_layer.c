/* The eight indicators of sheet 010. */
#include <math.h>

#include "sheets/layers.h"

/* Over heads, of entry (i, k). */
static double deviation(const sheet_param *a, int64_t i, int64_t k)
{
    int64_t H = a->dims[0], L = a->dims[1];
    double mean = 0, variance = 0;

    for (int64_t h = 0; h < H; h++)
        mean += a->data[(h * L + i) * L + k] / (double)H;
    for (int64_t h = 0; h < H; h++)
        variance += pow(a->data[(h * L + i) * L + k] - mean, 2) / (double)H;
    return sqrt(variance);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *a = layer_tensor(call, "a");
    int64_t H = a->dims[0], L = a->dims[1];
    double *y = layer_output(call, "y");

    for (int n = 0; n < 8; n++)
        y[n] = 0;
    for (int64_t h = 0; h < H; h++) {
        const double *map = a->data + h * L * L;
        double entropy = 0, squares = 0;

        for (int64_t n = 0; n < L * L; n++) {
            if (map[n] > 0) entropy -= map[n] * log(map[n]);
            squares += map[n] * map[n];
        }
        y[0] += entropy / (double)H;
        y[1] += sqrt(squares) / (double)H;
        for (int64_t i = 0; i < L; i++)
            y[3] += map[i * L] / (double)(H * L);
        for (int64_t n = 0; n < 4; n++)
            for (int64_t i = n; i < L; i++)
                y[4 + n] += map[i * L + i - n] / (double)(H * (L - n));
    }
    for (int64_t i = 0; i < L; i++)
        for (int64_t k = 0; k <= i; k++)
            y[2] += deviation(a, i, k) * 2 / (double)(L * (L + 1));
}

const layer_sheet layer_sheet_attn_indicators = {"attn_indicators", forward};
