#include "app/measure.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { MOST_RUNS = 1000 };

double app_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Counts at a fixed rate, whatever the core's clock does. */
static uint64_t stamp(void)
{
#if defined(__x86_64__)
    return __rdtsc();
#else
    return 0;
#endif
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

fv_status app_time(fv_ctx *ctx, double least, fv_status (*work)(fv_ctx *ctx, void *user), void *user,
                   app_timing *timing)
{
    double seconds[MOST_RUNS], cycles[MOST_RUNS], begin = app_seconds();
    int runs = 0, calls;

    FV_TRY(work(ctx, user));
    calls = (int)fmax(1, ceil(50e-6 / fmax(app_seconds() - begin, 50e-9)));
    for (begin = app_seconds(); runs < MOST_RUNS; runs++) {
        double start = app_seconds();
        uint64_t from = stamp();
        if (runs >= 5 && start > begin + least) break;
        if (runs >= 3 && start > begin + 2.0 * runs) break;
        for (int call = 0; call < calls; call++)
            FV_TRY(work(ctx, user));
        cycles[runs] = (double)(stamp() - from) / calls;
        seconds[runs] = fmax(app_seconds() - start, 1e-9) / calls;
        FV_TRY(fv_ctx_check(ctx));
    }
    *timing = (app_timing){.seconds = median(seconds, runs), .cycles = median(cycles, runs), .runs = runs};
    return FV_OK;
}

double app_floor(const app_peaks *peaks, const app_work *work, const char **bound)
{
    static const char *const names[APP_UNITS] = {"fma f32", "dot bf16", "dot int8"};
    app_unit unit = peaks->rate[work->unit] > 0 ? work->unit : APP_FMA;
    double bytes = work->read + work->written, compute = work->flops / peaks->rate[unit], memory = 0;

    /* what is mostly read is judged by reading, otherwise by copying */
    if (bytes > 0.75 * APP_FAR * peaks->cache)
        memory = bytes / (work->written * 8 > work->read ? peaks->copy : peaks->read);
    *bound = memory > compute ? "memory" : names[unit];
    return fmax(compute, memory);
}
