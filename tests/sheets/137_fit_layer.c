/* Sheet 137, steps 2 and 4: what asks, and what it reads, of each group; both are normed, and what was read is added to
 * what asks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets/layers.h"

/* out [E] of one asking row over `count` rows that are read, all normed. */
static void attend(const layer_sheet_call *call, int64_t heads, const double *asks, int64_t count, const double *rows,
                   int64_t width, double *out)
{
    int64_t E = layer_tensor(call, "q_weight")->dims[0], D = E / heads;
    double *q = sheet_zeros(E), *k = sheet_zeros(count * E), *v = sheet_zeros(count * E), *p = sheet_zeros(count);

    layer_linear(call, "q_weight", "q_bias", asks, q);
    for (int64_t j = 0; j < count; j++) {
        layer_linear(call, "k_weight", "k_bias", rows + j * width, k + j * E);
        layer_linear(call, "v_weight", "v_bias", rows + j * width, v + j * E);
    }
    memset(out, 0, (size_t)E * sizeof *out);
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t j = 0; j < count; j++)
            p[j] = sheet_dot(q + h * D, k + j * E + h * D, D) / sqrt((double)D);
        sheet_softmax(p, count, -INFINITY);
        for (int64_t j = 0; j < count; j++)
            for (int64_t e = h * D; e < (h + 1) * D; e++)
                out[e] += p[j] * v[j * E + e];
    }
    free(q);
    free(k);
    free(v);
    free(p);
}

static void exchange(layer_sheet_call *call, const char *own_name, const char *other_name)
{
    const sheet_param *own = layer_tensor(call, own_name), *other = layer_tensor(call, other_name);
    int64_t t = own->dims[1], n = own->dims[2], d = own->dims[3], m = other->dims[2], width = other->dims[3];
    int64_t heads = layer_integer(call, "heads", 0, 0), back = layer_integer(call, "shift", 0, 0) * m * width;
    double *out = layer_output(call, own_name), *normed = sheet_zeros(d), *rows = sheet_zeros(m * width),
           *zeros = sheet_zeros(m * width), *read = sheet_zeros(layer_tensor(call, "q_weight")->dims[0]);

    for (int64_t group = 0; group < own->dims[0] * t; group++) {
        const double *from = back && group % t == 0 ? zeros : other->data + group * m * width - back;

        for (int64_t j = 0; j < m; j++)
            layer_norm(call, "kv_norm_weight", "kv_norm_bias", 1e-6, width, from + j * width, rows + j * width);
        for (int64_t i = group * n; i < (group + 1) * n; i++) {
            layer_norm(call, "q_norm_weight", "q_norm_bias", 1e-6, d, own->data + i * d, normed);
            attend(call, heads, normed, m, rows, width, read);
            layer_linear(call, "o_weight", "o_bias", read, out + i * d);
            for (int64_t c = 0; c < d; c++)
                out[i * d + c] += own->data[i * d + c];
        }
    }
    free(normed);
    free(rows);
    free(zeros);
    free(read);
}

static void read(layer_sheet_call *call)
{
    exchange(call, "z", "x");
}

static void write(layer_sheet_call *call)
{
    exchange(call, "x", "z");
}

const layer_sheet layer_sheet_fit_read = {"fit_read", read};
const layer_sheet layer_sheet_fit_write = {"fit_write", write};
