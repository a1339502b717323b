/* How much of a model's true attention the plans of mechanisms read, on its own queries and keys. */
#ifndef APP_RECALL_H
#define APP_RECALL_H

#include "app/prompt.h"
#include "fovea/attention.h"

typedef enum recall_kind {
    RECALL_PLAN = 0, /* of a mechanism */
    RECALL_RANDOM,   /* keys that a query sees, chosen by chance */
    RECALL_ORACLE,   /* those with most of its attention */
} recall_kind;

typedef struct recall_setup {
    recall_kind kind;
    char *name;              /* the SPEC, "random" or "oracle"; owned */
    fv_attention *attention; /* of a plan; owned */
    double share;            /* otherwise: of the keys that a query sees; at least one is read */
    bool optional, left_out; /* where it cannot be done nothing fails: it is left out */
} recall_setup;

/* Queries count by the keys they see, as they do in the density: then the recall of a choice by chance is its density,
 * whatever each query's share. */
typedef struct recall_row {
    double density; /* pairs, of those of dense */
    double recall;  /* share of the attention that lies on them: mean over heads and queries */
    double best;    /* the same if each query read as many keys, those with most of its attention */
} recall_row;

typedef struct recall {
    const fv_model *model;
    fv_precision precision;
    const int32_t *ids;
    int64_t tokens;
    int64_t setups, room;
    recall_setup *setup;
    int64_t layers, *layer; /* those that are measured */
    recall_row *row;        /* [setups, layers] */
} recall;

enum { RECALL_SHARES = 5 };
extern const double recall_shares[RECALL_SHARES]; /* of what a query sees, ascending */

/* Set-ups (recall_sweeps.c): one, such as a SPEC; every mechanism that chooses by content, over about those densities
 * of r->tokens; random and oracle at them. */
fv_status recall_add(recall *r, const char *name, recall_kind kind);
fv_status recall_add_sweeps(recall *r);
fv_status recall_add_bounds(recall *r);

/* Fills in the rows, in r->row.  FV_E_USAGE for a bad SPEC, before any work, unless it is optional; and what its
 * mechanism refuses. */
fv_status recall_measure(struct app *app, recall *r);
void recall_free(recall *r);

/* The mean over layers. */
recall_row recall_mean(const recall *r, int64_t setup);

/* One HTML file that needs nothing else (recall_report.c). */
fv_status recall_report(const char *path, const recall *r, const fv_model_info *info);

#endif
