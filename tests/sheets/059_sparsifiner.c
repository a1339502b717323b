/* Sparsifiner (sheet 059): c = softmax of low-rank products, its largest coefficients times a thresholded basis, and of
 * that the largest entries say which keys a query reads. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    int64_t N;
    const int64_t *chosen; /* [B,H,N,N] */
};

/* y = W x + b of D numbers; W absent: the identity. */
static void project(const sheet_param *weight, const sheet_param *bias, const double *x, int64_t D, int64_t F,
                    double *y)
{
    for (int64_t f = 0; f < F; f++) {
        y[f] = weight ? sheet_dot(weight->data + f * D, x, D) : x[f];
        if (bias) y[f] += bias->data[f];
    }
}

/* Entry (j, r) of a matrix [N,R]; absent: the mean of run r of R. */
static double entry(const sheet_param *matrix, int64_t N, int64_t R, int64_t j, int64_t r)
{
    int64_t from = r * N / R, to = (r + 1) * N / R;

    if (matrix) return matrix->data[j * R + r];
    return j >= from && j < to ? 1 / (double)(to - from) : 0;
}

/* What stands in the basis for entry (j, r). */
static double basis(const sheet_call *call, int64_t R, int64_t j, int64_t r)
{
    const sheet_param *up = sheet_tensor(call, "up");
    int kind = (int)sheet_integer(call, "basis", 0, 0);
    double x = entry(up, call->N, R, j, r), size = kind == 1 ? x : fabs(x);

    if (size <= (up ? sheet_number(call, "basis_threshold", 0, 0.02) : 0)) return 0;
    return kind == 2 ? x : size;
}

/* Whether value n is among the `top` largest (ties to the lower), or above a threshold that is given. */
static bool keeps(const double *values, int64_t count, int64_t n, int64_t top, double threshold)
{
    int64_t better = 0;

    if (threshold > 0) return values[n] > threshold;
    for (int64_t m = 0; m < count; m++)
        better += values[m] > values[n] || (values[m] == values[n] && m < n);
    return better < top;
}

/* Sums of the keys that head h reads, by the columns of `down`: [R,F]. */
static void sum_keys(const sheet_call *call, int64_t R, int64_t F, int64_t b, int64_t h, double *sums)
{
    double *k = sheet_zeros(F);

    for (int64_t j = 0; j < call->N; j++) {
        project(sheet_tensor(call, "k_weight"), sheet_tensor(call, "k_bias"), sheet_k(call, b, h, j), call->D, F, k);
        for (int64_t r = 0; r < R; r++)
            for (int64_t f = 0; f < F; f++)
                sums[r * F + f] += entry(sheet_tensor(call, "down"), call->N, R, j, r) * k[f];
    }
    free(k);
}

/* The guess at row i of the attention of head h. */
static void guess(const sheet_call *call, int64_t R, int64_t F, const double *sums, int64_t b, int64_t h, int64_t i,
                  double *row)
{
    int64_t top = sheet_integer(call, "coef_top", 0, 8);
    double gamma = 1 / sqrt((double)(sheet_integer(call, "gamma", 0, 0) ? F : call->H));
    double *q = sheet_zeros(F), *c = sheet_zeros(R);

    project(sheet_tensor(call, "q_weight"), sheet_tensor(call, "q_bias"), sheet_q(call, b, h, i), call->D, F, q);
    for (int64_t r = 0; r < R; r++)
        c[r] = gamma * sheet_dot(q, sums + r * F, F);
    sheet_softmax(c, R, -INFINITY);
    for (int64_t j = 0; j < call->N; j++)
        row[j] = 0;
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; keeps(c, R, r, top, sheet_number(call, "coef_threshold", 0, 0)) && j < call->N; j++)
            row[j] += c[r] * basis(call, R, j, r);
    free(q);
    free(c);
}

/* Whether token i has results: the first one weighs it among the most. */
static bool stays(const sheet_call *call, int64_t b, int64_t i)
{
    double part = sheet_number(call, "token_keep", 0, 0), *mean = sheet_zeros(call->N), *row = sheet_zeros(call->N);
    bool kept = true;

    for (int64_t h = 0; part > 0 && h < call->H; h++) {
        for (int64_t j = 0; j < call->N; j++)
            row[j] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, 0), sheet_k(call, b, h, j), call->D);
        sheet_softmax(row, call->N, -INFINITY);
        for (int64_t j = 0; j < call->N; j++)
            mean[j] += row[j] / (double)call->H;
    }
    if (part > 0 && i > 0) kept = keeps(mean + 1, call->N - 1, i - 1, (int64_t)ceil(part * (double)(call->N - 1)), 0);
    free(mean);
    free(row);
    return kept;
}

/* The keys of every row of head h: chosen [N,N]. */
static void choose(const sheet_call *call, int64_t R, int64_t b, int64_t h, int64_t *chosen)
{
    const sheet_param *q_weight = sheet_tensor(call, "q_weight");
    int64_t N = call->N, F = q_weight ? q_weight->dims[0] : call->D;
    int64_t top = (int64_t)ceil(sheet_number(call, "keep", 0, 0.25) * (double)N);
    double *row = sheet_zeros(N), *sums = sheet_zeros(R * F), threshold = sheet_number(call, "threshold", 0, 0);

    sum_keys(call, R, F, b, h, sums);
    for (int64_t i = 0; i < N; i++) {
        int64_t count = 0;
        bool all = i == 0 && sheet_integer(call, "cls", 0, 1), live = stays(call, b, i);

        guess(call, R, F, sums, b, h, i, row);
        for (int64_t j = 0; j < N; j++)
            chosen[i * N + j] = -1;
        for (int64_t j = 0; j < N; j++)
            if (live && (all || keeps(row, N, j, top, threshold))) chosen[i * N + count++] = j;
    }
    free(row);
    free(sums);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    const int64_t *chosen = plan->chosen + ((b * call->H + h) * plan->N + p) * plan->N;

    for (int64_t n = 0; n < plan->N && chosen[n] >= 0; n++)
        if (chosen[n] == j) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    const sheet_param *down = sheet_tensor(call, "down"), *up = sheet_tensor(call, "up");
    int64_t N = call->N, R = up ? up->dims[1] : down ? down->dims[1] : N / 6 > 0 ? N / 6 : 1;
    int64_t *own, *chosen;
    bool done;

    if (call->causal || N != call->M) return false;
    if (sheet_number(call, "token_keep", 0, 0) > 0 && !sheet_integer(call, "cls", 0, 1)) return false;
    own = (int64_t *)sheet_zeros(call->B * call->H * N * N);
    chosen = call->selection ? call->selection : own;
    for (int64_t plane = 0; !(call->selection && call->frozen) && plane < call->B * call->H; plane++)
        choose(call, R, plane / call->H, plane % call->H, chosen + plane * N * N);
    done = sheet_attend(call, sees, &(struct plan){N, chosen});
    free(own);
    return done;
}

const sheet sheet_sparsifiner = {"sparsifiner", forward};
