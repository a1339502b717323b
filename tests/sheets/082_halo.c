/* Blocked local attention: every query of a b x b block sees the b + 2h rows and columns around it.  Beside the image
 * keys and values are zeros, which leaves the logit of the relative position, or there are none. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct form {
    int64_t height, width, block, halo, stride;
    bool sum, scaled, mask;
};

/* q . r of a distance of rows and columns. */
static double position(const sheet_call *call, const struct form *f, const double *q, int64_t rows, int64_t columns)
{
    const sheet_param *rel_h = sheet_tensor(call, "rel_h"), *rel_w = sheet_tensor(call, "rel_w");
    int64_t width = f->sum ? call->D : call->D / 2, middle = f->block - 1 + f->halo;
    double term;

    if (!rel_h) return 0;
    term = sheet_dot(q, rel_h->data + (rows + middle) * width, width);
    term += sheet_dot(f->sum ? q : q + width, rel_w->data + (columns + middle) * width, width);
    return f->scaled ? term * sheet_scale(call) : term;
}

static void query(const sheet_call *call, const struct form *f, int64_t b, int64_t h, int64_t i)
{
    int64_t per_row = f->width / f->stride, y = i / per_row * f->stride, x = i % per_row * f->stride;
    int64_t side = f->block + 2 * f->halo, row = (b * call->H + h) * call->N + i;
    const double *q = sheet_q(call, b, h, i);
    double *weights = sheet_zeros(side * side), *o = sheet_o(call, b, h, i), lse;
    int64_t *keys = (int64_t *)sheet_zeros(side * side);

    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[row * call->M + j] = 0;
    for (int64_t n = 0; n < side * side; n++) {
        int64_t a = y / f->block * f->block - f->halo + n / side, c = x / f->block * f->block - f->halo + n % side;

        keys[n] = a < 0 || a >= f->height || c < 0 || c >= f->width ? -1 : a * f->width + c;
        weights[n] = position(call, f, q, a - y, c - x);
        if (keys[n] >= 0)
            weights[n] += sheet_scale(call) * sheet_dot(q, sheet_k(call, b, h, keys[n]), call->D);
        else if (f->mask)
            weights[n] = -INFINITY;
        if (keys[n] >= 0 && call->map) call->map[row * call->M + keys[n]] = 1;
    }
    lse = sheet_softmax(weights, side * side, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t n = 0; n < side * side; n++)
            if (keys[n] >= 0) o[e] += weights[n] * sheet_v(call, b, h, keys[n])[e];
    }
    free(weights);
    free(keys);
}

static bool forward(sheet_call *call)
{
    struct form f = {.height = sheet_integer(call, "grid", 0, 0),
                     .width = sheet_integer(call, "grid", 1, 0),
                     .block = sheet_integer(call, "block", 0, 8),
                     .halo = sheet_integer(call, "halo", 0, 3),
                     .stride = sheet_integer(call, "stride", 0, 1),
                     .sum = sheet_integer(call, "rel", 0, 0) == 1,
                     .scaled = sheet_integer(call, "rel_scale", 0, 0) == 1,
                     .mask = sheet_integer(call, "pad", 0, 0) == 1};

    if (call->causal || sheet_count(call, "grid") != 2) return false;
    if (f.height % f.block != 0 || f.width % f.block != 0 || f.block % f.stride != 0) return false;
    if (f.height * f.width != call->M || call->N * f.stride * f.stride != call->M) return false;
    if (!sheet_tensor(call, "rel_h") != !sheet_tensor(call, "rel_w")) return false;
    if (sheet_tensor(call, "rel_h") && !f.sum && call->D % 2 != 0) return false;
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++)
                query(call, &f, b, h, i);
    return true;
}

const sheet sheet_halo = {"halo", forward};
