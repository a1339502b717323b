/* What tells one architecture from another.  All are stacks of the same layer: norm, attention, norm, gated MLP; the
 * table says which parts it has (architecture.c), and one forward (forward.c) runs them all. */
#ifndef FV_ARCHITECTURE_H
#define FV_ARCHITECTURE_H

#include "base/tensor.h"

enum {
    FV_INTERLEAVED = 1 << 0,      /* rope turns channels (2c, 2c+1); otherwise (c, c + R/2) */
    FV_QKV_BIAS = 1 << 1,         /* biases of q, k, v must be there; elsewhere they may */
    FV_HEAD_NORMS = 1 << 2,       /* rms norms of each q and k head */
    FV_POST_NORMS = 1 << 3,       /* rms norms of what attention and MLP give, before they are added */
    FV_GELU = 1 << 4,             /* the gate's activation: gelu (tanh form) instead of silu */
    FV_SCALED_EMBEDDING = 1 << 5, /* embeddings times sqrt(width) */
};

typedef struct fv_architecture {
    const char *name;  /* general.architecture, and the prefix of its keys */
    const char *title; /* for people */
    unsigned parts;
    int window_period;  /* n: layers l with (l + 1) % n != 0 have a sliding window; 0: none has */
    double window_base; /* rope base of the layers with a window; 0: that of the others, with its scaling */
    int window_default; /* when the file does not say */
    double attention_cap, final_cap; /* soft-caps when the file does not say; 0: none */
    int wide_scale_layers; /* the size of this many layers scales queries by (width / heads)^-1/2, not D^-1/2; 0: none
                            */
} fv_architecture;

/* The architectures one by one; NULL behind the last. */
const fv_architecture *fv_architecture_at(int index);

/* FV_E_UNSUPPORTED lists the known ones; `file` is for the sentence. */
fv_status fv_architecture_find(const char *file, const char *name, int64_t length, const fv_architecture **found);

#endif
