/* Timing, and what a time is judged by: the least time that this machine's peaks allow for the same work. */
#ifndef APP_MEASURE_H
#define APP_MEASURE_H

#include "app/peaks.h"

/* A clock that only goes forward. */
double app_seconds(void);

typedef struct app_timing {
    double seconds; /* median */
    double cycles;  /* median of the processor's time-stamp counter; 0: it has none we read */
    int runs;
} app_timing;

/* Calls work once to warm up, and then until `least` seconds have passed, at least five times (three if one takes
 * longer than two seconds) and at most 1000 times.  Calls below 50 us are timed several at once.  FV_E_INTERRUPTED. */
fv_status app_time(fv_ctx *ctx, double least, fv_status (*work)(fv_ctx *ctx, void *user), void *user,
                   app_timing *timing);

/* So many times the last cache hold data of which next to nothing is still cached when it is read again.  (Twice is not
 * enough: what a cache evicts first is not what was read first.) */
enum { APP_FAR = 8 };

/* What a call does. */
typedef struct app_work {
    double flops;
    double read, written; /* bytes that must come from memory and go there */
    app_unit unit;        /* that its flops run on at best */
} app_work;

/* The least seconds: the longer of flops at the unit's peak and bytes at the speed of memory.  Bytes count only where
 * they are about APP_FAR times the last cache, which otherwise holds some of them from call to call.  *bound says which
 * it is, for people. */
double app_floor(const app_peaks *peaks, const app_work *work, const char **bound);

#endif
