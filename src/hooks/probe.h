/* Probes that listen to a model while it reads a text, and say numbers about each layer and head.  A descriptor says
 * which statistics of attention it wants, or looks at calls itself; the framework (probe.c) finds the calls that
 * concern it, shares statistics among probes, and sums rows up, in memory that does not grow with pairs. */
#ifndef FV_PROBE_H
#define FV_PROBE_H

#include "hooks/picked.h"

/* A number it finds. */
typedef struct fv_probe_field {
    const char *name;                /* as in JSON; NULL ends a table */
    const char *title, *unit, *help; /* for people; unit "": a share of 1 */
    bool most;                       /* the most of rows and of heads, not their mean */
} fv_probe_field;
#define FV_PROBE_FIELD(name, title, unit, help)                                                                        \
    {                                                                                                                  \
        name, title, unit, help, false                                                                                 \
    }
#define FV_PROBE_FIELD_MOST(name, title, unit, help)                                                                   \
    {                                                                                                                  \
        name, title, unit, help, true                                                                                  \
    }

/* Statistics of rows (fv_attend_stats), computed once for all probes that look at the same. */
enum {
    FV_PROBE_ENTROPY = 1 << 0,
    FV_PROBE_DISTANCE = 1 << 1,
    FV_PROBE_COLUMNS = 1 << 2,
    /* Traits: numbers are of layers, not of heads; the rows of a layer are needed all at once. */
    FV_PROBE_BY_LAYER = 1 << 8,
    FV_PROBE_WHOLE = 1 << 9,
};

/* What options of listening probes begin with.  A probe's table has those that it knows; the others are 0. */
typedef struct fv_probe_common {
    int64_t tokens, bins;
    fv_list layers, heads;
    char out[FV_TEXT_MAX]; /* for whoever writes files */
} fv_probe_common;

/* clang-format off */
#define FV_PROBE_TOKENS(initial, least, most, words)                                                                   \
    FV_INT(fv_probe_common, tokens, initial, least, most, words)
#define FV_PROBE_WHOLE_TEXT                                                                                            \
    FV_PROBE_TOKENS(0, 0, 1 << 24, "so many first tokens of the text; 0: all, up to what the model was trained for")
#define FV_PROBE_PREFIX(most) FV_PROBE_TOKENS(512, 2, most, "so many first tokens of the text, all of a shorter one")
#define FV_PROBE_LAYERS                                                                                                \
    FV_LIST_OR(fv_probe_common, layers, "all", fv_probe_all, 0, 65535, "layers to look at")
#define FV_PROBE_HEADS                                                                                                 \
    FV_LIST_OR(fv_probe_common, heads, "all", fv_probe_all, 0, 65535, "query heads to look at")
#define FV_PROBE_BINS                                                                                                  \
    FV_INT(fv_probe_common, bins, 64, 1, 4096, "stretches of the text that are told apart in out and in the report")
#define FV_PROBE_OUT(words) FV_WORDS(fv_probe_common, out, "", words)
#define FV_PROBE_OUT_BINS FV_PROBE_OUT("[layers,heads,bins] f32 in a .npy file, NaN where nothing was looked at")
/* clang-format on */
extern const char *const fv_probe_all[];

typedef struct fv_probing fv_probing;

/* What stands first is said by every probe; the rest is of those that listen. */
typedef struct fv_probe {
    const char *name, *title, *paper;
    int sheet;                /* 0: none */
    const char *finds, *cost; /* plain text */
    const fv_option *options;
    size_t options_size;
    /* Refuses options that contradict one another; once, when the SPEC is read.  NULL: nothing does. */
    fv_status (*check)(const void *options);

    const fv_probe_field *fields;
    unsigned wants; /* statistics and traits */
    /* Makes memory of its own; NULL: it has none. */
    fv_status (*begin)(fv_probing *probing);
    /* Says how it wants its statistics; NULL: there is nothing to say. */
    void (*ask)(const fv_probing *probing, fv_stats_args *stats);
    /* Some rows of a layer: what is picked of the call, and the statistics that it wants. */
    fv_status (*hear)(fv_probing *probing, int64_t layer, const fv_picked *picked, const fv_stats_args *stats);
    /* The text has been read. */
    fv_status (*end)(fv_probing *probing);
    void (*drop)(fv_probing *probing); /* its own memory */
} fv_probe;

/* Every probe that listens, NULL-ended (registry.c). */
extern const fv_probe *const fv_probes[];

/* A key and its share of a head's attention. */
typedef struct fv_probe_key {
    int64_t position; /* -1: there are no more */
    double share;
} fv_probe_key;

/* A probe at work. */
struct fv_probing {
    const fv_probe *probe;
    const void *options; /* of the probe */
    fv_ctx *ctx;
    int64_t tokens, layers, heads; /* that are read; of the model, heads of queries */

    fv_listener listener; /* what comes from here on is made by fv_probing_begin */
    unsigned statistics;  /* of this one and those `with` it */
    fv_probing *with;
    int64_t bins, top;
    double *value;     /* [fields, layers, heads, bins]: sums over rows, or their most; NAN where nothing was heard */
    float *columns;    /* [layers, heads, tokens]: sums of weights on keys; NULL: not wanted */
    fv_probe_key *key; /* [layers, heads, top] falling; NULL: not found */
    void *own;
};

static inline const fv_probe_common *fv_probing_common(const fv_probing *probing)
{
    return probing->options;
}

/* Makes `count` of them, whose first members are set, and has those listen who speak for all.  Nothing may move until
 * they are freed, whatever happens.  FV_E_USAGE for layers and heads that the model does not have, FV_E_MEMORY. */
fv_status fv_probing_begin(fv_probing *probing, int count, fv_listener **listeners);
/* Tokens of a chunk of the reading that WHOLE ones need; 0: any. */
int64_t fv_probing_chunk(const fv_probing *probing, int count);
fv_status fv_probing_end(fv_probing *probing, int count);
void fv_probing_free(fv_probing *probing, int count);

int fv_probe_fields(const fv_probe *probe);
/* A number of a head over the whole text, or of a layer (head -1); NAN where nothing was heard. */
double fv_probing_value(const fv_probing *probing, int field, int64_t layer, int64_t head);
/* Of one bin. */
double fv_probing_bin(const fv_probing *probing, int field, int64_t layer, int64_t head, int64_t bin);

/* ---- for probes ------------------------------------------------------------------------------------------------- */

/* Adds what rows [1,heads,rows] f32 of the picked heads are to a field. */
void fv_probing_add(fv_probing *probing, int field, int64_t layer, const fv_picked *picked, const fv_tensor *rows);
/* The same for one row. */
void fv_probing_add_row(fv_probing *probing, int field, int64_t layer, int64_t head, int64_t position, double value);
/* A number over the whole text, of a probe without bins. */
void fv_probing_set(fv_probing *probing, int field, int64_t layer, int64_t head, double value);

#endif
