/* Sheet 010 (a): a gated unit of each token, nothing between tokens. */
#include <math.h>
#include <stdlib.h>

#include "sheets/layers.h"

static void forward(layer_sheet_call *call)
{
    const sheet_param *x = layer_tensor(call, "x");
    int64_t m = layer_tensor(call, "gate_weight")->dims[0], C = x->dims[2];
    double *gate = sheet_zeros(m), *up = sheet_zeros(m), *y = layer_output(call, "y");

    for (int64_t t = 0; t < x->dims[0] * x->dims[1]; t++) {
        layer_linear(call, "gate_weight", NULL, x->data + t * C, gate);
        layer_linear(call, "up_weight", NULL, x->data + t * C, up);
        for (int64_t i = 0; i < m; i++)
            gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        layer_linear(call, "down_weight", NULL, gate, y + t * C);
    }
    free(gate);
    free(up);
}

const layer_sheet layer_sheet_mlpmix = {"mlpmix", forward};
