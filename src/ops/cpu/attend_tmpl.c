/* The softmax of an attention tile while it streams over keys. */
#include "ops/cpu/leaf.h"

/* Lanes of the key tile that a visibility word shows, from lane `from` on. */
INLINE vi seen_lanes(uint64_t bits, int from)
{
    vi lane;

    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    return -((splat_i((int32_t)(bits >> from)) >> lane) & 1);
}

/* For each row of logits s [rows, FV_KEY_TILE]: raises the running maximum, rescales sum and o to it, and leaves
 * exp(s - maximum) in s.  bits[r % tokens] are the visible keys of row r.  Bound: about 14 vector operations for W
 * logits, a quarter of the two products around it at D = 64. */
static void online_softmax(int rows, int tokens, const uint64_t *bits, float *s, float *maximum, float *total, float *o,
                           int64_t o_row)
{
    enum { N = FV_KEY_TILE / W };

    for (int r = 0; r < rows; r++, s += FV_KEY_TILE, o += o_row) {
        uint64_t seen = bits[r % tokens];
        vf x[N], high = splat(-INFINITY), added = splat(0);
        float top;

        if (!seen) {
            UNROLL
            for (int n = 0; n < N; n++)
                store(s + n * W, splat(0));
            continue;
        }
        UNROLL
        for (int n = 0; n < N; n++) {
            x[n] = load(s + n * W);
            if (seen != UINT64_MAX) x[n] = choose(seen_lanes(seen, n * W), x[n], splat(-INFINITY));
            high = vmax(x[n], high);
        }
        top = largest(high);
        if (top > maximum[r]) {
            float factor = vexp(splat(maximum[r] - top))[0];
            maximum[r] = top;
            total[r] *= factor;
            for (int64_t d = 0; d < o_row; d += W)
                store(o + d, load(o + d) * splat(factor));
        }
        top = maximum[r] == -INFINITY ? 0 : maximum[r];
        UNROLL
        for (int n = 0; n < N; n++) {
            x[n] = vexp(x[n] - splat(top));
            store(s + n * W, x[n]);
            added += x[n];
        }
        total[r] += sum(added);
    }
}

void LEAF(fill_attend)(struct fv_kernels *kernels)
{
    kernels->online_softmax = online_softmax;
}
