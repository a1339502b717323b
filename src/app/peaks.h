/* What this machine can do at best, measured with loops that do nothing else. */
#ifndef APP_PEAKS_H
#define APP_PEAKS_H

#include "base/context.h"

/* What computes. */
typedef enum app_unit {
    APP_FMA,      /* f32 multiply-adds */
    APP_DOT_BF16, /* dot products of pairs of bf16 with f32 sums */
    APP_DOT_INT8, /* dot products of fours of 8-bit integers with 32-bit sums */
    APP_UNITS
} app_unit;

typedef struct app_peaks {
    double rate[APP_UNITS]; /* operations (two a multiply-add) a second, all threads; 0: this processor has none */
    double copy;            /* bytes read and written a second, far beyond the caches */
    double read;            /* bytes read a second, far beyond the caches */
    double cache;           /* bytes of the last cache */
    double pass[APP_UNITS], copy_pass, read_pass; /* seconds of the best pass of each */
} app_peaks;

/* Takes about two seconds.  FV_E_MEMORY, FV_E_INTERRUPTED. */
fv_status app_peaks_measure(fv_ctx *ctx, app_peaks *peaks);

#endif
