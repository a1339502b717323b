/* What fovea compare measures, for its table and its report. */
#ifndef APP_COMPARE_H
#define APP_COMPARE_H

#include "app/picture.h"
#include "app/prompt.h"
#include "app/reads.h"

typedef struct compare_run {
    const char *spec;      /* as given; "dense" */
    const char *attention; /* NULL: as the model is */
    const char *cache;     /* NULL: full */
    double prefill_rate, decode_rate;
    double kv_bytes, peak_bytes, committed_bytes, density, kl, top1, perplexity;
    double (*spent)[FV_PHASES]; /* [layers] seconds of attention over the document that is read at once */
    bool *replaced;             /* [layers] whose attention it replaces */
    double attending, scoring, selecting, speedup; /* seconds in those layers, all and by phase; dense's over them */
    fv_generation answer;
    app_reads reads;     /* which keys each head read */
    int64_t drawn;       /* the layer of `picture`; -1: no mechanism with pairs is anywhere */
    app_picture picture; /* all heads of that layer, over the document that is read at once */
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

/* What is compared on what: run[0] is dense, and the others say their attention and cache. */
typedef struct compare_task {
    const fv_model *model;
    const app_prompt *prompt;
    int64_t context;    /* CLI_UNSET: the model's own */
    int64_t score;      /* tokens at the document's end that are fed one at a time and scored */
    int64_t tokens;     /* most of each answer */
    int64_t dense_last; /* tokens at the end of the document, and of the question, that read everything */
    fv_precision precision;
    bool reads;   /* which keys each head read is wanted */
    bool lenient; /* a run that fails is left out */
    /* Asked before each run but dense, with the `done` first of the list measured: whether it is worth its time; NULL:
     * they all are. */
    bool (*wanted)(void *user, const compare_run *run, int done);
    void *user;
} compare_task;

/* Fills in the runs, whose specs, attentions and caches are set, and the counts of tokens.  FV_E_USAGE for a bad set-up
 * before any long work.  Runs that are left out or not wanted are taken out of the list. */
fv_status compare_all(struct app *app, const compare_task *task, comparison *result);
void comparison_free(comparison *comparison);

/* The columns of the table and the charts of the report. */
typedef struct compare_column {
    const char *name, *title, *unit, *help;
    int better;  /* 1: more is better, -1: less */
    bool others; /* dense is what it is measured against, so it has no rank */
    bool ratio;  /* the ratio to dense says something, */
    bool times;  /* or the value is one */
    int digits;
    size_t offset; /* of a double in compare_run */
} compare_column;
extern const compare_column compare_columns[];
enum { COMPARE_COLUMNS = 8 };

double compare_value(const compare_column *column, const compare_run *run);
bool compare_best(const comparison *comparison, const compare_column *column, int run);
/* A value as the table and the report write it, in a ring of buffers. */
const char *compare_text(const compare_column *column, const compare_run *run);

/* One HTML file that needs nothing else (report.c). */
fv_status compare_report(const char *path, const comparison *comparison);

#endif
