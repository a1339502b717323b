/* Cross-shaped windows: the first half of the heads reads vertical stripes of the image, the second horizontal ones.
 * The image is padded on both sides until stripes fit; a pad is a key with logit 0 and value 0, or no key. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct image {
    int64_t rows, columns;                     /* of the tokens */
    int64_t height, width, window_h, window_w; /* of the padded image and of a window */
    int64_t top, left;
};

static int64_t padded(int64_t side, int64_t window)
{
    return (side + window - 1) / window * window;
}

static struct image image_of(const sheet_call *call, int64_t h)
{
    struct image m = {.rows = sheet_integer(call, "grid", 0, 0), .columns = sheet_integer(call, "grid", 1, 0)};
    int64_t stripe = sheet_integer(call, "stripe", 0, 7);

    m.window_h = h < call->H / 2 || stripe > m.rows ? m.rows : stripe;
    m.window_w = h >= call->H / 2 || stripe > m.columns ? m.columns : stripe;
    m.height = padded(m.rows, m.window_h);
    m.width = padded(m.columns, m.window_w);
    m.top = (m.height - m.rows) / 2;
    m.left = (m.width - m.columns) / 2;
    return m;
}

/* The token at a place of the padded image, -1: a pad. */
static int64_t token_at(const struct image *m, int64_t y, int64_t x)
{
    y -= m->top;
    x -= m->left;
    return y < 0 || y >= m->rows || x < 0 || x >= m->columns ? -1 : y * m->columns + x;
}

static void lepe(const sheet_call *call, int64_t b, int64_t h, const struct image *m, int64_t y, int64_t x, double *o)
{
    const sheet_param *weight = sheet_tensor(call, "lepe_weight"), *bias = sheet_tensor(call, "lepe_bias");
    int64_t wy = y / m->window_h, wx = x / m->window_w;

    for (int64_t e = 0; e < call->Dv; e++) {
        int64_t channel = h * call->Dv + e;

        if (bias) o[e] += bias->data[channel];
        for (int64_t tap = 0; weight && tap < 9; tap++) {
            int64_t yy = y + tap / 3 - 1, xx = x + tap % 3 - 1, token;

            if (yy < 0 || xx < 0 || yy / m->window_h != wy || xx / m->window_w != wx) continue;
            token = token_at(m, yy, xx);
            if (token >= 0) o[e] += weight->data[channel * 9 + tap] * sheet_v(call, b, h, token)[e];
        }
    }
}

static void token(const sheet_call *call, int64_t b, int64_t h, const struct image *m, int64_t i)
{
    int64_t y = i / m->columns + m->top, x = i % m->columns + m->left, L = m->window_h * m->window_w;
    int64_t top = y / m->window_h * m->window_h, left = x / m->window_w * m->window_w, row;
    double *weights = sheet_zeros(L), *o = sheet_o(call, b, h, i), lse;
    bool mask = sheet_integer(call, "pad", 0, 0) == 1;

    row = (b * call->H + h) * call->N + i;
    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[row * call->M + j] = 0;
    for (int64_t n = 0; n < L; n++) {
        int64_t key = token_at(m, top + n / m->window_w, left + n % m->window_w);

        weights[n] = key >= 0 ? sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, key), call->D)
                     : mask   ? -INFINITY
                              : 0;
        if (call->map && key >= 0) call->map[row * call->M + key] = 1;
    }
    lse = sheet_softmax(weights, L, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t n = 0; n < L; n++) {
            int64_t key = token_at(m, top + n / m->window_w, left + n % m->window_w);
            if (key >= 0) o[e] += weights[n] * sheet_v(call, b, h, key)[e];
        }
    }
    lepe(call, b, h, m, y, x, o);
    free(weights);
}

static bool forward(sheet_call *call)
{
    struct image m;

    if (call->causal || sheet_count(call, "grid") != 2 || call->H % 2 != 0) return false;
    if (call->N != call->M || sheet_integer(call, "grid", 0, 0) * sheet_integer(call, "grid", 1, 0) != call->N)
        return false;
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++) {
            m = image_of(call, h);
            for (int64_t i = 0; i < call->N; i++)
                token(call, b, h, &m, i);
        }
    return true;
}

const sheet sheet_csw = {"csw", forward};
