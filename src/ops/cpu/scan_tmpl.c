/* One token of a linear recurrence.  Bound by the bytes of the state, which stays in the first-level cache. */
#include "ops/cpu/leaf.h"

INLINE void scan_columns(const struct fv_scan_step *s, const bool delta, int64_t from)
{
    enum { U = TILE_VECTORS };
    vf out[U], e[U], decay[U];

    UNROLL
    for (int u = 0; u < U; u++) {
        out[u] = splat(0);
        e[u] = load(s->v + from + u * W);
        decay[u] = s->value_decay ? load(s->value_decay + from + u * W) : splat(1);
    }
    for (int64_t d = 0; delta && d < s->keys; d++) {
        float *row = s->state + d * s->width + from;
        vf factor = splat(s->decay ? s->decay[d * s->decay_step] : 1), k = splat(-s->k[d]);
        UNROLL
        for (int u = 0; u < U; u++) {
            vf x = load(row + u * W) * (factor * decay[u]);
            store(row + u * W, x);
            e[u] = k * x + e[u];
        }
    }
    for (int64_t d = 0; d < s->keys; d++) {
        float *row = s->state + d * s->width + from;
        vf factor = splat(delta || !s->decay ? 1 : s->decay[d * s->decay_step]);
        vf k = splat(s->beta * s->k[d]), q = splat(s->q[d]);
        UNROLL
        for (int u = 0; u < U; u++) {
            vf x = load(row + u * W);
            if (!delta) x *= factor * decay[u];
            x = k * e[u] + x;
            store(row + u * W, x);
            out[u] = q * x + out[u];
        }
    }
    UNROLL
    for (int u = 0; u < U; u++)
        store(s->o + from + u * W, out[u]);
}

static void scan_step(const struct fv_scan_step *s)
{
    for (int64_t from = 0; from < s->width; from += TILE_COLUMNS) {
        if (s->delta)
            scan_columns(s, true, from);
        else
            scan_columns(s, false, from);
    }
}

void LEAF(fill_scan)(struct fv_kernels *kernels)
{
    kernels->scan_step = scan_step;
}
