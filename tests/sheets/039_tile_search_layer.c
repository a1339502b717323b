/* Stage 2 of sheet 039: each layer takes the smallest number of reference frames of the family whose result differs
 * from dense by at most the threshold, in the mean of squares; else all frames. */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

struct video {
    int64_t F, text, block, N;
};

/* Whether a pair is visible with a reference at every spacing-th frame. */
static bool pair(const struct video *v, int64_t spacing, int64_t i, int64_t j)
{
    int64_t length = (v->N - v->text) / v->F, f = i / length, g = j / length;

    return f >= v->F || g >= v->F || f == g || f % spacing == 0 || g % spacing == 0;
}

/* With blocks: whether some pair of the tile is. */
static bool sees(const struct video *v, int64_t spacing, int64_t i, int64_t j)
{
    int64_t b = v->block;

    if (b == 0) return pair(v, spacing, i, j);
    for (int64_t x = i / b * b; x < v->N && x < i / b * b + b; x++)
        for (int64_t y = j / b * b; y < v->N && y < j / b * b + b; y++)
            if (pair(v, spacing, x, y)) return true;
    return false;
}

/* o [H,N,Dv] of a layer with k reference frames. */
static void attend(const layer_sheet_call *call, const struct video *video, int64_t layer, int64_t refs, double *o)
{
    const sheet_param *q = layer_tensor(call, "q"), *k = layer_tensor(call, "k"), *v = layer_tensor(call, "v");
    int64_t H = q->dims[1], N = q->dims[2], D = q->dims[3], Dv = v->dims[3], spacing = (video->F + refs - 1) / refs;
    double *p = sheet_zeros(N);

    for (int64_t row = 0; row < H * N; row++) {
        int64_t head = layer * k->dims[1] + row / N / (H / k->dims[1]);

        for (int64_t j = 0; j < N; j++)
            p[j] =
                sees(video, spacing, row % N, j)
                    ? sheet_dot(q->data + (layer * H * N + row) * D, k->data + (head * N + j) * D, D) / sqrt((double)D)
                    : -INFINITY;
        sheet_softmax(p, N, -INFINITY);
        for (int64_t e = 0; e < Dv; e++) {
            o[row * Dv + e] = 0;
            for (int64_t j = 0; j < N; j++)
                o[row * Dv + e] += p[j] * v->data[(head * N + j) * Dv + e];
        }
    }
    free(p);
}

static void forward(layer_sheet_call *call)
{
    const sheet_param *q = layer_tensor(call, "q"), *v = layer_tensor(call, "v");
    struct video video = {.F = layer_integer(call, "frames", 0, 0),
                          .text = layer_integer(call, "text", 0, 0),
                          .block = layer_integer(call, "block", 0, 0),
                          .N = q->dims[2]};
    int family = sheet_count(&(sheet_call){.options = call->options, .option = call->option}, "family");
    int64_t numbers = q->dims[1] * video.N * v->dims[3];
    double threshold = layer_number(call, "threshold", 0, 0), *refs = layer_output(call, "refs"),
           *errors = layer_output(call, "errors"), *dense = sheet_zeros(numbers), *o = sheet_zeros(numbers);

    for (int64_t layer = 0; layer < q->dims[0]; layer++) {
        refs[layer] = (double)video.F;
        attend(call, &video, layer, video.F, dense);
        for (int n = 0; n < family; n++) {
            int64_t k = layer_integer(call, "family", n, 0);
            double error = 0;

            attend(call, &video, layer, k, o);
            for (int64_t i = 0; i < numbers; i++)
                error += (o[i] - dense[i]) * (o[i] - dense[i]) / (double)numbers;
            errors[layer * family + n] = error;
            if (error <= threshold && (double)k < refs[layer]) refs[layer] = (double)k;
        }
        call->selection[layer] = (int64_t)refs[layer];
    }
    free(dense);
    free(o);
}

const layer_sheet layer_sheet_tile_search = {"tile_search", forward};
