/* Facts hidden in real text, and asked for: what eval needle and eval cache measure. */
#ifndef APP_NEEDLE_H
#define APP_NEEDLE_H

#include "app/prompt.h"

/* The text that facts are hidden in where none is given. */
#define NEEDLE_TEXT "/usr/share/common-licenses/GPL-3"

typedef struct needle_result {
    int64_t length, depth, prompt_tokens;
    double score; /* share of the facts that the answer names */
    const fv_generation *answer;
} needle_result;

typedef struct needle_task {
    const fv_model *model;
    const fv_model_info *info;
    const char *text; /* repeated where it is too short */
    size_t text_length;
    const char *attention, *cache;
    int64_t dense_last;
    fv_precision precision;
    int64_t needles; /* facts in a prompt */
    uint64_t seed;
    const cli_ints *lengths, *depths;
    void (*row)(void *user, const needle_result *result); /* NULL: only the mean is wanted */
    void *user;
} needle_task;

/* Sentences to hide, what to ask about them, and how an answer begins where there is no chat. */
typedef struct needle_facts {
    int count;
    const char *const *sentence;
    const char *question, *lead;
} needle_facts;

/* Facts whose answers are sentences, so that an answer repeats them. */
enum { NEEDLE_TOLD = 3 };
typedef struct needle_fact {
    const char *sentence, *question, *lead;
} needle_fact;
extern const needle_fact needle_told[NEEDLE_TOLD];

/* A prompt of at most `length` tokens with the facts in as much of the task's text as fits: the first at `depth`
 * percent, further ones spread from there to the end.  FV_E_SHAPE where that is too few tokens. */
fv_status needle_prompt(const needle_task *task, int64_t length, int64_t depth, const needle_facts *facts,
                        app_prompt *prompt);

/* Asks at every length and depth.  FV_E_USAGE for a bad set-up or length. */
fv_status needle_score(struct app *app, const needle_task *task, double *mean);

#endif
