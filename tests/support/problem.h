/* Random calls of attend, and their definition as double loops written from fovea/ops.h. */
#ifndef FV_TEST_PROBLEM_H
#define FV_TEST_PROBLEM_H

#include "support/plans.h"

struct problem {
    int64_t B, H, Hkv, N, M, D, Dv, S; /* S rows of o */
    fv_plan plan;
    fv_attend_args args;
    int32_t *key_head;
};

/* Shapes: odd lengths, N != M, groups, batches, D 16..256 (one in four), one token.  p stays where it is: args.plan
 * points into it. */
void test_problem(fv_ctx *ctx, fv_random *random, unsigned kinds, struct problem *p);
/* Adds terms to the logits, sinks and a head map at random. */
void test_problem_logits(fv_ctx *ctx, fv_random *random, struct problem *p);

struct naive {
    double *o, *lse, *max, *probability; /* [B,H,S,..]; probability [B,H,S,M] */
    int64_t *arg;
    uint64_t negative; /* changes when a logit changes its sign, where gain has a kink */
};

void test_problem_define(fv_ctx *ctx, const struct problem *p, struct naive *out);
double test_problem_logit(const struct problem *p, int64_t b, int64_t h, int64_t i, int64_t j);

/* Kernels may compute in f32: logits err by eps * (D + 8) * |s|, s up to about 40 here, which weights inherit; a sum of
 * M of them errs by eps * M more. */
double test_problem_tolerance(const struct problem *p);

/* Where the bias by offset, and those of rows and columns, are read for a query and a key. */
int64_t test_offset_at(const struct problem *p, int64_t query, int64_t j);
int64_t test_row_at(const struct problem *p, int64_t query, int64_t j);
int64_t test_column_at(const struct problem *p, int64_t query, int64_t j);

/* low..high, both included; one chance in so many; element of a tensor of up to four dims, where dims of 1 repeat. */
int64_t test_between(fv_random *random, int64_t low, int64_t high);
bool test_chance(fv_random *random, int64_t one_in);
double test_at(const fv_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d);

#endif
