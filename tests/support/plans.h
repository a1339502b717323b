/* Random plans of every kind, and who sees whom in them by the words of fovea/ops.h alone (no shared code). */
#ifndef FV_TEST_PLANS_H
#define FV_TEST_PLANS_H

#include "fovea/ops.h"
#include "support/support.h"

/* What a random plan is made of. */
enum {
    PLAN_CAUSAL = 1 << 0,
    PLAN_WINDOW = 1 << 1,
    PLAN_HEAD_WINDOWS = 1 << 2,
    PLAN_POSITIONS = 1 << 3, /* ascending key positions */
    PLAN_DISORDER = 1 << 4,  /* with POSITIONS or SEGMENTS: in no order */
    PLAN_SEGMENTS = 1 << 5,
    PLAN_INTERVALS = 1 << 6,
    PLAN_LIFETIMES = 1 << 7,
    PLAN_LISTS = 1 << 8,
    PLAN_RAGGED = 1 << 9, /* lists by query_start and key_start */
    PLAN_TILES = 1 << 10,
    PLAN_ENTRY_BIAS = 1 << 11,
    PLAN_SLOTS = 1 << 12,
    PLAN_OFFSET = 1 << 13,
    PLAN_GRID = 1 << 14, /* N and M must be those of test_plan_grid */
    PLAN_KINDS = 15,
};

/* Fills a plan (arrays in scratch memory of ctx) for B batches, H query heads over Hkv, N queries and M keys. */
void test_plan_random(fv_ctx *ctx, fv_random *random, unsigned kinds, int64_t B, int64_t H, int64_t Hkv, int64_t N,
                      int64_t M, fv_plan *plan);

/* A random grid; returns its tokens, and how many of its cells are queries. */
int64_t test_plan_grid(fv_random *random, fv_grid *grid);
int64_t test_plan_grid_queries(const fv_grid *grid);

/* Rows of o: N, or the slots (the same for every batch and head). */
int64_t test_plan_rows(const fv_plan *plan, int64_t N);
int64_t test_plan_query(const fv_plan *plan, int64_t H, int64_t b, int64_t h, int64_t i);
/* Visibility, and the bias of the list entry that shows the pair. */
bool test_plan_sees(const fv_plan *plan, int64_t H, int64_t b, int64_t h, int64_t i, int64_t j, double *bias);

/* A random choice of kinds that go together. */
unsigned test_plan_kinds(fv_random *random);

#endif
