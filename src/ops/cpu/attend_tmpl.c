/* Attention's own kernels around the micro-kernel: the softmax of a tile while it streams over keys, soft-caps, and
 * pairs of bf16. */
#include "ops/cpu/leaf.h"

#if defined(__AVX512BF16__)
INLINE void store_pairs(float *to, vf low, vf high)
{
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
#else
INLINE void store_pairs(float *to, vf low, vf high)
{
    store(to, low);
    store(to + W, high);
}
#endif

/* tanh by a quotient of odd and even polynomials on [-9, 9] (beyond it is 1): within 4 ulp. */
INLINE vf tanh_quotient(vf x)
{
    vf bounded = vmin(splat(9), vmax(splat(-9), x)), square = bounded * bounded;
    vf p = splat(-2.76076847742355e-16f), q = splat(1.19825839466702e-06f);

    p = p * square + splat(2.00018790482477e-13f);
    p = p * square + splat(-8.60467152213735e-11f);
    p = p * square + splat(5.12229709037114e-08f);
    p = p * square + splat(1.48572235717979e-05f);
    p = p * square + splat(6.37261928875436e-04f);
    p = p * square + splat(4.89352455891786e-03f);
    q = q * square + splat(1.18534705686654e-04f);
    q = q * square + splat(2.26843463243900e-03f);
    q = q * square + splat(4.89352518554385e-03f);
    return bounded * p * reciprocal(q);
}

/* cap tanh(t / (2 log2 e)) = cap - 2 cap / (1 + 2^t) of logits whose weights become bf16: 2^t within 5e-6 of itself
 * leaves cap 2.5e-6, at a cap of 50 a 31st of what the weights lose. */
INLINE vf coarse_cap(vf t, float cap)
{
    vf bounded = vmin(splat(64), t), f = exp2_fraction(bounded), p;

    p = splat(0.0136703095f);
    p = p * f + splat(0.0517449978f);
    p = p * f + splat(0.241604357f);
    p = p * f + splat(0.692972922f);
    p = p * f + splat(1.00000349f);
    return splat(cap) - splat(2 * cap) * reciprocal(exp2_scale(p, bounded) + splat(1));
}

#define SMALL_SQUARE 0.49f

/* tanh(u) / u by s = unit u^2, u^2 <= SMALL_SQUARE, minimax: within 1.9e-8 of itself; coarse so that tanh is within
 * 2.1e-6. */
INLINE vf small_tanh(vf s, const float unit, const bool coarse)
{
    vf p;

    if (coarse) {
        p = splat(-0.0357218107f / (unit * unit * unit));
        p = p * s + splat(0.127291397f / (unit * unit));
        p = p * s + splat(-0.332557465f / unit);
        return p * s + splat(0.999972696f);
    }
    p = splat(-0.00515511526f);
    p = p * s + splat(0.0201116601f);
    p = p * s + splat(-0.0535669897f);
    p = p * s + splat(0.133292431f);
    p = p * s + splat(-0.333331966f);
    return p * s + splat(1);
}

INLINE vf gained(vf x, float gain)
{
    return x * choose(x < splat(0), splat(1 - gain), splat(1 + gain));
}

/* cap tanh(x / cap) for vectors [from, to) of a row.  A cap is there for the few logits that come near it: rows without
 * any take a polynomial of half the operations. */
INLINE void cap_row(vf *x, const int from, const int to, uint64_t seen, float cap, const bool coarse)
{
    const float scale = coarse ? 2 * LOG2E : 1, unit = scale * scale;
    vf u[FV_KEY_TILE / W], square[FV_KEY_TILE / W], most = splat(0);

    UNROLL
    for (int n = from; n < to; n++) {
        u[n] = x[n] * splat(scale / cap);
        square[n] = u[n] * u[n];
    }
    if (seen != UINT64_MAX) { /* what stands in hidden places must not choose */
        UNROLL
        for (int n = from; n < to; n++)
            square[n] = keep_seen(square[n], seen, n * W);
    }
    UNROLL
    for (int n = from; n < to; n++)
        most = vmax(square[n], most);
    if (any_above(most, splat(SMALL_SQUARE * unit))) {
        UNROLL
        for (int n = from; n < to; n++)
            x[n] = coarse ? coarse_cap(u[n], cap) : splat(cap) * tanh_quotient(u[n]);
        return;
    }
    UNROLL
    for (int n = from; n < to; n++)
        x[n] *= small_tanh(square[n], unit, coarse);
}

INLINE vf curve_of(vf x, float gain, float cap)
{
    if (gain != 0) x = gained(x, gain);
    return cap > 0 ? splat(cap) * tanh_quotient(x * splat(1 / cap)) : x;
}

enum { SLACK = 8 };

/* Keys [from, to) of the tile.  A row's maximum is raised only when it would be passed by more than SLACK: weights of
 * up to e^SLACK lose nothing in floating point, and o is hardly ever rescaled.  Sums stay in lanes until the end. */
INLINE void softmax_keys(const struct fv_softmax_step *step, const int from, const int to, const bool pairs)
{
    enum { N = FV_KEY_TILE / W };
    const vf log2e = splat(LOG2E);
    float *s = step->s, *o = step->o, *total = step->total;

    for (int r = 0; r < step->rows; r++, s += FV_KEY_TILE, o += step->o_row, total += W) {
        uint64_t seen = step->bits[r % step->tokens];
        vf x[N], high = splat(-INFINITY), shift, sum = load(total);

        if (!seen) {
            memset(s + (pairs ? from / 2 : from), 0, (size_t)(pairs ? (to - from) / 2 : to - from) * sizeof *s);
            continue;
        }
        UNROLL
        for (int n = from / W; n < to / W; n++)
            x[n] = load(s + n * W);
        if (step->gain != 0) {
            UNROLL
            for (int n = from / W; n < to / W; n++)
                x[n] = gained(x[n], step->gain);
        }
        if (step->softcap > 0) cap_row(x, from / W, to / W, seen, step->softcap, pairs);
        if (step->bias) {
            const float *bias = step->bias + r * step->bias_row;
            vf same = splat(step->shift ? step->shift[r * step->shift_row] : 0);
            UNROLL
            for (int n = from / W; n < to / W; n++)
                x[n] += load(bias + n * W) + same;
            /* the next key tile's of rows that lie far apart, past the second level, where panels are */
            for (int n = from; step->bias_row > FV_KEY_TILE && n < to; n += 16)
                __builtin_prefetch(bias + FV_KEY_TILE + n, 0, 0);
        }
        if (seen != UINT64_MAX) {
            UNROLL
            for (int n = from / W; n < to / W; n++)
                x[n] = keep_seen(x[n], seen, n * W);
        }
        UNROLL
        for (int n = from / W; n < to / W; n++)
            high = vmax(x[n], high);
        if (any_above(high, splat(step->maximum[r] + SLACK))) {
            float top = largest(high);
            if (step->maximum[r] > -INFINITY) { /* else there is nothing yet */
                float factor = vexp(splat(step->maximum[r] - top))[0];
                sum *= splat(factor);
                for (int64_t d = 0; d < step->o_row; d += W)
                    store(o + d, load(o + d) * splat(factor));
            }
            step->maximum[r] = top;
        }
        shift = splat(step->maximum[r] == -INFINITY ? 0 : step->maximum[r] * -LOG2E);
        UNROLL
        for (int n = from / W; n < to / W; n++) {
            x[n] = exp2_of(x[n] * log2e + shift, pairs);
            sum += x[n];
        }
        store(total, sum);
        UNROLL
        for (int n = from / W; n < to / W; n++) {
            if (!pairs)
                store(s + n * W, x[n]);
            else if (n % 2)
                store_pairs(s + n / 2 * W, x[n - 1], x[n]);
        }
    }
}

/* Bound: 11 vector operations for W logits (13 for f32), a sixth of the dot instructions of both products at D = 64 in
 * pairs.  A cap adds 7 (9), or 15 (21) where logits come near it: 12 and 9 % of a call at D = 64, or 24 and 17 %.  A
 * bias of every pair adds 2 and its bytes: 17 to 26 and 9 to 20 %. */
static void softmax(const struct fv_softmax_step *step)
{
    enum { HALF = FV_KEY_TILE / 2 };

    if (step->from > 0)
        step->pairs ? softmax_keys(step, HALF, FV_KEY_TILE, true) : softmax_keys(step, HALF, FV_KEY_TILE, false);
    else if (step->to <= HALF)
        step->pairs ? softmax_keys(step, 0, HALF, true) : softmax_keys(step, 0, HALF, false);
    else
        step->pairs ? softmax_keys(step, 0, FV_KEY_TILE, true) : softmax_keys(step, 0, FV_KEY_TILE, false);
}

/* s += gain |s|, then cap tanh(s / cap) unless cap is 0 */
static void curve(int64_t n, float *s, float gain, float cap)
{
    int64_t i = 0;

    for (; i + W <= n; i += W)
        store(s + i, curve_of(load(s + i), gain, cap));
    if (i < n) store_part(s + i, curve_of(load_part(s + i, n - i, 0), gain, cap), n - i);
}

/* Bound by the bytes of the bias; the next key tile's are asked for, as rows lie far apart. */
static void add_rows(int rows, int count, float *s, const float *bias, int64_t bias_row)
{
    for (int r = 0; r < rows; r++, s += FV_KEY_TILE, bias += bias_row) {
        int n = 0;
        for (; n + W <= count; n += W) {
            if (bias_row != 0 && n % 16 == 0) __builtin_prefetch(bias + FV_KEY_TILE + n);
            store(s + n, load(s + n) + load(bias + n));
        }
        for (; n < count; n++)
            s[n] += bias[n];
    }
}

static void shift_rows(int rows, int count, const float *bias, int64_t bias_row, const float *shift, int64_t shift_row,
                       float *to)
{
    for (int r = 0; r < rows; r++, bias += bias_row, shift += shift_row, to += FV_KEY_TILE) {
        int n = 0;
        for (; n + W <= count; n += W)
            store(to + n, load(bias + n) + splat(*shift));
        if (n < count) store_part(to + n, load_part(bias + n, count - n, 0) + splat(*shift), count - n);
    }
}

static bool panel_rows(int count, int64_t n, const void *const *row, int64_t panel, float *out)
{
    const vi infinity = splat_i(0x7f800000);
    vi bad = splat_i(0);

    for (int r = 0; r < count; r++) {
        const float *from = row[r];
        float *to = out + r * TILE_COLUMNS;
        for (int64_t c = 0; c < n; c += TILE_COLUMNS, to += panel) {
            UNROLL
            for (int v = 0; v < TILE_COLUMNS; v += W) {
                vf x = load(from + c + v);
                bad |= ((vi)x & infinity) == infinity;
                store(to + v, x);
            }
        }
    }
    return !any_above((vf)(bad & splat_i(1 << 23)), splat(0));
}

#if defined(__AVX512BF16__)
/* out[i] = the pair (even[i], odd[i]), n a multiple of W */
static void pack_pairs(int64_t n, const float *even, const float *odd, float *out)
{
    for (int64_t i = 0; i < n; i += W) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)load(odd + i), (__m512)load(even + i));
        __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
        __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
        _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* out[i] = the pair (x[2i], x[2i + 1]), n floats of x, a multiple of 2 W; out may be x */
static void join_pairs(int64_t n, const float *x, float *out)
{
    for (int64_t i = 0; i < n; i += 2 * W)
        store_pairs(out + i / 2, load(x + i), load(x + i + W));
}

static bool panel_pairs(int count, int64_t n, const void *const *row, int64_t panel, float *out)
{
    const __m512i exponent = _mm512_set1_epi16(0x7f80), one = _mm512_set1_epi16(0x80);
    __m512i low, high, bad = _mm512_setzero_si512();
    uint16_t place[2][2 * W];

    for (int i = 0; i < 2 * W; i++) {
        place[0][i] = (uint16_t)(i / 2 + i % 2 * 2 * W);
        place[1][i] = (uint16_t)(place[0][i] + W);
    }
    low = _mm512_loadu_si512(place[0]);
    high = _mm512_loadu_si512(place[1]);
    for (int r = 0; r < count; r += 2) {
        const uint16_t *even = row[r], *odd = r + 1 < count ? row[r + 1] : NULL;
        float *to = out + r / 2 * TILE_COLUMNS;
        for (int64_t c = 0; c < n; c += TILE_COLUMNS, to += panel) {
            __m512i x = _mm512_loadu_si512(even + c);
            __m512i y = odd ? _mm512_loadu_si512(odd + c) : _mm512_setzero_si512();
            /* an exponent of all ones carries into the sign */
            bad = _mm512_or_si512(bad, _mm512_add_epi16(_mm512_and_si512(x, exponent), one));
            bad = _mm512_or_si512(bad, _mm512_add_epi16(_mm512_and_si512(y, exponent), one));
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, low, y));
            _mm512_storeu_si512(to + W, _mm512_permutex2var_epi16(x, high, y));
        }
    }
    return _mm512_movepi16_mask(bad) == 0;
}
#endif

void LEAF(fill_attend)(struct fv_kernels *kernels)
{
    kernels->softmax_tile = softmax;
    kernels->curve = curve;
    kernels->add_rows = add_rows;
    kernels->shift_rows = shift_rows;
    kernels->panel_rows = panel_rows;
#if defined(__AVX512BF16__)
    kernels->pack_pairs = pack_pairs;
    kernels->join_pairs = join_pairs;
    kernels->panel_pairs = panel_pairs;
#endif
}
