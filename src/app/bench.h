/* What fovea bench measures: rows, the job they belong to, and the parts that add them. */
#ifndef APP_BENCH_H
#define APP_BENCH_H

#include "app/measure.h"
#include "app/noise.h"
#include "app/prompt.h"
#include "cache/kinetics.h"

typedef struct bench_row {
    const char *what;
    char shape[112];
    app_work work;
    double seconds, of_peak;
    const char *bound; /* the peak that limits it */
    int runs;
    /* of mechanisms by name: */
    int64_t tokens;                                       /* 0: another kind of row */
    double score_seconds, select_seconds, attend_seconds; /* of those seconds */
    double density;                                       /* query-key pairs computed, of dense's */
    double dense_seconds;                                 /* dense attention of the same shape in the same run, */
    bool dense_reckoned; /* or what it would take, from a shorter one by the square of the length */
    double beats_from;   /* tokens from which it is faster than dense; NAN: not in this range */
    double slope;        /* of the last row: time grows as this power of the length; otherwise NAN */
    double tile_bound;   /* of windows on a grid: times as fast as dense at most, by the tiles that are computed; 0 */
} bench_row;

struct bench {
    struct app *app;
    const char *model; /* NULL: none */
    cli_ints sizes;    /* none: each kind has its own */
    bool f32, bf16;    /* which precisions */
    double least;      /* seconds a row takes at least */
    double dense_most; /* seconds of a call of dense attention beside a mechanism; longer ones are not made */
    app_peaks peaks;
    bool counting;             /* rows are only counted */
    int64_t planned, measured; /* rows */
    int64_t count, capacity;
    bench_row *rows;
    int costs; /* of test-time runs, which are reckoned and not measured */
    fv_kinetics *cost;
};

/* A row to measure: names it; work, unit and bytes are filled in by the caller. */
bench_row bench_named(const char *what, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Times `work` with the context held to a precision, and adds the row. */
fv_status bench_measure(struct bench *b, bench_row *row, fv_precision precision,
                        fv_status (*work)(fv_ctx *ctx, void *user), void *user);
fv_status bench_add(struct bench *b, const bench_row *row);
/* Whether rows are only counted: these are, then, and there is nothing to do. */
bool bench_counts(struct bench *b, int64_t rows);

/* A tensor of noise in scratch memory, which is not given back to the system between rows. */
fv_status bench_noise(struct bench *b, fv_tensor *tensor, fv_dtype dtype, int rank, const int64_t *dims);

/* The sizes asked for, or the given ones. */
cli_ints bench_sizes(const struct bench *b, int count, const int64_t *items);

/* ---- parts ----------------------------------------------------------------------------------------------------- */

fv_status bench_attend(struct bench *b);
fv_status bench_decode(struct bench *b);
fv_status bench_scan(struct bench *b);
fv_status bench_gemm(struct bench *b);
fv_status bench_model(struct bench *b);
/* One mechanism over lengths, beside dense: heads of one shape. */
enum { BENCH_HEADS = 8, BENCH_DIM = 64 };
fv_status bench_sweep(struct bench *b, const char *spec);
/* Windows on a grid, some of whose strides make whole tiles: what they reach of what their tiles allow.  The bound, 0
 * of mechanisms whose pairs are no such windows. */
fv_status bench_gna(struct bench *b);
fv_status bench_tile_bound(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, double *bound);
/* Measures nothing: what such windows could save with tiles of any shape, of published grids and those among the
 * operands.  Tiles without items are those of the paper's kernels. */
fv_status bench_simulate(struct app *app, const fv_tuple *q_tile, const fv_tuple *kv_tile);

/* "beats dense from about 1230 tokens", for people; "" for rows of other kinds. */
void bench_crossing(const struct bench *b, const bench_row *last, fv_text *words);

/* Whether this is the last row of its mechanism, which has the words. */
bool bench_is_last(const struct bench *b, int64_t row);

/* ---- costs of test-time runs ------------------------------------------------------------------------------------- */

/* Whether a word is "kinetics_cost" or a SPEC of it. */
bool bench_is_kinetics(const char *word);
/* Reads those among the operands. */
fv_status bench_kinetics(struct bench *b);
void bench_kinetics_json(const struct bench *b, json_t *rows);
fv_status bench_kinetics_table(const struct bench *b);
/* Cost over length for models and budgets, and what a cost buys: part of the report. */
void bench_kinetics_write(fv_text *out, const fv_kinetics *kinetics, bool first);

/* One HTML file that needs nothing else. */
fv_status bench_report(const struct bench *b, const char *path);

#endif
