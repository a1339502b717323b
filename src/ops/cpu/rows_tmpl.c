/* Rows as a whole: sums, norms, softmax, rotations, rows joined into one.  All but softmax's exponentials and
 * convolutions (conv.c) are bound by memory, and reach the shares of a copy that rows.c states; running sums, with a
 * conversion either way for each element, reach about three quarters of it. */
#include "ops/cpu/leaf.h"

INLINE vf load_part_or_all(const float *x, int64_t count)
{
    return count == W ? load(x) : load_part(x, count, 0);
}

INLINE void store_part_or_all(float *out, vf x, int64_t count)
{
    if (count == W)
        store(out, x);
    else
        store_part(out, x, count);
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
    vf m[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    int64_t i = 0;

    for (; i + 4 * W <= n; i += 4 * W)
        UNROLL
    for (int u = 0; u < 4; u++)
        m[u] = vmax(load(x + i + u * W), m[u]);
    for (; i + W <= n; i += W)
        m[0] = vmax(load(x + i), m[0]);
    if (i < n) m[1] = vmax(load_part(x + i, n - i, -INFINITY), m[1]);
    return largest(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
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

/* ---- rotary positions ------------------------------------------------------------------------------------------ */

typedef double vd __attribute__((vector_size(8 * W)));
typedef double vd_unaligned __attribute__((vector_size(8 * W), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(8 * W)));

/* Cosine and sine of position * frequency, times magnitude.  Positions times frequencies are large: the angle and its
 * rest of a quarter turn are doubles, in three parts (fdlibm's), exact to 2^20 turns; the polynomials are floats.
 * Within 2^-23 of magnitude each (an error of the rest of 2^-25, and a rounding or two). */
static void angles_row(int64_t half, double position, const double *frequency, float magnitude, float *cosine,
                       float *sine)
{
    const double magic = 6755399441055744.0; /* 1.5 2^52: the sum's last bits are those of an integer */

    for (int64_t c = 0; c < half; c += W) { /* frequency, cosine and sine have room for whole vectors */
        vd angle = *(const vd_unaligned *)(frequency + c) * position, shifted = angle * 0.63661977236758134308 + magic;
        vd turns = shifted - magic;
        vd rest = angle - turns * 1.57079632673412561417e+00;
        rest = rest - turns * 6.07710050630396597660e-11;
        rest = rest - turns * 2.02226624879595063154e-21;
        vi quarter = __builtin_convertvector((vl)shifted & 3, vi);
        vf r = __builtin_convertvector(rest, vf), z = r * r, s = splat(-1.9515295891e-4f), k = splat(2.4433157118e-5f);
        s = (s * z + splat(8.3321608736e-3f)) * z - splat(1.6666654611e-1f);
        s = s * z * r + r;
        k = (k * z - splat(1.3887316255e-3f)) * z + splat(4.1666645683e-2f);
        k = k * z * z - splat(0.5f) * z + splat(1);
        vi odd = (quarter & 1) != 0;
        vf si = choose(odd, k, s) * splat(magnitude), co = choose(odd, s, k) * splat(magnitude);
        store(sine + c, (vf)((vi)si ^ (((quarter & 2) != 0) & INT32_MIN)));
        store(cosine + c, (vf)((vi)co ^ ((((quarter + 1) & 2) != 0) & INT32_MIN)));
    }
}

/* The first of each pair of lanes negated. */
INLINE vf alternate(vf x)
{
    vi sign;

    for (int i = 0; i < W; i++)
        sign[i] = i % 2 ? 0 : INT32_MIN;
    return (vf)((vi)x ^ sign);
}

/* Pairs (x[2c], x[2c + 1]): the other of each pair comes by a shuffle, cosines and sines doubled. */
static void rotate_pairs_row(int64_t half, const float *x, const float *cosine, const float *sine, float *out)
{
    int64_t c = 0;

    for (; 2 * c + W <= 2 * half; c += W / 2) {
        vf v = load(x + 2 * c);
        store(out + 2 * c, v * twice(cosine + c) + swap_pairs(v) * alternate(twice(sine + c)));
    }
    for (; c < half; c++) {
        float a = x[2 * c], b = x[2 * c + 1];
        out[2 * c] = a * cosine[c] - b * sine[c];
        out[2 * c + 1] = b * cosine[c] + a * sine[c];
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

/* ---- rows into one --------------------------------------------------------------------------------------------- */

INLINE vf join(const bool largest_, vf total, vf x)
{
    return largest_ ? vmax(x, total) : x + total;
}

/* Columns are held in registers while the rows go by. */
INLINE void reduce_as(const bool largest_, int64_t rows, int64_t n, const float *x, int64_t x_row, bool add,
                      float factor, float *out)
{
    int64_t from = add ? 0 : 1, c = 0;

    for (; c + 4 * W <= n; c += 4 * W) {
        const float *start = add ? out : x;
        vf t[4];
        UNROLL
        for (int u = 0; u < 4; u++)
            t[u] = load(start + c + u * W);
        for (int64_t r = from; r < rows; r++)
            UNROLL
        for (int u = 0; u < 4; u++)
            t[u] = join(largest_, t[u], load(x + r * x_row + c + u * W));
        UNROLL
        for (int u = 0; u < 4; u++)
            store(out + c + u * W, t[u] * splat(factor));
    }
    for (; c < n; c += W) {
        int64_t count = fv_min(n - c, W);
        vf t = load_part_or_all((add ? out : x) + c, count);
        for (int64_t r = from; r < rows; r++)
            t = join(largest_, t, load_part_or_all(x + r * x_row + c, count));
        store_part_or_all(out + c, t * splat(factor), count);
    }
}

/* `vectors` of columns, or `part` > 0 lanes of one, as doubles in registers: what the reference backend computes, in
 * the same order. */
INLINE void add_up_columns(const int vectors, int64_t part, int64_t rows, const float *x, int64_t x_row, bool exclusive,
                           float *out, int64_t out_row, double *totals)
{
    vd before[4], total[4];

    UNROLL
    for (int u = 0; u < vectors; u++)
        total[u] = *(const vd_unaligned *)(totals + u * W);
    for (int64_t r = 0; r < rows; r++, x += x_row, out += out_row) {
        UNROLL
        for (int u = 0; u < vectors; u++) {
            vf value = part ? load_part(x + u * W, part, 0) : load(x + u * W);
            before[u] = total[u];
            total[u] += __builtin_convertvector(value, vd);
            vf y = __builtin_convertvector(exclusive ? before[u] : total[u], vf);
            if (part)
                store_part(out + u * W, y, part);
            else
                store(out + u * W, y);
        }
    }
    UNROLL
    for (int u = 0; u < vectors; u++)
        *(vd_unaligned *)(totals + u * W) = total[u];
}

static void add_up_rows(int64_t rows, int64_t n, const float *x, int64_t x_row, bool exclusive, float *out,
                        int64_t out_row, double *totals)
{
    int64_t c = 0;

    for (; c + 4 * W <= n; c += 4 * W)
        add_up_columns(4, 0, rows, x + c, x_row, exclusive, out + c, out_row, totals + c);
    for (; c + W <= n; c += W)
        add_up_columns(1, 0, rows, x + c, x_row, exclusive, out + c, out_row, totals + c);
    if (c < n) add_up_columns(1, n - c, rows, x + c, x_row, exclusive, out + c, out_row, totals + c);
}

static void reduce_row(fv_pool_kind kind, int64_t rows, int64_t n, const float *x, int64_t x_row, bool add,
                       float factor, float *out)
{
    if (rows == 0 && !add)
        memset(out, 0, (size_t)n * sizeof *out);
    else if (kind == FV_POOL_MAX)
        reduce_as(true, rows, n, x, x_row, add, factor, out);
    else
        reduce_as(false, rows, n, x, x_row, add, factor, out);
}

INLINE void combine_as(const int vectors, int64_t terms, const float *const *rows, const float *weights, int64_t c,
                       bool add, float *out)
{
    vf t[4];

    UNROLL
    for (int u = 0; u < vectors; u++)
        t[u] = add ? load(out + c + u * W) : splat(0);
    for (int64_t r = 0; r < terms; r++)
        UNROLL
    for (int u = 0; u < vectors; u++)
        t[u] = load(rows[r] + c + u * W) * splat(weights[r]) + t[u];
    UNROLL
    for (int u = 0; u < vectors; u++)
        store(out + c + u * W, t[u]);
}

static void combine_row(int64_t terms, const float *const *rows, const float *weights, int64_t n, bool add, float *out)
{
    int64_t c = 0;

    for (; c + 4 * W <= n; c += 4 * W)
        combine_as(4, terms, rows, weights, c, add, out);
    for (; c + 2 * W <= n; c += 2 * W)
        combine_as(2, terms, rows, weights, c, add, out);
    for (; c < n; c += W) {
        int64_t count = fv_min(n - c, W);
        vf t = add ? load_part_or_all(out + c, count) : splat(0);
        for (int64_t r = 0; r < terms; r++)
            t = load_part_or_all(rows[r] + c, count) * splat(weights[r]) + t;
        store_part_or_all(out + c, t, count);
    }
}

/* ---- convolution ----------------------------------------------------------------------------------------------- */

INLINE void convolve_as(const int vectors, int64_t count, const int64_t *offset, const float *in, const float *taps,
                        vf *sums)
{
    for (int64_t t = 0; t < count; t++) {
        vf tap = splat(taps[t]);
        UNROLL
        for (int u = 0; u < vectors; u++)
            sums[u] = load(in + offset[t] + u * W) * tap + sums[u];
    }
}

static void convolve_row(int64_t n, int64_t count, const int64_t *offset, const float *in, const float *taps,
                         float *out)
{
    vf sums[4];
    int64_t i = 0;

    for (; i + 4 * W <= n; i += 4 * W) {
        UNROLL
        for (int u = 0; u < 4; u++)
            sums[u] = load(out + i + u * W);
        convolve_as(4, count, offset, in + i, taps, sums);
        UNROLL
        for (int u = 0; u < 4; u++)
            store(out + i + u * W, sums[u]);
    }
    for (; i < n; i += W) {
        int64_t rest = fv_min(n - i, W);
        sums[0] = load_part_or_all(out + i, rest);
        convolve_as(1, count, offset, in + i, taps, sums);
        store_part_or_all(out + i, sums[0], rest);
    }
}

static void convolve_channels_row(int64_t n, int64_t kh, int64_t kw, const float *in, int64_t in_row, int64_t in_step,
                                  const float *taps, int64_t tap_row, const float *bias, float *out)
{
    int64_t c = 0;

    for (; c + 4 * W <= n; c += 4 * W) {
        vf sums[4];
        UNROLL
        for (int u = 0; u < 4; u++)
            sums[u] = load(bias + c + u * W);
        for (int64_t y = 0; y < kh; y++)
            for (int64_t x = 0; x < kw; x++) {
                const float *from = in + y * in_row + x * in_step + c, *tap = taps + y * tap_row + x * n + c;
                UNROLL
                for (int u = 0; u < 4; u++)
                    sums[u] = load(from + u * W) * load(tap + u * W) + sums[u];
            }
        UNROLL
        for (int u = 0; u < 4; u++)
            store(out + c + u * W, sums[u]);
    }
    for (; c < n; c += W) {
        int64_t count = fv_min(n - c, W);
        vf total = load_part_or_all(bias + c, count);
        for (int64_t y = 0; y < kh; y++)
            for (int64_t x = 0; x < kw; x++)
                total = load_part_or_all(in + y * in_row + x * in_step + c, count) *
                            load_part_or_all(taps + y * tap_row + x * n + c, count) +
                        total;
        store_part_or_all(out + c, total, count);
    }
}

void LEAF(fill_rows)(struct fv_kernels *kernels)
{
    kernels->sum = sum_row;
    kernels->square = square_row;
    kernels->add = add_row;
    kernels->affine = affine_row;
    kernels->largest = largest_row;
    kernels->exp = exp_row;
    kernels->angles = angles_row;
    kernels->rotate = rotate_row;
    kernels->rotate_pairs = rotate_pairs_row;
    kernels->reduce = reduce_row;
    kernels->add_up = add_up_rows;
    kernels->combine = combine_row;
    kernels->convolve = convolve_row;
    kernels->convolve_channels = convolve_channels_row;
}
