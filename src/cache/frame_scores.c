#include "cache/frame_scores.h"

#include <math.h>

#include "base/context.h"

/* Of a key's length: less than this behind a projection is rounding, of keys as they are stored. */
static const double no_direction = 1e-6;

void fv_frame_bonus(const float *norm, int64_t count, double alpha, double tau, float *bonus)
{
    double mean = 0, square = 0, most = -INFINITY, sum = 0, deviation;

    for (int64_t j = 0; j < count; j++)
        mean += (double)norm[j] / (double)count;
    for (int64_t j = 0; j < count; j++) {
        square += ((double)norm[j] - mean) * ((double)norm[j] - mean);
        most = fmax(most, (double)norm[j]);
    }
    deviation = count > 1 ? sqrt(square / (double)(count - 1)) : 0;
    for (int64_t j = 0; j < count; j++)
        sum += exp(((double)norm[j] - most) / (deviation + 1e-8) / tau);
    for (int64_t j = 0; j < count; j++)
        bonus[j] = (float)(alpha * exp(((double)norm[j] - most) / (deviation + 1e-8) / tau) / sum);
}

/* ---- the newest frame's directions ------------------------------------------------------------------------------- */

static double dot(const double *x, const double *y, int64_t count)
{
    double sum = 0;

    for (int64_t d = 0; d < count; d++)
        sum += x[d] * y[d];
    return sum;
}

/* Modified Gram-Schmidt, twice for each key, so that the basis stays orthogonal to rounding.  q [rank, dim]. */
static int64_t span_of(const float *keys, int64_t count, int64_t dim, int64_t rank, double *q)
{
    int64_t found = 0;

    for (int64_t i = 0; i < fv_min(rank, count); i++) {
        double *x = q + found * dim, length, before;
        for (int64_t d = 0; d < dim; d++)
            x[d] = (double)keys[i * dim + d];
        before = sqrt(dot(x, x, dim));
        for (int64_t pass = 0; pass < 2; pass++)
            for (int64_t r = 0; r < found; r++) {
                double along = dot(q + r * dim, x, dim);
                for (int64_t d = 0; d < dim; d++)
                    x[d] -= along * q[r * dim + d];
            }
        length = sqrt(dot(x, x, dim));
        if (!(length > no_direction * before)) continue;
        for (int64_t d = 0; d < dim; d++)
            x[d] /= length;
        found++;
    }
    return found;
}

/* Turns rows a and b of m [dim, dim] by an angle of cosine c and sine s. */
static void turn_rows(double *m, int64_t dim, int64_t a, int64_t b, double c, double s)
{
    for (int64_t d = 0; d < dim; d++) {
        double x = m[a * dim + d], y = m[b * dim + d];
        m[a * dim + d] = c * x - s * y;
        m[b * dim + d] = s * x + c * y;
    }
}

/* The same from both sides of a symmetric matrix, so that its entry (a, b) becomes 0; t = s / c. */
static void turn_both(double *m, int64_t dim, int64_t a, int64_t b, double c, double t)
{
    double up = m[a * dim + a], down = m[b * dim + b], off = m[a * dim + b];

    turn_rows(m, dim, a, b, c, t * c);
    m[a * dim + a] = up - t * off;
    m[b * dim + b] = down + t * off;
    m[a * dim + b] = m[b * dim + a] = 0;
    for (int64_t d = 0; d < dim; d++) {
        m[d * dim + a] = m[a * dim + d];
        m[d * dim + b] = m[b * dim + d];
    }
}

/* Jacobi's method: the rows of v become the eigenvectors of m, its diagonal the eigenvalues.  What is left beside the
 * diagonal turns them by less than they are rounded to. */
static void diagonalise(double *m, int64_t dim, double *v)
{
    enum { SWEEPS = 30 }; /* it converges quadratically: 6 to 10 are enough */
    double trace = 0;

    for (int64_t d = 0; d < dim; d++)
        trace += m[d * dim + d];
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        int64_t turned = 0;
        for (int64_t a = 0; a < dim; a++)
            for (int64_t b = a + 1; b < dim; b++) {
                double off = m[a * dim + b], t, c;
                if (!(fabs(off) > 1e-13 * trace)) continue;
                double theta = (m[b * dim + b] - m[a * dim + a]) / (2 * off);
                t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
                c = 1 / sqrt(t * t + 1);
                turn_both(m, dim, a, b, c, t);
                turn_rows(v, dim, a, b, c, t * c);
                turned++;
            }
        if (turned == 0) return;
    }
}

/* The eigenvectors of K^T K with the largest eigenvalues.  memory [2 dim^2]; q [rank, dim]. */
static int64_t main_directions(const float *keys, int64_t count, int64_t dim, int64_t rank, double *memory, double *q)
{
    double *m = memory, *v = memory + dim * dim, most = 0;
    int64_t found = 0;

    memset(memory, 0, (size_t)(2 * dim * dim) * sizeof *memory);
    for (int64_t i = 0; i < count; i++)
        for (int64_t a = 0; a < dim; a++)
            for (int64_t b = 0; b <= a; b++)
                m[a * dim + b] += (double)keys[i * dim + a] * (double)keys[i * dim + b];
    for (int64_t a = 0; a < dim; a++) {
        for (int64_t b = 0; b < a; b++)
            m[b * dim + a] = m[a * dim + b];
        v[a * dim + a] = 1;
    }
    diagonalise(m, dim, v);
    for (int64_t d = 0; d < dim; d++)
        most = fmax(most, m[d * dim + d]);
    while (found < fv_min(rank, fv_min(count, dim))) {
        int64_t best = 0;
        for (int64_t d = 1; d < dim; d++)
            if (m[d * dim + d] > m[best * dim + best]) best = d;
        if (!(m[best * dim + best] > no_direction * no_direction * most)) break;
        m[best * dim + best] = -1;
        memcpy(q + found++ * dim, v + best * dim, (size_t)dim * sizeof *q);
    }
    return found;
}

fv_status fv_frame_basis(fv_ctx *ctx, const float *keys, int64_t count, int64_t dim, int64_t rank, bool svd,
                         float *basis, int64_t *directions)
{
    double *q, *memory;

    rank = fv_min(rank, fv_min(count, dim));
    FV_TRY(FV_SCRATCH(ctx, q, rank * dim));
    if (svd) {
        FV_TRY(FV_SCRATCH(ctx, memory, 2 * dim * dim));
        *directions = main_directions(keys, count, dim, rank, memory, q);
    } else {
        *directions = span_of(keys, count, dim, rank, q);
    }
    for (int64_t i = 0; i < *directions * dim; i++)
        basis[i] = (float)q[i];
    return FV_OK;
}

/* ---- what older frames say beside -------------------------------------------------------------------------------- */

fv_status fv_frame_residuals(fv_ctx *ctx, const float *keys, int64_t count, int64_t dim, const float *basis,
                             int64_t directions, float *residual)
{
    fv_tensor k, p, along, left;

    FV_TRY(fv_tensor_wrap(&k, (void *)(uintptr_t)keys, FV_F32, FV_DIMS(count, dim)));
    FV_TRY(fv_tensor_new(ctx, &left, FV_F32, FV_DIMS(count, dim)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = k, .out = left}));
    if (directions > 0) {
        FV_TRY(fv_tensor_wrap(&p, (void *)(uintptr_t)basis, FV_F32, FV_DIMS(directions, dim)));
        FV_TRY(fv_tensor_new(ctx, &along, FV_F32, FV_DIMS(count, directions)));
        fv_tensor turned = fv_transposed(&p);
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = k, .b = turned, .c = along}));
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = along, .b = p, .c = left, .alpha = -1, .beta = 1}));
    }
    for (int64_t t = 0; t < count; t++) {
        double square = 0;
        for (int64_t d = 0; d < dim; d++) {
            double x = (double)((const float *)left.data)[t * dim + d];
            square += x * x;
        }
        residual[t] = (float)sqrt(square);
    }
    return FV_OK;
}
