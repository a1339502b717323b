/* The pairs of a mechanism as text. */
#ifndef FV_TEST_SEEN_H
#define FV_TEST_SEEN_H

#include "fovea/attention.h"
#include "support/support.h"

/* The keys that query i of head h of batch b sees are exactly `expected`: "0 1 3". */
void test_seen(fv_ctx *ctx, const char *spec, const fv_attention_args *args, int64_t b, int64_t h, int64_t i,
               const char *expected);

#endif
