/* Calls of the naive twins (sheets/sheets.h) with small data of their own, and what tests ask of them. */
#ifndef FV_TWIN_H
#define FV_TWIN_H

#include "sheets/sheets.h"
#include "support/support.h"

/* Worked numbers are given to six digits. */
#define TWIN_DIGITS 6e-7
/* Two ways to the same double: a few hundred roundings of numbers near 1. */
#define TWIN_EXACT 1e-12

enum { TWIN_SLOTS = 12 };

/* A call with room for what it points at. */
struct twin {
    sheet_call call;
    sheet_option option[TWIN_SLOTS];
    double values[TWIN_SLOTS][4];
    sheet_param param[TWIN_SLOTS];
    double *q, *k, *v, *o, *lse;
    unsigned char *map; /* wanted unless the mechanism has none */
};

/* sin(0.7 n + shift); free() it. */
double *twin_sines(int64_t count, double shift);

/* q, k and v are sines over their flat index, shifted by 0, 1 and 2: F(n, d, s) of the definitions for one head. */
struct twin *twin_make(int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t M, int64_t D, int64_t Dv);
void twin_drop(struct twin *f);

/* Sets an option to `count` ints; the same name again replaces it. */
void twin_set(struct twin *f, const char *name, int count, ...);
void twin_set_number(struct twin *f, const char *name, double value); /* one that is no int */
void twin_give(struct twin *f, const char *name, const double *data, int rank, const int64_t *dims);
/* clang-format off */
#define TWIN_DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}
#define TWIN_KEYS(...) (const int64_t[]){__VA_ARGS__, -1}
/* clang-format on */

void twin_forward(struct twin *f, const char *name);
void twin_refuses(struct twin *f, const char *name);

void twin_close(const char *what, const double *got, const double *expected, int64_t count, double tolerance);
/* The keys of query i of head h (batch 0) are exactly `expected` (ends with -1). */
void twin_sees(const struct twin *f, int64_t h, int64_t i, const int64_t *expected);
int64_t twin_pairs(const struct twin *f);
/* The same call on dense gives the same o (and lse, if this one has one). */
void twin_equals_dense(struct twin *f, const char *name, bool causal, bool has_lse);

#endif
