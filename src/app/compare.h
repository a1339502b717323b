/* What fovea compare measures, for its table and its report. */
#ifndef APP_COMPARE_H
#define APP_COMPARE_H

#include "app/prompt.h"
#include "app/reads.h"

typedef struct compare_run {
    const char *spec;      /* as given; "dense" */
    const char *attention; /* NULL: as the model is */
    const char *cache;     /* NULL: full */
    double prefill_rate, decode_rate;
    double kv_bytes, density, kl, top1, perplexity;
    fv_generation answer;
    app_reads reads; /* which keys each head read */
} compare_run;

typedef struct comparison {
    const char *model_path, *file, *question;
    fv_model_info info;
    int64_t document_tokens, scored_tokens, prompt_tokens;
    int runs;
    compare_run *run; /* run 0 is dense */
    const char *backend;
    int threads;
    double seconds;
} comparison;

/* The columns of the table and the charts of the report. */
typedef struct compare_column {
    const char *name, *title, *unit, *help;
    int better;  /* 1: more is better, -1: less */
    bool others; /* dense is what it is measured against, so it has no rank */
    bool ratio;  /* the ratio to dense says something */
    int digits;
    size_t offset; /* of a double in compare_run */
} compare_column;
extern const compare_column compare_columns[];
enum { COMPARE_COLUMNS = 7 };

double compare_value(const compare_column *column, const compare_run *run);
bool compare_best(const comparison *comparison, const compare_column *column, int run);
/* A value as the table and the report write it, in a ring of buffers. */
const char *compare_text(const compare_column *column, const compare_run *run);

/* One HTML file that needs nothing else (report.c). */
fv_status compare_report(const char *path, const comparison *comparison);

#endif
