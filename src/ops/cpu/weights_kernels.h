/* What attend_backward and attend_stats make of a tile's logits. */
#ifndef FV_WEIGHTS_KERNELS_H
#define FV_WEIGHTS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/* Rows of FV_KEY_TILE; what bits[r % tokens] hides (or a row whose lse is -infinity) becomes 0, whatever stood there.
 */
struct fv_weights_step {
    int first, end, tokens; /* rows */
    const uint64_t *bits;
    const float *lse; /* [rows]; NULL: s are weights already */
    float *s;         /* logits, then weights exp(s - lse) ... */
    bool coarse;      /* ... which become bf16 */
    /* gradients of weights become those of logits: d = weight (d - delta_r), times slopes if given */
    float *d;
    const float *delta, *slopes;
};

/* Sums over the weights of a tile, each wanted one not NULL; the log of a weight counts as at least -100. */
struct fv_sums_step {
    int rows, tokens;
    const uint64_t *bits;
    const float *lse, *s;
    float *columns;                    /* [rows / tokens, FV_KEY_TILE] += over tokens */
    double *entropy, *mass, *distance; /* [rows] */
    const float *chosen, *place;       /* [FV_KEY_TILE]: 1 for keys that have mass; their positions */
    const float *query;                /* [tokens]: positions */
    float clip;
    const float *least; /* [rows]: above which weights are wanted one by one ... */
    float *weights;     /* ... in [rows, FV_KEY_TILE] ... */
    uint64_t *above;    /* [rows]: ... which these are */
};

struct fv_weights_kernels {
    void (*gradients)(const struct fv_weights_step *step);
    void (*sums)(const struct fv_sums_step *step);
    /* Puts the weights of `bits`, whose keys ascend, in their places among a row's K largest: top falls, and has room
     * for whole vectors. */
    void (*insert)(int64_t K, uint64_t bits, const float *weights, const int64_t *key, float *top, int32_t *top_key);
    /* Rows of x [count, width] that hold NaN or an infinity, count <= 64. */
    uint64_t (*spoiled)(int count, int64_t width, const float *x, int64_t row);
};

#endif
