/* Long-range grouping attention: groups of a lattice of positions, or of patches, over all views; and a depthwise
 * convolution of each view's values. */
#include "sheets.h"

static int64_t side(const sheet_call *call, int axis)
{
    return sheet_integer(call, "grid", axis, 0);
}

/* The number of a row's, or a column's, group. */
static int64_t group(const sheet_call *call, int axis, int64_t at)
{
    int64_t groups = sheet_integer(call, "groups", 0, 7);

    return sheet_integer(call, "grouping", 0, 0) == 0 ? at % groups : at / (side(call, axis) / groups);
}

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int64_t width = side(call, 2), cells = side(call, 1) * width;

    (void)plan, (void)b, (void)h;
    return group(call, 1, p % cells / width) == group(call, 1, j % cells / width) &&
           group(call, 2, p % width) == group(call, 2, j % width);
}

static void signature(const sheet_call *call, int64_t b, int64_t h, int64_t i)
{
    const sheet_param *weight = sheet_tensor(call, "ifs_weight"), *bias = sheet_tensor(call, "ifs_bias");
    int64_t width = side(call, 2), cells = side(call, 1) * width, view = i / cells, y = i % cells / width,
            x = i % width;
    double *o = sheet_o(call, b, h, i);

    for (int64_t e = 0; e < call->Dv; e++) {
        int64_t channel = h * call->Dv + e;

        if (bias) o[e] += bias->data[channel];
        for (int64_t r = -1; weight && r <= 1; r++)
            for (int64_t c = -1; c <= 1; c++) {
                if (y + r < 0 || y + r >= side(call, 1) || x + c < 0 || x + c >= width) continue;
                o[e] += weight->data[channel * 9 + (r + 1) * 3 + c + 1] *
                        sheet_v(call, b, h, view * cells + (y + r) * width + x + c)[e];
            }
    }
}

static bool forward(sheet_call *call)
{
    int64_t groups = sheet_integer(call, "groups", 0, 7);

    if (call->causal || sheet_count(call, "grid") != 3 || call->N != call->M) return false;
    if (side(call, 0) * side(call, 1) * side(call, 2) != call->N) return false;
    if (side(call, 1) % groups != 0 || side(call, 2) % groups != 0) return false;
    sheet_attend(call, sees, NULL);
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++)
                signature(call, b, h, i);
    return true;
}

const sheet sheet_lga = {"lga", forward};
