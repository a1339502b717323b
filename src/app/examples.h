/* Calls of mechanisms by name where a person gave no tensors: to be timed or drawn. */
#ifndef APP_EXAMPLES_H
#define APP_EXAMPLES_H

#include "attention/mechanism.h"
#include "base/text.h"

/* The mechanism that a SPEC names.  FV_E_USAGE offers the nearest name. */
fv_status example_mechanism(const char *spec, const fv_mechanism **mechanism);
const fv_option *example_option(const fv_mechanism *mechanism, const char *name); /* NULL: none */

/* Adds an option to a SPEC unless it is given there. */
void example_add(fv_text *spec, const char *name, const char *value);

/* Cells of the grid that a SPEC gives; 0: it gives none. */
int64_t example_cells(const char *spec);

/* Completes a SPEC for a call of so many heads and tokens with what it needs and does not give: a grid as square as can
 * be and a window on it, groups that divide its sides, or frames, and the square root of the tokens as clusters.
 * *causal: the call is, wherever that can be and nothing lies on a grid.  What cannot be completed fails with the
 * mechanism's own sentence. */
fv_status example_spec(const char *given, int64_t heads, int64_t tokens, int64_t dim, fv_text *spec, bool *causal);

/* The same for a call that is to be looked at: options that are not given and hold whole numbers become
 * smaller, by halves, where their defaults would show nearly all pairs of so few tokens.  What a mechanism without
 * pairs says fails with FV_E_USAGE. */
fv_status example_fit(fv_ctx *ctx, const char *given, int64_t heads, int64_t tokens, uint64_t seed, fv_text *spec,
                      bool *causal);

/* q, k, v and o [1,heads,tokens,dim] of a call in scratch memory: v is k, o is not filled. */
fv_status example_call(fv_ctx *ctx, int64_t heads, int64_t tokens, int64_t dim, uint64_t seed, fv_attention_args *args);

/* Makes noise q and k [B,H,N,D] a little like those of models: one key in 64 stands out for a query, the same ones for
 * all queries of an eighth of the text, and others in the next. */
void example_topics(const fv_tensor *q, const fv_tensor *k, uint64_t seed);

#endif
