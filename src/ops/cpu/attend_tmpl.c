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

/* tanh(u) = u times a polynomial in u^2 near 0, times a quotient of two farther out; beyond `end` it is 1.  Minimax: in
 * f32 the factor is within 8e-8 of itself; of logits whose weights become bf16 tanh is within 2.1e-6, which at a cap of
 * 50 is a 37th of what the weights lose. */
static const struct fv_cap fine_cap = {
    .near = {1, -0.333331966f, 0.133292431f, -0.0535669897f, 0.0201116601f, -0.00515511526f},
    .above = {0.99999994f, 0.113717049f, 0.00124893594f, -4.7553367e-06f},
    .below = {1, 0.447049707f, 0.0169337038f},
    .far_above = {1, 0.133810252f, 0.0034955868f, 2.06090626e-05f, 1.33546347e-08f},
    .far_below = {1, 0.467143387f, 0.0258769765f, 0.00032856327f, 7.77654691e-07f},
    .near_end = 0.7f,
    .middle_end = 3,
    .end = 9,
};

#if defined(__AVX512BF16__)
static const struct fv_cap coarse_cap = {
    .near = {0.999972696f, -0.332557465f, 0.127291397f, -0.0357218107f},
    .above = {0.999992371f, 0.107491128f, 0.000861501088f},
    .below = {1, 0.44078961f, 0.0145042101f},
    .far_above = {0.999995708f, 0.123021834f, 0.00227698917f, 3.93001392e-06f},
    .far_below = {1, 0.456340313f, 0.0210721809f, 0.000142350866f},
    .near_end = 0.7f,
    .middle_end = 3,
    .end = 7,
};
#else
#define coarse_cap fine_cap
#endif

/* c[0] + c[1] s + ... */
INLINE vf polynomial(vf s, const float *c, const int degree)
{
    vf p = splat(c[degree]);

    UNROLL
    for (int k = degree - 1; k >= 0; k--)
        p = p * s + splat(c[k]);
    return p;
}

INLINE vf quotient(vf s, const float *above, const int degree, const float *below, const int degree_below)
{
    return polynomial(s, above, degree) / polynomial(s, below, degree_below);
}

/* Within 4 ulp. */
INLINE vf tanh_quotient(vf x)
{
    const struct fv_cap *c = &fine_cap;
    vf bounded = vmin(splat(c->end), vmax(splat(-c->end), x));

    return bounded * quotient(bounded * bounded, c->far_above, 4, c->far_below, 4);
}

INLINE vf gained(vf x, float gain)
{
    return x * choose(x < splat(0), splat(1 - gain), splat(1 + gain));
}

INLINE vf curve_of(vf x, float gain, float cap)
{
    if (gain != 0) x = gained(x, gain);
    return cap > 0 ? splat(cap) * tanh_quotient(x * splat(1 / cap)) : x;
}

/* The coefficients for x in the place of x / cap and log2 e cap tanh in that of tanh. */
static bool scale_cap(bool coarse, float cap, struct fv_cap *c)
{
    const float square = 1 / (cap * cap);
    float power[6] = {1};

    if (!(cap >= 0x1p-12f && cap <= 0x1p12f)) return false; /* coefficients would leave the range of normal numbers */
    *c = coarse ? coarse_cap : fine_cap;
    for (int k = 1; k < 6; k++)
        power[k] = power[k - 1] * square;
    for (int k = 0; k < 6; k++)
        c->near[k] *= power[k] * LOG2E;
    for (int k = 0; k < 4; k++)
        c->above[k] *= power[k] * LOG2E;
    for (int k = 0; k < 3; k++)
        c->below[k] *= power[k];
    for (int k = 0; k < 5; k++) {
        c->far_above[k] *= power[k] * LOG2E;
        c->far_below[k] *= power[k];
    }
    c->near_end *= cap;
    c->middle_end *= cap;
    c->end *= cap;
    return true;
}

/* x = log2 e cap tanh(x / cap) + add for vectors [from, to) of a row whose largest square is `most`.  A cap is there
 * for the few logits that come near it, and rows without any take half the operations. */
INLINE void cap_row(vf *x, const int from, const int to, vf most, vf add, const struct fv_cap *c, const bool coarse)
{
    if (!any_above(most, splat(c->near_end * c->near_end))) {
        UNROLL
        for (int n = from; n < to; n++)
            x[n] = x[n] * polynomial(x[n] * x[n], c->near, coarse ? 3 : 5) + add;
        return;
    }
    if (!any_above(most, splat(c->middle_end * c->middle_end))) {
        UNROLL
        for (int n = from; n < to; n++)
            x[n] = x[n] * quotient(x[n] * x[n], c->above, coarse ? 2 : 3, c->below, 2) + add;
        return;
    }
    UNROLL
    for (int n = from; n < to; n++) {
        vf bounded = vmin(splat(c->end), vmax(splat(-c->end), x[n]));
        vf factor = quotient(bounded * bounded, c->far_above, coarse ? 3 : 4, c->far_below, coarse ? 3 : 4);
        x[n] = bounded * factor + add;
    }
}

INLINE void hide(vf *x, const int from, const int to, uint64_t seen)
{
    if (seen == UINT64_MAX) return;
    UNROLL
    for (int n = from; n < to; n++)
        x[n] = keep_seen(x[n], seen, n * W);
}

INLINE vf largest_of(const vf *x, const int from, const int to)
{
    vf most = splat(-INFINITY);

    UNROLL
    for (int n = from; n < to; n++)
        most = vmax(x[n], most);
    return most;
}

INLINE vf largest_square(const vf *x, const int from, const int to, uint64_t seen)
{
    vf square[FV_KEY_TILE / W];

    UNROLL
    for (int n = from; n < to; n++)
        square[n] = x[n] * x[n];
    hide(square, from, to, seen); /* what stands in hidden places must not choose */
    return largest_of(square, from, to);
}

enum { SLACK = 8 };

/* Raises row r's maximum to `top`; the row's sum, as that leaves it.  Rare, so out of the way of the others. */
static __attribute__((noinline, cold)) vf raise_maximum(const struct fv_softmax_step *step, int r, float *o, vf sum,
                                                        float top)
{
    if (step->maximum[r] > -INFINITY) { /* else there is nothing yet */
        vf factor = splat(vexp(splat(step->maximum[r] - top))[0]);
        sum *= factor;
        for (int64_t d = 0; d < step->o_row; d += W)
            store(o + d, load(o + d) * factor);
    }
    step->maximum[r] = top;
    return sum;
}

INLINE vf shift_of(float maximum)
{
    return splat(maximum == -INFINITY ? 0 : maximum * -LOG2E);
}

/* The exponent of a logit x / unit + same, exactly 0 for the maximum itself. */
INLINE vf exponent_of(vf x, float unit, float same, float maximum)
{
    return (x / splat(unit) + splat(same) - splat(maximum == -INFINITY ? 0 : maximum)) * splat(LOG2E);
}

/* steps x, whole numbers of them; NaN stays. */
INLINE vf in_steps(vf x, float steps)
{
    vf scaled = x * splat(steps) + splat(FV_STEP_SLACK);

    return choose(scaled >= splat(0), to_float(__builtin_convertvector(scaled, vi)), x);
}

/* Keys [first, end) of the tile.  A row's maximum is raised only when it would be passed by more than SLACK: weights of
 * up to e^SLACK lose nothing in floating point, and o is hardly ever rescaled.  Sums stay in lanes until the end. */
INLINE void softmax_keys(const struct fv_softmax_step *step, const int first, const int end, const bool pairs,
                         const struct fv_cap *cap, const bool terms, const bool stepped)
{
    const int from = first / W, to = end / W;
    const float gain = terms ? step->gain : 0, *const biases = terms ? step->bias : NULL;
    const float unit = cap ? LOG2E : 1; /* x is in units of 1 / unit once it is capped */
    float *s = step->s, *o = step->o, *total = step->total;

    for (int r = 0, token = step->token; r < step->rows; r++, s += FV_KEY_TILE, o += step->o_row, total += W) {
        uint64_t seen = step->bits[token];
        float same = biases && step->shift ? step->shift[r * step->shift_row] : 0,
              room = step->maximum[r] + (stepped ? 0 : SLACK);
        vf x[FV_KEY_TILE / W], sum = load(total);
        bool unsure = true;

        token = token + 1 < step->tokens ? token + 1 : 0;
        if (!seen) {
            memset(s + (pairs ? first / 2 : first), 0, (size_t)(pairs ? (end - first) / 2 : end - first) * sizeof *s);
            continue;
        }
        UNROLL
        for (int n = from; n < to; n++)
            x[n] = load(s + n * W);
        if (gain != 0) {
            UNROLL
            for (int n = from; n < to; n++)
                x[n] = gained(x[n], gain);
        }
        if (cap) {
            vf most = largest_square(x, from, to, seen), add = splat(0);
            /* a cap only makes logits smaller, so mostly their squares say that none passes the maximum */
            unsure = stepped || biases || !(room > 0) || any_above(most, splat(room * room));
            if (!unsure) add = shift_of(step->maximum[r]);
            cap_row(x, from, to, most, add, cap, pairs);
        }
        if (biases) {
            const float *bias = biases + r * step->bias_row;
            UNROLL
            for (int n = from; n < to; n++)
                x[n] += load(bias + n * W) * splat(unit);
            for (int n = first; step->ask != 0 && n < end; n += 16)
                __builtin_prefetch(bias + step->ask + n, 0, 2); /* into the second level */
        }
        hide(x, from, to, seen);
        if (unsure) {
            vf high = largest_of(x, from, to), add;
            if (any_above(high, splat((room - same) * unit)))
                sum = raise_maximum(step, r, o, sum, largest(high) / unit + same);
            add = shift_of(step->maximum[r]);
            if (biases) add += splat(same * LOG2E);
            UNROLL
            for (int n = from; n < to; n++)
                x[n] = stepped ? exponent_of(x[n], unit, same, step->maximum[r]) : x[n] * splat(LOG2E / unit) + add;
        }
        UNROLL
        for (int n = from; n < to; n++) {
            x[n] = exp2_of(x[n], pairs && !stepped);
            sum += x[n];
            if (stepped) x[n] = in_steps(x[n], step->steps);
        }
        store(total, sum);
        UNROLL
        for (int n = from; n < to; n++) {
            if (!pairs)
                store(s + n * W, x[n]);
            else if (n % 2)
                store_pairs(s + n / 2 * W, x[n - 1], x[n]);
        }
    }
}

INLINE void softmax_of(const struct fv_softmax_step *step, const bool pairs, const struct fv_cap *cap)
{
    enum { HALF = FV_KEY_TILE / 2 };

    if (step->from > 0)
        softmax_keys(step, HALF, FV_KEY_TILE, pairs, cap, true, false);
    else if (step->to <= HALF)
        softmax_keys(step, 0, HALF, pairs, cap, true, false);
    else if (step->bias || step->gain != 0)
        softmax_keys(step, 0, FV_KEY_TILE, pairs, cap, true, false);
    else
        softmax_keys(step, 0, FV_KEY_TILE, pairs, cap, false, false);
}

/* Rare, so one for all: whole tiles, of which parts that nobody sees become 0. */
static __attribute__((noinline, cold)) void softmax_in_steps(const struct fv_softmax_step *step)
{
    softmax_keys(step, 0, FV_KEY_TILE, step->pairs, step->cap, true, true);
}

/* Bound: 11 vector operations for W logits (13 for f32), a sixth of the dot instructions of both products at D = 64 in
 * pairs.  A cap adds 4 (6): 3 to 5 % of a call at D = 64.  Where logits come near it that is 5 (6) and a division, or 9
 * (11) and one: 13 to 16 % and 7 to 8 %, less at D = 128.  A bias of every pair adds 1 and its bytes: 6 to 8 %. */
static void softmax(const struct fv_softmax_step *step)
{
    if (step->steps > 0)
        softmax_in_steps(step);
    else if (step->cap)
        step->pairs ? softmax_of(step, true, step->cap) : softmax_of(step, false, step->cap);
    else
        step->pairs ? softmax_of(step, true, NULL) : softmax_of(step, false, NULL);
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

static void place_rows(int rows, int count, const float *const *bias, const float *const *shift, float *to)
{
    for (int r = 0; r < rows; r++)
        if (bias[r]) shift_rows(1, count, bias[r], 0, shift[r], 0, to + r * FV_KEY_TILE);
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
    kernels->scale_cap = scale_cap;
    kernels->curve = curve;
    kernels->add_rows = add_rows;
    kernels->shift_rows = shift_rows;
    kernels->place_rows = place_rows;
    kernels->panel_rows = panel_rows;
#if defined(__AVX512BF16__)
    kernels->pack_pairs = pack_pairs;
    kernels->join_pairs = join_pairs;
    kernels->panel_pairs = panel_pairs;
#endif
}
