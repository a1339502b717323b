/* The calls that the conformance suite makes of each mechanism. */
#ifndef FV_CASES_H
#define FV_CASES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct conformance_case {
    const char *spec;
    int64_t B, H, Hkv, N, M, D, Dv;
    bool causal;        /* --causal is given */
    const char *params; /* "name=2x3 other=4": random tensors; "|" before the dims: from 0 to 1; "|" alone:
                         * no tensors, but q and k are positive */
    bool no_decode;     /* causal, but with options whose decoding is refused */
} conformance_case;

extern const conformance_case conformance_cases[]; /* ends with a NULL spec */

#endif
