/* Combiner: direct tokens, and spans that are read through a pooled key, with the attention of their pooled query as
 * value.  The running maxima of a mixture are spans as well: of what lies above in a column, or on one side in a row.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

enum { FIXED, LOGN, MIXTURE, ROWMAJOR };
enum { MAX, MEAN, SUM };
enum { WSUM, NONE, PROJ };

/* What one query reads. */
struct reads {
    const sheet_call *call;
    int64_t b, h, i, count;
    double *logit, *value; /* [room], [room, Dv] */
};

static void add(struct reads *r, const double *key, const double *value, double stands_for)
{
    const sheet_call *call = r->call;
    double bias = sheet_integer(call, "span_bias", 0, 0) ? log(stands_for) : 0;

    r->logit[r->count] = sheet_scale(call) * sheet_dot(sheet_q(call, r->b, r->h, r->i), key, call->D) + bias;
    memcpy(r->value + r->count * call->Dv, value, (size_t)call->Dv * sizeof *value);
    r->count++;
}

static void add_token(struct reads *r, int64_t j)
{
    const sheet_call *call = r->call;

    add(r, sheet_k(call, r->b, r->h, j), sheet_v(call, r->b, r->h, j), 1);
    if (call->map) call->map[((r->b * call->H + r->h) * call->N + r->i) * call->M + j] = 1;
}

static double pooled(const sheet_call *call, double scale, const double *x, int64_t step, int64_t count)
{
    int64_t pool = sheet_integer(call, "pool", 0, 0), kind = pool % 3;
    double out = kind == MAX ? -INFINITY : 0;

    for (int64_t n = 0; n < count; n++) {
        double value = scale * x[n * step];

        if (pool >= 3 && value < 0) value = 0;
        out = kind == MAX ? fmax(out, value) : out + value / (kind == MEAN ? (double)count : 1);
    }
    return out;
}

/* Tokens first, first + step, ... */
static void summarise(const sheet_call *call, int64_t b, int64_t h, int64_t first, int64_t step, int64_t count,
                      double *key, double *value)
{
    int64_t D = call->D, Dv = call->Dv;
    double *query = sheet_zeros(D), *weight = sheet_zeros(count);

    for (int64_t d = 0; d < D; d++) {
        key[d] = pooled(call, 1, sheet_k(call, b, h, first) + d, step * D, count);
        query[d] = pooled(call, sheet_scale(call), sheet_q(call, b, h, first) + d, step * D, count);
    }
    for (int64_t n = 0; n < count; n++)
        weight[n] = sheet_dot(query, sheet_k(call, b, h, first + n * step), D);
    sheet_softmax(weight, count, -INFINITY);
    for (int64_t e = 0; e < Dv; e++) {
        value[e] = 0;
        for (int64_t n = 0; n < count; n++)
            value[e] += weight[n] * sheet_v(call, b, h, first + n * step)[e];
    }
    free(query);
    free(weight);
}

static void add_span(struct reads *r, int64_t first, int64_t step, int64_t count)
{
    double *key = sheet_zeros(r->call->D), *value = sheet_zeros(r->call->Dv);

    summarise(r->call, r->b, r->h, first, step, count, key, value);
    add(r, key, value, (double)count);
    free(key);
    free(value);
}

static void read_fixed(struct reads *r, int64_t L)
{
    bool own = sheet_integer(r->call, "own_span", 0, 1) == 1;
    int64_t N = r->call->N;

    for (int64_t j = r->i / L * L; j < N && j / L == r->i / L; j++)
        if (!r->call->causal || j <= r->i) add_token(r, j);
    for (int64_t s = 0; s * L < N; s++) {
        bool reads = r->call->causal ? s < r->i / L : own || s != r->i / L;

        if (reads) add_span(r, s * L, 1, (s + 1) * L <= N ? L : N - s * L);
    }
}

static void read_logn(struct reads *r)
{
    add_token(r, r->i);
    for (int64_t size = 1; size <= r->i; size *= 2)
        if (r->i / size % 2 == 1) add_span(r, (r->i / size - 1) * size, 1, size);
}

static void read_mixture(struct reads *r, int64_t U)
{
    int64_t row = r->i / U, column = r->i % U;

    for (int64_t y = 0; y < row; y++)
        add_token(r, y * U + column);
    for (int64_t x = 0; x <= column; x++)
        add_token(r, row * U + x);
    for (int64_t x = 0; x < U && row > 0; x++)
        if (x != column) add_span(r, x, U, row);
    for (int64_t y = 0; y < row; y++) {
        if (column >= 1) add_span(r, y * U, 1, column);
        if (column <= U - 2) add_span(r, y * U + column + 1, 1, U - 1 - column);
    }
}

/* The unmasked attention of a token in its whole row: weights, and the result. */
static void attend_row(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t U, double *weight, double *a)
{
    int64_t first = i / U * U;

    for (int64_t x = 0; x < U; x++)
        weight[x] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, first + x), call->D);
    sheet_softmax(weight, U, -INFINITY);
    for (int64_t e = 0; e < call->Dv; e++) {
        a[e] = 0;
        for (int64_t x = 0; x < U; x++)
            a[e] += weight[x] * sheet_v(call, b, h, first + x)[e];
    }
}

/* Row h of LN(x + a w1^T) w2^T of token i. */
static void project(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t U, double *key)
{
    const sheet_param *x = sheet_tensor(call, "x"), *w1 = sheet_tensor(call, "w1"), *w2 = sheet_tensor(call, "w2");
    const sheet_param *weight = sheet_tensor(call, "norm_weight"), *bias = sheet_tensor(call, "norm_bias");
    int64_t C = x->dims[2], D = call->D, Dv = call->Dv, width = call->H * Dv;
    double *y = sheet_zeros(C), *a = sheet_zeros(width), *row = sheet_zeros(U), mean = 0, variance = 0;

    for (int64_t n = 0; n < call->H; n++)
        attend_row(call, b, n, i, U, row, a + n * Dv);
    for (int64_t c = 0; c < C; c++) {
        y[c] = x->data[(b * call->N + i) * C + c] + sheet_dot(a, w1->data + c * width, width);
        mean += y[c] / (double)C;
    }
    for (int64_t c = 0; c < C; c++)
        variance += (y[c] - mean) * (y[c] - mean) / (double)C;
    for (int64_t c = 0; c < C; c++)
        y[c] = (y[c] - mean) / sqrt(variance + 1e-6) * (weight ? weight->data[c] : 1) + (bias ? bias->data[c] : 0);
    for (int64_t d = 0; d < D; d++)
        key[d] = sheet_dot(y, w2->data + (h * D + d) * C, C);
    free(y);
    free(a);
    free(row);
}

static void read_rowmajor(struct reads *r, int64_t U)
{
    const sheet_call *call = r->call;
    int64_t kind = sheet_integer(call, "row_summary", 0, WSUM), b = r->b, h = r->h;
    double *weight = sheet_zeros(U), *key = sheet_zeros(call->D), *a = sheet_zeros(call->Dv);

    for (int64_t j = r->i / U * U; j <= r->i; j++)
        add_token(r, j);
    for (int64_t i = r->i % U; i < r->i / U * U; i += U) {
        attend_row(call, b, h, i, U, weight, a);
        for (int64_t d = 0; d < call->D; d++) {
            key[d] = kind == NONE ? sheet_k(call, b, h, i)[d] : 0;
            for (int64_t x = 0; x < U && kind == WSUM; x++)
                key[d] += weight[x] * sheet_k(call, b, h, i / U * U + x)[d];
        }
        if (kind == PROJ) project(call, b, h, i, U, key);
        add(r, key, a, (double)U);
    }
    free(weight);
    free(key);
    free(a);
}

static bool accepts(const sheet_call *call)
{
    int64_t form = sheet_integer(call, "form", 0, FIXED);
    bool proj = sheet_integer(call, "row_summary", 0, WSUM) == PROJ, given = sheet_tensor(call, "x") != NULL;

    if (call->N != call->M) return false;
    if (form == MIXTURE && sheet_integer(call, "pool", 0, 0) != 0) return false;
    if (form != ROWMAJOR && sheet_integer(call, "row_summary", 0, WSUM) != WSUM) return false;
    if (proj && call->H != call->Hkv) return false;
    return proj == given && proj == (sheet_tensor(call, "w1") != NULL) && proj == (sheet_tensor(call, "w2") != NULL);
}

static bool forward(sheet_call *call)
{
    int64_t form = sheet_integer(call, "form", 0, FIXED), L = sheet_integer(call, "segment", 0, 0);
    int64_t room = 4 * call->N + 4;
    struct reads r = {.call = call};

    if (!accepts(call)) return false;
    while (L * L < call->N && sheet_integer(call, "segment", 0, 0) == 0)
        L++;
    r.logit = sheet_zeros(room);
    r.value = sheet_zeros(room * call->Dv);
    if (call->map) memset(call->map, 0, (size_t)(call->B * call->H * call->N * call->M));
    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        double *o, lse;

        r.i = row % call->N;
        r.h = row / call->N % call->H;
        r.b = row / call->N / call->H;
        r.count = 0;
        if (form == FIXED) read_fixed(&r, L);
        if (form == LOGN) read_logn(&r);
        if (form == MIXTURE) read_mixture(&r, L);
        if (form == ROWMAJOR) read_rowmajor(&r, L);
        lse = sheet_softmax(r.logit, r.count, -INFINITY);
        if (call->lse) call->lse[row] = lse;
        o = sheet_o(call, r.b, r.h, r.i);
        for (int64_t e = 0; e < call->Dv; e++) {
            o[e] = 0;
            for (int64_t n = 0; n < r.count; n++)
                o[e] += r.logit[n] * r.value[n * call->Dv + e];
        }
    }
    free(r.logit);
    free(r.value);
    return true;
}

const sheet sheet_combiner = {"combiner", forward};
