/* Sheet 053, LePE: a depthwise convolution that sees the tokens of its own window alone; a grid that windows do not
 * tile has pads of zeros around it, half of them (rounded down) before. */
#include "sheets/layers.h"

struct axis {
    int64_t size, window, before;
};

static struct axis read_axis(const layer_sheet_call *call, int a)
{
    struct axis axis = {.size = layer_integer(call, "grid", a, 0), .window = layer_integer(call, "window", a, 0)};

    if (axis.window == 0) axis.window = axis.size;
    axis.before = (axis.window - axis.size % axis.window) % axis.window / 2;
    return axis;
}

/* Whether j lies on the axis, in the window of i. */
static bool reaches(const struct axis *a, int64_t i, int64_t j)
{
    return j >= 0 && j < a->size && (i + a->before) / a->window == (j + a->before) / a->window;
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x"), *weight = layer_tensor(call, "weight"),
                      *bias = layer_tensor(call, "bias");
    struct axis rows = read_axis(call, 0), columns = read_axis(call, 1);
    int64_t N = x->dims[1], C = x->dims[2], k = weight->dims[1];
    double *y = layer_output(call, "y");

    for (int64_t n = 0; n < x->dims[0] * N * C; n++) {
        int64_t b = n / C / N, row = n / C % N / columns.size, column = n / C % N % columns.size, c = n % C;

        y[n] = bias ? bias->data[c] : 0;
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < k; j++) {
                int64_t from_row = row + i - k / 2, from_column = column + j - k / 2;

                if (!reaches(&rows, row, from_row) || !reaches(&columns, column, from_column)) continue;
                y[n] += weight->data[(c * k + i) * k + j] *
                        x->data[(b * N + from_row * columns.size + from_column) * C + c];
            }
    }
}

const layer_sheet layer_sheet_lepe = {"lepe", forward};
