/* What scan and its gradients have in common: chunks of a linear recurrence. */
#ifndef FV_CPU_SCAN_H
#define FV_CPU_SCAN_H

#include <math.h>

#include "ops/cpu/kernels.h"

enum {
    FV_CHUNK = FV_KEY_TILE, /* tokens taken at once */
    FV_CHUNK_FROM = 8,      /* tokens from which that pays */
};

struct fv_scan_memory {
    float *state;                   /* [D, width] */
    float *q, *k;                   /* [FV_CHUNK, D] */
    float *v, *o;                   /* [FV_CHUNK, width] */
    float *panels, *keys, *weights; /* q for the micro-kernel, k transposed [D, FV_CHUNK], [FV_CHUNK, FV_CHUNK] */
    float *decay;                   /* [max(D, width)] */
};

struct fv_scan {
    const fv_scan_args *args;
    const struct fv_kernels *kernels;
    struct fv_scan_memory *memory; /* per thread */
    int64_t D, Dv, width;          /* width: Dv, one column for the normaliser, rounded up to whole micro-tiles */
    bool chunked;
};

/* Fills in a call's scan and takes its memory. */
fv_status fv_scan_begin(fv_ctx *ctx, const fv_scan_args *args, struct fv_scan *s);

/* The state before the first token of a head. */
void fv_scan_load_state(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h);

/* Tokens from..from + count - 1: the state moves on, m->o receives the sums over it before any division. */
void fv_scan_chunk(const struct fv_scan *s, struct fv_scan_memory *m, int64_t b, int64_t h, int64_t kv, int64_t from,
                   int count);

/* Value row of a token: v, a one for the normaliser, zeros up to width; times `factor`. */
void fv_scan_load_value(const struct fv_scan *s, const float *v, float factor, float *out);

/* At least -100, whose exponential is 0 in f32; below it differences would lose digits. */
double fv_scan_log_decay(const fv_scan_args *a, int64_t b, int64_t h, int64_t t);

/* What a token's sums are divided by. */
static inline float fv_scan_divisor(const struct fv_scan *s, const float *sums, bool *floored)
{
    const fv_scan_args *a = s->args;
    float divisor = a->normalise ? sums[s->Dv] + a->epsilon : 1;

    *floored = a->normalise && a->floor > 0 && divisor < a->floor;
    return *floored ? a->floor : divisor;
}

static inline float *fv_scan_row(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    return fv_at(t, b, h, n, 0);
}

static inline float fv_scan_beta(const fv_scan_args *a, int64_t b, int64_t h, int64_t t)
{
    return fv_present(&a->beta) ? *fv_scan_row(&a->beta, b, h, t) : 1;
}

#endif
