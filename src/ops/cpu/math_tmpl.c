/* Elementwise functions.  Bounds on their errors are checked over all exponents by tests/ops/test_cpu_rows.c. */
#include "ops/cpu/leaf.h"

/* tanh within 2^-22 of itself: a polynomial in x^2 for small x, 1 - 2 / (exp(2x) + 1) elsewhere. */
INLINE vf vtanh(vf x)
{
    vf size = (vf)((vi)x & 0x7fffffff), square = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * square + splat(2.06390887954e-2f);
    p = p * square + splat(-5.37397155531e-2f);
    p = p * square + splat(1.33314422036e-1f);
    p = p * square + splat(-3.33332819422e-1f);
    vf near = (p * square) * x + x;
    vf far = splat(1) - splat(2) / (vexp(size + size) + splat(1));
    far = (vf)((vi)far | ((vi)x & INT32_MIN));
    return choose(size < splat(0.625f), near, far);
}

/* Within 2^-21 of itself; 0 below -88, where it is less than any normal number. */
INLINE vf vsigmoid(vf x)
{
    return (vf)(~(x < splat(-88)) & (vi)(splat(1) / (splat(1) + vexp(-x))));
}

/* Within 2^-22 of itself.  x = 2^e m with m in sqrt(1/2) .. sqrt(2); ln m by a polynomial in m - 1. */
INLINE vf vlog(vf x)
{
    vi tiny = x < splat(0x1p-126f);
    vf scaled = choose(x > splat(0), choose(tiny, x * splat(0x1p24f), x), splat(1));
    vi number = (vi)scaled - 0x3f3504f3; /* sqrt(1/2): its exponent is that of x / sqrt(1/2) */
    vf e = to_float((number >> 23) - (tiny & 24)), m = (vf)((number & 0x7fffff) + 0x3f3504f3) - splat(1);
    vf p = splat(7.0376836292e-2f), square = m * m;
    p = p * m - splat(1.1514610310e-1f);
    p = p * m + splat(1.1676998740e-1f);
    p = p * m - splat(1.2420140846e-1f);
    p = p * m + splat(1.4249322787e-1f);
    p = p * m - splat(1.6668057665e-1f);
    p = p * m + splat(2.0000714765e-1f);
    p = p * m - splat(2.4999993993e-1f);
    p = p * m + splat(3.3333331174e-1f);
    p = p * m * square - splat(2.12194440e-4f) * e - splat(0.5f) * square;
    vf out = (m + p) + splat(0.693359375f) * e;
    out = choose(x == splat(INFINITY), x, out);
    out = choose(x == splat(0), splat(-INFINITY), out);
    return choose((x < splat(0)) | (x != x), splat(NAN), out);
}

/* erfc(z) for z >= 0: t exp(-z^2 + p(t)), t = 1 / (1 + z / 2) (Numerical Recipes, section 6.2), within 2^-22 (2 + z^2)
 * of itself. */
INLINE vf verfc(vf z)
{
    vf t = splat(1) / (splat(1) + splat(0.5f) * z);
    vf p = splat(0.17087277f);
    p = p * t - splat(0.82215223f);
    p = p * t + splat(1.48851587f);
    p = p * t - splat(1.13520398f);
    p = p * t + splat(0.27886807f);
    p = p * t - splat(0.18628806f);
    p = p * t + splat(0.09678418f);
    p = p * t + splat(0.37409196f);
    p = p * t + splat(1.00002368f);
    p = p * t - splat(1.26551223f);
    return t * vexp(p - z * z);
}

/* x / 2 erfc(-x / sqrt(2)), without cancellation on either side. */
INLINE vf vgelu(vf x)
{
    vf size = (vf)((vi)x & 0x7fffffff), tail = splat(0.5f) * x * verfc(size * splat(0.70710678f));

    return choose(x < splat(0), tail, x - tail);
}

INLINE vf vgelu_tanh(vf x)
{
    vf inner = splat(0.79788456f) * (x + splat(0.044715f) * x * x * x);
    return splat(0.5f) * x * (splat(1) + vtanh(inner));
}

/* max(x, 0) + ln(1 + e), e = exp(-|x|): the rounding of 1 + e is taken back by e / ((1 + e) - 1), so small results are
 * as exact as large ones. */
INLINE vf vsoftplus(vf x)
{
    vf size = (vf)((vi)x & 0x7fffffff), e = vexp(-size), u = splat(1) + e, rounded = u - splat(1);
    vf tail = choose(rounded == splat(0), e, vlog(u) * e / choose(rounded == splat(0), splat(1), rounded));

    return choose(x <= splat(0), splat(0), x) + tail;
}

INLINE vf apply(const fv_map op, vf x, vf y, vf alpha, vf beta)
{
    const vf zero = splat(0), one = splat(1);

    switch (op) {
    case FV_MAP_COPY: return alpha * x + beta;
    case FV_MAP_ADD: return x + alpha * y;
    case FV_MAP_SUB: return x - y;
    case FV_MAP_MUL: return alpha * x * y;
    case FV_MAP_DIV: return x / y;
    case FV_MAP_SILU_MUL: return x * vsigmoid(x) * y;
    case FV_MAP_GELU_TANH_MUL: return vgelu_tanh(x) * y;
    case FV_MAP_MAX: return choose((x >= y) | (x != x), x, y);
    case FV_MAP_EXP: return vexp(x);
    case FV_MAP_LOG: return vlog(x);
    case FV_MAP_SQRT: return vsqrt(x);
    case FV_MAP_GELU: return vgelu(x);
    case FV_MAP_TANH: return vtanh(x);
    case FV_MAP_SIGMOID: return vsigmoid(x);
    case FV_MAP_SILU: return x * vsigmoid(x);
    case FV_MAP_GELU_TANH: return vgelu_tanh(x);
    case FV_MAP_RELU: return choose(x <= zero, zero, x);
    case FV_MAP_ELU1: return choose(x > zero, x + one, vexp(x));
    case FV_MAP_SOFTPLUS: return vsoftplus(x);
    case FV_MAP_SOFTCAP: return alpha * vtanh(x / alpha);
    default: return x;
    }
}

INLINE void map_as(const fv_map op, int64_t n, const float *x, const float *y, int64_t y_step, float alpha, float beta,
                   float *out)
{
    vf a = splat(alpha), b = splat(beta), other = splat(y ? y[0] : alpha);
    bool vector = y && y_step == 1;
    int64_t i = 0;

    for (; i + W <= n; i += W)
        store(out + i, apply(op, load(x + i), vector ? load(y + i) : other, a, b));
    if (i < n) {
        vf last = load_part(x + i, n - i, 0), last_y = vector ? load_part(y + i, n - i, 1) : other;
        store_part(out + i, apply(op, last, last_y, a, b), n - i);
    }
}

#define MAP_CASE(op)                                                                                                   \
    case op: map_as(op, n, x, y, y_step, alpha, beta, out); return true
static bool map_row(fv_map op, int64_t n, const float *x, const float *y, int64_t y_step, float alpha, float beta,
                    float *out)
{
    switch (op) {
        MAP_CASE(FV_MAP_COPY);
        MAP_CASE(FV_MAP_ADD);
        MAP_CASE(FV_MAP_SUB);
        MAP_CASE(FV_MAP_MUL);
        MAP_CASE(FV_MAP_DIV);
        MAP_CASE(FV_MAP_SILU_MUL);
        MAP_CASE(FV_MAP_GELU_TANH_MUL);
        MAP_CASE(FV_MAP_MAX);
        MAP_CASE(FV_MAP_EXP);
        MAP_CASE(FV_MAP_LOG);
        MAP_CASE(FV_MAP_SQRT);
        MAP_CASE(FV_MAP_GELU);
        MAP_CASE(FV_MAP_TANH);
        MAP_CASE(FV_MAP_SIGMOID);
        MAP_CASE(FV_MAP_SILU);
        MAP_CASE(FV_MAP_GELU_TANH);
        MAP_CASE(FV_MAP_RELU);
        MAP_CASE(FV_MAP_ELU1);
        MAP_CASE(FV_MAP_SOFTPLUS);
        MAP_CASE(FV_MAP_SOFTCAP);
    default: return false;
    }
}

void LEAF(fill_math)(struct fv_kernels *kernels)
{
    kernels->map = map_row;
}
