/* What this machine can do at best, measured with loops that do nothing else. */
#ifndef APP_PEAKS_H
#define APP_PEAKS_H

#include "base/context.h"

typedef struct app_peaks {
    double fma;  /* f32 multiply-adds, flops a second, all threads */
    double dot;  /* bf16 dot products with f32 sums, flops a second; 0: this processor has none */
    double copy; /* bytes read and written a second */
} app_peaks;

/* Takes about a second.  FV_E_MEMORY, FV_E_INTERRUPTED. */
fv_status app_peaks_measure(fv_ctx *ctx, app_peaks *peaks);

#endif
