/* Passes over a tile's weights while it is in the first-level cache. */
#include "ops/cpu/leaf.h"
#include "ops/cpu/weights_kernels.h"

enum { N = FV_KEY_TILE / W };

/* All ones in the lanes whose bit, from bit `from` on, is set. */
INLINE vi lanes_of(uint64_t bits, int from)
{
    vi lane = splat_i(0);

    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    return -((splat_i((int32_t)(bits >> from)) >> lane) & 1);
}

INLINE void gradients_row(const struct fv_weights_step *step, int r, const bool whole, const bool coarse, uint64_t seen)
{
    float *s = step->s + r * FV_KEY_TILE, *d = step->d ? step->d + r * FV_KEY_TILE : NULL;
    const float *slope = step->slopes ? step->slopes + r * FV_KEY_TILE : NULL;
    vf shift = splat(step->lse ? step->lse[r] : 0), delta = splat(d ? step->delta[r] : 0);

    UNROLL
    for (int n = 0; n < N; n++) {
        vf p = load(s + n * W), x;
        if (step->lse) p = coarse ? exp2_of((p - shift) * splat(LOG2E), true) : vexp(p - shift);
        if (!whole) p = choose(lanes_of(seen, n * W), p, splat(0));
        store(s + n * W, p);
        if (!d) continue;
        x = p * (load(d + n * W) - delta);
        if (slope) x *= load(slope + n * W);
        if (!whole) x = choose(lanes_of(seen, n * W), x, splat(0));
        store(d + n * W, x);
    }
}

/* Bound: about 16 vector operations for W weights, an exponential most of them: at D = 64 a fortieth of the flops of
 * the five products around it. */
static void gradients(const struct fv_weights_step *step)
{
    for (int r = step->first; r < step->end; r++) {
        uint64_t seen = step->lse && step->lse[r] == -INFINITY ? 0 : step->bits[r % step->tokens];
        if (seen == UINT64_MAX) {
            step->coarse ? gradients_row(step, r, true, true, seen) : gradients_row(step, r, true, false, seen);
        } else if (seen) {
            step->coarse ? gradients_row(step, r, false, true, seen) : gradients_row(step, r, false, false, seen);
        } else {
            memset(step->s + r * FV_KEY_TILE, 0, FV_KEY_TILE * sizeof *step->s);
            if (step->d) memset(step->d + r * FV_KEY_TILE, 0, FV_KEY_TILE * sizeof *step->d);
        }
    }
}

/* ---- statistics ------------------------------------------------------------------------------------------------ */

INLINE uint64_t bits_of(vi lanes)
{
    uint64_t bits = 0;

#if W == 16
    bits = _mm512_movepi32_mask((__m512i)lanes);
#else
    for (int i = 0; i < W; i++)
        bits |= (uint64_t)(lanes[i] & 1) << i;
#endif
    return bits;
}

INLINE void sums_row(const struct fv_sums_step *step, int r, uint64_t seen, vf columns[N])
{
    const float *s = step->s + r * FV_KEY_TILE;
    vf shift = splat(step->lse[r]), entropy = splat(0), mass = splat(0), distance = splat(0), p[N];
    vf query = splat(step->distance ? step->query[r % step->tokens] : 0);
    vf least = splat(step->least ? step->least[r] : INFINITY);
    vi any = splat_i(0);

    UNROLL
    for (int n = 0; n < N; n++) {
        vf x = load(s + n * W) - shift;
        if (seen != UINT64_MAX) x = choose(lanes_of(seen, n * W), x, splat(-100));
        p[n] = vexp(x); /* of -100 and below it is 0 */
        columns[n] += p[n];
        if (step->entropy) entropy -= p[n] * choose(x < splat(-100), splat(-100), x);
        if (step->mass) mass += p[n] * load(step->chosen + n * W);
        if (step->distance) {
            vf far = (vf)((vi)(load(step->place + n * W) - query) & INT32_MAX);
            distance += p[n] * choose(far < splat(step->clip), far, splat(step->clip));
        }
        if (step->least) any |= p[n] > least;
    }
    if (step->entropy) step->entropy[r] += (double)sum(entropy);
    if (step->mass) step->mass[r] += (double)sum(mass);
    if (step->distance) step->distance[r] += (double)sum(distance);
    if (!step->least || !bits_of(any)) return;
    UNROLL
    for (int n = 0; n < N; n++) {
        step->above[r] |= bits_of(p[n] > least) << (n * W);
        store(step->weights + r * FV_KEY_TILE + n * W, p[n]);
    }
}

/* Bound: about 13 vector operations for W weights, and two or three for each statistic. */
static void step_sums(const struct fv_sums_step *step)
{
    for (int first = 0; first < step->rows; first += step->tokens) {
        vf columns[N];
        UNROLL
        for (int n = 0; n < N; n++)
            columns[n] = splat(0);
        for (int r = first; r < first + step->tokens; r++) {
            if (step->least) step->above[r] = 0;
            if (step->bits[r - first] && step->lse[r] != -INFINITY) sums_row(step, r, step->bits[r - first], columns);
        }
        for (int n = 0; step->columns && n < N; n++)
            store(step->columns + first / step->tokens * FV_KEY_TILE + n * W, columns[n]);
    }
}

#if W == 16
#define SHIFTED 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#elif W == 8
#define SHIFTED 7, 8, 9, 10, 11, 12, 13, 14
#else
#define SHIFTED 3, 4, 5, 6
#endif

#define OTHER_HALF(x) __builtin_shufflevector(x, x, HALVES)
#if W == 16
#define HALVES 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#elif W == 8
#define HALVES 4, 5, 6, 7, 0, 1, 2, 3
#else
#define HALVES 2, 3, 0, 1
#endif

/* Of those bits the weights that may be among the K largest of the tile: W lanes (or W / 2 of twice as many weights)
 * each have a largest, and if there are K of these, none below the least of them is wanted. */
INLINE uint64_t candidates(int64_t K, uint64_t bits, const float *weights)
{
    vf high = load(weights);
    uint64_t above = 0;

    if (K > W || __builtin_popcountll(bits) <= K) return bits;
    UNROLL
    for (int n = 1; n < N; n++)
        high = vmax(load(weights + n * W), high);
    if (K <= W / 2) high = vmax(OTHER_HALF(high), high);
    high = splat(-largest(-high));
    UNROLL
    for (int n = 0; n < N; n++)
        above |= bits_of(load(weights + n * W) >= high) << (n * W);
    return bits & above;
}

/* Places a weight in a vector of the falling row, whose vector before this one is x_before: the first of equal weights
 * stays ahead. */
INLINE void place(vf weight, vf own, vf x_before, vf k_before, vf *x, vf *k)
{
    x_before = __builtin_shufflevector(x_before, *x, SHIFTED);
    k_before = __builtin_shufflevector(k_before, *k, SHIFTED);
    *k = choose(x_before < weight, k_before, choose(*x < weight, own, *k));
    *x = vmax(vmin(x_before, weight), *x);
}

/* With the row in registers, where one weight follows the other in half the time that memory takes. */
INLINE void insert_in(const int vectors, uint64_t bits, const float *weights, const int64_t *key, float *top,
                      int32_t *top_key)
{
    vf x[4], k[4];

    UNROLL
    for (int v = 0; v < vectors; v++) {
        x[v] = load(top + v * W);
        k[v] = (vf)load_i(top_key + v * W);
    }
    for (; bits; bits &= bits - 1) {
        int n = __builtin_ctzll(bits);
        vf weight = splat(weights[n]), own = (vf)splat_i((int32_t)key[n]);
        UNROLL
        for (int v = vectors - 1; v > 0; v--)
            place(weight, own, x[v - 1], k[v - 1], &x[v], &k[v]);
        place(weight, own, splat(INFINITY), (vf)splat_i(-1), &x[0], &k[0]);
    }
    UNROLL
    for (int v = 0; v < vectors; v++) {
        store(top + v * W, x[v]);
        store_i(top_key + v * W, (vi)k[v]);
    }
}

/* Without branches on the weights: these cannot be guessed. */
static void insert(int64_t K, uint64_t bits, const float *weights, const int64_t *key, float *top, int32_t *top_key)
{
    int64_t last = (K - 1) / W * W;

    bits = candidates(K, bits, weights);
    switch (last / W) {
    case 0: insert_in(1, bits, weights, key, top, top_key); return;
    case 1: insert_in(2, bits, weights, key, top, top_key); return;
    case 2: insert_in(3, bits, weights, key, top, top_key); return;
    case 3: insert_in(4, bits, weights, key, top, top_key); return;
    default: break;
    }
    for (; bits; bits &= bits - 1) {
        int n = __builtin_ctzll(bits);
        vf weight = splat(weights[n]), own = (vf)splat_i((int32_t)key[n]);
        for (int64_t from = last; from >= 0; from -= W) {
            vf x = load(top + from), k = (vf)load_i(top_key + from);
            vf x_before = from > 0 ? load(top + from - W) : splat(INFINITY);
            vf k_before = (vf)(from > 0 ? load_i(top_key + from - W) : splat_i(-1));
            place(weight, own, x_before, k_before, &x, &k);
            store(top + from, x);
            store_i(top_key + from, (vi)k);
        }
    }
}

static uint64_t spoiled(int count, int64_t width, const float *x, int64_t row)
{
    const vi infinity = splat_i(0x7f800000);
    uint64_t bits = 0;

    for (int n = 0; n < count; n++, x += row) {
        vi bad = splat_i(0);
        int64_t c = 0;
        for (; c + W <= width; c += W)
            bad |= ((vi)load(x + c) & infinity) == infinity;
        if (c < width) bad |= ((vi)load_part(x + c, width - c, 0) & infinity) == infinity;
        bits |= (uint64_t)(bits_of(bad) != 0) << n;
    }
    return bits;
}

void LEAF(fill_weights)(struct fv_kernels *kernels)
{
    static const struct fv_weights_kernels weights = {gradients, step_sums, insert, spoiled};

    kernels->weights = &weights;
}
