/* Rows of elementwise functions, norms, softmax, rotations. */
#include "ops/cpu/leaf.h"

/* tanh within 2 ulp: a polynomial in x^2 for small x, 1 - 2 / (exp(2x) + 1) elsewhere. */
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

INLINE vf vsigmoid(vf x)
{
    return splat(1) / (splat(1) + vexp(-x));
}

INLINE vf vgelu_tanh(vf x)
{
    vf inner = splat(0.79788456f) * (x + splat(0.044715f) * x * x * x);
    return splat(0.5f) * x * (splat(1) + vtanh(inner));
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
    case FV_MAP_TANH: return vtanh(x);
    case FV_MAP_SIGMOID: return vsigmoid(x);
    case FV_MAP_SILU: return x * vsigmoid(x);
    case FV_MAP_GELU_TANH: return vgelu_tanh(x);
    case FV_MAP_RELU: return choose(x <= zero, zero, x);
    case FV_MAP_ELU1: return choose(x > zero, x + one, vexp(x));
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
        MAP_CASE(FV_MAP_TANH);
        MAP_CASE(FV_MAP_SIGMOID);
        MAP_CASE(FV_MAP_SILU);
        MAP_CASE(FV_MAP_GELU_TANH);
        MAP_CASE(FV_MAP_RELU);
        MAP_CASE(FV_MAP_ELU1);
        MAP_CASE(FV_MAP_SOFTCAP);
    default: return false;
    }
}

static float sum_row(int64_t n, const float *x)
{
    vf s = splat(0);
    int64_t i = 0;

    for (; i + W <= n; i += W)
        s += load(x + i);
    return sum(i < n ? s + load_part(x + i, n - i, 0) : s);
}

/* sum of (x - mean)^2.  Four sums: two chains would wait for their own additions. */
static float square_row(int64_t n, const float *x, float mean)
{
    vf s[4] = {splat(0), splat(0), splat(0), splat(0)}, m = splat(mean), d;
    int64_t i = 0;

    for (; i + 4 * W <= n; i += 4 * W)
        UNROLL
    for (int u = 0; u < 4; u++) {
        d = load(x + i + u * W) - m;
        s[u] = d * d + s[u];
    }
    for (; i + W <= n; i += W) {
        d = load(x + i) - m;
        s[0] = d * d + s[0];
    }
    if (i < n) {
        d = load_part(x + i, n - i, mean) - m;
        s[1] = d * d + s[1];
    }
    return sum((s[0] + s[1]) + (s[2] + s[3]));
}

INLINE vf add_as(vf x, vf y, vf scale, vf weight, vf *square)
{
    vf out = x + y * scale * weight;

    *square = out * out + *square;
    return out;
}

static float add_row(int64_t n, const float *x, const float *y, float scale, const float *weight, float *out)
{
    vf s[4] = {splat(0), splat(0), splat(0), splat(0)}, factor = splat(scale), w = splat(1);
    int64_t i = 0;

    for (; i + 4 * W <= n; i += 4 * W)
        UNROLL
    for (int u = 0; u < 4; u++) {
        int64_t at = i + u * W;
        store(out + at, add_as(load(x + at), load(y + at), factor, weight ? load(weight + at) : w, &s[u]));
    }
    for (; i + W <= n; i += W)
        store(out + i, add_as(load(x + i), load(y + i), factor, weight ? load(weight + i) : w, &s[0]));
    if (i < n) {
        int64_t rest = n - i;
        w = weight ? load_part(weight + i, rest, 0) : w;
        store_part(out + i, add_as(load_part(x + i, rest, 0), load_part(y + i, rest, 0), factor, w, &s[1]), rest);
    }
    return sum((s[0] + s[1]) + (s[2] + s[3]));
}

/* out = (x - mean) * scale [* weight] [+ bias] */
static void affine_row(int64_t n, const float *x, float mean, float scale, const float *weight, const float *bias,
                       float *out)
{
    vf m = splat(mean), factor = splat(scale), w = splat(1), b = splat(0);
    int64_t i = 0;

    for (; i + W <= n; i += W) {
        vf v = (load(x + i) - m) * factor;
        if (weight) v *= load(weight + i);
        if (bias) v += load(bias + i);
        store(out + i, v);
    }
    if (i < n) {
        if (weight) w = load_part(weight + i, n - i, 0);
        if (bias) b = load_part(bias + i, n - i, 0);
        store_part(out + i, (load_part(x + i, n - i, 0) - m) * factor * w + b, n - i);
    }
}

static float largest_row(int64_t n, const float *x)
{
    vf m = splat(-INFINITY);
    int64_t i = 0;

    for (; i + W <= n; i += W)
        m = vmax(load(x + i), m);
    return largest(i < n ? vmax(load_part(x + i, n - i, -INFINITY), m) : m);
}

/* out = exp(scale * x - shift); returns the sum */
static float exp_row(int64_t n, const float *x, float scale, float shift, float *out)
{
    vf s = splat(0), e;
    int64_t i = 0;

    for (; i + W <= n; i += W) {
        e = vexp(load(x + i) * splat(scale) - splat(shift));
        store(out + i, e);
        s += e;
    }
    if (i < n) {
        e = vexp(load_part(x + i, n - i, scale < 0 ? INFINITY : -INFINITY) * splat(scale) - splat(shift));
        store_part(out + i, e, n - i);
        s += load_part(out + i, n - i, 0);
    }
    return sum(s);
}

/* The same for pairs (x[2c], x[2c + 1]). */
static void rotate_pairs_row(int64_t half, const float *x, const float *cosine, const float *sine, float *out)
{
    for (int64_t c = 0; c < half; c++) {
        float a = x[2 * c], b = x[2 * c + 1];
        out[2 * c] = a * cosine[c] - b * sine[c];
        out[2 * c + 1] = a * sine[c] + b * cosine[c];
    }
}

/* Turns pairs (x[c], x[c + half]) by the angles of cosine and sine; reads a pair before it writes it. */
static void rotate_row(int64_t half, const float *x, const float *cosine, const float *sine, float *out)
{
    int64_t c = 0;

    for (; c + W <= half; c += W) {
        vf a = load(x + c), b = load(x + half + c), co = load(cosine + c), si = load(sine + c);
        store(out + c, a * co - b * si);
        store(out + half + c, a * si + b * co);
    }
    for (; c < half; c++) {
        float a = x[c], b = x[half + c];
        out[c] = a * cosine[c] - b * sine[c];
        out[half + c] = a * sine[c] + b * cosine[c];
    }
}

void LEAF(fill_math)(struct fv_kernels *kernels)
{
    kernels->map = map_row;
    kernels->sum = sum_row;
    kernels->square = square_row;
    kernels->add = add_row;
    kernels->affine = affine_row;
    kernels->largest = largest_row;
    kernels->exp = exp_row;
    kernels->rotate = rotate_row;
    kernels->rotate_pairs = rotate_pairs_row;
}
