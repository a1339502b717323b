/* fovea-checkops: every primitive on every instruction set of this machine, held against the reference backend and
 * then timed.  A file of trials builds calls and hands them to checkops_try. */
#ifndef CHECKOPS_H
#define CHECKOPS_H

#include "app/app.h"
#include "app/measure.h"
#include "app/noise.h"
#include "base/random.h"
#include "ops/ops.h"

enum { TRIAL_OUTPUTS = 8 };

/* What a tolerance is a share of. */
typedef enum measure {
    OF_LARGEST = 0, /* of the largest expected value: sums whose terms cancel */
    OF_EACH,        /* of each expected value */
    OF_ONE,         /* of 1 */
} measure;

/* How far an output may be from the reference backend's, which stores double sums as f32. */
typedef struct output {
    const char *name;
    fv_tensor tensor;
    double tolerance; /* 0: equal */
    measure of;
    bool added; /* the call adds to it: starts at zero */
} output;

/* One call of a primitive. */
typedef struct trial {
    const char *op;
    char shape[112];
    app_work work;
    fv_precision precision;
    fv_status (*call)(fv_ctx *ctx, void *args);
    void *args;
    int outputs;
    output output[TRIAL_OUTPUTS];
    fv_mark mark; /* scratch memory of the trial is given back to here */
} trial;

struct checkops {
    bool small;         /* check only: small, odd shapes */
    const char *filter; /* part of "op shape"; NULL: everything */
    uint64_t seed;
    fv_ctx *reference;
    fv_ctx *contexts[FV_ISA_COUNT]; /* NULL: not on this machine, or not asked for */
    app_peaks peaks;
    app_table table;
    json_t *rows;
    bool json;
    int64_t trials, failures;
    fv_status status; /* of the first tensor that could not be made */
    uint64_t stream;
};

/* Names the trial and begins its scratch memory; false if the filter leaves it out, or a tensor could not be made. */
bool checkops_wanted(struct checkops *c, trial *t, const char *op, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Scratch tensors of noise * scale + shift (f32 only where those differ from 1 and 0), and empty ones; a failure shows
 * in checkops_try. */
fv_tensor checkops_noise(struct checkops *c, fv_dtype dtype, double scale, double shift, int rank, const int64_t *dims);
fv_tensor checkops_empty(struct checkops *c, fv_dtype dtype, int rank, const int64_t *dims);

/* Adds an output; returns it for the call's arguments. */
fv_tensor checkops_output(trial *t, const char *name, fv_tensor tensor, double tolerance);

/* Runs the call on the reference backend, then on each instruction set: compares, times, adds a row, and gives the
 * trial's scratch memory back. */
fv_status checkops_try(struct checkops *c, trial *t);

/* Bytes that a tensor's elements take. */
double checkops_bytes(const fv_tensor *t);

/* ---- trials, by file ------------------------------------------------------------------------------------------- */

fv_status checkops_products(struct checkops *c);
fv_status checkops_rows(struct checkops *c);
fv_status checkops_attend(struct checkops *c);
fv_status checkops_scan(struct checkops *c);
fv_status checkops_pool(struct checkops *c); /* a parallel region of the thread pool */

#endif
